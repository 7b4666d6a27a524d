"""Types of leaves that users teach: the contract suite, and what holds around it."""

import asyncio
import dataclasses
import datetime as dt
import decimal
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as peer
from sample_leaves import DatetimeHandler, DecimalHandler, Quantised, QuantisedHandler
from sample_trees import bits, differences, shardings

import stowax
from stowax._codecs._checksum import seal, unseal
from stowax._codecs._item_manifest import decode_root
from stowax.errors import (
    HandlerError,
    LeafIndexError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.handlers import CustomLeafMetadata, PyTreeHandler
from stowax.options import ArrayOptions, FileOptions, PyTreeOptions
from stowax.testing import MemoryStore, SimulatedCluster
from stowax.testing.leaf_suite import LeafSuite

D = decimal.Decimal
REPOSITORY = Path(__file__).parents[4]


def quantised(sharding="both", scale=0.5):
    """Numbers that are spread over the devices of this process."""
    values = jax.device_put(bits("int8", (8, 16)), shardings()[sharding])
    return Quantised(values=values, scale=scale)


def taught(*handlers, **options):
    """A Context that knows more types of leaves."""
    return stowax.Context(pytree=PyTreeOptions(leaf_handlers=handlers), **options)


class TestDecimal(LeafSuite):
    def make_handler(self):
        return DecimalHandler()

    def make_values(self):
        return [D("0.10"), D("-1E+9"), D("Infinity")]

    def targets_of(self, value):
        return [value, D(0), D]


class TestDatetime(LeafSuite):
    def make_handler(self):
        return DatetimeHandler()

    def make_values(self):
        zone = dt.timezone(dt.timedelta(hours=-3, minutes=-30), "there")
        return [
            dt.datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
            dt.datetime(1, 1, 1, tzinfo=zone),
        ]

    def targets_of(self, value):
        return [value, dt.datetime, dt.datetime.now(dt.UTC)]

    def is_same(self, expected, found):
        return expected.isoformat() == found.isoformat()


class TestQuantised(LeafSuite):
    def make_handler(self):
        return QuantisedHandler()

    def make_values(self):
        host = Quantised(values=bits("int8", (3,)), scale=0.1)
        free = Quantised(values=jnp.arange(4, dtype=jnp.int8), scale=1.0)
        return [host, free, quantised()]

    def targets_of(self, value):
        return [value]

    def is_same(self, expected, found):
        spread = isinstance(expected.values, jax.Array) and expected.values.committed
        placement = not spread or expected.values.sharding == found.values.sharding
        return placement and type(found) is Quantised and expected == found


# --- placement ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*shardings(), None])
def test_resharding(place, name):
    """The target's sharding is that of the loaded stored form, whatever was saved."""
    value = quantised()
    with place.context(pytree=PyTreeOptions(leaf_handlers=(QuantisedHandler(),))):
        stowax.save(place / "c", {"q": value})
        sharding = None if name is None else shardings()[name]
        target = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=sharding)

        found = stowax.load(place / "c", {"q": target})["q"]

    assert found == value
    assert found.values.sharding == (sharding or value.values.sharding)


def test_metadata_may_ask_for_another_placement(tmp_path):
    """`dataclasses.replace` on the metadata leaf chooses the form to load."""
    with taught(QuantisedHandler()):
        stowax.save(tmp_path / "c", {"q": quantised()})
        leaf = stowax.metadata(tmp_path / "c").metadata["q"]
        stored = dataclasses.replace(leaf.stored, sharding=shardings()["rows"])

        asked = {"q": dataclasses.replace(leaf, stored=stored)}
        found = stowax.load(tmp_path / "c", asked)["q"]

    assert found.values.sharding == shardings()["rows"]
    assert found == quantised()


