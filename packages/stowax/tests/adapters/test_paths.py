"""Paths and plain trees: what goes to disk under which name."""

from typing import Any, NamedTuple

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax.adapters import flatten, nest, plain_key, show_path, stored_name

_keys = st.sampled_from(["kernel", "bias", "0", "a.b"])
# Lists that may be empty have no leaf to be found by, so these have none.
_trees = st.recursive(
    st.none() | st.integers(),
    lambda inner: (
        st.dictionaries(_keys, inner, min_size=1) | st.lists(inner, min_size=1)
    ),
)


class Moments(NamedTuple):
    mu: Any
    nu: Any


@given(_trees)
def test_nest_undoes_flatten(tree):
    """A tree of dicts and lists is the same after it was taken apart."""
    assert nest(flatten(tree)) == tree


@given(st.permutations(range(12)))
def test_positions_decide_the_order(order):
    """Twelve layers form a list in their order, whichever comes first."""
    assert nest(((position,), position) for position in order) == list(range(12))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([0, 1], list),
        ([0, 2], dict),
        ([1, 2], dict),
        (["0", "1"], dict),
        ([False, True], dict),
        ([0, "1"], dict),
    ],
)
def test_only_positions_without_gaps_make_a_list(keys, expected):
    """Anything else stays a dict with the keys as they are."""
    tree = nest(((key,), "leaf") for key in keys)

    assert type(tree) is expected
    assert expected is list or list(tree) == keys


def test_leaf_may_be_a_dict():
    """What the caller gives as a leaf is not looked into."""
    assert nest([(("a",), {0: "x"})]) == {"a": {0: "x"}}


def test_root_may_be_a_leaf():
    """A tree that is one leaf has the empty path, which has a name in messages."""
    assert flatten(3) == [((), 3)]
    assert nest([((), 3)]) == 3
    assert show_path(()) == "<root>"


def test_no_leaves_make_an_empty_dict():
    """There is always a tree."""
    assert nest([]) == {}


def test_fields_and_positions_are_keys():
    """Named tuples are taken apart by field, tuples by position."""
    assert flatten(Moments(1, (2, None))) == [
        (("mu",), 1),
        (("nu", 0), 2),
        (("nu", 1), None),
    ]


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (jax.tree_util.DictKey("a"), "a"),
        (jax.tree_util.DictKey(3), 3),
        (jax.tree_util.DictKey(True), "True"),
        (jax.tree_util.DictKey((1, 2)), "(1, 2)"),
        (jax.tree_util.SequenceKey(3), 3),
        (jax.tree_util.GetAttrKey("a"), "a"),
        (jax.tree_util.FlattenedIndexKey(3), 3),
    ],
)
def test_key_is_a_string_or_an_integer(entry, key):
    """Every entry of a JAX path has one plain key; True is no position."""
    assert (plain_key(entry), type(plain_key(entry))) == (key, type(key))


def test_stored_name_does_not_know_types():
    """On disk a position and its text are one name."""
    assert stored_name(("layers", 0)) == stored_name(("layers", "0"))
