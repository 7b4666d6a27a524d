"""Looking at checkpoints without loading them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from stowax._context import current_settings
from stowax._deadline import drive_in_time, entering
from stowax._formats._base import OpenCheckpoint
from stowax._handlers._base import is_own
from stowax._handlers._registry import Handlers
from stowax._item_read import metadata_tree
from stowax._item_types import shown_types
from stowax._metadata import CheckpointMetadata
from stowax._named_tree import NamedTree, read_tree
from stowax._opened import (
    AUTO,
    describe,
    guest_directory,
    item_kinds,
    unless_replaced,
)
from stowax._operation import Operation
from stowax._operation_path import OperationPath, absolute
from stowax._settings import Settings, check_supported
from stowax._tasks import noting
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

T = TypeVar("T")

_UNTOLD: Final = object()


def metadata(
    path: Any, checkpointable_name: str | None = AUTO
) -> CheckpointMetadata[Any]:
    """What a stored tree looks like, without loading any array.

    Args:
        path: The checkpoint.
        checkpointable_name: Which tree; see `load`.

    Returns:
        `.metadata` is the tree: for every stored array an abstract one with `shape`,
        `dtype`, `sharding` (not of NumPy arrays) and `storage_metadata`, for numbers 0,
        0.0, False or 0j, for strings "string". It can be given to `load`.
        `.container_types` says what its containers were.

    Raises:
        CheckpointNotFoundError: Nothing is at the path.
        InvalidLayoutError: It is no checkpoint.
        CheckpointableNotFoundError: It holds no tree of that name.
        CorruptCheckpointError: A document is damaged.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.
        RunningLoopError: Called in a callback of `on_complete`, where it could not go
            on.

    Example:
        >>> import jax.numpy as jnp
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": jnp.ones((2, 3))})
        >>> stowax.metadata(path).metadata["w"].shape
        (2, 3)
    """
    location, settings = absolute(path), current_settings()
    check_supported(settings, saving=False)

    async def describe(tree: NamedTree) -> CheckpointMetadata[Any]:
        found = metadata_tree(tree.item, settings.loading)
        types = shown_types(tree.item.manifest.root)
        if tree.checkpoint is None:
            return CheckpointMetadata(location, metadata=found, container_types=types)
        return _described(tree.checkpoint, found, types)

    async def read() -> CheckpointMetadata[Any]:
        return await read_tree(location, settings, checkpointable_name, describe)

    return _look(read, settings, location)


def checkpointables_metadata(path: Any) -> CheckpointMetadata[dict[str, Any]]:
    """What all checkpointables of a checkpoint look like.

    Args:
        path: The checkpoint.

    Returns:
        `.metadata` is a dict by name; see `metadata` for trees, also those that an
        object wrote that saves itself. Of other checkpointables it is what their
        handler says (None of JSON values), and an `OpaqueCheckpointable` where nobody
        can tell. It can be given to `load_checkpointables`.

    Raises:
        Exception: See `metadata`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"a": {"x": 1}, "b": "text"})
        >>> stowax.checkpointables_metadata(path).metadata
        {'a': {'x': 0}, 'b': 'string'}
    """
    location, settings = absolute(path), current_settings()
    check_supported(settings, saving=False)

    async def read() -> CheckpointMetadata[dict[str, Any]]:
        return await unless_replaced(location, settings, read_all)

    async def read_all(
        checkpoint: OpenCheckpoint, operation: Operation
    ) -> CheckpointMetadata[dict[str, Any]]:
        handlers = Handlers(operation.settings)
        kinds = await item_kinds(operation, checkpoint)
        found: dict[str, Any] = {}
        for name, directory in checkpoint.items.items():
            typestr = checkpoint.typestrs.get(name)
            handler = handlers.for_loading(name, typestr, kinds[name], None)
            entering(f"asking for the metadata of {name or 'the tree'}")
            with noting(f"while asking for the metadata of {name!r}"):
                told = await _metadata_by(handler, operation, directory)
            if told is _UNTOLD:
                told = await describe(operation, directory, typestr)
            found[name] = told
        return _described(checkpoint, found)

    return _look(read, settings, location)


def is_orbax_checkpoint(path: Any) -> bool:
    """Whether a checkpoint, of this library or of any Orbax, is at the path.

    Example:
        >>> import stowax
        >>> stowax.is_orbax_checkpoint(getfixture("tmp_path"))
        False
    """
    location = absolute(path)
    settings = dataclasses.replace(current_settings(), verify=False)

    async def found(checkpoint: OpenCheckpoint, operation: Operation) -> bool:
        del checkpoint, operation
        return True

    async def read() -> bool:
        try:
            return await unless_replaced(location, settings, found)
        except (InvalidLayoutError, CorruptCheckpointError, OSError):
            return False

    return _look(read, settings, location)


def _look(
    read: Callable[[], Coroutine[Any, Any, T]], settings: Settings, location: str
) -> T:
    return drive_in_time(read, settings, f"look at {location}")


async def _metadata_by(handler: Any, operation: Operation, directory: str) -> Any:
    """What a handler says of an item; `_UNTOLD` if it cannot."""
    if handler is None:
        return _UNTOLD
    try:
        if is_own(handler, "metadata"):
            return await handler.metadata(OperationPath(operation, directory))
        async with guest_directory(operation, directory) as local:
            return await _await(handler.metadata(local))
    except NotImplementedError:  # What handlers of Orbax raise that cannot tell.
        return _UNTOLD


async def _await(value: Awaitable[Any] | Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


def _described(
    checkpoint: OpenCheckpoint, found: Any, types: Mapping[str, str] | None = None
) -> CheckpointMetadata[Any]:
    return CheckpointMetadata(
        checkpoint.path,
        metadata=found,
        init_timestamp_nsecs=checkpoint.init_timestamp_nsecs,
        commit_timestamp_nsecs=checkpoint.commit_timestamp_nsecs,
        custom_metadata=dict(checkpoint.custom_metadata),
        container_types=types,
    )
