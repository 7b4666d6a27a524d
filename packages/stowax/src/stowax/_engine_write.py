"""Chunks on their way to the store: summed, converted and compressed as they move.

A save passes every payload once, in pieces small enough to be still in the cache when
they are written, and sums them on the way; what has to be converted or compressed is
so one chunk at a time, on the worker that writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stowax._box import Box
from stowax._codecs._checksum import RunningChecksum
from stowax._codecs._compression import CODECS
from stowax._codecs._item_manifest import build_table
from stowax._codecs._zarr import TRAILER_BYTES, encode_trailer
from stowax._manifest import ChunkTable
from stowax._plan._cast import convert
from stowax._plan._write import ChunkWrite, FilePlan, WritePlan, place
from stowax._runtime import on_worker
from stowax._stores._base import Store, join
from stowax._tasks import run_all

_PIECE_BYTES = 4 << 20
"""Larger pieces leave the cache between the checksum and the write."""

_SMALL_BYTES = 64 << 10
"""Below this, copying into one buffer is cheaper than one more vector of a write."""


async def write_chunks(
    store: Store,
    directory: str,
    plan: WritePlan,
    parts: Mapping[tuple[int, Box], np.ndarray],
) -> ChunkTable:
    """Writes the data files of this process, side by side, and syncs them.

    Args:
        store: Where to.
        directory: The item's directory; file names are relative to it.
        plan: What this process writes.
        parts: Host memory by leaf and part.

    Returns:
        Where everything lies, with the checksums taken on the way.
    """
    notes: list[list[_Written]] = [[] for _ in plan.files]
    await run_all(
        _write_file(store, directory, file, parts, noted)
        for file, noted in zip(plan.files, notes, strict=True)
    )
    return await on_worker(_table, plan, notes)


class _Written(NamedTuple):
    """What is known of a chunk once it is on its way."""

    offset_bytes: int
    length_bytes: int
    """Length of the payload."""
    sums: tuple[int, ...]

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes + TRAILER_BYTES


def _table(plan: WritePlan, notes: Sequence[Sequence[_Written]]) -> ChunkTable:
    rows = [
        (
            chunk.leaf,
            position,
            chunk.chunk,
            noted.offset_bytes,
            noted.length_bytes,
            noted.sums,
        )
        for position, file in enumerate(plan.files)
        for chunk, noted in zip(file.chunks, notes[position], strict=True)
    ]
    sizes = [(f.name, n[-1].end_bytes) for f, n in zip(plan.files, notes, strict=True)]
    return build_table(sizes, rows)


async def _write_file(
    store: Store,
    directory: str,
    file: FilePlan,
    parts: Mapping[tuple[int, Box], np.ndarray],
    noted: list[_Written],
) -> None:
    path = join(directory, file.name)
    pieces = _gather_small(_pieces(file, parts, noted))
    await store.write(path, pieces, size_bytes=file.size_bytes)
    await store.sync([path])


def _pieces(
    file: FilePlan,
    parts: Mapping[tuple[int, Box], np.ndarray],
    noted: list[_Written],
) -> Iterator[memoryview | bytes]:
    """The bytes of a data file in order; notes place and checksums of every chunk."""
    end_bytes = 0
    for chunk in file.chunks:
        payload = _payload(chunk, parts[chunk.leaf, chunk.part])
        offset_bytes = place(end_bytes, len(payload))
        if offset_bytes > end_bytes:
            yield bytes(offset_bytes - end_bytes)
        checksum = RunningChecksum()
        for start in range(0, len(payload), _PIECE_BYTES):
            piece = payload[start : start + _PIECE_BYTES]
            checksum.update(piece)
            yield piece
        written = _Written(offset_bytes, len(payload), checksum.finish())
        noted.append(written)
        yield encode_trailer(checksum.value)
        end_bytes = written.end_bytes


def _payload(chunk: ChunkWrite, part: np.ndarray) -> memoryview | bytes:
    """Elements of one chunk, C order, little-endian; a copy only where it must be."""
    cut = convert(part[chunk.box.within(chunk.part)], chunk.dtype)
    if cut.shape != chunk.chunk_shape:
        padded = np.zeros(chunk.chunk_shape, cut.dtype)
        padded[tuple(map(slice, cut.shape))] = cut
        cut = padded
    payload = _bytes_of(np.ascontiguousarray(cut))
    return payload if chunk.codec is None else CODECS[chunk.codec].encode(payload)


def _bytes_of(array: np.ndarray) -> memoryview:
    # `.data` of the bytes: the dtypes of ml_dtypes refuse the buffer protocol.
    return array.reshape(-1).view(np.uint8).data


def _gather_small(
    pieces: Iterator[memoryview | bytes],
) -> Iterator[memoryview | bytes | bytearray]:
    """Joins runs of small pieces, so that a small leaf costs no write of its own."""
    pending = bytearray()
    for piece in pieces:
        if len(piece) < _SMALL_BYTES:
            pending += piece
            if len(pending) < _PIECE_BYTES:
                continue
            piece = b""
        if pending:
            yield pending
            pending = bytearray()
        if len(piece):
            yield piece
    if pending:
        yield pending
