"""Trees taken apart and put together, and the names of their leaves."""

import collections
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import Layer, Nothing, Pair, Point, Variables, plain, trees

from stowax._keypath import (
    Key,
    Node,
    at_leaf,
    check_names,
    describe,
    flatten,
    from_json,
    from_named_paths,
    to_json,
    unflatten,
    walk,
)
from stowax.errors import KeyPathCollisionError, TreeError


class Opaque:
    """A leaf of a kind that nobody knows."""


@given(trees(st.integers() | st.none()))
def test_there_and_back(tree):
    """A tree that is taken apart gives exactly the same containers again."""
    flat = flatten(tree)

    again = unflatten(flat.root, flat.leaves)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert jax.tree.leaves(again) == jax.tree.leaves(tree)
    assert len(flat.leaves) == len(flat.paths) == len(flat.names)


@given(trees(st.integers() | st.none()))
def test_json_there_and_back(tree):
    """The skeleton read from JSON gives plain containers, with keys as they were."""
    flat = flatten(tree)

    node, paths, _ = from_json(json.loads(json.dumps(to_json(flat.root))))

    assert unflatten(node, flat.leaves) == plain(tree)
    assert [[k.text for k in p] for p in paths] == [
        [k.text for k in p] for p in flat.paths
    ]
    assert to_json(node) == to_json(flat.root)


def test_types_of_keys_in_json():
    """Text, whole numbers, truth values and None stay what they are, others do not."""
    keys = ("a", "1", 2, True, None, 1.5, np.int64(3), (4, 5))
    tree = dict(zip(keys, range(8), strict=True))
    flat = flatten(tree)

    node, _, _ = from_json(json.loads(json.dumps(to_json(flat.root))))

    again = unflatten(node, flat.leaves)
    kept = {repr(key) for key in again}
    assert kept == {"'a'", "'1'", "2", "True", "None", "'1.5'", "'3'", "'(4, 5)'"}
    assert {str(key): value for key, value in again.items()} == {
        str(key): value for key, value in tree.items()
    }


def test_names():
    """A name is the texts of the keys, joined with dots."""
    tree = {
        "d": {1: 0, "é": 0},
        "l": [0, (0,)],
        "n": Point(0, 0),
        "r": Layer(0, 0),
        "v": Variables(w=0),
        "p": Pair(0, 0),
    }

    assert flatten(tree).names == (
        *("d.1", "d.é", "l.0", "l.1.0", "n.x", "n.y", "p.0", "p.1"),
        *("r.kernel", "r.bias", "v.w"),
    )
    assert flatten(7).names == ("",)


def test_order_of_keys():
    """Keys are sorted, numbers as numbers, so that all processes agree."""
    assert flatten({10: 0, 9: 0, 2: 0}).names == ("2", "9", "10")
    assert flatten({"b": 0, "a": 0}).names == ("a", "b")
    assert len(flatten({1: 0, "a": 0, None: 0, (1, 2): 0}).names) == 4


@pytest.mark.parametrize(
    "tree",
    [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(int, a=1),
        Variables(a=1),
        Pair(1, Pair(2, None)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_registered_containers(tree):
    """Whatever JAX knows as a container is one, and comes back as itself."""
    flat = flatten(tree)

    again = unflatten(flat.root, flat.leaves)

    assert type(again) is type(tree)
    assert jax.tree.leaves(again) == jax.tree.leaves(tree)


def test_leaves():
    """Everything else is a leaf; None and empty containers are none."""
    leaf = Opaque()

    assert flatten([leaf, None, {}, Nothing(), 1]).leaves == (leaf, 1)


def test_walk():
    """Leaves and empty containers have a path each."""
    found = [
        (describe(path), node.kind)
        for path, node in walk(flatten({"a": [1, {}], "b": Nothing()}).root)
    ]

    assert found == [
        ("['a'][0]", "leaf"),
        ("['a'][1]", "dict"),
        ("['b']", "namedtuple"),
    ]


def test_collisions():
    """All pairs that would share a name are listed, with both paths."""
    tree = {"a": {"b": 1}, "a.b": 2, "x": [3], "x.0": 4, "fine": 5}

    with pytest.raises(KeyPathCollisionError, match="2 name") as caught:
        check_names(flatten(tree).root)

    assert "['a']['b'] and ['a.b']" in str(caught.value)
    assert "['x'][0] and ['x.0']" in str(caught.value)


def test_names_without_utf8():
    """A key that no file can hold is refused."""
    with pytest.raises(TreeError, match="surrogate"):
        check_names(flatten({"\ud800": 1}).root)


@pytest.mark.parametrize(
    "document",
    [
        *("text", 1, -1, 1.0, True, [], {}),
        {"kind": "leaf", "children": []},
        {"kind": "list"},
        {"kind": "list", "children": [0, 2]},
        {"kind": "list", "children": [0, 0]},
        {"kind": "dict", "keys": [], "children": [0]},
        {"kind": "dict", "keys": [["nonsense", 1]], "children": [0]},
        {"kind": "dict", "keys": [1.5], "children": [0]},
    ],
    ids=str,
)
def test_bad_documents(document):
    """A document that is no skeleton is refused."""
    with pytest.raises(ValueError):
        from_json(document)


def test_from_named_paths():
    """Paths alone give dicts and lists; positions are put in order."""
    leaf = [Node(kind="leaf", leaf=i) for i in range(3)]
    entries = [
        ((Key("key", "a"), Key("index", 1)), leaf[0]),
        ((Key("key", "a"), Key("index", 0)), leaf[1]),
        ((Key("key", "b"),), Node(kind="dict")),
        ((Key("key", "b"), Key("key", "c")), leaf[2]),
    ]

    node = from_named_paths(entries)

    assert unflatten(node, "xyz") == {"a": ["y", "x"], "b": {"c": "z"}}


@pytest.mark.parametrize(
    "paths",
    [
        [(Key("key", "a"),), (Key("index", 0),)],
        [(Key("index", 0),), (Key("index", 2),)],
        [(Key("key", "a"),), (Key("key", "a"), Key("key", "b"))],
    ],
)
def test_paths_that_form_no_tree(paths):
    """Mixed keys, gaps in a list, and leaves below leaves are refused."""
    with pytest.raises(ValueError):
        from_named_paths([(path, Node(kind="leaf", leaf=0)) for path in paths])


def test_at_leaf():
    """Whatever is raised gets the name of its leaf, and stays what it was."""
    with pytest.raises(KeyError) as caught, at_leaf("a.b"):
        raise KeyError("x")

    assert caught.value.__notes__ == ["at leaf a.b"]
