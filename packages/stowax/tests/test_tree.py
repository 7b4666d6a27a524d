"""The words for trees, and merging them, with the peer as oracle."""

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax import tree
from stowax.errors import KeyPathCollisionError, TreeMismatchError


class Pair(NamedTuple):
    x: Any
    y: Any


class Other(NamedTuple):
    x: Any
    z: Any


@jtu.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


@pytest.fixture(scope="module")
def peer():
    """Orbax v1, as the oracle."""
    return pytest.importorskip("orbax.checkpoint").v1.tree


def test_names_of_the_peer_are_here(peer):
    """`stowax.tree` has every name of Orbax's."""
    theirs = {name for name in vars(peer) if not name.startswith("_")}

    assert theirs <= set(tree.__all__)


def test_key_types_and_json_types_equal_those_of_the_peer(peer):
    """Annotations written for Orbax mean the same."""
    assert tree.PyTreeKey == peer.PyTreeKey
    assert tree.PyTreeKeyPath == peer.PyTreeKeyPath
    assert tree.JsonType == peer.JsonType


def test_words_can_be_used_in_annotations():
    """`PyTreeOf` takes a leaf type, `Leaf` knows its members."""
    assert tree.PyTreeOf[jax.Array] is not None
    assert isinstance(np.zeros(2), tree.Leaf)
    assert isinstance("text", tree.Leaf)
    assert tree.PLACEHOLDER is ...


MERGEABLE = [
    pytest.param((), id="nothing"),
    pytest.param(({"a": 1},), id="one"),
    pytest.param(({"a": 1}, {"b": 2}, {"c": 3}), id="three"),
    pytest.param(({"b": {"x": 1}}, {"a": 0, "b": {"y": 2}}), id="nested"),
    pytest.param(([{"a": 1}], [{"b": 2}]), id="list"),
    pytest.param((({"a": 1}, {}), ({}, {"b": 2})), id="tuple"),
    pytest.param((Pair({"a": 1}, {}), Pair({}, {"b": 2})), id="namedtuple"),
    pytest.param((Layer({"a": 1}, {}), Layer({"b": 1}, {})), id="dataclass"),
    pytest.param(({"a": {}}, {"a": {}, "b": []}), id="empty"),
]
OVERWRITABLE = [
    pytest.param(({"a": 1}, {"a": 2}), id="leaf"),
    pytest.param(({"a": 1}, {"a": None}), id="none-last"),
    pytest.param(({"a": None}, {"a": 2}), id="none-first"),
    pytest.param(({"a": 1}, {"a": {"b": 2}}), id="leaf-by-node"),
    pytest.param(({"a": {"b": 2}}, {"a": 1}), id="node-by-leaf"),
    pytest.param(({"a": 1}, {"a": {}}), id="leaf-by-empty"),
    pytest.param(([1, None], [None, 2]), id="list"),
    pytest.param((({"a": 1},), [{"b": 2}]), id="tuple-by-list"),
    pytest.param((Layer(1, None), Layer(None, 3)), id="dataclass"),
    pytest.param((Pair(1, 2), {"x": 3}), id="namedtuple-by-dict"),
    pytest.param((Pair(1, 2), Other(3, 4)), id="other-fields"),
    pytest.param((collections.OrderedDict(a=1), {"b": 2}), id="mapping-types"),
    pytest.param(({"a": 1}, collections.OrderedDict(b=2)), id="ordered"),
    pytest.param((1, 2), id="roots"),
]


@pytest.mark.parametrize("trees", MERGEABLE)
def test_disjoint_trees_merge_as_in_the_peer(peer, trees):
    """Trees without a common leaf merge, in types and order as with Orbax."""
    merged = tree.merge(*trees)

    assert repr(merged) == repr(peer.merge(*trees))
    assert repr(merged) == repr(tree.merge(*trees, overwrite=True))


@pytest.mark.parametrize("trees", OVERWRITABLE)
def test_overwriting_takes_the_last_as_in_the_peer(peer, trees):
    """With `overwrite` the last tree decides, as with Orbax; None decides nothing."""
    assert repr(tree.merge(*trees, overwrite=True)) == repr(
        peer.merge(*trees, overwrite=True)
    )


@pytest.mark.parametrize("trees", OVERWRITABLE)
def test_conflicts_are_refused_as_in_the_peer(peer, trees):
    """Without `overwrite`, whatever Orbax refuses is refused."""
    with pytest.raises(ValueError):
        peer.merge(*trees)
    with pytest.raises((KeyPathCollisionError, TreeMismatchError)):
        tree.merge(*trees)


def test_all_common_leaves_are_named_at_once():
    """The error lists every leaf that two trees hold."""
    with pytest.raises(KeyPathCollisionError, match=r"hold a, b\.0;"):
        tree.merge({"a": 1, "b": [1], "c": 1}, {"a": 1, "b": [2], "d": 2})


@pytest.mark.parametrize("overwrite", [False, True])
def test_sequences_of_different_lengths_are_refused(peer, overwrite):
    """Children by number are never made up, nor dropped."""
    trees = {"a": [{"x": 1}]}, {"a": [{"y": 2}, {"y": 3}]}

    with pytest.raises(ValueError):
        peer.merge(*trees, overwrite=overwrite)
    with pytest.raises(TreeMismatchError, match="a: 1 children and 2 children"):
        tree.merge(*trees, overwrite=overwrite)


def test_is_leaf_keeps_nodes_whole(peer):
    """A node that `is_leaf` claims is replaced, not merged."""
    trees = {"a": {"x": 1}, "b": [1]}, {"a": {"y": 2}, "b": [3, 4]}

    def is_leaf(node):
        return isinstance(node, list) or not isinstance(node, dict)

    merged = tree.merge(*trees, overwrite=True, is_leaf=is_leaf)

    assert merged == {"a": {"x": 1, "y": 2}, "b": [3, 4]}
    assert merged == peer.merge(*trees, overwrite=True, is_leaf=is_leaf)


def test_mapping_that_cannot_be_made_again_becomes_a_dict():
    """A defaultdict gives its items."""
    merged = tree.merge(
        collections.defaultdict(int, a=1), collections.defaultdict(int, b=2)
    )

    assert merged == {"a": 1, "b": 2}


LEAVES = st.integers() | st.text(max_size=3)
DICTS = st.recursive(
    st.dictionaries(st.text(max_size=2), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner | LEAVES, max_size=3),
    max_leaves=8,
)


@given(DICTS, DICTS)
def test_merge_takes_every_leaf_and_changes_no_argument(first, last):
    """Each leaf of the last tree is in the result; the arguments stay as they were."""
    before = repr((first, last))

    merged = tree.merge(first, last, overwrite=True)

    assert repr((first, last)) == before
    found = dict(jtu.tree_leaves_with_path(merged))
    assert dict(jtu.tree_leaves_with_path(last)).items() <= found.items()


@given(DICTS)
def test_parts_of_a_tree_merge_to_the_tree(whole):
    """What one tree was split into makes it again, in any order of its parts."""
    parts = [{name: child} for name, child in whole.items()]

    assert tree.merge(*parts) == whole
    assert tree.merge(*reversed(parts)) == whole
