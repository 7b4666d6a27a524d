"""Which handler serves a checkpointable.

A registry is an ordered list of entries; the one that was added last is asked first.
An entry may be tied to the checkpointable of one name, and then serves only that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from stowax._context import Settings
from stowax._formats._orbax_json import (
    V0_JSON_TYPESTR,
    V0_PYTREE_TYPESTR,
    V0_STANDARD_TYPESTR,
)
from stowax._handlers._json import JsonHandler, MetricsHandler
from stowax._handlers._pytree import PyTreeHandler
from stowax._handlers._stateful import StatefulCheckpointableHandler
from stowax._keypath import flatten
from stowax._leaves import _registry as leaves
from stowax.errors import HandlerError

HandlerT = TypeVar("HandlerT")

STATE_NAME = "state"
"""What `save` and `load` call their only checkpointable."""


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One handler of a registry."""

    handler_type: Any
    """The class, or an instance."""
    checkpointable_name: str | None = None
    """The only checkpointable that it serves; None: all that it can handle."""
    secondary_typestrs: tuple[str, ...] = ()
    """Other names under which checkpoints may have recorded it."""


class CheckpointableHandlerRegistry(Protocol):
    """What finds handlers; these four methods are all that the library uses."""

    def add(
        self,
        handler_type: Any,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        """Adds a handler, to be asked before those that are there."""
        ...

    def get(self, checkpointable_name: str) -> Any:
        """The handler tied to a name.

        Raises:
            HandlerError: There is none.
        """
        ...

    def has(self, checkpointable_name: str) -> bool:
        """Whether a handler is tied to a name."""
        ...

    def get_all_entries(self) -> Sequence[Any]:
        """All entries, the first added first."""
        ...


class HandlerRegistry:
    """The registry of this library."""

    def __init__(self, entries: Sequence[RegistryEntry] = ()) -> None:
        self._entries = list(entries)

    def add(
        self,
        handler_type: Any,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> HandlerRegistry:
        """Adds a handler, class or instance; see `CheckpointableHandlerRegistry`."""
        if checkpointable_name is not None:
            self._entries = [
                e for e in self._entries if e.checkpointable_name != checkpointable_name
            ]
        self._entries.append(
            RegistryEntry(
                handler_type, checkpointable_name, tuple(secondary_typestrs or ())
            )
        )
        return self

    def get(self, checkpointable_name: str) -> Any:
        """The handler tied to a name; see `CheckpointableHandlerRegistry`."""
        for entry in self._entries:
            if entry.checkpointable_name == checkpointable_name:
                return entry.handler_type
        known = [e.checkpointable_name for e in self._entries if e.checkpointable_name]
        raise HandlerError(
            f"no handler is registered for the name {checkpointable_name!r}; names "
            f"with one are {known}"
        )

    def has(self, checkpointable_name: str) -> bool:
        """Whether a handler is tied to a name."""
        return any(e.checkpointable_name == checkpointable_name for e in self._entries)

    def get_all_entries(self) -> Sequence[RegistryEntry]:
        """All entries, the first added first."""
        return tuple(self._entries)

    def get_secondary_typestrs(self, handler_type: Any) -> Sequence[str]:
        """Other names under which checkpoints may have recorded a handler."""
        for entry in self._entries:
            if entry.handler_type is handler_type:
                return entry.secondary_typestrs
        return ()


def _standard() -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.add(JsonHandler, secondary_typestrs=[V0_JSON_TYPESTR])
    registry.add(StatefulCheckpointableHandler)
    registry.add(MetricsHandler, "metrics")
    registry.add(
        PyTreeHandler, secondary_typestrs=[V0_PYTREE_TYPESTR, V0_STANDARD_TYPESTR]
    )
    registry.add(PyTreeHandler, STATE_NAME)
    return registry


_GLOBAL = _standard()


def global_registry() -> HandlerRegistry:
    """The registry that every operation uses unless its Context names another."""
    return _GLOBAL


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> HandlerRegistry:
    """A new registry for use in a Context; changing it changes no other.

    Args:
        other_registry: Entries to begin with.
        include_global_registry: Whether the entries of the global registry come first.

    Example:
        >>> import stowax
        >>> registry = stowax.handlers.local_registry()
        >>> _ = registry.add(stowax.handlers.JsonHandler, "config")
        >>> registry.has("config"), stowax.handlers.global_registry().has("config")
        (True, False)
    """
    registry = HandlerRegistry(
        global_registry().get_all_entries() if include_global_registry else ()
    )
    for entry in other_registry.get_all_entries() if other_registry else ():
        registry.add(
            entry.handler_type,
            entry.checkpointable_name,
            getattr(entry, "secondary_typestrs", ()),
        )
    return registry


def register_handler(
    cls: HandlerT,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> HandlerT:
    """Adds a handler to the global registry; usable as a decorator of its class.

    Args:
        cls: The handler.
        checkpointable_name: The only checkpointable that it shall serve.
        secondary_typestrs: Other names under which checkpoints may have recorded it.
    """
    global_registry().add(cls, checkpointable_name, secondary_typestrs)
    return cls


class Handlers:
    """The handlers of one operation: those of its Context on top of its registry."""

    def __init__(self, settings: Settings) -> None:
        registry: Any = settings.registry
        registry = global_registry() if registry is None else registry
        entries = [
            (entry.checkpointable_name, entry.handler_type, _typestrs(registry, entry))
            for entry in registry.get_all_entries()
        ]
        entries += [(name, handler, ()) for name, handler in settings.handlers]
        self._entries = [
            (name, handler() if isinstance(handler, type) else handler, typestrs)
            for name, handler, typestrs in reversed(entries)
        ]

    def tied_to(self, name: str) -> Any | None:
        """The handler that was chosen for one name."""
        return next((h for tied, h, _ in self._entries if tied == name), None)

    def for_saving(self, name: str, checkpointable: Any) -> Any:
        """The handler that saves a checkpointable.

        Raises:
            UnsupportedLeafError: It is a tree with leaves that cannot be saved.
            HandlerError: No handler accepts it, nor the one chosen for the name.
        """
        tied = self.tied_to(name)
        if tied is not None and not _saves_itself(tied, checkpointable):
            return tied
        for tied_name, handler, _ in self._entries:
            if tied_name is None and handler.is_handleable(checkpointable):
                return handler
        flat = flatten(checkpointable)
        if flat.root.kind != "leaf":
            for leaf, leaf_name in zip(flat.leaves, flat.names, strict=True):
                leaves.for_value(leaf, leaf_name)
        raise HandlerError(
            f"checkpointable {name!r} is a {type(checkpointable).__module__}."
            f"{type(checkpointable).__qualname__}, which no handler can save. Give it "
            "`save` and `load` methods (`stowax.StatefulCheckpointable`), or register "
            "a handler with `stowax.handlers.register_handler`."
        )

    def for_loading(
        self, name: str, typestr: str | None, kind: str, target: Any
    ) -> Any | None:
        """The handler that loads a checkpointable; None if nobody can.

        Args:
            name: The checkpointable.
            typestr: What the checkpoint recorded, if anything.
            kind: What its files are: `tree`, `json`, `proto` or `opaque`.
            target: What was asked for; None if nothing was.
        """
        tied = self.tied_to(name)
        serves = name != STATE_NAME or kind == "tree"
        if tied is not None and serves and not _saves_itself(tied, target):
            return tied
        if StatefulCheckpointableHandler().is_handleable(target):
            return StatefulCheckpointableHandler()
        for _, handler, typestrs in self._entries:
            if typestr in (typestr_of(handler), *typestrs) and not isinstance(
                handler, StatefulCheckpointableHandler
            ):
                return handler
        if kind == "tree":
            return PyTreeHandler()
        if kind == "json":
            return JsonHandler()
        if target is None:
            return None
        for tied_name, handler, _ in self._entries:
            if tied_name is None and handler.is_abstract_handleable(target):
                return handler
        return None


def _saves_itself(tied: Any, checkpointable: Any) -> bool:
    """Whether a name is tied to trees, but stands for an object that saves itself."""
    stateful = StatefulCheckpointableHandler().is_handleable(checkpointable)
    return stateful and isinstance(tied, PyTreeHandler)


def typestr_of(handler: Any) -> str:
    """The name under which a checkpoint records a handler."""
    own = getattr(handler, "typestr", None)
    cls = type(handler)
    return own if isinstance(own, str) else f"{cls.__module__}.{cls.__qualname__}"


def _typestrs(registry: Any, entry: Any) -> tuple[str, ...]:
    return tuple(getattr(entry, "secondary_typestrs", ()))
