"""Registries of handlers, and what one operation finds in them.

A registry is an ordered list of entries; the one that was added last is asked first.
An entry may be tied to the checkpointable of one name, and then serves only that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, overload

from stowax._formats._base import ItemKind
from stowax._formats._orbax_json import (
    V0_JSON_TYPESTRS,
    V0_PROTO_TYPESTRS,
    V0_PYTREE_TYPESTRS,
)
from stowax._handlers._choose import (
    Candidate,
    choose_for_loading,
    choose_for_saving,
)
from stowax._handlers._json import JsonHandler, MetricsHandler
from stowax._handlers._proto import ProtoHandler
from stowax._handlers._pytree import PyTreeHandler
from stowax._handlers._stateful import StatefulCheckpointableHandler
from stowax._keypath import flatten
from stowax._leaves._registry import Leaves
from stowax._option_values import check_flags
from stowax._settings import Settings
from stowax.errors import HandlerError, HandlerNotFoundError

HandlerT = TypeVar("HandlerT")

STATE_NAME = "state"
"""What `save` and `load` call their only checkpointable."""

_NEEDED = ("save", "load", "is_handleable", "is_abstract_handleable")


class RegistryEntry(NamedTuple):
    """One handler of a registry: a pair, as in Orbax."""

    handler_type: Any
    """The class, or an instance."""
    checkpointable_name: str | None = None
    """The only checkpointable that it serves; None: all that it can handle."""


class CheckpointableHandlerRegistry(Protocol):
    """What finds handlers.

    A registry of your own needs the first four of these methods. Its entries may be
    pairs of a handler and the name that it is tied to, or objects with these two as
    `handler_type` and `checkpointable_name`.
    """

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
            KeyError: There is none.
        """
        ...

    def has(self, checkpointable_name: str) -> bool:
        """Whether a handler is tied to a name."""
        ...

    def get_all_entries(self) -> Sequence[Any]:
        """All entries, the first added first."""
        ...

    def get_secondary_typestrs(self, handler_type: Any) -> Sequence[str]:
        """Other names under which checkpoints may have recorded a handler."""
        ...


class HandlerRegistry:
    """The registry of this library."""

    def __init__(self) -> None:
        self._entries: list[RegistryEntry] = []
        self._secondary_typestrs: list[tuple[Any, tuple[str, ...]]] = []

    def add(
        self,
        handler_type: Any,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> HandlerRegistry:
        """Adds a handler, to be asked before those that are there.

        What is added again counts as added last. A name is tied to one handler: the
        last one.

        Args:
            handler_type: The handler, a class that can be called without arguments or
                an instance.
            checkpointable_name: The only checkpointable that it shall serve, whether
                it accepts it or not; None: every one that it accepts.
            secondary_typestrs: Other names under which checkpoints may have recorded
                it.

        Returns:
            The registry.

        Raises:
            HandlerError: It lacks methods of a handler.
        """
        missing = [n for n in _NEEDED if not callable(getattr(handler_type, n, None))]
        if missing:
            raise HandlerError(
                f"{handler_type!r} is no handler: it has no {', '.join(missing)}; see "
                "`stowax.handlers.CheckpointableHandler`"
            )
        entry = RegistryEntry(handler_type, checkpointable_name)
        self._entries = [e for e in self._entries if not _is_replaced(e, entry)]
        self._entries.append(entry)
        if secondary_typestrs is not None:
            self._secondary_typestrs = [
                pair for pair in self._secondary_typestrs if pair[0] is not handler_type
            ]
            self._secondary_typestrs.append((handler_type, tuple(secondary_typestrs)))
        return self

    def get(self, checkpointable_name: str) -> Any:
        """The handler tied to a name.

        Raises:
            HandlerNotFoundError: There is none; lists the names that have one.
        """
        for entry in self._entries:
            if entry.checkpointable_name == checkpointable_name:
                return entry.handler_type
        known = [e.checkpointable_name for e in self._entries if e.checkpointable_name]
        raise HandlerNotFoundError(
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
        for handler, typestrs in self._secondary_typestrs:
            if handler is handler_type:
                return typestrs
        return ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(map(tuple, self._entries))})"


