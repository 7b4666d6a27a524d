"""Chunks on their way from the store: found, read once, verified, brought in place.

A call reads each chunk once, however many parts need it: straight into the caller's
memory where the chunk lies there in one piece, piece by piece through scratch memory
where it does not, and small neighbours together.  Checksums are compared before anybody
sees a byte, and scratch memory counts against the reading budget.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np

from stowax._box import Box, chunks_in
from stowax._budget import Scratch
from stowax._chunk_index import ChunkIndex, ChunkRead, Decoder, TableIndex
from stowax._codecs._checksum import crc32c, verify_blocks
from stowax._formats._base import Arrived, ReadRequest
from stowax._loop import on_worker
from stowax._manifest import Manifest
from stowax._mapped import map_file
from stowax._plan._blocks import boxes_of_run, needed_blocks
from stowax._stores._base import Store, join
from stowax._tasks import run_all
from stowax._transfer import allocate
from stowax._uncollected import uncollected
from stowax.errors import CorruptCheckpointError

_NEIGHBOUR_BYTES = 1 << 20
"""Chunks up to this size are read together with their neighbours."""

_GAP_BYTES = 64 << 10
"""If no more than this lies between them, and it is quicker read than left out."""

_PIECE_BYTES = 4 << 20
"""What is read at once: small enough to stay in the cache until it is summed."""

_CONCURRENT_READS = 4


class ChunkSource:
    """Reads the arrays of an item chunk by chunk: an `ArraySource`.

    Args:
        store: Where the item lies.
        directory: The item's directory.
        manifest: What is stored.
        verify: Whether checksums are compared.
        index: Where it lies; None: as the manifest's own chunk tables say.
    """

    def __init__(
        self,
        store: Store,
        directory: str,
        manifest: Manifest,
        *,
        verify: bool,
        index: ChunkIndex | None = None,
    ) -> None:
        self._store = store
        self._directory = directory
        self._leaves = manifest.leaves
        self._verify = verify
        self._index = index or TableIndex(directory, manifest)

    async def read(
        self,
        requests: Sequence[ReadRequest],
        scratch: Scratch,
        arrived: Arrived | None = None,
    ) -> None:
        """Fills every request; see `ArraySource`."""
        chunks = await on_worker(self._chunks_of, requests)
        brought = [chunk for chunk in chunks if chunk.payload is not None]
        if brought:
            await on_worker(self._take_brought, brought)
            _tell(arrived, brought)
            chunks = [chunk for chunk in chunks if chunk.payload is None]
        jobs = self._jobs(chunks, scratch, arrived)

        async def work() -> None:
            for job in jobs:
                await job()

        await run_all(work() for _ in range(_CONCURRENT_READS))

    @uncollected()
    def _chunks_of(self, requests: Sequence[ReadRequest]) -> list[ChunkRead]:
        """Every chunk that is needed, once, in order of its place."""
        found: dict[tuple[int, tuple[int, ...]], ChunkRead | None] = {}
        locate = self._index.locate
        for request in requests:
            leaf, wanted, out, _ = request
            form = self._leaves[leaf].form
            if form.shape == form.chunk_shape == wanted.stop and not any(wanted.start):
                # Most leaves are one chunk, and wanted whole.
                touched = ((wanted.start, wanted),)
            else:
                touched = chunks_in(wanted, form.shape, form.chunk_shape)
            for grid_index, box in touched:
                key = (leaf, grid_index)
                if key not in found:
                    found[key] = locate(leaf, grid_index, box)
                common = wanted if box is wanted else box.intersect(wanted)
                if common is None:
                    continue
                chunk = found[key]
                if chunk is None:
                    _zero(out[common.within(wanted)])
                else:
                    chunk.uses.append((request, common))
        chunks = [chunk for chunk in found.values() if chunk is not None]
        return sorted(chunks, key=operator.attrgetter("file", "offset_bytes"))

    def _take_brought(self, chunks: Sequence[ChunkRead]) -> None:
        for chunk in chunks:
            payload = np.frombuffer(chunk.payload or b"", np.uint8)
            self._take(join(self._directory, chunk.file), chunk, payload)

    def _jobs(
        self, chunks: Sequence[ChunkRead], scratch: Scratch, arrived: Arrived | None
    ) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """All that is to be read, in order, in parts that can be read side by side.

        Made as they are begun: of a large array there are thousands.
        """
        for group in _neighbours(chunks):
            first = group[0]
            path = join(self._directory, first.file)
            more = scratch, arrived
            if len(group) > 1 or _is_read_whole(first):
                yield functools.partial(self._read_group, path, group, *more)
            elif first.decoder is not None:
                yield functools.partial(self._read_coded, path, first, *more)
            elif self._may_map(path, first):
                yield functools.partial(self._map_or_read, path, first, *more)
            else:
                for piece in _pieces(first):
                    yield functools.partial(self._read_piece, path, first, piece, *more)

    async def _read_group(
        self,
        path: str,
        group: Sequence[ChunkRead],
        scratch: Scratch,
        arrived: Arrived | None,
    ) -> None:
        first = group[0]
        # Nothing says that the last to begin is the last to end.
        end_bytes = max([chunk.end_bytes for chunk in group])
        size_bytes = end_bytes - first.offset_bytes
        # One after the other may be decoded into memory of its own.
        decoded_bytes = max([c.work_bytes for c in group if c.decoder], default=0)
        async with scratch.hold(size_bytes + decoded_bytes):
            slab = np.empty(size_bytes, np.uint8)
            await self._fill(path, group, first.offset_bytes, slab)
            await on_worker(self._spread, path, group, slab)
            del slab  # With what is held of the budget.
        _tell(arrived, group)

    def _spread(self, path: str, group: Sequence[ChunkRead], slab: np.ndarray) -> None:
        origin_bytes = group[0].offset_bytes
        for chunk in group:
            start = chunk.offset_bytes - origin_bytes
            self._take(path, chunk, slab[start : start + chunk.length_bytes])

    def _take(self, path: str, chunk: ChunkRead, payload: np.ndarray) -> None:
        """Verifies a whole payload, and brings its elements to where they are wanted.

        What is decoded, but not wanted as a whole, goes through memory of its own.
        """
        self._check(path, chunk, payload)
        direct = _direct_memory(chunk)
        if chunk.decoder is not None:
            elements = direct
            if elements is None:
                elements = allocate((chunk.whole.size_bytes,), np.dtype(np.uint8))
            _decode(path, chunk, chunk.decoder, payload, elements)
            payload = elements
        elif direct is not None:
            direct[:] = payload
        if direct is None:
            _copy_out(chunk, payload, 0)

    async def _read_coded(
        self, path: str, chunk: ChunkRead, scratch: Scratch, arrived: Arrived | None
    ) -> None:
        direct = _direct_memory(chunk)
        elements_bytes = 0 if direct is not None else chunk.whole.size_bytes
        async with scratch.hold(chunk.length_bytes + elements_bytes):
            payload = allocate((chunk.length_bytes,), np.dtype(np.uint8))
            await self._fill(path, [chunk], chunk.offset_bytes, payload)
            await on_worker(self._take, path, chunk, payload)
            del payload
        _tell(arrived, [chunk])

    async def _read_piece(
        self,
        path: str,
        chunk: ChunkRead,
        piece: tuple[int, int],
        scratch: Scratch,
        arrived: Arrived | None,
    ) -> None:
        begin, end = piece
        direct = _direct_memory(chunk)
        if direct is not None:
            await self._read_blocks(path, chunk, begin, direct[begin:end])
            copied = [(chunk.uses[0][0].leaf, end - begin)]
        else:
            async with scratch.hold(end - begin):
                blocks = np.empty(end - begin, np.uint8)
                await self._read_blocks(path, chunk, begin, blocks)
                copied = await on_worker(_copy_out, chunk, blocks, begin)
                del blocks
        if arrived is not None:
            arrived(copied)

    def _may_map(self, path: str, chunk: ChunkRead) -> bool:
        return (
            chunk.uses[0][0].may_map
            and _direct_memory(chunk) is not None
            and self._store.local_path(path) is not None
        )

    async def _map_or_read(
        self, path: str, chunk: ChunkRead, scratch: Scratch, arrived: Arrived | None
    ) -> None:
        """For systems, and files, of which it only shows whether they can be mapped."""
        if await self._map(path, chunk):
            _tell(arrived, [chunk])
            return
        for piece in _pieces(chunk):
            await self._read_piece(path, chunk, piece, scratch, arrived)

    async def _map(self, path: str, chunk: ChunkRead) -> bool:
        """Has the caller's memory show the file, and verifies what it shows, once."""
        request, _ = chunk.uses[0]
        file, direct = self._store.local_path(path), _direct_memory(chunk)
        assert file is not None
        assert direct is not None

        def map_and_check() -> bool:
            is_mapped = map_file(
                file,
                chunk.offset_bytes,
                direct,
                is_end=_end(direct) == _end(request.out),
                reads_ahead=self._verify,
            )
            if is_mapped:
                self._check(path, chunk, direct)
            return is_mapped

        async with self._saying_what_is_lost(path, [chunk]):
            return await on_worker(map_and_check)

    async def _read_blocks(
        self, path: str, chunk: ChunkRead, begin_bytes: int, memory: np.ndarray
    ) -> None:
        """Reads whole blocks of a payload, from a given one on, and verifies them."""
        await self._fill(path, [chunk], chunk.offset_bytes + begin_bytes, memory)
        first_block = begin_bytes // chunk.block_bytes
        await on_worker(self._check, path, chunk, memory, first_block)

    async def _fill(
        self,
        path: str,
        chunks: Sequence[ChunkRead],
        offset_bytes: int,
        memory: np.ndarray,
    ) -> None:
        """Reads what lies there, and says what is lost if it cannot."""
        async with self._saying_what_is_lost(path, chunks):
            await self._store.read_into(path, offset_bytes, memory.data)

    @contextlib.asynccontextmanager
    async def _saying_what_is_lost(
        self, path: str, chunks: Sequence[ChunkRead]
    ) -> AsyncGenerator[None]:
        """Names the leaves of a file that is missing or too short."""
        try:
            yield
        except (FileNotFoundError, CorruptCheckpointError) as error:
            entry = await self._store.stat(path)
            size_bytes = 0 if entry is None else entry.size_bytes
            lost = [chunk for chunk in chunks if chunk.end_bytes > size_bytes]
            names = dict.fromkeys(repr(chunk.entry.name) for chunk in lost or chunks)
            shown = ", ".join([*names][:8]) + (", …" if len(names) > 8 else "")
            raise CorruptCheckpointError(
                f"{path} is missing or cut short; it holds leaf {shown}: {error}"
            ) from error

    def _check(
        self, path: str, chunk: ChunkRead, payload: np.ndarray, first_block: int = 0
    ) -> None:
        sums = chunk.sums
        if not self._verify or sums is None:
            return
        if len(sums) == 1 and payload.nbytes <= chunk.block_bytes:
            bad = None if crc32c(payload.data) == sums[0] else 0
        else:
            bad = verify_blocks(
                payload.data,
                sums,
                first_block=first_block,
                block_bytes=chunk.block_bytes,
            )
        if bad is not None:
            raise CorruptCheckpointError(
                f"{path}: bytes {chunk.offset_bytes} to {chunk.end_bytes} do not match "
                f"their checksum (block {bad} of {len(sums)}); they hold "
                f"{chunk.box} of leaf {chunk.entry.name!r}. Load an older "
                "checkpoint, or these bytes as they are with "
                "`Context(integrity=IntegrityOptions(verify=False))`."
            )