def test_several_processes_each_load_their_part():
    """Eight processes write their shards, and each loads onto its own device."""
    store, value = MemoryStore(), quantised()
    own = [jax.sharding.SingleDeviceSharding(device) for device in jax.devices()]

    with SimulatedCluster(8) as cluster:

        def context(index):
            file = FileOptions(store=store)
            return taught(
                QuantisedHandler(), file=file, runtime=cluster.runtimes[index]
            )

        def save(index):
            with context(index):
                stowax.save("/runs/c", {"q": value})

        def load(index):
            target = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=own[index])
            with context(index):
                return stowax.load("/runs/c", {"q": target})["q"]

        cluster.run(save)
        found = cluster.run(load)

    assert [each.values.sharding for each in found] == own
    # Compared on the host: the values lie on devices that have nothing in common.
    assert all(
        differences(np.asarray(value.values), np.asarray(each.values)) == []
        for each in found
    )


# --- who knows what -------------------------------------------------------------------


def test_orbax_loads_the_stored_form(tmp_path):
    """Orbax loads all leaves, a taught one in its stored form, with its placement."""
    state = {"q": quantised(), "price": D("0.10"), "w": np.arange(3.0)}
    with taught(QuantisedHandler(), DecimalHandler()):
        stowax.save(tmp_path / "c", state)

    found = peer.load(tmp_path / "c")
    shown = peer.metadata(tmp_path / "c").metadata

    stored = {"q": state["q"].values, "price": "0.10", "w": state["w"]}
    assert differences(stored, found, placement=True) == []
    assert (shown["q"].shape, shown["q"].dtype) == ((8, 16), np.int8)


def test_targets_for_the_stored_form(tmp_path):
    """A target that the handler does not take asks for the stored form."""
    with taught(DecimalHandler(), QuantisedHandler()):
        stowax.save(tmp_path / "c", {"price": D("0.10"), "q": quantised()})
        target = {"price": str, "q": np.zeros((8, 16), np.int8)}
        known = stowax.load(tmp_path / "c", target)
    unknown = stowax.load(tmp_path / "c", target)

    assert known["price"] == unknown["price"] == "0.10"
    assert differences(known["q"], unknown["q"]) == []


def test_untaught_target_says_what_to_do(tmp_path):
    """A value of a type that this program does not know: the error names the type."""
    with taught(DecimalHandler()):
        stowax.save(tmp_path / "c", {"price": D("0.10")})

    with pytest.raises(UnsupportedLeafError, match=r"'decimal\.Decimal'.*teach it"):
        stowax.load(tmp_path / "c", {"price": D(0)})


def test_readers_without_such_entries(tmp_path):
    """What says the type is one entry more: without it, all is there."""
    with taught(DecimalHandler()):
        stowax.save(tmp_path / "c", {"price": D("0.10")})
    path = tmp_path / "c" / "state" / "stowax.manifest"
    document = unseal(path.read_bytes())

    assert document["forms"] == [
        {
            "kind": "string",
            "text": "0.10",
            "custom": {"type": "decimal.Decimal", "facts": None},
        }
    ]
    del document["forms"][0]["custom"]
    (leaf,) = decode_root(seal(document)).leaves
    assert (leaf.form.kind, leaf.form.text, leaf.form.custom) == (
        "string",
        "0.10",
        None,
    )


def test_the_last_one_is_asked_first(tmp_path):
    """Of two handlers that accept a value, the later one saves it."""

    class Rounded(DecimalHandler):
        typestr = "tests.Rounded"

        def stage(self, value):
            return float(value)

    state = {"price": D("0.5")}
    with taught(DecimalHandler(), Rounded()):
        stowax.save(tmp_path / "c", state)
    with taught(DecimalHandler()):
        stowax.save(tmp_path / "d", state)

    assert stowax.load(tmp_path / "c") == {"price": 0.5}
    with taught(DecimalHandler(), Rounded()):
        # Each type is found by its name, whoever is asked first.
        assert stowax.load(tmp_path / "c", state) == state
        assert stowax.load(tmp_path / "d", state) == state


def test_slices_are_of_the_stored_form(tmp_path):
    """One leaf alone is the value; a slice of it is one of its stored form."""
    with taught(QuantisedHandler(), DecimalHandler()):
        stowax.save(tmp_path / "c", {"q": quantised(), "price": D("0.10")})

        assert stowax.load_leaf(tmp_path / "c", "q") == quantised()
        found = stowax.load_leaf(tmp_path / "c", "q", index=np.s_[1, :])
        with pytest.raises(LeafIndexError, match="no slices"):
            stowax.load_leaf(tmp_path / "c", "price", index=0)

    assert differences(np.asarray(quantised().values)[1], np.asarray(found)) == []


