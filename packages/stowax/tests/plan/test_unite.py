"""What two trees are together: key by key, the later one on top."""

import collections
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_states import examples

from stowax._keypath import flatten, from_json, to_json, unflatten
from stowax._plan._unite import Layer, Origin, lay_on, unite


class Pair(NamedTuple):
    left: object
    right: object


Frozen = collections.OrderedDict
"""A class that is like a dict, and no dict to this library."""


class Other(NamedTuple):
    left: object
    right: object


def layer(tree, *, replaces=False, is_plain=False):
    """A tree as it is read from a file."""
    root, _, _ = from_json(to_json(flatten(tree).root))
    return Layer(root=root, replaces=replaces, is_plain=is_plain)


def together(*trees, replaces=False):
    """The tree that trees are together, and what is in the way of it."""
    layers = [layer(tree, replaces=replaces) for tree in trees]
    united, clashes = unite(layers)
    leaves = [flatten(tree).leaves for tree in trees]
    values = [leaves[origin.tree][origin.leaf] for origin in united.origins]
    types = {f"{__name__}:{cls.__qualname__}": cls for cls in (Pair, Other)}
    return unflatten(united.root, values, types), [tuple(c) for c in clashes]


@pytest.mark.parametrize(
    ("below", "top", "expected"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"b": 1}, {"a": 2}, {"a": 2, "b": 1}),
        ([{"x": 1}], [{"y": 2}, 3], [{"x": 1, "y": 2}, 3]),
        (Pair({"x": 1}, {}), Pair({}, {"y": 2}), Pair({"x": 1}, {"y": 2})),
        (Pair(1, None), Pair(None, 2), Pair(1, 2)),
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": None}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": {"x": 1}}),
        ({"a": None}, {"a": None}, {"a": None}),
        ({"a": {}}, {"a": None}, {"a": {}}),
        ({"a": 1}, {"a": None}, {"a": 1}),
        ({"a": 1}, {"a": {}}, {"a": 1}),
        ({"a": {}}, {"a": 1}, {"a": 1}),
        (Frozen(a=1), {"b": 2}, {"a": 1, "b": 2}),
        (Pair(1, None), {"right": 2}, Pair(1, 2)),
    ],
)
def test_added(below, top, expected):
    """Containers of one kind are united at any depth, and keep their types.

    None and an empty container are there as long as nothing else is.
    """
    assert together(below, top) == (expected, [])
    assert list(together(below, top)[0]) == list(expected)


@pytest.mark.parametrize(
    ("below", "top", "clashes"),
    [
        ({"a": 1}, {"a": 2}, [("a", "a")]),
        ({"a": 1}, {"a": {"b": 2}}, [("a", "a.b")]),
        ({"a": {"b": 1}}, {"a": 2}, [("a.b", "a")]),
        ({"a": [1]}, {"a": {"b": 1}}, [("a.0", "a.b")]),
        ({"a": Pair(1, 2)}, {"a": Other(1, 2)}, [("a.left", "a.left")]),
        ([1, 2], [3], [("0", "0")]),
        (1, 2, [("", "")]),
        ({1: 1}, {"1": 2}, [("1", "1")]),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2, "c": 3}, [("a", "a"), ("b", "b")]),
    ],
)
def test_clashes(below, top, clashes):
    """A leaf that is there already, or is above or below one, is told by both names."""
    assert together(below, top)[1] == clashes


