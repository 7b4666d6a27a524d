"""Which handler serves an item, by its name and the class of its arguments."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol

from stowax.errors import HandlerError, HandlerNotFoundError
from stowax.v0._checkpoint_args import (
    CheckpointArgs,
    get_registered_args_cls,
    get_registered_handler_cls,
)

Entries = MutableMapping[tuple[str | None, type[CheckpointArgs]], Any]
"""Handlers by the name of an item, None for all, and the class of arguments."""


class AlreadyExistsError(HandlerError):
    """A registry has a handler for an item and its arguments already.

    Example:
        >>> from stowax import v0 as ocp
        >>> registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        >>> registry.add("state", ocp.args.StandardSave)
        >>> try:
        ...     registry.add("state", ocp.args.StandardSave)
        ... except ValueError as error:
        ...     print(type(error).__name__)
        AlreadyExistsError
    """


class NoEntryError(HandlerNotFoundError):
    """A registry has no handler for an item and its arguments.

    Example:
        >>> from stowax import v0 as ocp
        >>> registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        >>> try:
        ...     registry.get("state", ocp.args.StandardSave)
        ... except KeyError as error:
        ...     print(type(error).__name__)
        NoEntryError
    """


class CheckpointHandlerRegistry(Protocol):
    """What finds handlers for a `CompositeCheckpointHandler`."""

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds a handler."""
        ...

    def get(self, item: str | None, args: Any) -> Any:
        """The handler."""
        ...

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is one."""
        ...

    def get_all_entries(self) -> Entries:
        """All of them."""
        ...


class DefaultCheckpointHandlerRegistry(CheckpointHandlerRegistry):
    """The registry of this library.

    Args:
        other_registry: Whose entries it begins with.

    Example:
        >>> from stowax import v0 as ocp
        >>> registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        >>> registry.add("config", ocp.args.JsonSave, ocp.JsonCheckpointHandler("c"))
        >>> registry.has("config", ocp.args.JsonSave)
        True
    """

    def __init__(self, other_registry: CheckpointHandlerRegistry | None = None) -> None:
        self._entries: Entries = {}
        if other_registry is not None:
            for (item, args), handler in other_registry.get_all_entries().items():
                self.add(item, args, handler)

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds a handler.

        Args:
            item: The name of the item; None: every item without one of its own.
            args: The class of the arguments, or an instance.
            handler: The handler, or its class; None: the class that is registered for
                the arguments.

        Raises:
            AlreadyExistsError: There is one for both.
            ValueError: None is registered, or its class cannot be made without
                arguments.
        """
        cls = _class_of(args)
        if self.has(item, cls):
            raise AlreadyExistsError(
                f"there is a handler for the item {item!r} and {cls.__qualname__} "
                "already; make another registry for another one"
            )
        made = get_registered_handler_cls(cls) if handler is None else handler
        if isinstance(made, type):
            try:
                made = made()
            except TypeError as error:
                raise HandlerError(
                    f"{made.__qualname__} cannot be made without arguments ({error}); "
                    "register an instance of it"
                ) from error
        self._entries[item, cls] = made

    def get(self, item: str | None, args: Any) -> Any:
        """The handler of an item and its arguments, of a class or an instance.

        Raises:
            NoEntryError: There is none; lists those that there are.
        """
        cls = _class_of(args)
        try:
            return self._entries[item, cls]
        except KeyError:
            known = [f"{name!r}: {c.__qualname__}" for name, c in self._entries]
            raise NoEntryError(
                f"no handler for the item {item!r} and {cls.__qualname__}; there are "
                f"some for {', '.join(known) or 'nothing'}"
            ) from None

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is a handler for both."""
        return (item, _class_of(args)) in self._entries

    def get_all_entries(self) -> Entries:
        """All handlers, by item and class of arguments."""
        return self._entries

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._entries})"


def create_default_handler_registry(
    **items_to_handlers: Any,
) -> DefaultCheckpointHandlerRegistry:
    """A registry of items with the handler of each.

    Args:
        **items_to_handlers: Handlers, by the name of the item.

    Example:
        >>> from stowax import v0 as ocp
        >>> registry = ocp.handlers.create_default_handler_registry(
        ...     config=ocp.JsonCheckpointHandler()
        ... )
        >>> registry.has("config", ocp.args.JsonRestore)
        True
    """
    registry = DefaultCheckpointHandlerRegistry()
    for item, handler in items_to_handlers.items():
        for args in dict.fromkeys(get_registered_args_cls(handler)):
            registry.add(item, args, handler)
    return registry


def _class_of(args: Any) -> type[CheckpointArgs]:
    return args if isinstance(args, type) else type(args)
