"""The dry run of a load."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_trees import bits, shardings

import stowax
from stowax.errors import RenameError, TreeMismatchError, UnsupportedLeafError
from stowax.options import ArrayOptions, FileOptions, PyTreeOptions
from stowax.testing import MemoryStore, RecordingStore

STATE = {
    "w": bits("float32", (8, 16)),
    "b": np.arange(3),
    "step": 7,
    "name": "text",
}


def options(**rules):
    """A Context's options with something of everything."""
    return {
        "pytree": PyTreeOptions(
            loading=PyTreeOptions.Loading(partial_load=True, rename=rules)
        ),
        "array": ArrayOptions(
            loading=ArrayOptions.Loading(enable_padding_and_truncation=True)
        ),
    }


@pytest.fixture
def saved(place):
    """A saved state; the path."""
    stowax.save(place / "checkpoint", STATE)
    return place / "checkpoint"


def test_what_happens(place, saved):
    """Every leaf is there: as is, cast, padded, left out, or why it does not fit."""
    asked = {
        "kernel": jax.ShapeDtypeStruct((8, 20), jnp.int8),
        "b": np.zeros(3, int),
        "rate": float,
        "step": str,
        "skip": ...,
    }

    with place.context(**options(kernel="w")):
        preview = stowax.preview_load(saved, asked)

    assert [
        (r.target, r.stored, r.stored_form, r.asked_form, r.outcome)
        for r in preview.rows
    ] == [
        ("b", "b", "int64[3]", "int64[3]", "as is"),
        ("kernel", "w", "float32[8, 16]", "int8[8, 20]", "cast, padded"),
        ("rate", None, "", "float", "mismatch"),
        ("skip", None, "", "", "not loaded"),
        ("step", "step", "int", "string", "mismatch"),
        (None, "name", "string", "", "not loaded"),
    ]
    assert preview.rows[1].note == "float32 to int8 drops fractions"
    assert preview.problems == (
        "rate: asked float, not stored",
        "step: asked string, stored int",
    )
    assert preview.path == f"{saved}/state"


def test_none_in_place_of_a_leaf(saved):
    """A stored leaf that None stands for is not passed over in silence."""
    asked = {**stowax.metadata(saved).metadata, "b": None, "more": None}

    preview = stowax.preview_load(saved, asked)

    (row,) = [row for row in preview.rows if row.outcome != "as is"]
    assert (row.target, row.stored, row.outcome) == ("b", "b", "not loaded")
    assert str(row) == "b: asked None, stored int64[3]"
    assert preview.problems == ()


def test_table(place, saved):
    """Printed, it is a table that says all of that."""
    with place.context(**options(count="step")):
        preview = stowax.preview_load(
            saved, {"count": int, "w": np.zeros((8, 10), "f4")}
        )

    assert str(preview) == repr(preview)
    assert str(preview).splitlines() == [
        f"{saved}/state",
        "result  stored as  stored          asked           what happens",
        "count   step       int             int             as is",
        "w       w          float32[8, 16]  float32[8, 10]  padded",
        "-       b          int64[3]        -               not loaded",
        "-       name       string          -               not loaded",
        "1 as is, 1 padded, 2 not loaded",
    ]


def test_it_says_what_a_load_raises(saved):
    """Its problems are those of the load, which raises exactly what `check` raises."""
    asked = {"w": np.zeros((8, 16), "f4"), "b": str, "nmae": str, "step": int}
    preview = stowax.preview_load(saved, asked)

    with pytest.raises(TreeMismatchError) as loaded:
        stowax.load(saved, asked)
    with pytest.raises(TreeMismatchError) as checked:
        preview.check()

    assert loaded.value.problems == checked.value.problems == preview.problems
    assert str(loaded.value) == str(checked.value)


def test_a_load_that_works(saved):
    """Where nothing stands against the load there are no problems."""
    preview = stowax.preview_load(saved)

    preview.check()
    assert preview.problems == ()
    assert {row.outcome for row in preview.rows} == {"as is"}


