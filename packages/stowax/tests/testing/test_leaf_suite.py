"""The contract suite of leaf handlers finds every promise that a handler breaks."""

import inspect
import types

import numpy as np
import pytest
from sample_leaves import Quantised, QuantisedHandler
from sample_trees import bits

import stowax
from stowax.options import FileOptions, PyTreeOptions
from stowax.testing import MemoryStore
from stowax.testing.leaf_suite import LeafSuite

BREAKAGES = {
    "a name that changes": {"typestr": property(lambda self: f"tests.{id(self)}")},
    "no name": {"typestr": ""},
    "takes nothing": {"accepts": lambda self, value: False},
    "takes arrays, too": {"accepts": lambda self, value: hasattr(value, "shape")},
    "takes containers": {"accepts": lambda self, value: True},
    "takes no target": {"accepts_target": lambda self, target: False},
    "takes containers as targets": {"accepts_target": lambda self, target: True},
    "facts that are no JSON": {"describe": lambda self, value: (value.scale,)},
    "facts that change": {"describe": lambda self, value: {"scale": id(object())}},
    "no facts": {
        "describe": lambda self, value: None,
        "place": lambda self, stored, facts, target: Quantised(stored, 0.0),
    },
    "stores an object": {"stage": lambda self, value: value},
    "stores something else": {"stage": lambda self, value: value.values + 1},
    "asks for another shape": {"want": lambda self, target, facts: np.zeros(99)},
    "gives the stored form": {"place": lambda self, stored, facts, target: stored},
    "loses the values": {
        "place": lambda self, stored, facts, target: Quantised(stored * 0, 0.1)
    },
}


class Suite(LeafSuite):
    """The suite, over a handler that is broken in one way."""

    def __init__(self, broken):
        self.broken = broken

    def make_handler(self):
        return types.new_class(
            "Broken",
            (QuantisedHandler,),
            exec_body=lambda body: body.update(self.broken),
        )()

    def make_values(self):
        return [Quantised(values=bits("int8", (3,)), scale=0.1)]

    def is_same(self, expected, found):
        return type(found) is Quantised and expected == found


def failures(broken):
    """The tests of the suite that a handler fails."""
    failed = []
    for name, test in inspect.getmembers(Suite(broken), inspect.ismethod):
        if not name.startswith("test_"):
            continue
        others = [1, "text", {}, np.zeros(2)] if "other" in _arguments(test) else [None]
        for other in others:
            try:
                test(**_given(test, Suite(broken), other))
            except Exception:  # noqa: BLE001 - whatever a broken handler leads to
                failed.append(name)
                break
    return failed


def _arguments(test):
    return inspect.signature(test).parameters


def _given(test, suite, other):
    """What the fixtures of the suite would give."""
    handler, file = suite.make_handler(), FileOptions(store=MemoryStore())
    pytree = PyTreeOptions(leaf_handlers=(handler,))
    known = {
        "handler": handler,
        "taught": stowax.Context(file=file, pytree=pytree),
        "untaught": stowax.Context(file=file),
        "other": other,
    }
    return {name: known[name] for name in _arguments(test)}


def test_a_good_handler_passes():
    """Nothing fails where nothing is broken."""
    assert failures({}) == []


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_promises_are_found(breakage):
    """A handler that is broken in one way fails at least one test."""
    assert failures(BREAKAGES[breakage])