def _decode(
    path: str,
    chunk: ChunkRead,
    decoder: Decoder,
    payload: np.ndarray,
    out: np.ndarray,
) -> None:
    try:
        decoder.decode_into(payload.data, out.data)
    except ValueError as error:
        raise CorruptCheckpointError(
            f"{path}: bytes {chunk.offset_bytes} to {chunk.end_bytes} do not decode to "
            f"{chunk.box} of leaf {chunk.entry.name!r}: {error}. Load an older "
            "checkpoint."
        ) from error


def _neighbours(chunks: Sequence[ChunkRead]) -> Iterator[list[ChunkRead]]:
    """Runs of chunks to be read whole that lie close together, and others alone."""
    group: list[ChunkRead] = []
    group_bytes = 0
    for chunk in chunks:
        work_bytes = chunk.work_bytes
        is_whole = _is_read_whole(chunk)
        if group:
            first = group[0]
            if (
                not is_whole
                or chunk.file != first.file
                or chunk.offset_bytes - group[-1].end_bytes > _GAP_BYTES
                or chunk.end_bytes - first.offset_bytes > _PIECE_BYTES
                or group_bytes + work_bytes > _PIECE_BYTES
            ):
                yield group
                group, group_bytes = [], 0
        if not is_whole:
            yield [chunk]
        else:
            group.append(chunk)
            group_bytes += work_bytes
    if group:
        yield group