def test_without_an_abstract_state(place, saved):
    """Rules alone are shown with what they select and what they leave."""
    with place.context(**options(**{"a.b": "step"})):
        preview = stowax.preview_load(saved)

    assert [(r.target, r.stored) for r in preview.rows] == [
        ("a.b", "step"),
        (None, "b"),
        (None, "name"),
        (None, "w"),
    ]


def test_rules(place, saved):
    """Rules that fit nothing are problems; rules without meaning are errors."""
    with place.context(**options(a="b", c="d")):
        preview = stowax.preview_load(saved)
    with place.context(**options(a="*")), pytest.raises(RenameError):
        stowax.preview_load(saved)

    assert preview.problems == ("the rule 'c': 'd': fits no leaf of the checkpoint",)
    assert preview.problems[0] in str(preview)


def test_rules_are_held_to_the_checkpoint(place, saved):
    """Where there is no abstract state, none is blamed."""
    context = place.context()
    context.pytree.loading.rename = {"a": "nope"}

    with context, pytest.raises(TreeMismatchError) as caught:
        stowax.load(saved)

    assert "the rules of `PyTreeOptions.Loading.rename` do not" in str(caught.value)
    assert "abstract" not in str(caught.value)


class Pair(NamedTuple):
    """A container that names its children."""

    first: object
    second: object


@pytest.mark.parametrize(
    ("stored", "asked", "note"),
    [
        ([1, 2], Pair(int, int), "'p' is asked for with names (a dict or fields)"),
        (Pair(1, 2), [int, int], "'p' is asked for with positions (a list or tuple)"),
    ],
)
def test_containers_that_name_and_number(place, stored, asked, note):
    """Names asked for where positions are stored, or the reverse, are called that."""
    stowax.save(place / "checkpoint", {"p": stored})

    rows = stowax.preview_load(place / "checkpoint", {"p": asked}).rows

    assert [note in row.note for row in rows[:2]] == [True, True]
    assert {row.near for row in rows} == {None}


def test_functions(saved):
    """A function in an abstract state comes with what to do about functions."""
    described = stowax.metadata(saved).metadata

    preview = stowax.preview_load(saved, {**described, "act": jax.nn.relu})
    with pytest.raises(UnsupportedLeafError, match=r"eqx\.filter"):
        stowax.preview_load(saved, {**described, "step": jax.nn.relu})

    (problem,) = preview.problems
    assert problem.startswith("act: asked custom_jvp, not stored; drop functions")
    assert "eqx.filter(model, eqx.is_array)" in problem


def test_no_array_is_read():
    """Only documents are read."""
    store = RecordingStore(MemoryStore())
    with stowax.Context(file=FileOptions(store=store)):
        stowax.save(
            "/checkpoint", {"w": jax.device_put(STATE["w"], shardings()["rows"])}
        )
        count = len(store.calls)
        stowax.preview_load("/checkpoint", {"w": np.zeros((8, 16), np.float32)})

    assert [c for c in store.calls[count:] if "/d/" in c.paths[0]] == []


def test_no_memory_is_taken(place):
    """The arrays that a load would need are not made."""
    stowax.save(place / "checkpoint", {"w": np.zeros((1, 1))})
    with place.context(**options()):
        # A pebibyte.
        asked = jax.ShapeDtypeStruct((2**25, 2**23), jnp.float32)
        preview = stowax.preview_load(place / "checkpoint", {"w": asked})

    assert [row.outcome for row in preview.rows] == ["cast, padded"]


def test_item_and_name(place):
    """It finds the tree as `load` does."""
    stowax.save_checkpointables(place / "c", {"one": {"x": 1}, "two": {"y": 2}})

    named = stowax.preview_load(place / "c", checkpointable_name="two")
    direct = stowax.preview_load(place / "c/two", checkpointable_name=None)

    assert named == direct
    assert [row.target for row in named.rows] == ["y"]
