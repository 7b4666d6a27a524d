"""Which handler serves which item: said before, or found when it is first used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stowax.errors import HandlerError, HandlerNotFoundError
from stowax.v0._checkpoint_args import (
    get_registered_args_cls,
    get_registered_handler_cls,
    has_registered_args,
)
from stowax.v0._handler_registry import (
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
)
from stowax.v0._handler_types import typestr_of
from stowax.v0._legacy import with_arguments


class ItemHandlers:
    """The handlers of items; one that has served an item stays with it.

    Args:
        registry: Handlers for items and arguments; None: there are none yet.
        names: The only items that there may be, if there are names or handlers.
        handlers: Their handlers, as far as they are known.
    """

    def __init__(
        self,
        registry: CheckpointHandlerRegistry | None,
        names: Iterable[str],
        handlers: Mapping[str, Any],
    ) -> None:
        self._registry = DefaultCheckpointHandlerRegistry(registry)
        self._waiting: set[str] | None = None
        """Items that there may be and that have no handler yet; None: any."""
        if names or handlers:
            self._waiting = {*names}
        for name, handler in handlers.items():
            if handler is None:
                continue
            if not has_registered_args(handler):
                handler = with_arguments(handler)
            self._add(name, handler)
        if self._waiting is not None:
            self._waiting = (self._waiting | {*handlers}) - {*self.known()}

    def known(self) -> dict[str, Any]:
        """The items with a handler, and the handlers."""
        entries = self._registry.get_all_entries()
        return {name: handler for (name, _), handler in entries.items() if name}

    def of(self, name: str, args: Any) -> Any:
        """The handler of an item, now and from now on.

        Args:
            name: The item.
            args: Its arguments; None: there is a handler already.

        Raises:
            HandlerError: It has none, or one that takes other arguments.
        """
        known = self.known()
        if args is None:
            if name not in known:
                raise HandlerNotFoundError(
                    f"the item {name!r} is given None, and has no handler yet; give "
                    "its arguments, such as `ocp.args.StandardSave(tree)`"
                )
            return known[name]
        if self._registry.has(name, args):
            return self._registry.get(name, args)
        if self._registry.has(None, args):
            handler = self._registry.get(None, args)
            self._registry.add(name, args, handler)
            return handler
        handler_cls = get_registered_handler_cls(args)
        if name in known:
            raise HandlerError(
                f"the item {name!r} has the handler {typestr_of(known[name])}, which "
                f"takes no {type(args).__qualname__}; give arguments that it takes, or "
                "make another CompositeCheckpointHandler"
            )
        if self._waiting is not None:
            if name not in self._waiting:
                raise HandlerError(
                    f"the item {name!r} is none of those that this "
                    "CompositeCheckpointHandler was made for, "
                    f"{sorted([*known, *self._waiting])}"
                )
            self._waiting.remove(name)
        handler = handler_cls()
        self._add(name, handler)
        return handler

    def _add(self, name: str, handler: Any) -> None:
        for args in dict.fromkeys(get_registered_args_cls(handler)):
            if not self._registry.has(name, args):
                self._registry.add(name, args, handler)