def test_preview(tmp_path):
    """A dry run says what is stored of a value, and what was asked for."""
    with taught(QuantisedHandler(), DecimalHandler()):
        stowax.save(tmp_path / "c", {"q": quantised(), "price": D("0.10"), "n": 1})
        wrong = {"q": quantised(), "price": quantised(), "n": D}
        preview = stowax.preview_load(tmp_path / "c", wrong)

    assert [(row.stored_form, row.outcome) for row in preview.rows] == [
        ("int", "mismatch"),
        ("'decimal.Decimal' as string", "mismatch"),
        ("'tests.Quantised' as int8[8, 16]", "as is"),
    ]
    assert [row.asked_form for row in preview.rows[:2]] == [
        "'decimal.Decimal'",
        "'tests.Quantised'",
    ]


def test_dtypes_of_their_own(tmp_path):
    """A value may have a dtype that means nothing to NumPy."""

    class Odd(Quantised):
        dtype = "two bits and a sign"
        shape = "round"

    value = Odd(values=np.arange(3, dtype=np.int8), scale=1.0)
    with taught(QuantisedHandler()):
        stowax.save(tmp_path / "c", {"q": value})

        preview = stowax.preview_load(tmp_path / "c", {"q": value})
        assert "two bits" in str(preview)
        with pytest.raises(TreeMismatchError, match="two bits"):
            stowax.load(tmp_path / "c", {"other": value})


def test_as_numpy(tmp_path):
    """Where all is to come as NumPy, so does the stored form."""
    loading = ArrayOptions.Loading(as_numpy=True)
    with taught(QuantisedHandler(), array=ArrayOptions(loading=loading)):
        stowax.save(tmp_path / "c", {"q": quantised()})

        found = stowax.load(tmp_path / "c")["q"]

    assert type(found.values) is np.ndarray
    assert found == quantised()


def test_renamed(tmp_path):
    """A value is found under another name as any leaf is."""
    loading = PyTreeOptions.Loading(rename={"cost": "price"})
    options = PyTreeOptions(leaf_handlers=(DecimalHandler(),), loading=loading)
    with taught(DecimalHandler()):
        stowax.save(tmp_path / "c", {"price": D("0.10")})

    with stowax.Context(pytree=options):
        assert stowax.load(tmp_path / "c") == {"cost": D("0.10")}
        assert stowax.load(tmp_path / "c", {"cost": D}) == {"cost": D("0.10")}


def test_standard_kinds_can_be_taught_anew(tmp_path):
    """A handler is asked before the standard kinds, of their values too."""

    class Spelled:
        typestr = "tests.Spelled"

        def accepts(self, value):
            return type(value) is bool

        def describe(self, value):
            return {}

        def stage(self, value):
            return "yes" if value else "no"

        def accepts_target(self, target):
            return target is bool or type(target) is bool

        def want(self, target, facts):
            return str

        def place(self, stored, facts, target):
            return stored == "yes"

    with taught(Spelled):  # A class will do.
        stowax.save(tmp_path / "c", {"flag": True, "n": 1})
        assert stowax.load(tmp_path / "c", {"flag": bool, "n": int})["flag"] is True
    # Orbax has no metadata of a tree that holds a bool.
    assert peer.metadata(tmp_path / "c").metadata == {"flag": "string", "n": 0}


def test_containers_can_be_leaves(tmp_path):
    """What JAX takes for a container is a leaf where its type is taught."""
    value = quantised()
    stowax.save(tmp_path / "plain", {"q": value})
    with taught(QuantisedHandler()):
        stowax.save(tmp_path / "c", {"q": value})

    assert list(stowax.load(tmp_path / "plain")["q"]) == ["values"]
    assert isinstance(stowax.load(tmp_path / "c")["q"], jax.Array)


