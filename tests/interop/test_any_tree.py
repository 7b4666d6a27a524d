"""Any tree goes from one library to the other, as far as Orbax can hold it.

However it is stored, as far as the options of either library change that, and however
it is loaded.  Comparisons are bit for bit; each library is the other's oracle.
"""

import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from orbax_options import orbax_context
from sample_states import (
    cast,
    context,
    examples,
    is_taught,
    odd_trees,
    orbax_states,
    our_saving,
    spread,
    states,
    stored_form,
)
from sample_trees import (
    JAX_DTYPES,
    Point,
    abstract,
    as_orbax_has_it,
    bits,
    differences,
    dtype,
    is_file_name,
    mesh,
    orbax_holds,
)

import stowax
from stowax._keypath import flatten, unflatten
from stowax.errors import KeyPathCollisionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def their_saving():
    """Ways to store arrays that Orbax has."""
    return st.fixed_dictionaries(
        {},
        optional={
            "use_ocdbt": st.booleans(),
            "use_zarr3": st.booleans(),
            "use_compression": st.booleans(),
            "chunk_byte_size": st.sampled_from([16, 24, 100]),
            "ocdbt_target_data_file_size": st.sampled_from([0, 1000]),
            "use_replica_parallel": st.booleans(),
            "enable_replica_parallel_separate_folder": st.booleans(),
        },
    )


def our_context(saving=None, *, rich_types=False):
    """A Context with options, in which one of our NamedTuples may be made."""
    found = context(saving=saving, container_types=(Point,))
    found.pytree.saving.pytree_metadata_options.support_rich_types = rich_types
    return found


@given(
    first=orbax_states(), second=orbax_states(), saving=our_saving(), rich=st.booleans()
)
@examples(15)
def test_ours_to_orbax(first, second, saving, rich):
    """What we save Orbax loads: with a target exactly, without as it has trees."""
    parts = {"state": first, "other": second}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        with our_context(saving, rich_types=rich):
            stowax.save_checkpointables(path, parts)

        exact = v1.load_checkpointables(path, abstract(parts))
        bare = v1.load_checkpointables(path)
        alone = v1.load(path)

    assert differences(parts, exact) == []
    assert differences({n: as_orbax_has_it(t) for n, t in parts.items()}, bare) == []
    assert differences(as_orbax_has_it(first), alone) == []


@given(
    first=orbax_states(),
    second=orbax_states(),
    saving=their_saving(),
    rich=st.booleans(),
)
@examples(15)
def test_orbax_to_us(first, second, saving, rich):
    """What Orbax saves we load: with a target exactly, without as Orbax does."""
    if not saving.get("use_ocdbt", True):
        assume(all(is_file_name(n) for t in (first, second) for n in flatten(t).names))
    parts = {"state": first, "other": second}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        with orbax_context(saving, rich_types=rich):
            v1.save_checkpointables(path, parts)

        expected = v1.load_checkpointables(path)
        exact = stowax.load_checkpointables(path, abstract(parts))
        bare = {
            "all": stowax.load_checkpointables(path),
            "metadata": stowax.load_checkpointables(
                path, stowax.checkpointables_metadata(path)
            ),
        }
        with our_context(rich_types=rich):
            typed = stowax.load_checkpointables(path)
        alone = {
            name: stowax.load_leaf(path, name, checkpointable_name="other")
            for name in flatten(second).names
        }

    assert differences(parts, exact, placement=True) == []
    for found in bare.values():
        assert differences(expected, found) == []
        assert differences(spread(expected), spread(found), placement=True) == []
    richly = {n: as_orbax_has_it(t, rich_types=rich) for n, t in parts.items()}
    assert differences(richly, typed) == []
    flat = flatten(expected["other"])
    assert differences(dict(zip(flat.names, flat.leaves, strict=True)), alone) == []


LACKING = {
    "integers": [2**70, -(2**70)],
    "complex": 1 + 2j,
    "bytes": [b"bytes", b""],
    "own": [bits("uint2", (3,)), bits("float6_e2m3fn", (2, 2))],
    "no elements": [np.zeros((0, 2)), jax.device_put(np.zeros(0, np.float32))],
    "numpy": np.float32(1.5),
    "others": {"w": bits("float32", (3, 2)), "n": 1, "s": "text", "x": 0.5},
}


