"""The one tree of a checkpoint that a call is about, open for reading."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from stowax._formats._base import OpenCheckpoint, TreeItem
from stowax._item_read import open_item
from stowax._opened import check_tree_name, item_kinds, tree_name, unless_replaced
from stowax._operation import Operation, in_place
from stowax._settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTree:
    """A tree item, and what it was found in."""

    item: TreeItem
    operation: Operation
    checkpoint: OpenCheckpoint | None
    """None if the path was the directory of the tree itself."""


async def read_tree(
    location: str,
    settings: Settings,
    name: str | None,
    read: Callable[[NamedTree], Coroutine[Any, Any, T]],
) -> T:
    """Opens the tree that `load` would load, and reads in it.

    Args:
        location: The checkpoint, or the directory of a tree if there is no name.
        settings: Those of the operation.
        name: See `stowax.load`.
        read: What to do; done anew if the checkpoint was replaced meanwhile.

    Raises:
        Exception: See `stowax.metadata`; and what `read` raises.
    """

    async def opened(
        directory: str, operation: Operation, checkpoint: OpenCheckpoint | None
    ) -> NamedTree:
        opening = open_item(operation, directory, settings.loading)
        return NamedTree(
            item=await operation.submit(opening),
            operation=operation,
            checkpoint=checkpoint,
        )

    async def read_named(checkpoint: OpenCheckpoint, operation: Operation) -> T:
        assert name is not None
        kinds = await item_kinds(operation, checkpoint)
        directory = checkpoint.items[tree_name(checkpoint, kinds, name)]
        async with operation.ending():
            return await read(await opened(directory, operation, checkpoint))

    check_tree_name(name)
    if name is None:
        operation = in_place(location, settings)
        async with operation.ending():
            return await read(await opened(location, operation, None))
    return await unless_replaced(location, settings, read_named)
