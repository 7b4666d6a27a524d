"""A checkpoint opened for a restore by the older API: its items, and what reads them.

One handler restores what lies at the path itself, be it a checkpoint or the directory
of one of its items; a composite one what lies in directories below.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stowax._formats._base import OpenCheckpoint
from stowax._formats._orbax_item import read_root
from stowax._formats._orbax_json import UNFINISHED_MARK, RootDocument
from stowax._formats._stowax import ROOT_SEAL, is_unsealed
from stowax._opened import open_for_reading
from stowax._operation import Operation, in_place
from stowax._operation_path import OperationPath, absolute
from stowax._settings import Settings
from stowax._stores._base import resolve
from stowax.errors import (
    CheckpointableNotFoundError,
    CheckpointNotFoundError,
    InvalidLayoutError,
)
from stowax.v0._guest import tell
from stowax.v0._step_metadata import StepMetadata, step_metadata

METRICS = "metrics"
"""An item that a `CheckpointManager` of Orbax writes by itself."""


async def open_item(location: str, settings: Settings) -> Operation:
    """Opens what one handler restores.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        InvalidLayoutError: It is unfinished, or has several items.
    """
    operation = in_place(location, settings)
    store = operation.store
    path = await operation.submit(resolve(store, location))
    if await operation.submit(store.stat(path)) is None:
        raise CheckpointNotFoundError(f"nothing is at {location}")
    if UNFINISHED_MARK in posixpath.basename(location):
        raise InvalidLayoutError(
            f"{location} is an unfinished save; restore another checkpoint"
        )
    seal = await operation.submit(store.stat(posixpath.join(path, ROOT_SEAL)))
    if seal is None and not await operation.submit(is_unsealed(store, path)):
        operation.directory = path
        return operation
    _, operation = await open_for_reading(location, settings)
    return operation


async def open_items(location: Any, settings: Settings) -> OpenItems:
    """Opens what a composite handler restores.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        InvalidLayoutError: It is no checkpoint, or has one item that lies at the path
            itself.
    """
    checkpoint, operation = await open_for_reading(absolute(location), settings)
    if "" in checkpoint.items:
        raise InvalidLayoutError(
            f"{checkpoint.path} has no items by name: it was saved by one handler, or "
            "is itself an item. Restore it by a Checkpointer with that handler, such "
            "as `PyTreeCheckpointer()`"
        )
    return await OpenItems.of(operation, checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenItems:
    """Items in directories below one."""

    operation: Operation
    path: str
    """The directory above them."""
    names: tuple[str, ...]
    root: RootDocument
    """What stands there about all of them."""
    deleting: str | None = None
    """One that Orbax has begun to delete."""

    @classmethod
    async def of(cls, operation: Operation, checkpoint: OpenCheckpoint) -> OpenItems:
        """Those of a checkpoint."""
        path, store = checkpoint.path, operation.store
        names = set(checkpoint.items) - {""}
        # To other loads these are facts of a step; here it is an item like others.
        if await operation.submit(store.stat(f"{path}/{METRICS}")) is not None:
            names.add(METRICS)
        root = await operation.submit(read_root(store, path))
        return cls(
            operation=operation,
            path=path,
            names=tuple(sorted(names)),
            root=root,
            deleting=checkpoint.deleting,
        )

    @classmethod
    async def below(cls, directory: OperationPath) -> OpenItems:
        """Those below the directory of a handler."""
        operation, path = directory.operation, directory.location
        entries = await operation.submit(operation.store.list(path))
        names = [entry.name for entry in entries if entry.is_directory]
        return cls(
            operation=operation, path=path, names=tuple(names), root=RootDocument()
        )

    @property
    def typestrs(self) -> Mapping[str, str]:
        """Type strings of handlers, as far as recorded."""
        return self.root.typestrs

    def directory_of(self, name: str) -> str:
        """The directory of an item.

        Raises:
            CheckpointableNotFoundError: There is none of that name.
        """
        if name in self.names:
            return f"{self.path}/{name}"
        if name == self.deleting:
            raise CheckpointableNotFoundError(
                f"{self.path}: Orbax has begun to delete {name!r}, and has not finished"
            )
        raise CheckpointableNotFoundError(
            f"{self.path} holds no item {name!r}; it holds {list(self.names)}"
        )

    async def tell(self, handler: Any, name: str) -> Any:
        """What a handler says of an item; None if it cannot, or finds nothing."""
        try:
            return await tell(handler, self.operation, self.directory_of(name))
        except FileNotFoundError:
            return None

    def step_metadata(self) -> StepMetadata:
        """What is known beside the items."""
        return step_metadata(self.root)