def test_handler_alone(tmp_path):
    """`PyTreeHandler` knows the types of its own Context, or of the active one."""
    state = {"price": D("0.10")}

    async def there_and_back(handler):
        await (await handler.save(tmp_path / "item", state))
        return await (await handler.load(tmp_path / "item")), await handler.metadata(
            tmp_path / "item"
        )

    handler = PyTreeHandler(context=taught(DecimalHandler()))
    found, shown = asyncio.run(there_and_back(handler))

    assert found == state
    assert shown["price"].stored == "string"
    assert handler.is_handleable(state)
    assert handler.is_abstract_handleable({"price": D, "other": shown["price"]})
    assert not PyTreeHandler().is_handleable(state)
    assert not PyTreeHandler().is_abstract_handleable(state)
    with taught(DecimalHandler()):
        assert PyTreeHandler().is_handleable(state)


def test_own_context_of_a_handler_counts_within_a_save(tmp_path):
    """A handler that was given a Context knows its types in any operation."""
    handler = PyTreeHandler(context=taught(DecimalHandler()))
    options = stowax.options.CheckpointablesOptions.create_with_handlers(bill=handler)

    with stowax.Context(checkpointables=options):
        stowax.save_checkpointables(tmp_path / "c", {"bill": {"price": D("0.10")}})
        found = stowax.load_checkpointables(tmp_path / "c")

    assert found == {"bill": {"price": D("0.10")}}


def test_checkpointables(tmp_path):
    """Trees among several checkpointables may hold such leaves, or be one."""
    parts = {"bill": {"price": D("0.10")}, "total": D("2.50")}

    with taught(DecimalHandler()):
        stowax.save_checkpointables(tmp_path / "c", parts)
        found = stowax.load_checkpointables(tmp_path / "c")

    assert found == parts


# --- what goes wrong ------------------------------------------------------------------


def test_another_type_than_stored_does_not_fit(tmp_path):
    """A value of a taught type asks for that type; all that differ are listed."""
    with taught(DecimalHandler(), QuantisedHandler()):
        stowax.save(
            tmp_path / "c", {"a": "0.10", "b": D("0.10"), "c": quantised().values}
        )
        target = {"a": D(0), "b": quantised(), "c": quantised()}

        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(tmp_path / "c", target)

    assert caught.value.problems == (
        "a: asked 'decimal.Decimal', stored string",
        "b: asked 'tests.Quantised', stored 'decimal.Decimal' as string",
        "c: asked 'tests.Quantised', stored int8[8, 16]",
    )


def test_metadata_of_another_leaf_does_not_fit(tmp_path):
    """Metadata of a taught type ask for that type."""
    stowax.save(tmp_path / "c", {"a": "0.10"})
    other = CustomLeafMetadata(typestr="tests.Other", facts=None, stored="string")

    with pytest.raises(TreeMismatchError, match=r"asked 'tests\.Other'"):
        stowax.load(tmp_path / "c", {"a": other})


def test_shape_of_the_stored_form_must_fit(tmp_path):
    """A stored form that is asked for in another shape is a mismatch like any other."""
    with taught(QuantisedHandler()):
        stowax.save(tmp_path / "c", {"q": quantised()})

        with pytest.raises(
            TreeMismatchError, match=r"q: .* stored 'tests\.Quantised' as"
        ):
            stowax.load(tmp_path / "c", {"q": jax.ShapeDtypeStruct((3,), np.float32)})


@pytest.mark.parametrize("method", ["accepts", "describe", "stage"])
def test_failures_while_saving_name_the_leaf(tmp_path, method):
    """What a handler raises goes to the caller, with the name of the leaf."""
    handler = DecimalHandler()
    setattr(handler, method, broken)

    with taught(handler), pytest.raises(ZeroDivisionError) as caught:
        stowax.save(tmp_path / "c", {"a": [D(1)]})

    assert any("a.0" in note for note in caught.value.__notes__)
    assert f"in the leaf handler {handler.typestr!r}" in caught.value.__notes__
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["accepts_target", "want", "place"])
def test_failures_while_loading_name_the_leaf(tmp_path, method):
    """The same on the way back."""
    handler = DecimalHandler()
    with taught(handler):
        stowax.save(tmp_path / "c", {"a": [D(1)]})
        setattr(handler, method, broken)

        with pytest.raises(ZeroDivisionError) as caught:
            stowax.load(tmp_path / "c", {"a": [D(1)]})

    assert any("a.0" in note for note in caught.value.__notes__)
    assert f"in the leaf handler {handler.typestr!r}" in caught.value.__notes__


