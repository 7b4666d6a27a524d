"""Chunks on their way from the store: found, read once, verified, brought in place.

A load reads each chunk once, however many parts need it: straight into the caller's
memory where the chunk lies there in one piece, through scratch memory where it does
not, and small neighbours together.  Checksums are compared before anybody sees a byte.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stowax._box import Box, chunks_in, grid_counts, ordinal_of
from stowax._codecs._checksum import BLOCK_BYTES, verify_blocks
from stowax._codecs._compression import CODECS
from stowax._codecs._zarr import dtype_from_name
from stowax._formats._base import ReadRequest
from stowax._manifest import ChunkTable, LeafEntry, Manifest
from stowax._plan._blocks import needed_blocks
from stowax._runtime import on_worker
from stowax._stores._base import Store, join
from stowax._tasks import run_all
from stowax._transfer import allocate
from stowax.errors import CorruptCheckpointError

_NEIGHBOUR_BYTES = 1 << 20
"""Chunks up to this size are read together with their neighbours."""

_SLAB_BYTES = 4 << 20
"""Neighbours are read in runs up to this size, small enough to stay in the cache."""

_CONCURRENT_READS = 4


@dataclass(slots=True, kw_only=True)
class _ChunkRead:
    """One stored chunk and everything that is wanted of it."""

    entry: LeafEntry
    box: Box
    file: str
    offset_bytes: int
    length_bytes: int
    sums: Sequence[int]
    uses: list[tuple[ReadRequest, Box]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Its length before it was compressed."""
        dtype = dtype_from_name(self.entry.form.dtype or "")
        return math.prod(self.entry.form.chunk_shape) * dtype.itemsize


