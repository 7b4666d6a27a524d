"""Checkpoints as the older API of Orbax arranges them, and steps of any Orbax.

There is no indicator file.  Items lie in sub-directories (composite: every step of a
`CheckpointManager`, and of a v1 `training.Checkpointer`), or the files of the only item
lie at the top (direct).
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from stowax._formats._base import ITEM_DOCUMENT, OpenCheckpoint
from stowax._formats._orbax_item import (
    AGGREGATE_DOCUMENT,
    describe,
    item_directories,
    read_deletion,
    read_metrics,
    read_root,
)
from stowax._formats._orbax_json import INDICATOR, ROOT_DOCUMENT, item_kind
from stowax._stores._base import Entry, Store
from stowax.errors import InvalidLayoutError


class OrbaxV0Format:
    """Reads what `orbax.checkpoint` wrote through its older API."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "Orbax v0"

    @property
    def is_sealed(self) -> bool:
        """Orbax keeps no checksums of documents."""
        return False

    async def recognises(self, store: Store, path: str) -> bool:
        """Whether root metadata, an item, or directories of items are there.

        Root metadata may be missing; a directory of steps is no checkpoint.
        """
        entries = await store.list(path)
        names = _file_names(entries)
        if INDICATOR in names:
            return False
        if ROOT_DOCUMENT in names or _is_item(names):
            return True
        below = [
            _file_names(await store.list(f"{path}/{entry.name}"))
            for entry in entries
            if entry.is_directory
        ]
        return any(map(_is_item, below)) and not any(ROOT_DOCUMENT in n for n in below)

    async def open(self, store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
        """Reads what stands at the root; nothing there can be verified.

        Raises:
            InvalidLayoutError: It is one item of a checkpoint, or a directory of
                steps.
            CorruptCheckpointError: A document at the root is damaged.
        """
        entries = await store.list(path)
        names = _file_names(entries)
        await _check_level(store, path, entries, names)
        root = await read_root(store, path)
        is_direct = root.is_direct or _is_item(names)
        deleting = await read_deletion(store, path, entries)
        items = {"": path}
        if not is_direct:
            items = item_directories(path, entries, deleting)
        metrics = None if is_direct else await read_metrics(store, path)
        if not items and metrics is None:
            raise InvalidLayoutError(
                f"{path} holds no checkpointable; it holds: {describe(entries)}."
            )
        return OpenCheckpoint(
            path=path,
            items=items,
            typestrs=root.typestrs,
            init_timestamp_nsecs=root.init_timestamp_nsecs,
            commit_timestamp_nsecs=root.commit_timestamp_nsecs,
            custom_metadata=root.custom_metadata,
            metrics=metrics,
            deleting=deleting,
        )


async def _check_level(
    store: Store, path: str, entries: Sequence[Entry], names: frozenset[str]
) -> None:
    """Refuses a path that points one level too deep, or one level too high."""
    parent = posixpath.dirname(path)
    if await store.stat(f"{parent}/{ROOT_DOCUMENT}") is not None:
        raise InvalidLayoutError(
            f"{path} is one checkpointable of the checkpoint {parent}. Load it as "
            f"`load_checkpointables({parent!r}, "
            f"{{{posixpath.basename(path)!r}: None}})`."
        )
    if ROOT_DOCUMENT in names or ITEM_DOCUMENT in names:
        return
    steps = [
        entry.name
        for entry in entries
        if entry.is_directory
        and await store.stat(f"{path}/{entry.name}/{ROOT_DOCUMENT}") is not None
    ]
    if steps:
        raise InvalidLayoutError(
            f"{path} is a directory of checkpoints ({', '.join(steps[:8])}). Load one "
            "of them, or use `training.Checkpointer`."
        )


def _file_names(entries: Sequence[Entry]) -> frozenset[str]:
    return frozenset(entry.name for entry in entries if not entry.is_directory)


def _is_item(names: frozenset[str]) -> bool:
    return item_kind(names) != "opaque" or AGGREGATE_DOCUMENT in names
