"""Files compared with what was recorded of them, without keeping their bytes.

A document or a guest's file is read whole, in pieces, and has one digest.  Of a data
file everything is compared that `_plan._spans` cuts it into.  A few pieces are read
side by side, under the budget of all reading: that is all the memory it takes, whatever
the size of the arrays.

Damage is noted, not raised: where one byte is wrong, others may be.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from stowax._budget import Scratch
from stowax._codecs._item_manifest import ItemRoot, decode_part, decode_root, digest
from stowax._damage import Damage
from stowax._digest import PIECE_BYTES, digest_file
from stowax._formats._stowax import MANIFEST, check_leaves
from stowax._loop import on_worker
from stowax._manifest import ChunkTable, Digest, LeafEntry
from stowax._plan._spans import FileCheck, Span, plan_checks, runs
from stowax._report import Report
from stowax._stores._base import Store, join, read_bytes, walk
from stowax._tasks import run_all
from stowax.errors import CorruptCheckpointError

T = TypeVar("T")

_CONCURRENT_READS = 4
"""So scratch memory is this many pieces."""

_MISSING = "is missing"
_DIFFERS = "does not match its checksum"
_WRONG = {
    "block": _DIFFERS,
    "trailer": "is whole, but the checksum behind it, which others compare, is not",
    "gap": "not zeros, as between chunks; no array has lost anything",
}
_APPENDED = "more than were saved; no array has lost anything"

_DAMAGED_ERRNOS = (errno.EIO, errno.ELOOP, getattr(errno, "EUCLEAN", errno.EIO))
"""What a bad sector, or a damaged file system, answers."""


@dataclass(slots=True)
class Comparison:
    """Compares files of a checkpoint with what is recorded, and keeps what it finds.

    All names of files and directories are relative to the checkpoint.
    """

    store: Store
    root: str
    """The path of the checkpoint."""
    scratch: Scratch
    report: Report | None = None
    """Hears how far it is."""
    damages: list[Damage] = field(default_factory=list[Damage])
    vouched: set[str] = field(default_factory=set[str])
    """Every file that a record names."""
    compared: set[str] = field(default_factory=set[str])
    """Every file that was looked at."""
    blind: set[str] = field(default_factory=set[str])
    """Directories of which nobody knows what should be there: their record is lost."""
    checked_bytes: int = 0
    leaf_count: int = 0

    def note(self, name: str, what: str) -> None:
        """Keeps a damage of a file as a whole."""
        self.damages.append(Damage(file=name, what=what))

    def in_order(self) -> tuple[Damage, ...]:
        """All damages, by file and place; neighbours that say the same are one."""
        merged: list[Damage] = []
        for damage in sorted(self.damages, key=_place):
            last = merged[-1] if merged else None
            if last is not None and _continues(last, damage):
                merged[-1] = replace(last, end_bytes=damage.end_bytes)
            else:
                merged.append(damage)
        return tuple(merged)

    async def unvouched(self) -> tuple[str, ...]:
        """Files that no record names, where the records are known."""
        above = f"{self.root}/"
        names = [
            path.removeprefix(above)
            for path, entry in await walk(self.store, self.root)
            if not entry.is_directory
        ]
        return tuple(
            name
            for name in names
            if name not in self.vouched and not name.startswith(tuple(self.blind))
        )

    async def read_record(
        self,
        name: str,
        expected: Digest | None,
        decode: Callable[[bytes], T],
        lost: str,
    ) -> T | None:
        """Reads a record of ours; None if it is not what was saved.

        Args:
            name: Of the file.
            expected: Its digest, if somebody knows it.
            decode: Raises `CorruptCheckpointError` if it makes no sense.
            lost: What follows if it is damaged.
        """
        self.vouched.add(name)
        self.compared.add(name)
        try:
            data = await read_bytes(self.store, join(self.root, name))
        except (OSError, CorruptCheckpointError) as error:
            self.note(name, f"{_unreadable(error)}; {lost}")
            return None
        self._expect(len(data))
        self._count(len(data))

        def check() -> T:
            if expected is not None:
                _check_digest(digest(data), expected)
            return decode(data)

        try:
            return await on_worker(check)
        except CorruptCheckpointError as error:
            self.note(name, f"{error}; {lost}")
            return None

    async def check_files(self, digests: Mapping[str, Digest]) -> None:
        """Compares whole files, of any size, with their digests."""
        self._expect(sum(expected.size_bytes for expected in digests.values()))
        slots = asyncio.Semaphore(_CONCURRENT_READS)

        async def check(name: str, expected: Digest) -> None:
            async with slots:
                await self._check_file(name, expected)

        await run_all(check(name, expected) for name, expected in digests.items())

    async def _check_file(self, name: str, expected: Digest) -> None:
        self.vouched.add(name)
        self.compared.add(name)
        try:
            path = join(self.root, name)
            entry = await self.store.stat(path)
            if entry is not None and entry.size_bytes != expected.size_bytes:
                # However long it has become, it need not be read.
                self.note(name, _other_size(entry.size_bytes, expected))
                return
            async with self.scratch.hold(min(expected.size_bytes, PIECE_BYTES)):
                found = await digest_file(self.store, path)
        except (OSError, CorruptCheckpointError) as error:
            self.note(name, _unreadable(error))
            return
        self._count(found.size_bytes)
        if found != expected:
            self.note(name, _DIFFERS)

    async def read_manifest(
        self, directory: str, expected: Digest | None
    ) -> ItemRoot | None:
        """Reads the manifest of a tree; None if it is damaged."""
        lost = "what it vouches for was not compared"
        name = posixpath.join(directory, MANIFEST)
        root = await self.read_record(name, expected, decode_root, lost)
        if root is None:
            self.blind.add(directory and f"{directory}/")
        return root

    async def check_item(self, directory: str, expected: Digest | None) -> None:
        """Compares everything that the manifest of a tree names.

        Args:
            directory: Of the tree.
            expected: What the seal of the checkpoint says of the manifest, if known.
        """
        root = await self.read_manifest(directory, expected)
        if root is None:
            return
        documents = {posixpath.join(directory, n): d for n, d in root.documents.items()}
        await self.check_files(documents)
        await self.check_leaves(directory, root)

    async def check_leaves(
        self, directory: str, root: ItemRoot, positions: Collection[int] | None = None
    ) -> None:
        """Compares data files of a tree, and the tables that say what is in them.

        Args:
            directory: Of the tree.
            root: What `read_manifest` gave.
            positions: Leaves whose chunks are compared; None: all, and all that lies
                between them.
        """
        self.leaf_count += len(root.leaves if positions is None else positions)
        tables = await self._read_tables(directory, root)
        files: list[_DataFile] = []
        for table in tables:
            for check in await on_worker(plan_checks, table, positions):
                name = posixpath.join(directory, check.name)
                file = await self._open(name, check, root.leaves)
                if file is not None:
                    files.append(file)
                    self._expect(check.compared_bytes)
        pieces = (
            (file, spans)
            for file in files
            for spans in runs(self._reach(file), PIECE_BYTES)
        )
        await run_all(self._read(pieces) for _ in range(_CONCURRENT_READS))

    async def _read_tables(self, directory: str, root: ItemRoot) -> list[ChunkTable]:
        """The chunk tables of a tree that are whole."""
        lost = "the chunks that it knows were not compared"
        tables: list[ChunkTable] = []
        for part, recorded in root.parts.items():
            name = posixpath.join(directory, part)
            table = await self.read_record(name, recorded, decode_part, lost)
            if table is None:
                self.blind.add(directory and f"{directory}/")
            else:
                tables.append(table)
        if len(tables) == len(root.parts):
            try:
                await on_worker(check_leaves, root.leaves, tables)
            except CorruptCheckpointError as error:
                self.note(posixpath.join(directory, MANIFEST), f"{error}; {lost}")
                return []
        return tables

    async def _open(
        self, name: str, check: FileCheck, leaves: Sequence[LeafEntry]
    ) -> _DataFile | None:
        """Looks at a data file; None, with a damage of each chunk, if it has none."""
        self.vouched.add(name)
        self.compared.add(name)
        file = _DataFile(name=name, check=check, leaves=leaves)
        try:
            file.path = join(self.root, name)
            entry = await self.store.stat(file.path)
            # What is no file has a size, too; only a read tells.
            await self.store.read_into(file.path, 0, bytearray())
        except (OSError, CorruptCheckpointError) as error:
            self._note_spans(file, check.spans(), _unreadable(error))
            return None
        file.size_bytes = 0 if entry is None else entry.size_bytes
        if check.is_whole and file.size_bytes > check.size_bytes:
            more = Span(check.size_bytes, file.size_bytes, 0, "gap")
            self._note_spans(file, [more], _APPENDED)
        return file

    def _reach(self, file: _DataFile) -> Iterator[Span]:
        """The spans that a file is long enough for; the others are damages."""
        cut: list[Span] = []
        for span in file.check.spans():
            if span.end_bytes <= file.size_bytes:
                yield span
            else:
                cut.append(span)
        self._note_spans(file, cut, f"is cut off: the file ends at {file.size_bytes}")

    async def _read(self, pieces: Iterator[tuple[_DataFile, list[Span]]]) -> None:
        """Compares pieces until none are left."""
        for file, spans in pieces:
            size_bytes = spans[-1].end_bytes - spans[0].begin_bytes
            async with self.scratch.hold(size_bytes):
                await self._compare(file, spans, np.empty(size_bytes, np.uint8).data)

    async def _compare(
        self, file: _DataFile, spans: Sequence[Span], buffer: memoryview
    ) -> None:
        try:
            await self.store.read_into(file.path, spans[0].begin_bytes, buffer)
        except (OSError, CorruptCheckpointError) as error:
            what = _unreadable(error)
            if len(spans) == 1:
                self._note_spans(file, spans, what)
                return
            # A sector that cannot be read takes nothing with it but its own span.
            for span in spans:
                part = buffer[: span.end_bytes - span.begin_bytes]
                await self._compare(file, [span], part)
            return
        for span in await on_worker(file.wrong, spans, buffer):
            self._note_spans(file, [span], _WRONG[span.kind])
        self._count(sum(s.end_bytes - s.begin_bytes for s in spans))

    def _expect(self, size_bytes: int) -> None:
        """So many more bytes will be compared, if they are there."""
        if self.report is not None:
            self.report.expect(size_bytes)

    def _count(self, size_bytes: int) -> None:
        self.checked_bytes += size_bytes
        if self.report is not None:
            self.report.moved(size_bytes)

    def _note_spans(self, file: _DataFile, spans: Iterable[Span], what: str) -> None:
        """Keeps a damage of each span; of gaps only if there is nothing else."""
        spans = list(spans)
        owned = [span for span in spans if span.kind != "gap"]
        for span in owned or spans:
            leaf = index = None
            if (owner := file.check.owner(span, file.leaves)) is not None:
                leaf, box = owner
                index = tuple(map(slice, box.start, box.stop))
            self.damages.append(
                Damage(
                    file=file.name,
                    begin_bytes=span.begin_bytes,
                    end_bytes=span.end_bytes,
                    leaf=None if leaf is None else leaf.name,
                    index=index,
                    what=what,
                )
            )


@dataclass(slots=True, kw_only=True)
class _DataFile:
    name: str
    check: FileCheck
    leaves: Sequence[LeafEntry]
    path: str = ""
    size_bytes: int = 0
    """What it has now."""

    def wrong(self, spans: Sequence[Span], data: memoryview) -> list[Span]:
        """Those of spans close together whose bytes are not what was saved."""
        origin = spans[0].begin_bytes
        return [
            span
            for span in spans
            if not self.check.is_right(
                span, data[span.begin_bytes - origin : span.end_bytes - origin]
            )
        ]


def _check_digest(found: Digest, expected: Digest) -> None:
    if found.size_bytes != expected.size_bytes:
        raise CorruptCheckpointError(_other_size(found.size_bytes, expected))
    if found != expected:
        raise CorruptCheckpointError(_DIFFERS)


def _other_size(found_bytes: int, expected: Digest) -> str:
    return f"has {found_bytes} bytes; {expected.size_bytes} were saved"


def _unreadable(error: OSError | CorruptCheckpointError) -> str:
    """What is wrong with a file that cannot be read.

    Raises:
        OSError: It may be whole: the system does not let us look.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _MISSING
    if isinstance(error, CorruptCheckpointError):
        return "cannot be read as a file"
    if error.errno in _DAMAGED_ERRNOS:
        return f"cannot be read: {os.strerror(error.errno or 0)}"
    raise error


def _continues(last: Damage, damage: Damage) -> bool:
    """Whether a damage says the same of the bytes behind another."""
    return last.end_bytes is not None and damage == replace(
        last, begin_bytes=last.end_bytes, end_bytes=damage.end_bytes
    )


def _place(damage: Damage) -> tuple[str, int]:
    return damage.file, -1 if damage.begin_bytes is None else damage.begin_bytes