def _is_replaced(old: RegistryEntry, new: RegistryEntry) -> bool:
    if new.checkpointable_name is not None:
        return old.checkpointable_name == new.checkpointable_name
    return old.checkpointable_name is None and old.handler_type is new.handler_type


def _standard() -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.add(ProtoHandler, secondary_typestrs=V0_PROTO_TYPESTRS)
    registry.add(JsonHandler, secondary_typestrs=V0_JSON_TYPESTRS)
    registry.add(StatefulCheckpointableHandler)
    registry.add(MetricsHandler, "metrics")
    registry.add(PyTreeHandler, secondary_typestrs=V0_PYTREE_TYPESTRS)
    registry.add(PyTreeHandler, STATE_NAME)
    return registry


_GLOBAL = _standard()

_OURS = tuple(
    Candidate(handler, _GLOBAL.get_secondary_typestrs(handler))
    for handler in (
        PyTreeHandler,
        StatefulCheckpointableHandler,
        JsonHandler,
        ProtoHandler,
    )
)
"""What loads are left to if a registry has nothing for them."""


def global_registry() -> HandlerRegistry:
    """The registry that every operation uses unless its Context names another.

    Example:
        >>> import stowax
        >>> stowax.handlers.global_registry().has("config")
        False
    """
    return _GLOBAL


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> HandlerRegistry:
    """A new registry for use in a Context; changing it changes no other.

    Args:
        other_registry: Entries to add, after those of the global registry.
        include_global_registry: Whether the entries of the global registry are in it.

    Example:
        >>> import stowax
        >>> registry = stowax.handlers.local_registry()
        >>> _ = registry.add(stowax.handlers.JsonHandler, "config")
        >>> registry.has("config"), stowax.handlers.global_registry().has("config")
        (True, False)
    """
    check_flags(include_global_registry=include_global_registry)
    registry = HandlerRegistry()
    sources: list[Any] = [_GLOBAL] if include_global_registry else []
    if other_registry is not None:
        sources.append(other_registry)
    for source in sources:
        for known in _read_entries(source):
            registry.add(known.handler, known.name, known.secondary_typestrs)
    return registry


