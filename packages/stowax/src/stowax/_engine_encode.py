"""Chunks made ready to be written: cut, converted, compressed, several at a time.

A data file is written by one worker, in order.  What has to be compressed for it is
offered to all workers ahead, as far as a limit of memory allows.  The writer himself
does what nobody has begun, so that no worker waits for one who waits for another,
however few there are.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence

import numpy as np

from stowax._codecs._compression import BLOSC, CODECS
from stowax._loop import on_worker, workers
from stowax._plan._cast import convert
from stowax._plan._sample import is_worth_it
from stowax._plan._write import (
    AUTO,
    AUTO_CODEC,
    AUTO_EACH,
    ChunkWrite,
    FilePlan,
    WritePlan,
)

AHEAD_BYTES = 8 << 20
"""What one file may hold compressed, or being so, counted as it was before: the chunk
that is being written, and those ahead of it.  One ahead there may be, whatever its
size.  Twice as much is no faster."""

_AHEAD_COUNT = 64
"""No more chunks than these are looked at ahead, however small, or if they stay as they
are and take no memory: what is known of each does."""

_SMALL_BYTES = 64 << 10
"""Handing a smaller chunk to another worker takes longer than compressing it."""


class Choices:
    """Which leaves are compressed that the plan leaves to a sample, each chosen once.

    May be asked by several threads, about a leaf as soon as a file is staged that has
    some of it.

    Args:
        plan: What is written.
        parts: Host memory by position in the plan.
    """

    def __init__(self, plan: WritePlan, parts: Sequence[np.ndarray | None]) -> None:
        self._parts = parts
        self._samples = _samples(plan)
        # Guards what was chosen.
        self._lock = threading.Lock()
        self._chosen: dict[int, str | None] = {}

    def codec_of(self, chunk: ChunkWrite) -> str | None:
        """The codec of a chunk, or `AUTO_EACH`."""
        leaf, grid = chunk.leaf, chunk.grid
        if grid.codec != AUTO:
            return grid.codec
        with self._lock:
            if leaf not in self._chosen:
                found = [self._parts[part] for part in self._samples[leaf]]
                arrays = [array for array in found if array is not None]
                assert len(arrays) == len(found)  # They are staged.
                is_coded = is_worth_it(arrays, grid.dtype)
                self._chosen[leaf] = AUTO_CODEC if is_coded else None
            return self._chosen[leaf]

    def coded(self) -> frozenset[int]:
        """The leaves for which `AUTO_CODEC` was chosen, so far."""
        return frozenset(
            leaf for leaf, codec in self._chosen.items() if codec is not None
        )


def _samples(plan: WritePlan) -> dict[int, dict[int, None]]:
    """The parts to look at, by leaf: those in the first file that has any of it.

    They are staged before those of later files, and stay until that file is written: a
    choice depends neither on who asks first nor on how much is staged.
    """
    found: dict[int, dict[int, None]] = {}
    if AUTO not in plan.codecs.values():
        return found
    for file in plan.files:
        here: dict[int, dict[int, None]] = {}
        for chunk in file.chunks:
            if chunk.grid.codec == AUTO and chunk.leaf not in found:
                here.setdefault(chunk.leaf, {})[chunk.part] = None
        found |= here
    return found


@contextlib.asynccontextmanager
async def payloads_ahead(
    file: FilePlan,
    parts: Sequence[np.ndarray | None],
    choices: Choices,
) -> AsyncGenerator[Iterator[memoryview]]:
    """Gives the payloads of a file's chunks, in order, to one worker.

    When the block ends, in whatever way, nobody reads the parts any more.

    Args:
        file: What is written.
        parts: Host memory by position in the plan.
        choices: Says how chunks are compressed.
    """
    if file.size_bytes is not None:  # Nothing is compressed.
        yield _as_they_are(file.chunks, parts)
        return
    ahead = _Ahead(file.chunks, parts, choices, workers())
    try:
        yield iter(ahead)
    finally:
        if begun := ahead.give_up():
            await on_worker(concurrent.futures.wait, begun)


def _as_they_are(
    chunks: Sequence[ChunkWrite], parts: Sequence[np.ndarray | None]
) -> Iterator[memoryview]:
    for chunk in chunks:
        part = parts[chunk.part]
        assert part is not None  # The file is staged.
        yield encode_chunk(chunk, part, None)


class _Job:
    """A chunk on its way to its payload, which the worker makes who is first."""

    def __init__(self, chunk: ChunkWrite, part: np.ndarray, codec: str | None) -> None:
        self.size_bytes = 0 if codec is None else chunk.grid.size_bytes
        """What it counts against the limit."""
        self.payload: concurrent.futures.Future[memoryview] = (
            concurrent.futures.Future()
        )
        self._encode = functools.partial(encode_chunk, chunk, part, codec)

    def offer(self, executor: concurrent.futures.Executor) -> None:
        """Lets another worker make it."""
        self.payload = executor.submit(self._encode)

    def make(self) -> None:
        """Makes it here, unless another worker has begun."""
        if self.payload.cancel():
            self.payload = concurrent.futures.Future()
            self.payload.set_result(self._encode())


class _Ahead:
    """The payloads of chunks, some of them made ahead of being asked for."""

    def __init__(
        self,
        chunks: Sequence[ChunkWrite],
        parts: Sequence[np.ndarray | None],
        choices: Choices,
        executor: concurrent.futures.Executor,
    ) -> None:
        self._chunks = chunks
        self._parts = parts
        self._choices = choices
        self._executor = executor
        # In order; the first is the next to be written, the others are ahead. Only the
        # worker that iterates changes it, until it has ended.
        self._jobs: deque[_Job] = deque()

    def __iter__(self) -> Iterator[memoryview]:
        upcoming = deque(self._chunks)
        held_bytes = 0
        while upcoming or self._jobs:
            while upcoming and (
                len(self._jobs) < 2
                or (
                    len(self._jobs) < _AHEAD_COUNT
                    and held_bytes + upcoming[0].grid.size_bytes <= AHEAD_BYTES
                )
            ):
                job = self._begin(upcoming.popleft())
                self._jobs.append(job)
                held_bytes += job.size_bytes
            self._work_on_first()
            yield self._jobs[0].payload.result()
            held_bytes -= self._jobs.popleft().size_bytes

    def _begin(self, chunk: ChunkWrite) -> _Job:
        part = self._parts[chunk.part]
        assert part is not None  # The file is staged.
        job = _Job(chunk, part, self._choices.codec_of(chunk))
        if job.size_bytes >= _SMALL_BYTES:
            job.offer(self._executor)
        return job

    def _work_on_first(self) -> None:
        """Makes the first, or, while another worker does, some of the others."""
        first = self._jobs[0]
        for job in self._jobs:
            if first.payload.done():
                return
            if job is first or job.size_bytes >= _SMALL_BYTES:
                job.make()

    def give_up(self) -> list[concurrent.futures.Future[memoryview]]:
        """Begins nothing more; answers with what is begun and was not taken."""
        return [job.payload for job in self._jobs if not job.payload.cancel()]


def encode_chunk(chunk: ChunkWrite, part: np.ndarray, codec: str | None) -> memoryview:
    """Elements of one chunk as they are stored; a copy only where it must be.

    Args:
        chunk: What is cut.
        part: What it is cut from.
        codec: How it is compressed, perhaps `AUTO_EACH`; None: not at all.
    """
    grid = chunk.grid
    cut = part if chunk.cut is None else part[chunk.cut]
    if cut.dtype != grid.dtype:
        cut = convert(cut, grid.dtype)
    if cut.shape != grid.shape:
        padded = np.zeros(grid.shape, cut.dtype)
        padded[tuple(map(slice, cut.shape))] = cut
        cut = padded
    # C order, and little-endian, as all dtypes of plans are.
    cut = np.ascontiguousarray(cut)
    # `.data` of the bytes: the dtypes of ml_dtypes refuse the buffer protocol.
    payload = cut.reshape(-1).view(np.uint8).data
    if codec is None:
        return payload
    itemsize = grid.dtype.itemsize
    if codec == AUTO_EACH:
        if not is_worth_it([cut], grid.dtype):
            return memoryview(BLOSC.store(payload, itemsize))
        codec = AUTO_CODEC
    return memoryview(CODECS[codec].encode(payload, itemsize))
