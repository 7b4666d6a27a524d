"""The model of a store: a tree in memory that keeps the port's promises.

It also models durability at its strictest: of a file only the bytes of its last sync
are durable, of a directory only the names of its last sync. `durable_view` shows what
a power cut would leave.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stowax._loop import on_worker
from stowax._stores._base import (
    Entry,
    Pieces,
    already_published,
    byte_view,
    check_siblings,
    file_too_short,
    missing,
    no_file,
    size_mismatch,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(slots=True, eq=False)
class _File:
    content: bytes = b""
    durable: bytes = b""


@dataclass(slots=True, eq=False)
class _Directory:
    children: dict[str, _File | _Directory] = field(default_factory=dict)
    durable: dict[str, _File | _Directory] = field(default_factory=dict)
    has_new_directories: bool = False
    """Whether `make_directory` added a name here that was not synced yet."""


class MemoryStore:
    """Keeps checkpoints in memory.

    One store may be shared by several runtimes, each with its own loop: that is how
    simulated processes see the same disk.

    Args:
        is_remote: Whether it says that its bytes travel over a network.

    Example:
        >>> import asyncio
        >>> from stowax.testing import MemoryStore
        >>> async def scenario():
        ...     store = MemoryStore()
        ...     await store.write("/runs/draft/note", [b"hello"])
        ...     await store.publish("/runs/draft", "/runs/final", replace=False)
        ...     return await store.list("/runs/final")
        >>> asyncio.run(scenario())
        (Entry(name='note', is_directory=False, size_bytes=5),)
    """

    def __init__(self, *, is_remote: bool = False) -> None:
        self._is_remote = is_remote
        # Guards the whole tree; held for the length of a dictionary operation.
        self._lock = threading.Lock()
        self._root = _Directory()

    @property
    def description(self) -> str:
        return "memory"

    @property
    def has_directories(self) -> bool:
        return False

    @property
    def is_remote(self) -> bool:
        return self._is_remote

    def local_path(self, path: str) -> None:
        return None

    async def make_directory(
        self, path: str, *, mode: int | None = None, like: str | None = None
    ) -> None:
        del mode, like
        with self._lock:
            self._make_directory(path)

    async def write(
        self, path: str, pieces: Pieces, *, size_bytes: int | None = None
    ) -> None:
        parent_path, name = _split(path)
        file = _File()
        with self._lock:
            parent = self._make_directory(parent_path)
            if name in parent.children:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            parent.children[name] = file
        written = False
        try:
            if isinstance(pieces, AsyncIterable):
                pieces = [bytes(byte_view(piece)) async for piece in pieces]
            file.content = await on_worker(_collect, path, pieces, size_bytes)
            written = True
        finally:
            if not written:
                with self._lock:
                    if parent.children.get(name) is file:
                        del parent.children[name]

    async def link(self, source: str, target: str) -> None:
        parent_path, name = _split(target)
        with self._lock:
            file = self._find(source)
            if file is None:
                raise missing(source)
            if isinstance(file, _Directory):
                raise no_file(source)
            parent = self._make_directory(parent_path)
            if name in parent.children:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            parent.children[name] = file

    async def read_into(self, path: str, offset_bytes: int, buffer: Buffer) -> None:
        view = byte_view(buffer)
        with self._lock:
            file = self._find(path)
        if file is None:
            raise missing(path)
        if isinstance(file, _Directory):
            raise no_file(path)
        found = file.content[offset_bytes : offset_bytes + len(view)]
        if len(found) < len(view):
            size_bytes = len(file.content)
            raise file_too_short(path, offset_bytes, len(view), size_bytes)
        view[:] = found

    async def stat(self, path: str) -> Entry | None:
        with self._lock:
            node = self._find(path)
        return None if node is None else _entry(_split(path)[1], node)

    async def list(self, path: str) -> tuple[Entry, ...]:
        with self._lock:
            node = self._find(path)
            if node is None:
                raise missing(path)
            if isinstance(node, _File):
                number = errno.ENOTDIR
                raise NotADirectoryError(number, os.strerror(number), path)
            return tuple(
                _entry(name, node.children[name]) for name in sorted(node.children)
            )

    async def sync(self, paths: Sequence[str]) -> None:
        with self._lock:
            for path in paths:
                node = self._find(path)
                if node is None:
                    raise missing(path)
                _sync(node)
                for above in self._directories_above(path):
                    if above.has_new_directories:
                        _sync(above)

    async def publish(self, draft: str, final: str, *, replace: bool) -> None:
        check_siblings(draft, final)
        parent_path, draft_name = _split(draft)
        final_name = _split(final)[1]
        with self._lock:
            parent = self._find(parent_path)
            if not isinstance(parent, _Directory) or draft_name not in parent.children:
                raise missing(draft)
            if final_name in parent.children and not replace:
                raise already_published(final)
            is_replaced = final_name in parent.children
            parent.children[final_name] = parent.children.pop(draft_name)
            if is_replaced:
                _sync(parent)

    async def complete_replacement(self, final: str) -> None:
        """Does nothing: a replacement here is never half done."""

    async def delete(self, path: str) -> None:
        parent_path, name = _split(path)
        with self._lock:
            parent = self._find(parent_path)
            if isinstance(parent, _Directory):
                parent.children.pop(name, None)

    def durable_view(self) -> MemoryStore:
        """What would be left if the power were cut now: another store."""
        view = MemoryStore(is_remote=self._is_remote)
        with self._lock:
            copy = _durable_copy(self._root)
        assert isinstance(copy, _Directory)
        view._root = copy
        return view

    def _find(self, path: str) -> _File | _Directory | None:
        node: _File | _Directory | None = self._root
        for name in _components(path):
            if not isinstance(node, _Directory):
                return None
            node = node.children.get(name)
        return node

    def _make_directory(self, path: str) -> _Directory:
        node = self._root
        for name in _components(path):
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = _Directory()
                node.has_new_directories = True
            elif isinstance(child, _File):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            node = child
        return node

    def _directories_above(self, path: str) -> tuple[_Directory, ...]:
        above: tuple[_Directory, ...] = ()
        node: _File | _Directory = self._root
        for name in _components(path):
            if not isinstance(node, _Directory):
                break
            above = (*above, node)
            node = node.children[name]
        return above


def _components(path: str) -> list[str]:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path.")
    return [name for name in path.split("/") if name]


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def _collect(
    path: str,
    pieces: Iterable[Buffer],
    size_bytes: int | None,
) -> bytes:
    content = bytearray()
    for piece in pieces:
        content += byte_view(piece)
        if size_bytes is not None and len(content) > size_bytes:
            raise size_mismatch(path, size_bytes, "more")
    if size_bytes is not None and len(content) != size_bytes:
        raise size_mismatch(path, size_bytes, f"only {len(content)}")
    return bytes(content)


def _entry(name: str, node: _File | _Directory) -> Entry:
    if isinstance(node, _Directory):
        return Entry(name=name, is_directory=True, size_bytes=0)
    return Entry(name=name, is_directory=False, size_bytes=len(node.content))


def _sync(node: _File | _Directory) -> None:
    if isinstance(node, _File):
        node.durable = node.content
        return
    node.durable = dict(node.children)
    node.has_new_directories = False


def _durable_copy(node: _File | _Directory) -> _File | _Directory:
    if isinstance(node, _File):
        return _File(node.durable, node.durable)
    children = {name: _durable_copy(child) for name, child in node.durable.items()}
    return _Directory(children, dict(children))
