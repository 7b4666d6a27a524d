"""Transformations beside those of Orbax: the same trees, the same result."""

import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import Layer, Pair, Point

from stowax.v0 import _flat, transform_utils

ocp = pytest.importorskip("orbax.checkpoint")

KEYS = st.sampled_from(["a", "b", "ab", "1"])


def trees():
    """Trees of every kind of container, in which the same keys come again and again."""
    return st.recursive(
        st.integers(0, 99) | st.none(),
        lambda inner: st.one_of(
            st.dictionaries(KEYS, inner, max_size=3),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=2).map(tuple),
            st.builds(Point, inner, inner),
            st.builds(Layer, inner, inner),
            st.builds(Pair, inner, inner),
        ),
        max_leaves=6,
    )


PATTERNS = st.lists(
    st.sampled_from(["a", "b", "ab", "1", "0", "x", "kernel", r"(\w+)", r"(.*)", "."]),
    min_size=1,
    max_size=3,
).map("/".join)

ORIGINAL_KEYS = st.lists(
    st.sampled_from(["a", "b", "ab", "0", "1", "x", "kernel"]), min_size=1, max_size=3
).map("/".join)


@st.composite
def transforms(draw):
    """A transformation for every pattern, in the words of each library."""
    plans = draw(
        st.dictionaries(
            PATTERNS,
            st.one_of(
                st.just({}),
                st.just({"use_fallback": True}),
                st.just({"value_fn": lambda value: ("value", value)}),
                st.just({"multi_value_fn": lambda key, tree: ("tree", key)}),
                ORIGINAL_KEYS.map(lambda key: {"original_key": key}),
                ORIGINAL_KEYS.map(
                    lambda key: {"original_key": key, "value_fn": lambda v: ("v", v)}
                ),
            ),
            max_size=3,
        )
    )
    for pattern, plan in plans.items():
        if re.compile(pattern).groups and draw(st.booleans()) and not plan:
            plans[pattern] = {"original_key": r"\1"}
    return plans


def outcome(function, *args, **kwargs):
    """The result of a call, or that it was refused."""
    try:
        return jax.tree.flatten(function(*args, **kwargs))
    except (ValueError, LookupError, AssertionError, TypeError):
        return "refused"


@given(trees(), transforms(), trees(), st.booleans())
def test_transformations(original, plans, new, default):
    """Whatever the trees and the transformations, each value is from the same place."""
    before = jax.tree.flatten([original, new])

    mine = outcome(
        transform_utils.apply_transformations,
        original,
        {key: transform_utils.Transform(**plan) for key, plan in plans.items()},
        new,
        default,
    )
    theirs = outcome(
        ocp.apply_transformations,
        original,
        {key: ocp.Transform(**plan) for key, plan in plans.items()},
        new,
        default,
    )

    assert mine == theirs
    assert jax.tree.flatten([original, new]) == before


@given(st.lists(trees(), min_size=1, max_size=3), st.none() | trees())
def test_merged_trees(parts, target):
    """Leaves of several trees in one."""
    mine = outcome(transform_utils.merge_trees, *parts, target=target)

    assert mine == outcome(ocp.merge_trees, *parts, target=target)


@given(st.lists(trees(), min_size=1, max_size=3), st.none() | trees())
def test_intersected_trees(parts, target):
    """Leaves that several trees have."""
    mine = outcome(transform_utils.intersect_trees, *parts, target=target)

    assert mine == outcome(ocp.transform_utils.intersect_trees, *parts, target=target)


@given(trees(), st.sampled_from([None, ".", "/"]), st.booleans())
def test_flat_dictionaries(tree, sep, keep_empty_nodes):
    """A tree, taken apart."""
    mine = _flat.to_flat_dict(tree, sep, keep_empty_nodes)

    assert mine == ocp.tree.to_flat_dict(tree, sep, keep_empty_nodes)
    assert outcome(_flat.from_flat_dict, dict(mine), tree, sep) == outcome(
        ocp.tree.from_flat_dict, dict(mine), tree, sep
    )
    assert outcome(_flat.from_flat_dict, dict(mine), sep=sep) == outcome(
        ocp.tree.from_flat_dict, dict(mine), sep=sep
    )
    assert outcome(_flat.get_param_names, tree) == outcome(
        ocp.tree.get_param_names, tree
    )
    assert _flat.is_flat_dict(tree) == ocp.tree.is_flat_dict(tree)


@given(trees(), trees(), st.booleans())
def test_plain_trees(tree, target, keep_empty_nodes):
    """A tree in plain containers, and back in its own."""
    mine = outcome(_flat.serialize_tree, tree, keep_empty_nodes)
    assert mine == outcome(ocp.tree.serialize_tree, tree, keep_empty_nodes)

    if mine != "refused":
        plain = _flat.serialize_tree(tree, keep_empty_nodes)
        for like in (tree, target):
            theirs = outcome(ocp.tree.deserialize_tree, plain, like)
            # There a position is not found under the text of its number.
            if theirs != "refused":
                assert outcome(_flat.deserialize_tree, plain, like) == theirs