class ChunkSource:
    """Reads the arrays of an item by its own chunk tables: an `ArraySource`.

    Args:
        store: Where the item lies.
        directory: The item's directory.
        manifest: What is stored, with chunk tables.
        verify: Whether checksums are compared.
    """

    def __init__(
        self, store: Store, directory: str, manifest: Manifest, *, verify: bool
    ) -> None:
        if manifest.chunks is None:
            raise ValueError("the manifest has no chunk tables")
        self._store = store
        self._directory = directory
        self._leaves = manifest.leaves
        self._verify = verify
        self._tables = manifest.chunks

    async def read(self, requests: Sequence[ReadRequest]) -> None:
        """Fills every request; see `ArraySource`."""
        slots = asyncio.Semaphore(_CONCURRENT_READS)

        async def read_group(group: Sequence[_ChunkRead]) -> None:
            async with slots:
                await self._read_group(group)

        groups = _neighbours(await on_worker(self._chunks_of, requests))
        await run_all(read_group(group) for group in groups)

    @functools.cached_property
    def _rows(self) -> dict[tuple[int, int], tuple[ChunkTable, int]]:
        """Where the chunks lie; made for the first read, on its worker."""
        rows: dict[tuple[int, int], tuple[ChunkTable, int]] = {}
        for table in self._tables:
            keys = zip(table.leaf.tolist(), table.chunk.tolist(), strict=True)
            rows.update((key, (table, row)) for row, key in enumerate(keys))
        return rows

    def _chunks_of(self, requests: Sequence[ReadRequest]) -> list[_ChunkRead]:
        """Every chunk that is needed, once, in order of its place."""
        found: dict[tuple[int, int], _ChunkRead] = {}
        for request in requests:
            entry = self._leaves[request.leaf]
            counts = grid_counts(entry.form.shape, entry.form.chunk_shape)
            for grid_index, box in chunks_in(
                request.box, entry.form.shape, entry.form.chunk_shape
            ):
                key = (request.leaf, ordinal_of(grid_index, counts))
                if key not in found:
                    found[key] = self._locate(entry, key, box)
                common = box.intersect(request.box)
                if common is not None:
                    found[key].uses.append((request, common))
        return sorted(found.values(), key=lambda c: (c.file, c.offset_bytes))

    def _locate(self, entry: LeafEntry, key: tuple[int, int], box: Box) -> _ChunkRead:
        if key not in self._rows:
            raise CorruptCheckpointError(
                f"{self._directory}: chunk {box} of leaf {entry.name!r} is not in the "
                "manifest"
            )
        table, row = self._rows[key]
        first_sum = int(table.sum_ends[row - 1]) if row else 0
        chunk = _ChunkRead(
            entry=entry,
            box=box,
            file=table.files[int(table.file[row])],
            offset_bytes=int(table.offset_bytes[row]),
            length_bytes=int(table.length_bytes[row]),
            sums=table.sums[first_sum : int(table.sum_ends[row])].tolist(),
        )
        if entry.form.codec is None and chunk.length_bytes != chunk.size_bytes:
            raise CorruptCheckpointError(
                f"{self._directory}: chunk {box} of leaf {entry.name!r} has "
                f"{chunk.length_bytes} bytes in the manifest; {chunk.size_bytes} "
                "expected"
            )
        return chunk

    async def _read_group(self, group: Sequence[_ChunkRead]) -> None:
        first, last = group[0], group[-1]
        path = join(self._directory, first.file)
        if len(group) == 1:
            await self._read_one(path, first)
            return
        size_bytes = last.offset_bytes + last.length_bytes - first.offset_bytes
        slab = np.empty(size_bytes, np.uint8)
        await self._fill(path, group, slab)
        await on_worker(self._spread, path, group, slab)

    def _spread(self, path: str, group: Sequence[_ChunkRead], slab: np.ndarray) -> None:
        for chunk in group:
            start = chunk.offset_bytes - group[0].offset_bytes
            payload = slab[start : start + chunk.length_bytes]
            self._take(path, chunk, payload)

    async def _read_one(self, path: str, chunk: _ChunkRead) -> None:
        if chunk.entry.form.codec is not None:
            payload = allocate((chunk.length_bytes,), np.dtype(np.uint8))
            await self._fill(path, [chunk], payload)
            await on_worker(self._take, path, chunk, payload)
            return
        direct = _direct_memory(chunk)
        payload = direct
        if payload is None:
            payload = allocate((chunk.length_bytes,), np.dtype(np.uint8))
        for begin, end in _needed_bytes(chunk):
            part = payload[begin:end]
            await self._fill(path, [chunk], part, skipped_bytes=begin)
            first_block = begin // BLOCK_BYTES
            await on_worker(self._check, path, chunk, part, first_block=first_block)
        if direct is None:
            await on_worker(_copy_out, chunk, payload)

    def _take(self, path: str, chunk: _ChunkRead, payload: np.ndarray) -> None:
        """Verifies a payload, and brings its elements to where they are wanted."""
        self._check(path, chunk, payload)
        if chunk.entry.form.codec is None:
            _copy_out(chunk, payload)
            return
        direct = _direct_memory(chunk)
        elements = direct
        if elements is None:
            elements = allocate((chunk.size_bytes,), np.dtype(np.uint8))
        self._decode(path, chunk, payload, elements)
        if direct is None:
            _copy_out(chunk, elements)

    def _decode(
        self, path: str, chunk: _ChunkRead, payload: np.ndarray, out: np.ndarray
    ) -> None:
        try:
            CODECS[chunk.entry.form.codec or ""].decode_into(payload.data, out.data)
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{path}: bytes {chunk.offset_bytes} to "
                f"{chunk.offset_bytes + chunk.length_bytes} are not what "
                f"{chunk.entry.form.codec} makes of {chunk.box} of leaf "
                f"{chunk.entry.name!r}: {error}. Load an older checkpoint."
            ) from error

    async def _fill(
        self,
        path: str,
        chunks: Sequence[_ChunkRead],
        memory: np.ndarray,
        *,
        skipped_bytes: int = 0,
    ) -> None:
        """Reads chunks that follow each other, and says what is lost if it cannot."""
        offset_bytes = chunks[0].offset_bytes + skipped_bytes
        try:
            await self._store.read_into(path, offset_bytes, memory.data)
        except (FileNotFoundError, CorruptCheckpointError) as error:
            names = dict.fromkeys(repr(chunk.entry.name) for chunk in chunks)
            shown = ", ".join([*names][:8]) + (", …" if len(names) > 8 else "")
            raise CorruptCheckpointError(
                f"{path} is missing or cut short; it holds leaf {shown}: {error}"
            ) from error

    def _check(
        self, path: str, chunk: _ChunkRead, payload: np.ndarray, *, first_block: int = 0
    ) -> None:
        if not self._verify:
            return
        bad = verify_blocks(payload.data, chunk.sums, first_block=first_block)
        if bad is not None:
            raise CorruptCheckpointError(
                f"{path}: bytes {chunk.offset_bytes} to "
                f"{chunk.offset_bytes + chunk.length_bytes} do not match their "
                f"checksum (MiB {bad} of {len(chunk.sums)}); they hold {chunk.box} of "
                f"leaf {chunk.entry.name!r}. Load an older checkpoint, or these bytes "
                "as they are with "
                "`Context(integrity=IntegrityOptions(verify=False))`."
            )