@overload
def register_handler(
    cls: HandlerT,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> HandlerT: ...
@overload
def register_handler(
    cls: None = None,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> Callable[[HandlerT], HandlerT]: ...
def register_handler(
    cls: Any = None,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> Any:
    """Adds a handler to the global registry; usable as a decorator of its class.

    Args:
        cls: The handler; left out, a decorator is returned.
        checkpointable_name: The only checkpointable that it shall serve.
        secondary_typestrs: Other names under which checkpoints may have recorded it.

    Returns:
        The handler.

    Raises:
        HandlerError: It lacks methods of a handler.

    Example:
        Not run as a test, because a handler stays registered as long as the program
        runs:

        >>> import stowax
        >>> @stowax.handlers.register_handler(  # doctest: +SKIP
        ...     secondary_typestrs=["old_module.VocabularyHandler"]
        ... )
        ... class VocabularyHandler: ...
    """
    if cls is None:
        return lambda cls: register_handler(
            cls,
            checkpointable_name=checkpointable_name,
            secondary_typestrs=secondary_typestrs,
        )
    _GLOBAL.add(cls, checkpointable_name, secondary_typestrs)
    return cls


class _Known(NamedTuple):
    """An entry of any registry."""

    handler: Any
    name: str | None
    secondary_typestrs: tuple[str, ...]


def _read_entries(registry: Any) -> list[_Known]:
    """The entries of a registry, whoever wrote it.

    Raises:
        HandlerError: They are neither pairs nor objects with the attributes of one.
    """
    known: list[_Known] = []
    for entry in registry.get_all_entries():
        try:
            if isinstance(entry, tuple | list):
                handler, name, *rest = entry
                typestrs = rest[0] if rest else None
            else:
                handler, name = entry.handler_type, entry.checkpointable_name
                typestrs = getattr(entry, "secondary_typestrs", None)
        except (AttributeError, ValueError) as error:
            raise HandlerError(
                f"{type(registry).__qualname__}.get_all_entries() gave {entry!r}; an "
                "entry is a pair (handler, name), where the name may be None"
            ) from error
        ask = getattr(registry, "get_secondary_typestrs", None)
        if typestrs is None and ask is not None:
            typestrs = ask(handler)
        known.append(_Known(handler, name, tuple(typestrs or ())))
    return known


class Handlers:
    """The handlers of one operation: those of its Context on top of its registry."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        registry: Any = settings.registry
        self._registry = _GLOBAL if registry is None else registry
        self._tied = {name: h for name, h in settings.handlers if name is not None}
        candidates = [
            Candidate(known.handler, known.secondary_typestrs, name=known.name)
            for known in _read_entries(self._registry)
        ]
        candidates += [Candidate(h, name=name) for name, h in settings.handlers]
        self._candidates = candidates[::-1]

    def for_saving(self, name: str, checkpointable: Any) -> Any:
        """The handler that saves a checkpointable; see `_choose`.

        Raises:
            HandlerNotFoundError: No handler accepts it.
        """
        found = choose_for_saving(self._tied_to(name), self._candidates, checkpointable)
        if found is not None:
            return found.handler
        trees = PyTreeHandler()
        is_leaf = Leaves(self._settings.leaf_handlers).takes_value
        is_tree = flatten(checkpointable, is_leaf).root.kind != "leaf"
        if is_tree and not trees.is_handleable(checkpointable):
            return trees  # Its refusal lists all leaves that cannot be saved.
        raise HandlerNotFoundError(
            f"checkpointable {name!r} is a {type(checkpointable).__module__}."
            f"{type(checkpointable).__qualname__}, which no handler can save. Give it "
            "`save` and `load` methods (`stowax.StatefulCheckpointable`), or register "
            "a handler with `stowax.handlers.register_handler`."
        )

    def for_loading(
        self, name: str, typestr: str | None, kind: ItemKind, target: Any
    ) -> Any | None:
        """The handler that loads a checkpointable, None if nobody can; see `_choose`.

        Args:
            name: The checkpointable.
            typestr: What the checkpoint recorded, if anything.
            kind: What its files are.
            target: What was asked for; None if nothing was.
        """
        found = choose_for_loading(
            self._tied_to(name),
            [*self._candidates, *_OURS],
            typestr=typestr,
            kind=kind,
            target=target,
        )
        return None if found is None else found.handler

    def none_loads(
        self, where: str, name: str, typestr: str | None
    ) -> HandlerNotFoundError:
        """The error for a checkpointable that was asked for and that nobody can load.

        Args:
            where: Its directory.
            name: The checkpointable.
            typestr: What the checkpoint recorded, if anything.
        """
        by = "an unknown handler" if typestr is None else repr(typestr)
        known = [c for c in [*self._candidates, *_OURS] if typestr in c.typestrs]
        if not known:
            advice = (
                "Register its handler with `stowax.handlers.register_handler`, or give "
                "the object to load into."
            )
        elif known[0].needs_target:
            advice = (
                "Say what to load: the object to load into, or the class of a message."
            )
        else:
            advice = "That handler refuses what is asked for."
        return HandlerNotFoundError(
            f"{where}: nothing here can load {name!r}, which was saved by {by}. "
            f"{advice}"
        )

    def _tied_to(self, name: str) -> Candidate | None:
        """The handler that was chosen for one name."""
        if name in self._tied:
            return Candidate(self._tied[name])
        if not self._registry.has(name):
            return None
        handler = self._registry.get(name)
        ask = getattr(self._registry, "get_secondary_typestrs", None)
        return Candidate(handler, () if ask is None else ask(handler))
