"""Transformations of trees: where each value of the result comes from."""

from typing import NamedTuple

import pytest

from stowax.errors import (
    InvalidArgumentError,
    KeyPathCollisionError,
    LeafNotFoundError,
    StowaxError,
)
from stowax.v0._arguments import RestoreArgs
from stowax.v0.transform_utils import (
    RestoreTransform,
    Transform,
    apply_transformations,
    intersect_trees,
    merge_trees,
)

ORIGINAL = {"a": 1, "b": {"c": 2, "d": [3, 4]}, "b1": {"c": 5}, "b2": {"c": 6}}


class Point(NamedTuple):
    x: int
    y: int


def test_a_key_is_renamed():
    """`original_key` says where the value is in the original tree."""
    result = apply_transformations(
        ORIGINAL, {"new": Transform(original_key="b/d/1")}, {"new": 0}
    )

    assert result == {"new": 4}


def test_a_pattern_renames_many():
    """Groups of the key stand in the original key."""
    result = apply_transformations(
        ORIGINAL,
        {r"x(\d)/c": Transform(original_key=r"b\1/c")},
        {"x1": {"c": 0}, "x2": {"c": 0}},
    )

    assert result == {"x1": {"c": 5}, "x2": {"c": 6}}


def test_a_function_makes_the_value():
    """`value_fn` is given the value of the original key, which may be the same key."""
    result = apply_transformations(
        ORIGINAL,
        {
            "a": Transform(value_fn=lambda value: value + 10),
            "new": Transform(original_key="b/c", value_fn=lambda value: value * 2),
        },
        {"a": 0, "new": 0},
    )

    assert result == {"a": 11, "new": 4}


def test_a_function_sees_the_whole_tree():
    """`multi_value_fn` is given the new key, and the original tree as it is."""
    seen = []

    def total(key, tree):
        seen.append(key)
        return tree["a"] + sum(tree["b"]["d"])

    result = apply_transformations(
        ORIGINAL, {"sum/all": Transform(multi_value_fn=total)}, {"sum": {"all": 0}}
    )

    assert result == {"sum": {"all": 8}}
    assert seen == ["sum/all"]


def test_what_nothing_is_said_of_comes_from_the_original():
    """A key of both trees is carried over; another keeps its new value."""
    result = apply_transformations(ORIGINAL, {}, {"a": 0, "g": 7})

    assert result == {"a": 1, "g": 7}


def test_what_nothing_is_said_of_may_come_from_the_new_tree():
    """Without `default_to_original`, only transformations look at the original."""
    result = apply_transformations(
        ORIGINAL,
        {"b": {"c": Transform()}},
        {"a": 0, "b": {"c": 0}},
        default_to_original=False,
    )

    assert result == {"a": 0, "b": {"c": 2}}


@pytest.mark.parametrize(("default_to_original", "value"), [(True, 0), (False, 1)])
def test_a_fallback_is_the_other_tree(default_to_original, value):
    """`use_fallback` takes the value from where others do not come from."""
    result = apply_transformations(
        ORIGINAL,
        {"a": Transform(use_fallback=True)},
        {"a": 0},
        default_to_original=default_to_original,
    )

    assert result == {"a": value}


def test_the_last_transformation_that_fits_counts():
    """Transformations are looked at in the order of their keys."""
    result = apply_transformations(
        ORIGINAL,
        {
            "a": Transform(value_fn=lambda value: "first"),
            "a|z": Transform(value_fn=lambda value: "last"),
        },
        {"a": 0},
    )

    assert result == {"a": "last"}


def test_the_result_has_the_containers_of_the_new_tree():
    """Trees are matched by the texts of their keys."""
    result = apply_transformations(
        {"p": {"x": 1, "y": 2}}, {}, {"p": Point(0, 0), "none": None, "empty": {}}
    )

    assert result == {"p": Point(1, 2), "none": None, "empty": {}}


@pytest.mark.parametrize("empty", [None, {}, []])
def test_an_empty_tree_stays_empty(empty):
    """Nothing is made of nothing."""
    assert apply_transformations(ORIGINAL, {}, empty) == {}


@pytest.mark.parametrize("default_to_original", [True, False])
def test_a_source_that_is_missing_is_named(default_to_original):
    """The message has the key, the one it was to be made of, and what there is."""
    with pytest.raises(LeafNotFoundError, match=r"'new' of 'b/e'.*'b/d/0'"):
        apply_transformations(
            ORIGINAL,
            {"new": Transform(original_key="b/e")},
            {"new": 0},
            default_to_original=default_to_original,
        )


def test_a_fallback_that_is_missing_is_named():
    """A new key cannot come from the original tree."""
    with pytest.raises(LeafNotFoundError, match="'new'"):
        apply_transformations(
            ORIGINAL,
            {"new": Transform(use_fallback=True)},
            {"new": 0},
            default_to_original=False,
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_fallback": True, "original_key": "a"},
        {"use_fallback": True, "value_fn": abs},
        {"use_fallback": True, "multi_value_fn": abs},
        {"multi_value_fn": abs, "original_key": "a"},
        {"multi_value_fn": abs, "value_fn": abs},
    ],
    ids=lambda arguments: "+".join(arguments),
)
@pytest.mark.parametrize("cls", [Transform, RestoreTransform])
def test_a_value_comes_from_one_place(cls, arguments):
    """Arguments that contradict each other are refused, with their names."""
    with pytest.raises(InvalidArgumentError) as caught:
        cls(**arguments)

    assert all(name in str(caught.value) for name in arguments)


def test_inputs_are_for_a_function():
    """Nobody else looks at `multi_value_fn_input_args`."""
    with pytest.raises(InvalidArgumentError, match="multi_value_fn_input_args"):
        RestoreTransform(multi_value_fn_input_args={"a": RestoreArgs()})


def test_merged_trees_have_the_leaves_of_all():
    """The last tree that has a leaf decides."""
    assert merge_trees({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": [4]}) == {
        "a": {"b": 1, "c": 3},
        "d": {"0": 4},
    }
    assert merge_trees({"x": 1}, {"y": 2}, target=Point(0, 0)) == Point(1, 2)


def test_intersected_trees_have_the_leaves_that_all_have():
    """The values are those of the last tree."""
    assert intersect_trees({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {
        "a": {"c": 3}
    }


@pytest.mark.parametrize(
    "trees", [({"a": 1}, {"a": {"b": 2}}), ({"a": {"b": 2}}, {"a": 1})], ids=str
)
def test_a_leaf_in_the_way_is_named(trees):
    """A tree that has a leaf where another goes on cannot be merged with it."""
    with pytest.raises(KeyPathCollisionError, match="'a'"):
        merge_trees(*trees)


def test_a_target_that_wants_more_is_refused():
    """All that no tree has is named."""
    with pytest.raises(LeafNotFoundError, match="'y', 'z'"):
        merge_trees({"x": 1}, target={"x": 0, "y": 0, "z": 0})


def test_errors_are_those_that_callers_know():
    """Who catches what Orbax raises catches ours."""
    assert issubclass(LeafNotFoundError, ValueError)
    assert issubclass(LeafNotFoundError, KeyError)
    assert issubclass(LeafNotFoundError, StowaxError)
