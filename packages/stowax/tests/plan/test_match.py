"""A target held against what is stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import trees

from stowax._keypath import flatten
from stowax._manifest import LeafEntry, LeafForm
from stowax._plan._match import match_paths, near_name
from stowax._plan._rename import Rules


def entries(tree):
    """The stored leaves of a tree."""
    flat = flatten(tree)
    return [
        LeafEntry(path, name, LeafForm(kind="scalar", dtype="int64"))
        for path, name in zip(flat.paths, flat.names, strict=True)
    ]


def match(target, stored, *, rename=None):
    """What a target finds in a stored tree."""
    flat = flatten(target)
    skipped = [leaf is ... for leaf in flat.leaves]
    rules = Rules(tuple((rename or {}).items()))
    return match_paths(flat, entries(stored), skipped=skipped, rules=rules)


@pytest.mark.parametrize(("asked", "stored"), [(True, 1), (1, True), (0, False)])
def test_keys_that_are_equal_are_not_the_same(asked, stored):
    """To Python `1` and `True` are one key; on disk they have two names."""
    found = match({asked: "x"}, {stored: "x"})

    assert found.positions == (-1,)
    assert found.unused == (0,)


@given(trees(st.integers()))
def test_a_tree_fits_itself(tree):
    """Every leaf finds itself."""
    found = match(tree, tree)

    assert found.positions == tuple(range(len(found.positions)))
    assert found.unused == ()


def test_containers_do_not_count():
    """Keys are compared by their texts: a list fits a dict with numbers for keys."""
    assert match({"a": {"0": 1, "1": 2}}, {"a": [1, 2]}).positions == (0, 1)
    assert match({1: 1}, {"1": 1}).positions == (0,)


def test_placeholders():
    """A placeholder takes the place of all leaves below its path."""
    found = match({"a": ..., "b": 1}, {"a": {"x": 1, "y": [2]}, "b": 3})

    assert (found.positions, found.unused) == ((-1, 2), ())
    assert match(..., {"a": 1}).unused == ()
    assert match({"a": ..., "new": ...}, {"a": 1}).positions == (-1, -1)


def test_a_placeholder_covers_whole_keys():
    """A path is covered by the keys above it, not by a name that looks like them."""
    stored = {"a": {"b": {"c": 1}}, "ab": 1}

    assert match({"a": {"b": ...}, "ab": 1}, stored).unused == ()
    assert match({"a": ...}, {"a": {"b": 1}, "ab": 1}).unused == (1,)


def test_none():
    """None stands for the stored leaf of exactly its path, and not for a subtree."""
    assert match({"a": None, "b": 1}, {"a": 1, "b": 2}).unused == ()
    assert match({"a": None, "b": 1}, {"a": {"x": 1}, "b": 2}).unused == (0,)
    assert match({"a": None}, {}).unused == ()


def test_both_sides():
    """Leaves that are missing on either side are found."""
    found = match({"a": 1, "new": 2}, {"a": 1, "old": 3})

    assert (found.positions, found.unused) == ((0, -1), (1,))


def test_renamed():
    """A leaf is looked up under the name that the rules give it, and only there."""
    stored = {"model": {"w": 1, "b": 2}, "step": 3}
    found = match(
        {"params": {"w": 1, "b": 2}, "step": 3}, stored, rename={"params": "model"}
    )

    # Dictionaries are taken apart in the order of their keys: b, w, step.
    assert found.positions == (0, 1, 2)
    assert found.looked_up == ("model.b", "model.w", "step")
    missing = match({"step": 3}, stored, rename={"step": "steps"})
    assert missing.positions == (-1,)


@pytest.mark.parametrize(
    ("target", "unused"),
    [
        ({"new": ...}, (2,)),
        ({"new": {"x": ...}}, (1, 2)),
        ({"new": {"x": None, "y": 1}}, (2,)),
        (..., ()),
        ({"old": ...}, (2,)),  # No rule fits `old`: it keeps its name.
    ],
)
def test_renamed_and_left_out(target, unused):
    """A placeholder, or None, stands for what the rules say is stored for its path."""
    stored = {"old": {"x": 1, "y": 2}, "z": 3}

    found = match(target, stored, rename={"new.x": "old.x", "new.y": "old.y"})

    assert found.unused == unused


def test_rules_that_fit_nothing():
    """A rule that no leaf is looked up by is told, one behind another among them."""
    rename = {"a": "x", "a.b": "y", "c": "z", "d": "w"}

    found = match({"a": {"b": 1}, "d": ...}, {"x": {"b": 1}, "w": 3}, rename=rename)

    assert found.unused_rules == (1, 2)


def test_near_name():
    """A name is near if it was probably meant."""
    assert near_name("params.kernal", ["params.bias", "params.kernel"]) == (
        "params.kernel"
    )
    assert near_name("x", ["params.kernel"]) is None
