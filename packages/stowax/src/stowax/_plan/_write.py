"""Which process writes which part of which array, and where in which file it lies.

Every process computes its own part of the answer from facts that all processes share:
shapes, and which process holds what.  A part held by several processes is written by
the one that has the least to write so far (the lowest index among equals), so that
replicas are shared out and no process has to ask.

Where in its file a chunk begins is a rule, `place`, and no part of the plan: of a
chunk that is compressed nobody knows the length beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from stowax._box import Box, chunks_in, grid_counts, grid_index_of, ordinal_of
from stowax._codecs._compression import CODECS
from stowax._codecs._zarr import TRAILER_BYTES, ZarrVersion, chunk_key
from stowax._plan._chunk_shape import choose_chunk_shape

AUTO, AUTO_EACH = "auto", "auto, each"
"""In the place of a codec: a sample of the leaf is to decide between `AUTO_CODEC` and
none; a sample of each chunk, between `AUTO_CODEC` and a frame that has it as it is."""

AUTO_CODEC = "blosc"

_AUTO_FROM_BYTES = 1 << 20
"""Smaller arrays are not worth a look."""

_AUTO_CHUNK_FROM_BYTES = 64 << 10
"""In smaller chunks the header of a frame that does not shrink would count."""

FILE_LIMIT_BYTES = 64 << 20
"""From here on a process writes two files, which the disk takes side by side."""

_PAGE_BYTES = 4096
_LINE_BYTES = 64
_LARGE_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """An array to be stored, as far as planning has to know it.

    Leaves that are alike share one: what follows from it is worked out once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    """In which it is stored."""
    parts: tuple[tuple[Box, tuple[int, ...]], ...]
    """Boxes that cover the array without overlap, and the processes that hold each."""
    host_itemsize: int = 0
    """Bytes of an element in host memory, before it is converted."""
    codec: str | None = None
    """How chunks are to be compressed, perhaps `AUTO` or `AUTO_EACH`."""
    chunk_limit_bytes: int | None = None
    """A chunk, uncompressed, must not be larger; None leaves it to the plan."""
    shard_axes: tuple[int, ...] = ()
    """Axes along which a chunk holds one element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Which of the processes that hold the same part may be chosen to write it."""

    is_on: bool = True
    """Whether any but the first may."""
    from_bytes: int = 0
    """The first one writes parts that are smaller."""
    most: int | None = None
    """How many are considered, the first ones; None: all."""

    def candidates(self, holders: Sequence[int], size_bytes: int) -> Sequence[int]:
        """The processes to choose from for a part of this size."""
        if not self.is_on or size_bytes < self.from_bytes:
            return holders[:1]
        return holders if self.most is None else holders[: max(1, self.most)]