def test_an_answer_that_is_no_bool_names_the_handler(tmp_path):
    """An array is neither yes nor no; the error says whose answer it was."""
    handler = DecimalHandler()
    handler.accepts = lambda value: value == np.zeros(2)

    with taught(handler), pytest.raises(ValueError, match="truth value") as caught:
        stowax.save(tmp_path / "c", {"a": np.ones(2)})

    assert f"in the leaf handler {handler.typestr!r}" in caught.value.__notes__


def broken(*args):
    """Stands in for a method of a user that fails at a value of its type."""
    if any(isinstance(arg, D) for arg in args):
        raise ZeroDivisionError
    return False


@pytest.mark.parametrize(
    ("method", "gives", "message"),
    [
        ("stage", {1, 2}, "stages an object of type set"),
        ("stage", D(1), r"stages an object of type decimal\.Decimal"),
        ("stage", None, "stages an object of type NoneType"),
        ("describe", {1, 2}, "what JSON cannot say"),
        ("describe", float("nan"), "what JSON cannot say"),
        ("describe", np.float32(1), "what JSON cannot say"),
    ],
)
def test_broken_promises_while_saving(tmp_path, method, gives, message):
    """A stored form that is no leaf, and facts that are no JSON, are errors."""
    handler = DecimalHandler()
    setattr(handler, method, lambda value: gives)

    with taught(handler), pytest.raises(HandlerError, match=f"'a': .*{message}"):
        stowax.save(tmp_path / "c", {"a": D(1)})

    assert list(tmp_path.iterdir()) == []


def test_broken_promises_while_loading(tmp_path):
    """A stored form that is asked for with no abstract leaf is an error."""
    handler = DecimalHandler()
    handler.want = lambda target, facts: D
    with taught(handler):
        stowax.save(tmp_path / "c", {"a": D(1)})

        with pytest.raises(HandlerError, match=r"'a': .*'decimal\.Decimal'"):
            stowax.load(tmp_path / "c", {"a": D})


def nameless():
    """A handler without a name."""
    handler = DecimalHandler()
    handler.typestr = ""
    return handler


@pytest.mark.parametrize(
    ("handlers", "message"),
    [
        ((object(),), "lacks accepts, describe, stage, accepts_target, want, place"),
        ((nameless(),), "`typestr` is ''"),
        ((DecimalHandler(), DecimalHandler()), r"two .* 'decimal\.Decimal'"),
    ],
    ids=["object", "nameless", "twice"],
)
def test_what_is_no_handler_is_refused(tmp_path, handlers, message):
    """Options that name no proper handlers are refused; nothing is written."""
    with taught(*handlers), pytest.raises(HandlerError, match=message):
        stowax.save(tmp_path / "c", {"a": 1})

    assert list(tmp_path.iterdir()) == []


def test_suite_of_the_page(tmp_path):
    """The suite that the page about such leaves shows passes, as it stands there."""
    page = REPOSITORY / "docs" / "how-to" / "custom-leaves.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "test_page.py").write_text("\n".join(blocks))

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir=.", "test_page.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "passed" in ran.stdout


def test_class_that_takes_arguments(tmp_path):
    """A class that cannot be made without arguments is refused by name."""

    class Scaled:
        def __init__(self, scale):
            self.scale = scale

    context = stowax.Context()
    context.pytree.leaf_handlers = (Scaled,)

    with context, pytest.raises(HandlerError, match=r"Scaled.*give an instance"):
        stowax.save(tmp_path / "c", {"a": 1})

    assert list(tmp_path.iterdir()) == []