@pytest.mark.parametrize(
    ("below", "top", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, {"a": {"x": 3, "y": 2}}),
        ({"a": {"x": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": {"x": 2}}, {"a": {"x": 2}}),
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
        ({"a": [1]}, {"a": [2, 3]}, {"a": [2, 3]}),
        ({"a": [{"x": 1}]}, {"a": [{"y": 2}]}, {"a": [{"x": 1, "y": 2}]}),
        (Pair(1, 2), Pair(3, 4), Pair(3, 4)),
        (Pair(1, {"x": 2}), {"right": {"x": 3}}, Pair(1, {"x": 3})),
        (Pair(1, 2), {"left": 3, "more": 4}, {"left": 3, "right": 2, "more": 4}),
        (Frozen(a=1, b=2), {"a": 5}, {"a": 5, "b": 2}),
        (Frozen(a=1, b=2), Frozen(a=5, c=6), {"a": 5, "b": 2, "c": 6}),
        (
            {"a": 1, "b": {"c": 2}},
            Frozen(b=Frozen(d=5)),
            {"a": 1, "b": {"c": 2, "d": 5}},
        ),
        (Pair(1, 2), Other(3, 4), Other(3, 4)),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {}}, {"a": {}}),
        ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": 1}}),
        ({"a": None}, {"a": 1}, {"a": 1}),
        (1, {"a": 2}, {"a": 2}),
    ],
)
def test_replaced(below, top, expected):
    """What the top names is the top's; what it does not name, stays in mappings."""
    assert together(below, top, replaces=True) == (expected, [])


def test_plain_containers():
    """Of what Orbax wrote the types are not known; those of the other side count."""
    plain = layer({"a": 1}, is_plain=True)
    typed = layer(Pair({"x": 1}, 2))
    partly = layer({"left": {"y": 1}, "right": None}, is_plain=True)
    more = layer({"left": {"y": 1}, "third": 1}, is_plain=True)

    united, clashes = unite([partly, typed])
    assert (united.root.kind, clashes) == ("namedtuple", ())
    united, clashes = unite([more, typed])
    assert (united.root.kind, clashes) == ("dict", ())
    assert [key.text for key in united.root.keys] == ["left", "third", "right"]
    united, clashes = unite([layer([1], is_plain=True), layer((7, 2))])
    assert (united.root.kind, len(clashes)) == ("tuple", 1)
    assert unite([plain, layer([1])])[1]


def test_origins():
    """Every leaf tells which leaf of which tree it is."""
    layers = [layer({"a": 1, "b": 2}), layer({"b": 3, "c": 4}, replaces=True)]

    united, _ = unite(layers)

    assert united.origins == (Origin(0, 0), Origin(1, 0), Origin(1, 1))


def leaves_of(tree):
    """Every leaf by its name; an empty dict is none."""
    flat = flatten(tree)
    return dict(zip(flat.names, flat.leaves, strict=True))


def nested():
    """Dicts of dicts, with numbers that tell them apart."""
    keys = st.sampled_from("abc")
    return st.recursive(
        st.integers(), lambda below: st.dictionaries(keys, below, max_size=3)
    ).filter(lambda tree: isinstance(tree, dict))


def updated(below, top):
    """What `dict.update` would be if it went into dicts."""
    result = dict(below)
    for key, value in top.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = updated(old, value) if both else value
    return result


@examples(200)
@given(st.lists(nested(), min_size=1, max_size=4))
def test_any_dicts_replaced(trees):
    """Dicts that replace each other are what updating one by the next gives."""
    expected = {}
    for tree in trees:
        expected = updated(expected, tree)

    assert together(*trees, replaces=True) == (expected, [])


@examples(200)
@given(nested(), nested())
def test_any_dicts_added(below, top):
    """What was there stays; what is given comes, or is told of."""
    tree, clashes = together(below, top)

    found, stored, given_ = leaves_of(tree), leaves_of(below), leaves_of(top)
    assert stored.items() <= found.items()
    in_the_way = [stored for stored, _ in clashes]
    for name, leaf in given_.items():
        if any(
            _is_above(name, other) or _is_above(other, name) for other in in_the_way
        ):
            assert found.get(name) == stored.get(name)
        else:
            assert found.pop(name) == leaf
    assert found.keys() <= stored.keys()


def _is_above(name, other):
    return f"{other}.".startswith(f"{name}.")


def test_what_lies_on_what():
    """Trees lie on trees; what is no tree takes the place of all, and is replaced."""
    is_tree = str.islower

    assert lay_on([], "a", unites=is_tree) == ["a"]
    assert lay_on(["a"], "b", unites=is_tree) == ["a", "b"]
    assert lay_on(["a", "b"], "C", unites=is_tree) == ["C"]
    assert lay_on(["C"], "d", unites=is_tree) == ["d"]
