"""What tests of "any" draw: states, names of all sorts, ways to store arrays.

States are the trees of `sample_trees` with leaves of the types that `sample_leaves`
teaches; the options change what is on disk, and nothing of what is loaded.
"""

import datetime as dt
import decimal
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine
from sample_leaves import DatetimeHandler, DecimalHandler, Quantised, QuantisedHandler
from sample_trees import Point, bits, dtype, leaves, orbax_leaves, shardings, trees

import stowax
from stowax._keypath import flatten
from stowax.options import ArrayOptions, FileOptions, PyTreeOptions

SOAK = int(os.environ.get("STOWAX_SOAK", "0"))

# By default 300, after which pytest ends the test as deadlocked and nobody sees why.
engine.MAX_SHRINKING_SECONDS = 60

Test = TypeVar("Test", bound=Callable[..., None])

HANDLERS = (DecimalHandler, DatetimeHandler, QuantisedHandler)


def examples(count: int) -> Callable[[Test], Test]:
    """Makes a test try as many examples; in a soak thirty times as many, in rounds."""

    def decorate(test: Test) -> Test:
        chosen = settings(
            max_examples=6 * count if SOAK else count,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        return pytest.mark.usefixtures("rounds")(chosen(test))

    return decorate


def taught_leaves() -> st.SearchStrategy[Any]:
    """Leaves of the types that `HANDLERS` teach."""
    zones = st.integers(-1400, 1400).map(
        lambda minutes: dt.timezone(dt.timedelta(minutes=minutes), "somewhere")
    )
    spread = st.sampled_from([*shardings().values()])
    return st.one_of(
        st.decimals(),
        st.datetimes(timezones=zones).map(lambda when: when.replace(fold=0)),
        st.builds(
            Quantised,
            spread.map(
                lambda sharding: jax.device_put(bits("int8", (8, 16)), sharding)
            ),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
    )


def states() -> st.SearchStrategy[Any]:
    """Any tree that can be saved."""
    return trees(leaves() | taught_leaves()).filter(lambda tree: tree is not None)


def orbax_states() -> st.SearchStrategy[Any]:
    """Trees that Orbax can save, too: it saves no empty ones."""
    return trees(orbax_leaves()).filter(lambda tree: flatten(tree).leaves)


def is_taught(value: Any) -> bool:
    """Whether a container is a leaf, because its type is taught."""
    return isinstance(value, Quantised)


def stored_form(leaf: Any) -> Any:
    """What is stored of a leaf: of one that is taught, another."""
    if isinstance(leaf, Quantised):
        return leaf.values
    if isinstance(leaf, decimal.Decimal):
        return str(leaf)
    if isinstance(leaf, dt.datetime):
        return DatetimeHandler().stage(leaf)
    return leaf


COMPRESSIONS = (None, "none", "zstd", "blosc", "auto")


def our_saving() -> st.SearchStrategy[ArrayOptions.Saving]:
    """Ways to store arrays that Stowax has."""
    chunks = st.sampled_from([16, 24, 100])
    storage = ArrayOptions.Saving.StorageOptions
    return st.builds(
        lambda given: ArrayOptions.Saving(**given),
        st.fixed_dictionaries(
            {},
            optional={
                "storage_options": st.builds(
                    storage,
                    chunk_byte_size=st.none() | chunks,
                    compression=st.sampled_from(COMPRESSIONS),
                ),
                "use_compression": st.booleans(),
                "ocdbt_target_data_file_size": st.sampled_from([0, 50, 1000]),
                "use_replica_parallel": st.booleans(),
            },
        ),
    )


def context(
    store: Any = None,
    *,
    saving: ArrayOptions.Saving | None = None,
    casting: str = "unsafe",
    **loading: Any,
) -> stowax.Context:
    """A Context that knows the taught leaves, with options of saving and loading."""
    return stowax.Context(
        file=FileOptions(store=store),
        array=ArrayOptions(
            saving=ArrayOptions.Saving() if saving is None else saving,
            loading=ArrayOptions.Loading(casting=casting),
        ),
        pytree=PyTreeOptions(
            loading=PyTreeOptions.Loading(**loading), leaf_handlers=HANDLERS
        ),
    )


def cast(array: np.ndarray, name: str) -> np.ndarray:
    """NumPy's conversion to a dtype; by way of float32, where it knows none."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not np.can_cast(array.dtype, dtype(name), "unsafe"):
            array = array.astype(np.float32)
        return array.astype(dtype(name))


def spread(tree: Any) -> list[jax.Array]:
    """The arrays of a tree that lie on several devices: they come back to these."""
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    ]


SPECIAL_NAMES = [
    *("", ".", "..", "../x", "/", "//", "/etc/x", "\\", "C:", "~", "~root", "~1", "a~"),
    *("zarr.json", ".zarray", "c/0", "d", "_METADATA", "_sharding", "stowax.manifest"),
    *("manifest.ocdbt", "checkpoint", "%2e%2e", "%00", "\0", "\n", " ", "a ", "-", "0"),
    *("é", "e\u0301", "雪", "\u202e", "\uffff", "🧊", "a" * 300, "A"),
]
"""Names that mean something to a file system, to a format, or to a parser."""


def odd_names() -> st.SearchStrategy[str]:
    """Names of leaves that anybody could trip over."""
    return st.sampled_from(SPECIAL_NAMES) | st.text("ab0./~%: é", max_size=3)


def odd_trees() -> st.SearchStrategy[Any]:
    """Trees of dicts with odd names, in which two leaves may get one name."""
    leaf = st.one_of(
        st.integers(0, 9),
        st.text("ab", max_size=2),
        st.builds(bits, st.just("int8"), st.sampled_from([(), (3,), (2, 2)])),
        st.builds(np.float32, st.just(1)).map(jax.device_put),
        st.just({}),
        st.none(),
    )

    def containers(child: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(odd_names(), child, min_size=1, max_size=4),
            st.lists(child, min_size=1, max_size=2),
            st.builds(Point, child, child),
        )

    return st.dictionaries(
        odd_names(), st.recursive(leaf, containers, max_leaves=5), max_size=4
    )