@given(state=states(), saving=our_saving())
@example(state=LACKING, saving=stowax.options.ArrayOptions.Saving())
@examples(20)
def test_what_orbax_lacks_hides_nothing(state, saving):
    """Of any tree, Orbax loads every leaf that it can hold, whatever is beside it."""
    with tempfile.TemporaryDirectory() as directory:
        with context(saving=saving):
            stowax.save(Path(directory) / "c", state)

        found = flatten(v1.load(Path(directory) / "c"))

    saved = flatten(state, is_taught)
    leaves = dict(zip(found.names, found.leaves, strict=True))
    assert sorted(leaves) == sorted(saved.names)
    for name, leaf in zip(saved.names, map(stored_form, saved.leaves), strict=True):
        if orbax_holds(leaf):
            assert differences(leaf, leaves[name]) == []


@given(state=odd_trees())
@example(state={"": {"": bits("int8", (3,)), ".": 1}, "c": bits("int8", (2, 2))})
@example(state={"/": bits("int8", (3,)), "b": 1})
@examples(12)
def test_names(state):
    """Both libraries give a leaf the same name, whatever its keys are."""
    assume(flatten(state).leaves)
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "ours"), Path(directory, "theirs")
        try:
            stowax.save(ours, state)
        except KeyPathCollisionError:
            assume(False)  # Of such a tree Orbax loses leaves.

        # It fails at strings whose names are no JSON pointers: None, if we saved them.
        seen = without_bad_pointers(state)
        assert differences(seen, v1.load(ours, abstract(state))) == []
        assert differences(as_orbax_has_it(seen), v1.load(ours)) == []
        if flatten(seen).leaves:
            v1.save(theirs, seen)
            assert differences(seen, stowax.load(theirs, abstract(seen))) == []
            assert differences(as_orbax_has_it(seen), stowax.load(theirs)) == []


def without_bad_pointers(state):
    """The tree with None in place of strings whose names have a "~" of no escape."""
    flat = flatten(state)
    leaves = [
        None if isinstance(leaf, str) and re.search("~(?![01])", name) else leaf
        for name, leaf in zip(flat.names, flat.leaves, strict=True)
    ]
    return unflatten(flat.root, leaves)


class TestPlacementAndDtype:
    """Up to four arrays at once; values that every dtype has, or wraps alike."""

    # Orbax makes nonsense of float8_e8m0fnu: 1.0 comes out of it as 1.8446744e+19.
    DTYPES = tuple(name for name in JAX_DTYPES if name != "float8_e8m0fnu")

    @staticmethod
    @st.composite
    def arrays(draw):
        """An array, what is asked for, and what that is."""
        stored, asked = (
            draw(st.sampled_from(TestPlacementAndDtype.DTYPES)) for _ in range(2)
        )
        if (stored, asked) == ("complex64", "bool"):
            asked = stored  # TensorStore does not convert it.
        shape = tuple(draw(st.lists(st.sampled_from([4, 8]), max_size=3)))
        values = draw(st.integers(-2, 7)) + np.arange(np.prod(shape)) % 3
        host = cast(values.reshape(shape), stored)
        before, after = (draw(shardings_of(len(shape))) for _ in range(2))
        expected = jax.device_put(cast(host, asked), after)
        target = jax.ShapeDtypeStruct(shape, dtype(asked), sharding=after)
        return jax.device_put(host, before), target, expected

    @given(drawn=st.lists(arrays(), min_size=1, max_size=4), saving=their_saving())
    @examples(15)
    @pytest.mark.filterwarnings("ignore:.*lose values:UserWarning")
    def test_both(self, drawn, saving):
        """Onto any mesh, and in any dtype, both make the same of what either saved."""
        state, target, expected = (
            {f"x{i}": each[k] for i, each in enumerate(drawn)} for k in range(3)
        )
        with tempfile.TemporaryDirectory() as directory:
            ours, theirs = Path(directory, "ours"), Path(directory, "theirs")
            stowax.save(ours, state)
            with orbax_context(saving):
                v1.save(theirs, state)

            found = [
                load(path, target)
                for load in (stowax.load, v1.load)
                for path in (ours, theirs)
            ]

        for loaded in found:
            assert differences(expected, loaded, placement=True) == []


def shardings_of(ndim):
    """Ways to lay an array of as many axes out, each of which 4 divides."""

    def lay(shape, axes):
        over = mesh(*shape)
        names = [axis if axis in over.axis_names else None for axis in axes]
        return NamedSharding(over, P(*names[:ndim]))

    axes = st.permutations(["x", "y", None])
    return st.builds(lay, st.sampled_from([(4,), (2, 2), (4, 2), (1,)]), axes)