def _neighbours(chunks: Sequence[_ChunkRead]) -> Iterator[list[_ChunkRead]]:
    """Runs of small chunks that lie close together, and large ones alone."""
    group: list[_ChunkRead] = []
    for chunk in chunks:
        if group:
            first = group[0]
            end_bytes = chunk.offset_bytes + chunk.length_bytes
            if (
                chunk.file == first.file
                and max(first.length_bytes, chunk.length_bytes) <= _NEIGHBOUR_BYTES
                and end_bytes - first.offset_bytes <= _SLAB_BYTES
            ):
                group.append(chunk)
                continue
            yield group
        group = [chunk]
    if group:
        yield group


def _direct_memory(chunk: _ChunkRead) -> np.ndarray | None:
    """The bytes of the caller's memory, if the whole chunk lies there in one piece."""
    if len(chunk.uses) != 1:
        return None
    request, common = chunk.uses[0]
    if common.shape != chunk.entry.form.chunk_shape:
        return None
    view = request.out[common.within(request.box)]
    if not view.flags.c_contiguous:
        return None
    return view.reshape(-1).view(np.uint8)


def _needed_bytes(chunk: _ChunkRead) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of whole blocks that holds something wanted."""
    if chunk.length_bytes <= BLOCK_BYTES:
        yield 0, chunk.length_bytes
        return
    origin = chunk.box.start
    boxes = [
        Box(
            tuple(a - o for a, o in zip(common.start, origin, strict=True)),
            tuple(b - o for b, o in zip(common.stop, origin, strict=True)),
        )
        for _, common in chunk.uses
    ]
    itemsize = dtype_from_name(chunk.entry.form.dtype or "").itemsize
    for run in needed_blocks(
        boxes, chunk.entry.form.chunk_shape, itemsize, BLOCK_BYTES
    ):
        yield run.start * BLOCK_BYTES, min(run.stop * BLOCK_BYTES, chunk.length_bytes)


def _copy_out(chunk: _ChunkRead, payload: np.ndarray) -> None:
    stored = payload.view(dtype_from_name(chunk.entry.form.dtype or ""))
    stored = stored.reshape(chunk.entry.form.chunk_shape)
    origin = _full_box(chunk)
    for request, common in chunk.uses:
        request.out[common.within(request.box)] = stored[common.within(origin)]


def _full_box(chunk: _ChunkRead) -> Box:
    """The chunk's box with its padding, to which the payload's indices refer."""
    stop = zip(chunk.box.start, chunk.entry.form.chunk_shape, strict=True)
    return Box(chunk.box.start, tuple(a + n for a, n in stop))
