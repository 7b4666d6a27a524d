"""A target held against what is stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import trees

from stowax._keypath import flatten
from stowax._manifest import LeafEntry
from stowax._plan._match import check, match_paths
from stowax.errors import TreeMismatchError


def entries(tree):
    """The stored leaves of a tree."""
    flat = flatten(tree)
    return [
        LeafEntry(path=path, name=name, kind="scalar", dtype="int64")
        for path, name in zip(flat.paths, flat.names, strict=True)
    ]


def match(target, stored, *, partial=False):
    """Positions of the stored leaves that a target asks for."""
    flat = flatten(target)
    skipped = [leaf is ... for leaf in flat.leaves]
    return match_paths(
        flat, entries(stored), where="/path", skipped=skipped, partial=partial
    )


@given(trees(st.integers()))
def test_a_tree_fits_itself(tree):
    """Every leaf finds itself."""
    found = match(tree, tree)

    assert found == tuple(range(len(found)))


def test_containers_do_not_count():
    """Keys are compared by their texts: a list fits a dict with numbers for keys."""
    assert match({"a": {"0": 1, "1": 2}}, {"a": [1, 2]}) == (0, 1)
    assert match({1: 1}, {"1": 1}) == (0,)


def test_placeholders():
    """A placeholder takes the place of all leaves below its path."""
    assert match({"a": ..., "b": 1}, {"a": {"x": 1, "y": [2]}, "b": 3}) == (-1, 2)
    assert match(..., {"a": 1}) == (-1,)
    assert match({"a": ..., "new": ...}, {"a": 1}) == (-1, -1)


def test_partial():
    """In a partial match stored leaves may be left out."""
    assert match({"b": 1}, {"a": 1, "b": 2}, partial=True) == (1,)
    with pytest.raises(TreeMismatchError, match="a: stored, not asked for"):
        match({"b": 1}, {"a": 1, "b": 2})


def test_a_placeholder_covers_whole_keys():
    """A path is covered by the keys above it, not by a name that looks like them."""
    assert match({"a": {"b": ...}, "ab": 1}, {"a": {"b": {"c": 1}}, "ab": 1}) == (-1, 1)
    with pytest.raises(TreeMismatchError) as caught:
        match({"a": ...}, {"a": {"b": 1}, "ab": 1})
    assert caught.value.problems == ("ab: stored, not asked for",)


def test_hints():
    """What is stored under a similar name, and is not asked for, is proposed."""
    with pytest.raises(TreeMismatchError) as caught:
        match({"kernel": 1, "kernell": 1, "x": 1}, {"kernel": 1, "kernels_2": 1})

    assert caught.value.problems[:2] == (
        "kernell: asked, not stored; stored is 'kernels_2'",
        "x: asked, not stored",
    )


def test_hints_are_for_shown_problems():
    """Every problem is listed; those that the message shows have a hint."""
    with pytest.raises(TreeMismatchError) as caught:
        match(
            {f"layer_{i}": 1 for i in range(100)},
            {f"layers_{i}": 1 for i in range(100)},
        )

    hinted = [problem for problem in caught.value.problems if "stored is" in problem]
    assert len(caught.value.problems) == 200
    assert len(hinted) == 20
    assert all(f"  {problem}\n" in str(caught.value) for problem in hinted)


def test_both_sides():
    """Leaves that are missing on either side are listed together."""
    with pytest.raises(TreeMismatchError) as caught:
        match({"a": 1, "new": 2}, {"a": 1, "old": 3})

    assert caught.value.problems == (
        "new: asked, not stored",
        "old: stored, not asked for",
    )
    assert "/path" in str(caught.value)


def test_no_problems():
    """Without problems nothing is raised."""
    check([], where="/path", count=3)
