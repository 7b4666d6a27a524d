"""Handlers of the older API as this library's operations know handlers.

One of our own takes part in the operation.  One of a user is a guest: its first phase
runs on the thread of the caller, and what it leaves to futures in a room of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any

from etils import epath

from stowax._handlers._base import FinalizingHandler
from stowax._opened import guest_directory
from stowax._operation import Operation
from stowax._operation_path import OperationPath
from stowax._runtime import outside_loop
from stowax.v0._handler import CheckpointHandler
from stowax.v0._handler_types import typestr_of
from stowax.v0._legacy import LegacyHandler
from stowax.v0._own import takes_part


def saver_of(handler: Any, *, in_background: bool) -> Any:
    """Who saves for a handler.

    Args:
        handler: Of the older API.
        in_background: Whether it may leave work to futures.
    """
    if takes_part(handler, "save", "async_save", "finalize", "begin_save"):
        return _OwnSaver(handler)
    if _finalizes(handler):
        return _FinalizingGuest(handler, in_background=in_background)
    return _Guest(handler, in_background=in_background)


async def begin_restore(
    handler: Any, operation: Operation, directory: str, args: Any
) -> Awaitable[Any]:
    """Begins to restore an item; returns the rest of the work, for the same thread.

    Args:
        handler: Of the older API.
        operation: The restore.
        directory: Of the item.
        args: Those of the handler.
    """
    if takes_part(handler, "restore", "begin_restore"):
        return await handler.begin_restore(OperationPath(operation, directory), args)
    return _restore_by_guest(handler, operation, directory, args)


async def tell(handler: Any, operation: Operation, directory: str) -> Any:
    """What a handler says of an item; None if it cannot tell."""
    try:
        if takes_part(handler, "metadata", "tell"):
            return await handler.tell(OperationPath(operation, directory))
        if not hasattr(handler, "metadata"):
            return None
        async with guest_directory(operation, directory) as local:
            with outside_loop():
                return handler.metadata(local)
    except NotImplementedError:
        return None


class _OwnSaver(FinalizingHandler):
    """A handler of ours, which may have guests inside."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self.typestr = typestr_of(handler)

    async def save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        return await self._handler.begin_save(directory, args)

    def has_to_finalize(self) -> bool:
        return self._handler.has_to_finalize()

    async def finalize_item(self, directory: epath.Path) -> None:
        with outside_loop():
            self._handler.finalize(directory)


class _Guest:
    """A handler of a user.

    Args:
        handler: The handler.
        in_background: Whether it may leave work to futures.
    """

    def __init__(self, handler: Any, *, in_background: bool) -> None:
        self._handler = handler
        self._has_futures = in_background and hasattr(handler, "async_save")
        self.typestr = typestr_of(_served(handler))

    async def save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        path = await directory.await_creation()
        if not self._has_futures:
            # It may run loops of its own.
            with outside_loop():
                self._handler.save(path, args=args)
            return _results([])
        return _results(await self._handler.async_save(path, args=args))


class _FinalizingGuest(_Guest, FinalizingHandler):
    """One that finishes an item when all processes have written their part."""

    async def finalize_item(self, directory: epath.Path) -> None:
        with outside_loop():
            self._handler.finalize(directory)


async def _restore_by_guest(
    handler: Any, operation: Operation, directory: str, args: Any
) -> Any:
    async with guest_directory(operation, directory) as local:
        with outside_loop():
            return handler.restore(local, args=args)


async def _results(futures: Any) -> None:
    failures: list[Exception] = []
    for future in _flat(futures):
        try:
            future.result()
        except Exception as error:  # noqa: BLE001 the others are waited for, too
            failures.append(error)
    if failures:
        raise failures[0]


def _flat(futures: Any) -> Iterator[Any]:
    if futures is None:
        return
    if not isinstance(futures, list | tuple):
        yield futures
        return
    for each in futures:
        yield from _flat(each)


def _served(handler: Any) -> Any:
    return handler.handler if isinstance(handler, LegacyHandler) else handler


def _finalizes(handler: Any) -> bool:
    """Whether it has something to finish; that of the base class is nothing."""
    finalize = getattr(type(_served(handler)), "finalize", None)
    return finalize not in (None, CheckpointHandler.finalize)
