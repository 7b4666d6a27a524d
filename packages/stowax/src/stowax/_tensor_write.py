"""Tensors on their way into safetensors files.

A file is written as one stream, however its tensors come: from host memory, once they
are staged, or from what other processes lend.  No more than a piece of a tensor is made
at a time, and no thread waits for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stowax._box import Box
from stowax._engine_write import HostParts
from stowax._loop import on_worker
from stowax._plan._cast import convert_into
from stowax._plan._tensor_files import (
    Source,
    TensorFile,
    TensorPlan,
    TensorSpec,
    begin_in,
    pieces_of,
)
from stowax._report import Tally
from stowax._stores._base import Store, join
from stowax._tasks import run_all

_PIECE_BYTES = 4 << 20

_SMALL_BYTES = 64 << 10
"""Smaller pieces are gathered, and made at once: another thread takes longer."""

_LANES = 2
"""So many files at a time; the disk takes two side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorWriter:
    """Writes what one process has to write of the files of a checkpoint.

    Args:
        store: Where to.
        plan: What this process does.
        process_index: Which one it is.
        loans: Directory of what processes lend each other.
        moved: Hears how many more bytes of tensors the store has taken.
        tally: Hears which leaves they were; None: nobody wants to know.
    """

    store: Store
    plan: TensorPlan
    process_index: int
    loans: str
    moved: Callable[[int], None]
    tally: Tally | None = None

    async def lend(self, source: HostParts) -> None:
        """Writes what this process lends, for the others to read.

        Args:
            source: The values, each loan a unit.
        """
        if self.plan.loans:
            path = join(self.loans, str(self.process_index))
            await self._write(path, b"", self._lent(source))

    async def write(
        self, source: HostParts, paths: Sequence[str], headers: Sequence[bytes]
    ) -> None:
        """Writes the files of this process, durably.

        Args:
            source: The values, each tensor a unit.
            paths: Of all files.
            headers: What each begins with.
        """
        own = [
            (path, header, file)
            for path, header, file in zip(paths, headers, self.plan.files, strict=True)
            if file.writer == self.process_index
        ]

        async def write_some(lane: int) -> None:
            for path, header, file in own[lane::_LANES]:
                await self._write_file(source, path, header, file)

        await run_all(write_some(lane) for lane in range(_LANES))

    async def _write_file(
        self, source: HostParts, path: str, header: bytes, file: TensorFile
    ) -> None:
        size_bytes = len(header) + sum(spec.size_bytes for spec in file.specs)
        await self._write(path, header, self._tensors(source, file), size_bytes)
        await self.store.sync([path])

    async def _write(
        self,
        path: str,
        header: bytes,
        pieces: AsyncGenerator[np.ndarray],
        size_bytes: int | None = None,
    ) -> None:
        async with (
            contextlib.aclosing(pieces),
            contextlib.aclosing(_gathered(header, pieces)) as gathered,
        ):
            await self.store.write(path, gathered, size_bytes=size_bytes)

    async def _tensors(
        self, source: HostParts, file: TensorFile
    ) -> AsyncGenerator[np.ndarray]:
        for spec, unit, sources in file.tensors:
            await source.staged(unit)
            for box in pieces_of(spec.shape, spec.dtype.itemsize, _PIECE_BYTES):
                yield await self._made(spec, box, sources, source.parts)
                # Who asks for the next piece has done with this one.
                self.moved(box.size * spec.dtype.itemsize)
            source.written(unit)
            if self.tally is not None and spec.size_bytes:
                self.tally.arrived([(spec.leaf, spec.size_bytes)])

    async def _lent(self, source: HostParts) -> AsyncGenerator[np.ndarray]:
        for unit, (spec, (_, box)) in enumerate(self.plan.loans):
            await source.staged(unit)
            whole = [Source(box, unit, -1, 0)]
            for inner in pieces_of(box.shape, spec.dtype.itemsize, _PIECE_BYTES):
                piece = _shifted(inner, box)
                yield await self._made(spec, piece, whole, source.parts)
            source.written(unit)

    async def _made(
        self,
        spec: TensorSpec,
        box: Box,
        sources: Sequence[Source],
        parts: Sequence[np.ndarray | None],
    ) -> np.ndarray:
        """The elements of one box, in C order and as they are written."""
        found = [(s, common) for s in sources if (common := box.intersect(s.box))]
        if box.size and len(found) == 1 and found[0][0].part >= 0:
            cut = _cut(parts, *found[0])
            if cut.dtype == spec.dtype and cut.flags.c_contiguous:
                return cut
        out = np.empty(box.shape, spec.dtype)
        for source, common in found:
            where = out[common.within(box)]
            if source.part < 0:
                await self._borrow(spec, source, common, where)
            elif where.nbytes < _SMALL_BYTES:
                convert_into(where, _cut(parts, source, common))
            else:
                await on_worker(convert_into, where, _cut(parts, source, common))
        return out

    async def _borrow(
        self, spec: TensorSpec, source: Source, common: Box, where: np.ndarray
    ) -> None:
        """Reads what another process lends."""
        begin = begin_in(common, source.box)
        data = np.empty(common.size * spec.dtype.itemsize, np.uint8)
        await self.store.read_into(
            join(self.loans, str(source.lender)),
            source.offset_bytes + begin * spec.dtype.itemsize,
            data.data,
        )
        where[...] = data.view(spec.dtype).reshape(common.shape)


async def _gathered(
    header: bytes, pieces: AsyncIterator[np.ndarray]
) -> AsyncGenerator[bytearray | memoryview]:
    """The bytes of pieces behind a header; small ones together."""
    pending = bytearray(header)
    async for piece in pieces:
        # `.data` of the bytes: the dtypes of ml_dtypes refuse the buffer protocol.
        data = piece.reshape(-1).view(np.uint8).data
        if len(data) < _SMALL_BYTES:
            pending += data
            if len(pending) < _PIECE_BYTES:
                continue
        if pending:
            yield pending
            pending = bytearray()
        if len(data) >= _SMALL_BYTES:
            yield data
    if pending:
        yield pending


def _cut(parts: Sequence[np.ndarray | None], source: Source, common: Box) -> np.ndarray:
    part = parts[source.part]
    assert part is not None  # Its unit is staged.
    return part[common.within(source.box)]


def _shifted(inner: Box, outer: Box) -> Box:
    """A box of an array that holds just `outer`, as one of the whole array."""
    start = tuple(a + o for a, o in zip(inner.start, outer.start, strict=True))
    stop = tuple(b + o for b, o in zip(inner.stop, outer.start, strict=True))
    return Box(start, stop)
