"""Handlers without arguments of their own: they are given those of the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._handler import AsyncCheckpointHandler, CheckpointHandler


class LegacyHandler(CheckpointHandler):
    """Takes what a call was given, and hands it on.

    Args:
        handler: The handler of the user.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def save(self, directory: epath.Path, args: CheckpointArgs) -> Any:
        """Calls its `save`."""
        given = LegacyArgs.of(args)
        return self.handler.save(directory, *given.args, **given.kwargs)

    def restore(self, directory: epath.Path, args: CheckpointArgs) -> Any:
        """Calls its `restore`."""
        given = LegacyArgs.of(args)
        return self.handler.restore(directory, *given.args, **given.kwargs)

    def metadata(self, directory: epath.Path) -> Any | None:
        """Calls its `metadata`, if it has one."""
        ask = getattr(self.handler, "metadata", None)
        return None if ask is None else ask(directory)

    def structure(self, directory: epath.Path) -> Any | None:
        """Calls its `structure`."""
        return self.handler.structure(directory)

    def finalize(self, directory: epath.Path) -> None:
        """Calls its `finalize`, if it has one."""
        finalize = getattr(self.handler, "finalize", None)
        if finalize is not None:
            finalize(directory)

    def close(self) -> None:
        """Calls its `close`, if it has one."""
        close = getattr(self.handler, "close", None)
        if close is not None:
            close()


class AsyncLegacyHandler(LegacyHandler, AsyncCheckpointHandler):
    """The same for a handler that can go on in the background."""

    async def async_save(
        self, directory: epath.Path, args: CheckpointArgs
    ) -> Sequence[Any] | None:
        """Calls its `async_save`."""
        given = LegacyArgs.of(args)
        return await self.handler.async_save(directory, *given.args, **given.kwargs)


@register_with_handler(LegacyHandler, for_save=True, for_restore=True)
class LegacyArgs(CheckpointArgs):
    """The arguments of a call, as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    @classmethod
    def of(cls, args: CheckpointArgs) -> LegacyArgs:
        """Arguments of any class; a handler that has none is given them as they are."""
        return args if isinstance(args, LegacyArgs) else cls(args=args)


@register_with_handler(AsyncLegacyHandler, for_save=True, for_restore=True)
class AsyncLegacyArgs(LegacyArgs):
    """The same, for the other handler: which takes which is told by the class."""


def with_arguments(handler: Any) -> Any:
    """A handler without registered arguments, such that it has some."""
    if hasattr(handler, "async_save"):
        return AsyncLegacyHandler(handler)
    return LegacyHandler(handler)