_SHARED_OUT = Sharing()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFiles:
    """That every chunk is a file of its own, where zarr looks for it."""

    prefixes: Mapping[int, str]
    """What the keys of an array begin with, by leaf."""
    version: ZarrVersion

    @property
    def trailer_bytes(self) -> int:
        """Behind a chunk; arrays of version 2 have no checksums."""
        return TRAILER_BYTES if self.version == 3 else 0

    def plan(self, chunk: ChunkWrite, shape: tuple[int, ...]) -> FilePlan:
        """The file of one chunk of an array of this shape."""
        grid = chunk.grid
        counts = grid_counts(shape, grid.shape)
        key = chunk_key(grid_index_of(chunk.chunk, counts), self.version)
        size_bytes = grid.size_bytes + self.trailer_bytes
        return FilePlan(
            name=self.prefixes[chunk.leaf] + key,
            chunks=(chunk,),
            size_bytes=size_bytes if grid.codec is None else None,
            trailer_bytes=self.trailer_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGrid:
    """How the chunks of an array are made, alike for all of them."""

    shape: tuple[int, ...]
    """Of a chunk: a whole one is stored, padded at the edge, as zarr's regular grid has
    it."""
    dtype: np.dtype
    """In which it is stored, whatever the array is in."""
    codec: str | None
    """How it is compressed, perhaps `AUTO` or `AUTO_EACH`."""
    size_bytes: int
    """Of a chunk, before it is compressed."""


class PartWrite(NamedTuple):
    """One part of an array that this process holds, and writes."""

    leaf: int
    box: Box


class ChunkWrite(NamedTuple):
    """One chunk that this process writes."""

    grid: ChunkGrid
    leaf: int
    chunk: int
    """Position in the grid, in C order."""
    box: Box
    """Elements of the chunk; smaller than the chunk shape at the edge of the array."""
    part: int
    """Position in `WritePlan.parts` of the one that it is cut from."""
    cut: tuple[slice | EllipsisType, ...] | None
    """Where in the part; None if it is all of it."""

    @property
    def array_bytes(self) -> int:
        """Of its elements, without the padding at the edge of the array."""
        return self.box.size * self.grid.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One data file, its chunks in order of their place."""

    name: str
    chunks: tuple[ChunkWrite, ...]
    size_bytes: int | None
    """None if it will be known only when everything is compressed."""
    trailer_bytes: int = TRAILER_BYTES
    """Of the checksum behind each chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePlan:
    """What one process writes, and what all agree on."""

    chunk_shapes: dict[int, tuple[int, ...]]
    """Chunk shape of every stored array, by leaf."""
    codecs: dict[int, str | None]
    """How its chunks are compressed, perhaps `AUTO` or `AUTO_EACH`."""
    parts: tuple[PartWrite, ...]
    """What is brought to the host, in order."""
    files: tuple[FilePlan, ...]
    array_bytes: int
    """Of all elements in them, as they are stored but for compression."""

    @property
    def needs(self) -> list[range]:
        """The parts that each file is made of, by position."""
        return [range(f.chunks[0].part, f.chunks[-1].part + 1) for f in self.files]


def plan_write(
    layouts: Mapping[int, ArrayLayout],
    *,
    process_index: int,
    data_directory: str,
    sharing: Sharing = _SHARED_OUT,
    file_limit_bytes: int = 0,
    part_limit_bytes: int = 0,
    chunk_files: ChunkFiles | None = None,
) -> WritePlan:
    """Decides chunks, owners and files.

    Args:
        layouts: Every array of the tree by leaf, in the same order in every process.
        process_index: The process whose files are wanted.
        data_directory: Where its data files lie, relative to the item.
        sharing: Who may write what several processes hold.
        file_limit_bytes: Beyond this no chunk is begun in a file; 0: no limit.
        part_limit_bytes: The parts that a file is made of take no more host memory,
            unless it is one alone that does; 0: no limit.
        chunk_files: What the files of single chunks are called; None: chunks share
            data files.
    """
    load_bytes: dict[int, int] = {}
    chunk_shapes: dict[int, tuple[int, ...]] = {}
    codecs: dict[int, str | None] = {}
    parts: list[PartWrite] = []
    parts_bytes: list[int] = []
    mine: list[ChunkWrite] = []
    known: dict[int, _Cut] = {}
    for leaf, layout in layouts.items():
        cut = known.get(id(layout))
        if cut is None:
            cut = known[id(layout)] = _cut_into_chunks(layout, sharing)
        chunk_shapes[leaf] = cut.grid.shape
        codecs[leaf] = cut.grid.codec
        for box, candidates, part_bytes, chunks in cut.parts:
            if len(candidates) == 1:
                owner = candidates[0]
            else:
                owner = min(candidates, key=lambda p: (load_bytes.get(p, 0), p))
            load_bytes[owner] = load_bytes.get(owner, 0) + part_bytes
            if owner != process_index:
                continue
            mine += [
                ChunkWrite(cut.grid, leaf, chunk, chunk_box, len(parts), index)
                for chunk, chunk_box, index in chunks
            ]
            parts.append(PartWrite(leaf, box))
            parts_bytes.append(box.size * layout.host_itemsize)
    if chunk_files is not None:
        files = [chunk_files.plan(chunk, layouts[chunk.leaf].shape) for chunk in mine]
    else:
        starts: set[int] = set()
        if part_limit_bytes:
            starts = _first_parts(parts_bytes, part_limit_bytes)
        files = _cut_into_files(mine, data_directory, file_limit_bytes, starts)
    return WritePlan(
        chunk_shapes=chunk_shapes,
        codecs=codecs,
        parts=tuple(parts),
        files=tuple(files),
        array_bytes=load_bytes.get(process_index, 0),
    )


class _CutPart(NamedTuple):
    box: Box
    candidates: Sequence[int]
    size_bytes: int
    chunks: Sequence[tuple[int, Box, tuple[slice | EllipsisType, ...] | None]]


class _Cut(NamedTuple):
    """What follows from a layout."""

    grid: ChunkGrid
    parts: Sequence[_CutPart]


def _cut_into_chunks(layout: ArrayLayout, sharing: Sharing) -> _Cut:
    itemsize = layout.dtype.itemsize
    shape = choose_chunk_shape(
        layout.shape,
        [box for box, _ in layout.parts],
        itemsize,
        limit_bytes=layout.chunk_limit_bytes,
        shard_axes=layout.shard_axes,
        is_coded=layout.codec is not None,
    )
    grid = ChunkGrid(
        shape=shape,
        dtype=layout.dtype,
        codec=_fitting_codec(layout, shape),
        size_bytes=math.prod(shape) * itemsize,
    )
    counts = grid_counts(layout.shape, shape)
    parts: list[_CutPart] = []
    for part, holders in layout.parts:
        size_bytes = part.size * itemsize
        chunks = [
            (ordinal_of(index, counts), box, None if box == part else box.within(part))
            for index, box in chunks_in(part, layout.shape, shape)
        ]
        candidates = sharing.candidates(holders, size_bytes)
        parts.append(_CutPart(part, candidates, size_bytes, chunks))
    return _Cut(grid, parts)


def _fitting_codec(layout: ArrayLayout, chunk_shape: tuple[int, ...]) -> str | None:
    """What is asked for, but no sample where sizes alone say that it is not worth it.

    Nothing but what all processes know decides.
    """
    if layout.codec not in (AUTO, AUTO_EACH):
        return layout.codec
    itemsize = layout.dtype.itemsize
    chunk_bytes = math.prod(chunk_shape) * itemsize
    is_large = math.prod(layout.shape) * itemsize >= _AUTO_FROM_BYTES
    most_bytes = CODECS[AUTO_CODEC].limit_bytes
    fits = _AUTO_CHUNK_FROM_BYTES <= chunk_bytes <= most_bytes
    return layout.codec if is_large and fits else None


def place(end_bytes: int, length_bytes: int) -> int:
    """Where a chunk begins in its file, given where the one before it ends."""
    # Whole pages keep direct and mapped reading open; a cache line is what JAX needs to
    # adopt the memory of a small array without a copy.
    step = _PAGE_BYTES if length_bytes >= _LARGE_CHUNK_BYTES else _LINE_BYTES
    return -(-end_bytes // step) * step


def _first_parts(parts_bytes: Sequence[int], limit_bytes: int) -> set[int]:
    """The parts, by position, with which a file begins so that none takes too much."""
    found: set[int] = set()
    sum_bytes = 0
    for part, size_bytes in enumerate(parts_bytes):
        if sum_bytes + size_bytes > limit_bytes:
            found.add(part)
            sum_bytes = 0
        sum_bytes += size_bytes
    return found


def _cut_into_files(
    mine: Sequence[ChunkWrite],
    data_directory: str,
    limit_bytes: int,
    starts: set[int],
) -> list[FilePlan]:
    total_bytes = sum([chunk.grid.size_bytes for chunk in mine])
    # Beyond half of everything the second file begins, the only one that is planned.
    share_bytes = total_bytes if total_bytes < FILE_LIMIT_BYTES else total_bytes / 2
    if starts:
        share_bytes = total_bytes
    files: list[FilePlan] = []
    chunks: list[ChunkWrite] = []
    end_bytes = written_bytes = 0
    is_second = False
    last_part = -1

    def close() -> None:
        nonlocal chunks, end_bytes
        if not chunks:
            return
        is_known = all(chunk.grid.codec is None for chunk in chunks)
        files.append(
            FilePlan(
                name=f"{data_directory}data-{len(files)}",
                chunks=tuple(chunks),
                size_bytes=end_bytes if is_known else None,
            )
        )
        chunks, end_bytes = [], 0

    for chunk in mine:
        size_bytes = chunk.grid.size_bytes
        if written_bytes >= share_bytes and not is_second:
            close()
            is_second = True
        if chunk.part != last_part and chunk.part in starts:
            close()
        last_part = chunk.part
        begin_bytes = place(end_bytes, size_bytes)
        if limit_bytes and begin_bytes + size_bytes > limit_bytes:
            close()
            begin_bytes = 0
        chunks.append(chunk)
        end_bytes = begin_bytes + size_bytes + TRAILER_BYTES
        written_bytes += size_bytes
    close()
    return files
