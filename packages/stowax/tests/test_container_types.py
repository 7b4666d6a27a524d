"""Containers of the caller's own types, made without an abstract state."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from sample_trees import Layer, Nothing, Pair, Point, Variables

import stowax
from stowax.errors import TreeMismatchError, UnsupportedOptionError
from stowax.options import PyTreeOptions


class Defaults(NamedTuple):
    a: Any
    b: Any = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    kernel: Any
    bias: Any = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Strict:
    x: Any
    kind: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Renamed:
    """A dataclass whose children are called otherwise."""

    x: Any

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("other"), self.x)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def allowing(*types):
    """Options that allow types."""
    return {
        "pytree": PyTreeOptions(loading=PyTreeOptions.Loading(container_types=types))
    }


def test_plain_unless_allowed(place):
    """Containers are made of the classes that the caller gives, and of no others."""
    state = {
        "p": Point(1, [Point(2, 3)]),
        "d": Dense(kernel=np.ones(2), bias=4),
        "n": Nothing(),
        "v": Variables(a=1),
        "q": Pair(1, 2),
    }
    stowax.save(place / "checkpoint", state)

    plain = stowax.load(place / "checkpoint")
    with place.context(**allowing(Point, Dense, Nothing)):
        made = stowax.load(place / "checkpoint")

    assert plain["p"] == {"x": 1, "y": [{"x": 2, "y": 3}]}
    assert plain["n"] is None
    assert made["p"] == Point(1, [Point(2, 3)])
    assert type(made["p"].y[0]) is Point
    assert (type(made["d"]), made["d"].bias) == (Dense, 4)
    assert made["n"] == Nothing()
    assert (made["v"], made["q"]) == ({"a": 1}, [1, 2])


def test_fields_by_name(place):
    """A class may have got fields since, if they have defaults."""
    stowax.save(place / "checkpoint", {"d": Defaults(1, 2), "root": Layer(1, 2)})
    other = _same_name(Defaults, NamedTuple("Defaults", [("b", Any), ("a", Any)]))

    with place.context(**allowing(other)):
        loaded = stowax.load(place / "checkpoint")

    assert (loaded["d"].a, loaded["d"].b) == (1, 2)
    assert type(loaded["d"]) is other


@pytest.mark.parametrize(
    ("state", "cls", "why"),
    [
        (Strict(1, "k"), Strict, "needs kind, which is not stored"),
        (Point(1, 2), NamedTuple("Point", [("x", Any)]), "has no field y any more"),
        (Renamed(1), Renamed, "has no field other any more"),
    ],
)
def test_a_class_that_does_not_fit(place, state, cls, why):
    """A container that its class cannot be made of is a mismatch, named."""
    stowax.save(place / "checkpoint", {"here": state})
    with (
        place.context(**allowing(_same_name(type(state), cls))),
        pytest.raises(TreeMismatchError, match=f"here: .*{why}"),
    ):
        stowax.load(place / "checkpoint")


@pytest.mark.parametrize("rename", [{}, {"here": "d"}])
def test_static_fields_are_not_guessed(place, rename):
    """A dataclass saved with static fields does not come back with their defaults."""
    stowax.save(place / "checkpoint", {"d": Layer(1, 2, name="changed"), "x": 3})
    options = allowing(Layer)
    options["pytree"].loading.rename = rename or None

    with (
        place.context(**options),
        pytest.raises(TreeMismatchError, match=r"static fields .* name is not stored"),
    ):
        stowax.load(place / "checkpoint")


def test_dataclass_that_has_grown(place):
    """A field that a dataclass without static fields has got since has its default."""
    cls = jax.tree_util.register_dataclass(
        dataclasses.make_dataclass("Dense", [("kernel", Any)]), ["kernel"], []
    )
    stowax.save(place / "checkpoint", _same_name(Dense, cls)(1))

    with place.context(**allowing(Dense)):
        assert stowax.load(place / "checkpoint") == Dense(1, 0)


@pytest.mark.parametrize("cls", [dict, Variables, Pair, "Point", Point(1, 2), None])
def test_what_is_no_such_class(place, cls):
    """Only NamedTuples and dataclasses can be made without a guess."""
    stowax.save(place / "checkpoint", {"a": 1})

    with (
        place.context(**allowing(cls)),
        pytest.raises(UnsupportedOptionError, match="container_types"),
    ):
        stowax.load(place / "checkpoint")


def test_an_abstract_state_goes_before(place):
    """With an abstract state its containers count, whatever is allowed."""
    stowax.save(place / "checkpoint", {"p": Point(1, 2)})

    with place.context(**allowing(Point)):
        assert stowax.load(place / "checkpoint", {"p": {"x": 0, "y": 0}}) == {
            "p": {"x": 1, "y": 2}
        }


def test_metadata(place):
    """Metadata name the recorded types, and are made of those that are allowed."""
    state = {"p": Point(1, [Nothing()]), "d": (Layer(1, 2), {"plain": 1})}
    stowax.save(place / "checkpoint", state)

    found = stowax.metadata(place / "checkpoint")
    with place.context(**allowing(Point)):
        made = stowax.metadata(place / "checkpoint").metadata

    assert found.container_types == {
        "p": "sample_trees:Point",
        "p.y.0": "sample_trees:Nothing",
        "d.0": "sample_trees:Layer",
    }
    assert made["p"] == Point(0, [None])


def test_metadata_of_a_root(place):
    """The root has the empty name; where nobody recorded types there are none."""
    stowax.save(place / "a", Point(1, 2))
    stowax.save(place / "b", {"x": 1})

    direct = stowax.metadata(f"{place / 'a'}/state", None)

    assert direct.container_types == {"": "sample_trees:Point"}
    assert stowax.metadata(place / "b").container_types == {}


def test_metadata_of_a_step(place):
    """Steps tell as well."""
    with stowax.training.Checkpointer(place / "run") as steps:
        steps.save(0, {"p": Point(1, 2)})

        assert steps.metadata(0).container_types == {"p": "sample_trees:Point"}


def test_parts(place):
    """A subtree that a rule maps keeps its types."""
    stowax.save(place / "checkpoint", {"a": Point(1, Point(2, 3)), "b": 1})
    options = allowing(Point)
    options["pytree"].loading.rename = {"": "a.y"}

    with place.context(**options):
        assert stowax.load(place / "checkpoint") == Point(2, 3)


def _same_name(recorded, cls):
    """The class under the name of another one."""
    if cls is not recorded:
        cls.__module__, cls.__qualname__ = recorded.__module__, recorded.__qualname__
    return cls