def _is_read_whole(chunk: ChunkRead) -> bool:
    """Whether all of a chunk is read at once: it is small, and nothing is left out."""
    if chunk.work_bytes > _NEIGHBOUR_BYTES:
        return False
    if chunk.length_bytes <= chunk.block_bytes or chunk.decoder is not None:
        return True
    return any(common == chunk.box for _, common in chunk.uses)


def _direct_memory(chunk: ChunkRead) -> np.ndarray | None:
    """The bytes of the caller's memory, if the whole chunk lies there in one piece."""
    if len(chunk.uses) != 1:
        return None
    request, common = chunk.uses[0]
    view = request.out
    if common.shape != chunk.entry.form.chunk_shape:
        return None
    if common is not request.box and common != request.box:
        view = view[common.within(request.box)]
    if not view.flags.c_contiguous:
        return None
    return view.reshape(-1).view(np.uint8)


def _end(array: np.ndarray) -> int:
    """The address behind the last byte."""
    return array.ctypes.data + array.nbytes


def _pieces(chunk: ChunkRead) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of whole blocks that hold all that is wanted."""
    origin = chunk.box.start
    boxes = [_moved(common, origin) for _, common in chunk.uses]
    _, shape, _ = chunk.whole
    itemsize = chunk.whole.dtype.itemsize
    step = chunk.block_bytes
    for run in needed_blocks(boxes, shape, itemsize, step):
        end = min(run.stop * step, chunk.length_bytes)
        for begin in range(run.start * step, end, _PIECE_BYTES):
            yield begin, min(begin + _PIECE_BYTES, end)


def _copy_out(
    chunk: ChunkRead, piece: np.ndarray, begin_bytes: int
) -> list[tuple[int, int]]:
    """Copies what is wanted of a piece of the elements to where it is wanted.

    Args:
        chunk: What is read.
        piece: Bytes of whole elements, in C order.
        begin_bytes: Of all its elements, where the piece begins.

    Returns:
        Leaves, by position, and how many bytes of each were copied.
    """
    copied: list[tuple[int, int]] = []
    dtype, shape, _ = chunk.whole
    elements = piece.view(dtype)
    first = begin_bytes // dtype.itemsize
    origin = chunk.box.start
    for start, box in boxes_of_run(first, first + len(elements), shape):
        part = elements[start - first : start - first + box.size].reshape(box.shape)
        for request, common in chunk.uses:
            wanted = box.intersect(_moved(common, origin))
            if wanted is not None:
                place = _moved(wanted, origin, -1).within(request.box)
                request.out[place] = part[wanted.within(box)]
                copied.append((request.leaf, wanted.size * dtype.itemsize))
    return copied


def _moved(box: Box, origin: tuple[int, ...], sign: int = 1) -> Box:
    """The box as seen from another origin, or, with `sign` -1, back again."""
    return Box(
        tuple([a - sign * o for a, o in zip(box.start, origin, strict=True)]),
        tuple([b - sign * o for b, o in zip(box.stop, origin, strict=True)]),
    )


def _tell(arrived: Arrived | None, chunks: Sequence[ChunkRead]) -> None:
    """Tells of whole chunks what of them was wanted."""
    if arrived is not None:
        uses = [use for chunk in chunks for use in chunk.uses]
        arrived(
            [
                (r.leaf, r.out.nbytes if box is r.box else box.size * r.out.itemsize)
                for r, box in uses
            ]
        )


def _zero(view: np.ndarray) -> None:
    # By elements of nothing: some dtypes of ml_dtypes cannot be assigned a number.
    view[...] = np.zeros((), view.dtype)
