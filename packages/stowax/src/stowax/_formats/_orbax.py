"""Checkpoints as Orbax v1 arranges them: the indicator file, and a directory per item.

<checkpoint>/
  orbax.checkpoint          empty; its presence makes this the format
  _CHECKPOINT_METADATA      must be there, says when and by which handlers
  <name>/                   one checkpointable
"""

from __future__ import annotations

from stowax._formats._base import OpenCheckpoint
from stowax._formats._orbax_item import (
    describe,
    item_directories,
    read_deletion,
    read_metrics,
    read_root,
)
from stowax._formats._orbax_json import INDICATOR, ROOT_DOCUMENT
from stowax._stores._base import Store
from stowax.errors import InvalidLayoutError


class OrbaxV1Format:
    """Reads what `orbax.checkpoint.v1` wrote."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "Orbax v1"

    @property
    def is_sealed(self) -> bool:
        """Orbax keeps no checksums of documents."""
        return False

    async def recognises(self, store: Store, path: str) -> bool:
        """Whether the indicator file is there."""
        return await store.stat(f"{path}/{INDICATOR}") is not None

    async def open(self, store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
        """Reads what stands at the root; nothing there can be verified.

        Raises:
            InvalidLayoutError: A file is missing.
            CorruptCheckpointError: A document at the root is damaged.
        """
        entries = await store.list(path)
        if not any(entry.name == ROOT_DOCUMENT for entry in entries):
            raise InvalidLayoutError(
                f"{path} has {INDICATOR}, but no {ROOT_DOCUMENT}: it is incomplete; "
                f"it holds: {describe(entries)}."
            )
        root = await read_root(store, path)
        deleting = await read_deletion(store, path, entries)
        return OpenCheckpoint(
            path=path,
            items=item_directories(path, entries, deleting),
            typestrs=root.typestrs,
            init_timestamp_nsecs=root.init_timestamp_nsecs,
            commit_timestamp_nsecs=root.commit_timestamp_nsecs,
            custom_metadata=root.custom_metadata,
            metrics=await read_metrics(store, path),
            deleting=deleting,
        )
