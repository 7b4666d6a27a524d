"""The promises of a `stowax.handlers.LeafHandler`, one test each.

Whoever teaches a type of leaf inherits from `LeafSuite` in a test module:

    class TestDecimal(LeafSuite):
        def make_handler(self):
            return DecimalHandler()

        def make_values(self):
            return [Decimal("0.10"), Decimal("NaN")]

        def is_same(self, expected, found):
            return str(expected) == str(found)

This module needs pytest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stowax._context import Context
from stowax._inspect import metadata
from stowax._load import load
from stowax._save import save, save_async
from stowax.handlers import CustomLeafMetadata, LeafHandler
from stowax.options import FileOptions, PyTreeOptions
from stowax.testing._cluster import SimulatedCluster
from stowax.testing._memory_store import MemoryStore

_PATH = "/suite/checkpoint"


class LeafSuite:
    """Contract tests for any leaf handler."""

    def make_handler(self) -> LeafHandler[Any]:
        """The handler under test."""
        raise NotImplementedError

    def make_values(self) -> Sequence[Any]:
        """Values of the type; at every call new ones, equal to those before."""
        raise NotImplementedError

    def targets_of(self, value: Any) -> Sequence[Any]:
        """What may stand for a value in an abstract state; the value itself, say."""
        return [value]

    def is_same(self, expected: Any, found: Any) -> bool:
        """Whether a loaded value is as good as the saved one."""
        return type(expected) is type(found) and bool(expected == found)

    @pytest.fixture
    def handler(self) -> LeafHandler[Any]:
        """The handler of this test."""
        return self.make_handler()

    @pytest.fixture
    def taught(self, handler: LeafHandler[Any]) -> Context:
        """A Context in which the type is known, with a store of its own."""
        return Context(
            file=FileOptions(store=MemoryStore()),
            pytree=PyTreeOptions(leaf_handlers=(handler,)),
        )

    @pytest.fixture
    def untaught(self, taught: Context) -> Context:
        """A Context with the same store, in which the type is not known."""
        return Context(file=FileOptions(store=taught.file.store))

    def test_name(self, handler: LeafHandler[Any]) -> None:
        """The type has a name, which does not change from handler to handler."""
        assert isinstance(handler.typestr, str)
        assert handler.typestr
        assert self.make_handler().typestr == handler.typestr

    def test_takes_its_own(self, handler: LeafHandler[Any]) -> None:
        """Values are accepted, and so is what may stand for them."""
        for value in self._values():
            assert handler.accepts(value) is True
            for target in self.targets_of(value):
                assert handler.accepts_target(target) is True

    @pytest.mark.parametrize(
        "other",
        [
            *({}, [], (), ..., 1, 1.5, 1j, True, "text", b"bytes", object(), int, len),
            *(np.zeros(2), np.float32(1), jnp.zeros(2)),
        ],
        ids=lambda other: type(other).__name__,
    )
    def test_leaves_others_alone(self, handler: LeafHandler[Any], other: Any) -> None:
        """Containers and values of standard kinds are not taken."""
        assert handler.accepts(other) is False
        if isinstance(other, dict | list | tuple) or other is ...:
            assert handler.accepts_target(other) is False

    def test_facts_are_json(self, handler: LeafHandler[Any]) -> None:
        """Facts come back from JSON as they were: no tuples, no NaN, no other keys."""
        for value in self._values():
            facts = handler.describe(value)
            assert json.loads(json.dumps(facts, allow_nan=False)) == facts

    def test_stored_form_is_a_standard_leaf(self, handler: LeafHandler[Any]) -> None:
        """A value is stored as something that everybody can load."""
        standard = jax.Array | np.ndarray | np.generic | int | float | complex
        for value in self._values():
            assert isinstance(handler.stage(value), standard | str | bytes)

    def test_encoding_changes_nothing(self, handler: LeafHandler[Any]) -> None:
        """Encoding a value twice gives the same, and leaves the value as it was."""
        for value, expected in zip(self._values(), self.make_values(), strict=True):
            facts, stored = handler.describe(value), handler.stage(value)
            assert handler.describe(value) == facts
            assert _same_stored(handler.stage(value), stored)
            assert self.is_same(expected, value)

    def test_loads_without_a_target(self, taught: Context) -> None:
        """Values come back, alone and within a tree."""
        for value in self._values():
            with taught:
                save(_PATH, value, overwrite=True)
                assert self.is_same(value, load(_PATH))
                save(_PATH, {"a": [value, 1]}, overwrite=True)
                found = load(_PATH)
            assert self.is_same(value, found["a"][0])
            assert found["a"][1] == 1

    def test_loads_with_targets(self, taught: Context) -> None:
        """Values come back for all that may stand for them."""
        for value in self._values():
            with taught:
                save(_PATH, {"x": value}, overwrite=True)
                for target in self.targets_of(value):
                    found = load(_PATH, {"x": target})
                    assert self.is_same(value, found["x"])

    def test_loads_with_metadata(self, taught: Context) -> None:
        """Metadata show the name and the facts, and can be asked for."""
        handler = self.make_handler()
        for value in self._values():
            with taught:
                save(_PATH, {"x": value}, overwrite=True)
                shown = metadata(_PATH).metadata
                found = load(_PATH, shown)
            assert isinstance(shown["x"], CustomLeafMetadata)
            assert shown["x"].typestr == handler.typestr
            assert shown["x"].facts == handler.describe(value)
            assert self.is_same(value, found["x"])

    def test_loads_partially(self, taught: Context) -> None:
        """A value may be left where it is, and may be the only one that is loaded."""
        for value in self._values():
            with taught:
                save(_PATH, {"x": value, "y": 1}, overwrite=True)
                assert load(_PATH, {"x": ..., "y": int}) == {"x": ..., "y": 1}
                for target in self.targets_of(value):
                    found = load(_PATH, {"x": target, "y": ...})
                    assert self.is_same(value, found["x"])

    def test_untaught_programs_get_the_stored_form(
        self, taught: Context, untaught: Context
    ) -> None:
        """Who does not know the type loads what is stored, and never an error."""
        handler = self.make_handler()
        for value in self._values():
            with taught:
                save(_PATH, {"x": value}, overwrite=True)
            with untaught:
                found = load(_PATH)
                assert _same_stored(handler.stage(value), found["x"])
                shown = metadata(_PATH).metadata
                assert shown["x"].typestr == handler.typestr
                found = load(_PATH, shown)
            assert _same_stored(handler.stage(value), found["x"])

    def test_saves_the_value_of_the_moment(self, taught: Context) -> None:
        """After `save_async` has returned, memory of the stored form may change."""
        handler = self.make_handler()
        for value, expected in zip(self._values(), self.make_values(), strict=True):
            with taught:
                response = save_async(_PATH, {"x": value}, overwrite=True)
                stored = handler.stage(value)
                if isinstance(stored, np.ndarray) and stored.flags.writeable:
                    stored.fill(0)
                response.result()
                assert self.is_same(expected, load(_PATH)["x"])

    def test_saved_by_several_processes(self, taught: Context) -> None:
        """Two processes save a value together, and one loads it whole."""
        devices = jax.devices()
        devices *= 1 + len(devices) % 2
        for value in self._values():
            with SimulatedCluster(2, devices=devices) as cluster:

                def save_in(
                    index: int, value: Any = value, cluster: Any = cluster
                ) -> None:
                    with Context(taught, runtime=cluster.runtimes[index]):
                        save(_PATH, {"x": value}, overwrite=True)

                cluster.run(save_in)
            with taught:
                assert self.is_same(value, load(_PATH)["x"])
                for target in self.targets_of(value):
                    found = load(_PATH, {"x": target})
                    assert self.is_same(value, found["x"])

    def _values(self) -> Iterator[Any]:
        values = self.make_values()
        assert len(values) > 0, "`make_values` has to give some"
        yield from values


def _same_stored(expected: Any, found: Any) -> bool:
    """Whether two stored forms are equal: kind, dtype, shape, bits."""
    if isinstance(expected, jax.Array):
        if not isinstance(found, jax.Array) or expected.dtype != found.dtype:
            return False
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            expected, found = jax.random.key_data(expected), jax.random.key_data(found)
    elif isinstance(expected, np.ndarray | np.generic):
        if not isinstance(found, np.ndarray | np.generic):
            return False
    else:
        return repr(expected) == repr(found)
    first, second = np.asarray(expected), np.asarray(found)
    facts = first.dtype, first.shape, first.tobytes()
    return facts == (second.dtype, second.shape, second.tobytes())
