"""A store that remembers what was asked of it, and in which order."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import posixpath
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stowax._stores._base import Entry, Pieces, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a store that returned without an error."""

    operation: str
    """Name of the method."""

    paths: tuple[str, ...]
    """The paths it was given."""

    began: int
    """Position of its begin among all begins and ends."""

    ended: int
    """Position of its end among all begins and ends."""

    size_bytes: int = 0
    """Bytes that were read; only of `read_into`."""


class RecordingStore:
    """Forwards everything to another store and keeps a log.

    Calls may overlap; `Call.began` and `Call.ended` say which one was over before
    another began.

    Example:
        >>> import asyncio
        >>> from stowax.testing import MemoryStore, RecordingStore
        >>> store = RecordingStore(MemoryStore())
        >>> asyncio.run(store.write("/runs/note", [b"hello"]))
        >>> [(call.operation, call.paths) for call in store.calls]
        [('write', ('/runs/note',))]
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Guards the counter and the list.
        self._lock = threading.Lock()
        self._positions = itertools.count()
        self._calls: list[Call] = []

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls that succeeded, in the order in which they began."""
        with self._lock:
            return tuple(sorted(self._calls, key=lambda call: call.began))

    @property
    def description(self) -> str:
        return self._store.description

    @property
    def has_directories(self) -> bool:
        return self._store.has_directories

    @property
    def is_remote(self) -> bool:
        return self._store.is_remote

    def local_path(self, path: str) -> pathlib.Path | None:
        return self._store.local_path(path)

    async def make_directory(
        self, path: str, *, mode: int | None = None, like: str | None = None
    ) -> None:
        with self._recording("make_directory", path):
            await self._store.make_directory(path, mode=mode, like=like)

    async def write(
        self, path: str, pieces: Pieces, *, size_bytes: int | None = None
    ) -> None:
        with self._recording("write", path):
            await self._store.write(path, pieces, size_bytes=size_bytes)

    async def link(self, source: str, target: str) -> None:
        with self._recording("link", target, source):
            await self._store.link(source, target)

    async def read_into(self, path: str, offset_bytes: int, buffer: Buffer) -> None:
        size_bytes = memoryview(buffer).nbytes
        with self._recording("read_into", path, size_bytes=size_bytes):
            await self._store.read_into(path, offset_bytes, buffer)

    async def stat(self, path: str) -> Entry | None:
        with self._recording("stat", path):
            return await self._store.stat(path)

    async def list(self, path: str) -> tuple[Entry, ...]:
        with self._recording("list", path):
            return await self._store.list(path)

    async def sync(self, paths: Sequence[str]) -> None:
        with self._recording("sync", *paths):
            await self._store.sync(paths)

    async def publish(self, draft: str, final: str, *, replace: bool) -> None:
        with self._recording("publish", draft, final):
            await self._store.publish(draft, final, replace=replace)

    async def complete_replacement(self, final: str) -> None:
        with self._recording("complete_replacement", final):
            await self._store.complete_replacement(final)

    async def delete(self, path: str) -> None:
        with self._recording("delete", path):
            await self._store.delete(path)

    @contextlib.contextmanager
    def _recording(
        self, operation: str, *paths: str, size_bytes: int = 0
    ) -> Generator[None, None, None]:
        with self._lock:
            began = next(self._positions)
        yield
        with self._lock:
            ended = next(self._positions)
            self._calls.append(
                Call(
                    operation=operation,
                    paths=paths,
                    began=began,
                    ended=ended,
                    size_bytes=size_bytes,
                )
            )


def durability_faults(calls: Sequence[Call]) -> list[str]:
    """What a power cut could take from the checkpoints that were published.

    For every publish: each file written below the draft and each directory that holds
    one must be synced after it changed and before the publish began, and the parent
    after the publish ended.

    Returns:
        One sentence per fault, none when everything published is durable.
    """
    syncs = [call for call in calls if call.operation == "sync"]
    changes = [
        call for call in calls if call.operation in ("write", "make_directory", "link")
    ]
    faults: list[str] = []
    for publish in (call for call in calls if call.operation == "publish"):
        draft, final = publish.paths
        for path, changed in sorted(_last_changes(draft, changes, publish).items()):
            if not any(
                path in sync.paths
                and changed < sync.began
                and sync.ended < publish.began
                for sync in syncs
            ):
                faults.append(f"{path} was not synced before {final} was published")
        parent = posixpath.dirname(final)
        if not any(
            parent in sync.paths and publish.ended < sync.began for sync in syncs
        ):
            faults.append(f"{parent} was not synced after {final} was published")
    return faults


def _last_changes(draft: str, changes: Sequence[Call], publish: Call) -> dict[str, int]:
    """Every path in the draft, with the end of the last call that changed it."""
    last: dict[str, int] = {}
    for call in changes:
        path = call.paths[0]
        if call.operation == "link":  # What it names is durable, but not the name.
            path = posixpath.dirname(path)
            if path in last:
                last[path] = max(last[path], call.ended)
        # A new name changes the directory that holds it, up to one that was there.
        while (
            call.began < publish.began
            and path not in last
            and (path == draft or path.startswith(draft + "/"))
        ):
            last[path] = call.ended
            path = posixpath.dirname(path)
            if path in last:
                last[path] = max(last[path], call.ended)
    return last
