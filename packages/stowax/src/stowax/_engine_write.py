"""Chunks on their way to the store: made ready, summed and written in one pass.

A save passes every payload once, in pieces small enough to be still in the cache when
they are written, and sums them on the way.  Small leaves are gathered, so that none of
them costs a write of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from stowax._codecs._checksum import BLOCK_BYTES, RunningChecksum, crc32c
from stowax._codecs._zarr import encode_trailer
from stowax._engine_encode import Choices, payloads_ahead
from stowax._loop import on_worker
from stowax._manifest import ChunkTable
from stowax._plan._write import FilePlan, WritePlan, place
from stowax._stores._base import Store, join
from stowax._tasks import run_all

_PIECE_BYTES = 4 << 20
"""Larger pieces leave the cache between the checksum and the write."""

_SMALL_BYTES = 64 << 10
"""Below this, copying into one buffer is cheaper than one more vector of a write."""


class HostParts(Protocol):
    """Where the values are: in host memory, once they have been staged."""

    @property
    def parts(self) -> Sequence[np.ndarray | None]:
        """By position in the plan."""
        ...

    async def staged(self, unit: int) -> None:
        """Waits until all parts of a unit, as a rule a data file, are there.

        Args:
            unit: Its position in the plan.
        """
        ...

    def written(self, unit: int) -> None:
        """Is told that nobody will ask for the parts of this unit again."""
        ...


class Written(NamedTuple):
    """What has become of the arrays of an item, as far as this process has them."""

    table: ChunkTable
    """Where everything lies, with the checksums taken on the way."""
    coded: frozenset[int]
    """Of the leaves that the plan leaves to a sample, those that are compressed."""


async def write_chunks(
    store: Store,
    directory: str,
    plan: WritePlan,
    source: HostParts,
    passed: Callable[[int], None] | None = None,
) -> Written:
    """Writes the data files of this process, side by side, and syncs them.

    Args:
        store: Where to.
        directory: The item's directory; file names are relative to it.
        plan: What this process writes.
        source: The values.
        passed: Hears how many more bytes of arrays the store has taken, on any thread;
            None: nobody does.
    """
    notes = [_Notes() for _ in plan.files]
    choices = Choices(plan, source.parts)

    async def write(position: int, file: FilePlan) -> None:
        await source.staged(position)
        path = join(directory, file.name)
        async with payloads_ahead(file, source.parts, choices) as payloads:
            pieces = _pieces(payloads, notes[position], file.trailer_bytes)
            if passed is not None:
                pieces = _telling(pieces, file, notes[position], passed)
            await store.write(path, pieces, size_bytes=file.size_bytes)
        await store.sync([path])
        source.written(position)

    await run_all(write(*numbered) for numbered in enumerate(plan.files))
    return Written(await on_worker(_table, plan, notes), choices.coded())


class _Notes:
    """What is known of the chunks of a file once they are on their way, by column."""

    def __init__(self) -> None:
        self.offset_bytes: list[int] = []
        self.length_bytes: list[int] = []
        """Of payloads."""
        self.sums: list[int] = []
        self.sum_ends: list[int] = []
        self.end_bytes = 0
        """Of the file, so far."""

    def add(
        self,
        offset_bytes: int,
        length_bytes: int,
        sums: Sequence[int],
        trailer_bytes: int,
    ) -> None:
        self.offset_bytes.append(offset_bytes)
        self.length_bytes.append(length_bytes)
        self.sums += sums
        self.sum_ends.append(len(self.sums))
        self.end_bytes = offset_bytes + length_bytes + trailer_bytes


def _table(plan: WritePlan, notes: Sequence[_Notes]) -> ChunkTable:
    chunks = [chunk for file in plan.files for chunk in file.chunks]
    counts = [len(file.chunks) for file in plan.files]
    sum_counts = np.concatenate(
        [np.diff(np.array(n.sum_ends, np.int64), prepend=0) for n in notes]
        or [np.empty(0, np.int64)]
    )

    def column(name: str, dtype: str) -> np.ndarray:
        return np.array([value for n in notes for value in getattr(n, name)], dtype)

    return ChunkTable(
        files=tuple(file.name for file in plan.files),
        file_size_bytes=tuple(n.end_bytes for n in notes),
        leaf=np.array([chunk.leaf for chunk in chunks], "<u4"),
        file=np.repeat(np.arange(len(counts), dtype="<u4"), counts),
        chunk=np.array([chunk.chunk for chunk in chunks], "<u8"),
        offset_bytes=column("offset_bytes", "<u8"),
        length_bytes=column("length_bytes", "<u8"),
        sum_ends=np.cumsum(sum_counts).astype("<u8"),
        sums=column("sums", "<u4"),
        block_bytes=BLOCK_BYTES,
    )


def _pieces(
    payloads: Iterator[memoryview], notes: _Notes, trailer_bytes: int
) -> Iterator[memoryview | bytearray]:
    """The bytes of a data file in order; notes place and checksums of every chunk."""
    pending = bytearray()
    for payload in payloads:
        end_bytes, length_bytes = notes.end_bytes, len(payload)
        offset_bytes = place(end_bytes, length_bytes)
        if offset_bytes > end_bytes:
            pending += bytes(offset_bytes - end_bytes)
        if length_bytes < _SMALL_BYTES:
            checksum = crc32c(payload)
            pending += payload
            notes.add(offset_bytes, length_bytes, (checksum,), trailer_bytes)
        else:
            if pending:
                yield pending
                pending = bytearray()
            running = RunningChecksum(BLOCK_BYTES)
            for start in range(0, length_bytes, _PIECE_BYTES):
                piece = payload[start : start + _PIECE_BYTES]
                running.update(piece)
                yield piece
                del piece
            checksum = running.value
            notes.add(offset_bytes, length_bytes, running.finish(), trailer_bytes)
        del payload  # Nobody holds it while the next is made.
        if trailer_bytes:
            pending += encode_trailer(checksum)
        if len(pending) >= _PIECE_BYTES:
            yield pending
            pending = bytearray()
    if pending:
        yield pending


def _telling(
    pieces: Iterator[memoryview | bytearray],
    file: FilePlan,
    notes: _Notes,
    passed: Callable[[int], None],
) -> Iterator[memoryview | bytearray]:
    """Passes pieces on, and tells what of the arrays was in them.

    What is compressed is told by whole chunks.
    """
    count = told_bytes = 0  # Chunks told of; and what was told of the next one.
    for piece in pieces:
        size_bytes = len(piece)
        yield piece
        del piece  # Nobody holds it while the next is made.
        # The store asks for more, so it has done with that.
        noted = len(notes.length_bytes)
        if noted > count:
            whole_bytes = sum([chunk.array_bytes for chunk in file.chunks[count:noted]])
            passed(whole_bytes - told_bytes)
            count, told_bytes = noted, 0
        elif (chunk := file.chunks[count]).grid.codec is None:
            part_bytes = min(size_bytes, chunk.array_bytes - told_bytes)
            passed(part_bytes)
            told_bytes += part_bytes
