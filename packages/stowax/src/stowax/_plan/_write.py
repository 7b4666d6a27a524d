"""Which process writes which part of which array, and where in which file it lies.

Every process computes its own part of the answer from facts that all processes share:
shapes, and which process holds what.  A part held by several processes is written by
the one that has the least to write so far (the lowest index among equals), so that
replicas are shared out and no process has to ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stowax._box import Box, chunks_in, grid_counts, ordinal_of
from stowax._codecs._zarr import TRAILER_BYTES

CHUNK_LIMIT_BYTES = 64 << 20
"""Larger shards are split: a chunk is one unit of reading in parallel."""

FILE_LIMIT_BYTES = 64 << 20
"""From here on a process writes two files, which the disk takes side by side."""

_PAGE_BYTES = 4096
_LINE_BYTES = 64
_LARGE_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """An array to be stored, as far as planning has to know it."""

    leaf: int
    shape: tuple[int, ...]
    itemsize: int
    parts: tuple[tuple[Box, tuple[int, ...]], ...]
    """Boxes that cover the array without overlap, and the processes that hold each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWrite:
    """One chunk that this process writes."""

    leaf: int
    chunk: int
    """Position in the grid, in C order."""
    box: Box
    """Elements of the chunk; smaller than the chunk shape at the edge of the array."""
    part: Box
    """The part, held by this process, that the chunk is cut from."""
    chunk_shape: tuple[int, ...]
    offset_bytes: int
    length_bytes: int
    """Payload: a whole chunk, padded at the edge, as zarr's regular grid has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One data file, its chunks in order of their place."""

    name: str
    chunks: tuple[ChunkWrite, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePlan:
    """What one process writes, and what all agree on."""

    chunk_shapes: dict[int, tuple[int, ...]]
    """Chunk shape of every stored array, by leaf."""
    files: tuple[FilePlan, ...]


def plan_write(
    layouts: Sequence[ArrayLayout], *, process_index: int, data_directory: str
) -> WritePlan:
    """Decides chunks, owners, files and offsets.

    Args:
        layouts: Every array of the tree, in the same order in every process.
        process_index: The process whose files are wanted.
        data_directory: Where its data files lie, relative to the item.
    """
    load_bytes: dict[int, int] = {}
    chunk_shapes: dict[int, tuple[int, ...]] = {}
    mine: list[tuple[ArrayLayout, int, Box, Box, int]] = []
    for layout in layouts:
        boxes = [box for box, _ in layout.parts]
        chunk_shape = choose_chunk_shape(layout.shape, boxes, layout.itemsize)
        chunk_shapes[layout.leaf] = chunk_shape
        counts = grid_counts(layout.shape, chunk_shape)
        length_bytes = math.prod(chunk_shape) * layout.itemsize
        for part, holders in layout.parts:
            owner = min(holders, key=lambda p: (load_bytes.get(p, 0), p))
            load_bytes[owner] = load_bytes.get(owner, 0) + part.size * layout.itemsize
            if owner != process_index:
                continue
            for grid_index, box in chunks_in(part, layout.shape, chunk_shape):
                chunk = ordinal_of(grid_index, counts)
                mine.append((layout, chunk, box, part, length_bytes))
    files = _cut_into_files(mine, chunk_shapes, data_directory)
    return WritePlan(chunk_shapes=chunk_shapes, files=tuple(files))


def choose_chunk_shape(
    shape: tuple[int, ...], boxes: Sequence[Box], itemsize: int
) -> tuple[int, ...]:
    """The extent of a chunk: a shard, split along leading axes while it is large.

    Chunk borders never cross a shard's border, so one process owns a chunk.
    """
    if not boxes or 0 in shape:
        return tuple(max(1, n) for n in shape)
    chunk = [_common_extent(axis, n, boxes) for axis, n in enumerate(shape)]
    for axis, n in enumerate(shape):
        size_bytes = math.prod(chunk) * itemsize
        if size_bytes <= CHUNK_LIMIT_BYTES:
            break
        row_bytes = size_bytes // chunk[axis]
        rows = max(1, CHUNK_LIMIT_BYTES // row_bytes)
        if chunk[axis] == n:
            # Nobody else's border lies on this axis: even pieces, the last one padded.
            chunk[axis] = -(-n // -(-n // rows))
        else:
            chunk[axis] = _divisor(chunk[axis], rows)
    return tuple(chunk)


def _common_extent(axis: int, n: int, boxes: Iterable[Box]) -> int:
    """The largest extent whose multiples hold every border along one axis."""
    borders = {0, n}
    for box in boxes:
        borders.update((box.start[axis], box.stop[axis]))
    inner = [border for border in borders if 0 < border < n]
    if not inner:
        return n
    step = math.gcd(*inner)
    return min(n, step)


def _divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to the limit, unless that makes tiny pieces."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    best = max(d for d in (*small, *(n // d for d in small)) if d <= limit)
    return best if best * 8 >= min(n, limit) else n


def _cut_into_files(
    mine: Sequence[tuple[ArrayLayout, int, Box, Box, int]],
    chunk_shapes: dict[int, tuple[int, ...]],
    data_directory: str,
) -> Iterable[FilePlan]:
    total_bytes = sum(length_bytes for *_, length_bytes in mine)
    share_bytes = total_bytes if total_bytes < FILE_LIMIT_BYTES else total_bytes / 2
    files: list[FilePlan] = []
    chunks: list[ChunkWrite] = []
    offset_bytes = written_bytes = 0

    def close() -> None:
        nonlocal chunks, offset_bytes
        if chunks:
            name = f"{data_directory}data-{len(files)}"
            files.append(
                FilePlan(name=name, chunks=tuple(chunks), size_bytes=offset_bytes)
            )
        chunks, offset_bytes = [], 0

    for layout, chunk, box, part, length_bytes in mine:
        if written_bytes >= share_bytes * (len(files) + 1) and len(files) == 0:
            close()
        # Whole pages keep direct and mapped reading open; a cache line is what JAX
        # needs to adopt the memory of a small array without a copy.
        large = length_bytes >= _LARGE_CHUNK_BYTES
        offset_bytes = _round_up(offset_bytes, _PAGE_BYTES if large else _LINE_BYTES)
        chunks.append(
            ChunkWrite(
                leaf=layout.leaf,
                chunk=chunk,
                box=box,
                part=part,
                chunk_shape=chunk_shapes[layout.leaf],
                offset_bytes=offset_bytes,
                length_bytes=length_bytes,
            )
        )
        offset_bytes += length_bytes + TRAILER_BYTES
        written_bytes += length_bytes
    close()
    return files


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step
