"""Where the chunks of an item lie, by the OCDBT database that others keep them in.

A chunk is the value of a key, or one of several in a shard that is.  The value stands
in the index, or in a data file.  Nothing in it is believed: a length is held against
what the chunk can be, and a large one against its file, before memory is taken for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from stowax._box import Box, chunks_in
from stowax._chunk_index import ChunkRead
from stowax._codecs._ocdbt import Reference
from stowax._codecs._zarr import dtype_from_name
from stowax._codecs._zarr_storage import ArrayStorage, ChunkCodec, Shard, ShardCodec
from stowax._formats._base import ReadRequest
from stowax._keypath import array_prefix
from stowax._loop import on_worker
from stowax._manifest import LeafEntry
from stowax._stores._base import Store, join
from stowax._tasks import run_all
from stowax.errors import CorruptCheckpointError

DATABASE = "manifest.ocdbt"
"""Where a database begins."""

CONCURRENT_LOOKUPS = 16
"""Reads of a few bytes: what they cost is the way there and back."""

_SMALL_BYTES = 1 << 20
"""A chunk up to this size is read with all that belongs to it, in one piece."""

Entries = Mapping[str, bytes | Reference]
"""A database: values by key, or where they lie."""


def place_of(directory: str, leaf: LeafEntry) -> str:
    """What messages call a leaf."""
    return f"leaf {leaf.name!r} of {directory}"


@final
class _Array:
    """How the chunks of one leaf are found and read."""

    def __init__(self, entry: LeafEntry, storage: ArrayStorage) -> None:
        self.entry = entry
        self.storage = storage
        self._prefix = array_prefix(entry.name)
        itemsize = dtype_from_name(entry.form.dtype or "").itemsize
        self.chunk_bytes = math.prod(entry.form.chunk_shape) * itemsize
        is_large = self.chunk_bytes > _SMALL_BYTES
        self.shard: Shard | None = None
        """How chunks lie in the values, if that is looked up before they are read.

        If not, a value is one chunk, perhaps with the index of a shard behind it, and
        is read in one piece.  Several chunks need not be read together, and a large one
        that is stored as it is can be read straight into its place.
        """
        self.codec: ChunkCodec | ShardCodec = storage.codec
        shard = storage.shard
        if shard is not None:
            if shard.chunk_count > 1 or (is_large and storage.codec.is_plain):
                self.shard = shard
            else:
                self.codec = ShardCodec(
                    shard=shard,
                    chunk=storage.codec,
                    fills_missing=storage.fills_missing,
                )
        self.is_looked_up = is_large or self.shard is not None
        """Whether its values are held against their files before they are read."""
        is_plain = isinstance(self.codec, ChunkCodec) and self.codec.is_plain
        self.decoder = None if is_plain else self.codec

    def key(self, grid_index: tuple[int, ...]) -> tuple[str, int]:
        """Key of the value that holds a chunk, and the chunk's position in it."""
        index, position = self.storage.split(grid_index)
        return self._prefix + self.storage.key(index), position


class DatabaseIndex:
    """Says where chunks lie, after what that takes has been looked up: a `ChunkIndex`.

    Args:
        store: Where the item lies.
        directory: The item's directory.
        leaves: All leaves of the item.
        storages: How the array of each is stored; None of those that nobody asks for.
        entries: The database.
    """

    def __init__(
        self,
        store: Store,
        directory: str,
        leaves: Sequence[LeafEntry],
        storages: Sequence[ArrayStorage | None],
        entries: Entries,
    ) -> None:
        self._store = store
        self._directory = directory
        self._leaves = leaves
        self._storages = storages
        self._entries = entries
        self._arrays: dict[int, _Array] = {}
        self._file_bytes: dict[str, int] = {}
        self._shards: dict[str, memoryview] = {}
        """The index of every shard that was looked up, by key."""

    async def look_up(self, requests: Sequence[ReadRequest]) -> None:
        """Reads what it takes to locate the chunks of requests.

        For small chunks in values of their own, as most are, that is nothing.  For
        others it is the lengths of files, and the indexes of shards.
        """
        values = await on_worker(lambda: dict(self._unknown(requests)))
        gate = asyncio.Semaphore(CONCURRENT_LOOKUPS)

        async def measure(path: str) -> None:
            async with gate:
                found = await self._store.stat(join(self._directory, path))
            self._file_bytes[path] = 0 if found is None else found.size_bytes

        async def look_into(key: str, array: _Array, value: bytes | Reference) -> None:
            async with gate:
                self._check_end(array, value)
                if array.shard is not None:
                    self._shards[key] = await self._read_index(
                        array, array.shard, value
                    )

        paths = {v.path for _, v in values.values() if isinstance(v, Reference)}
        await run_all(measure(path) for path in paths - self._file_bytes.keys())
        await run_all(look_into(key, *value) for key, value in values.items())

    def locate(
        self, leaf: int, grid_index: tuple[int, ...], box: Box
    ) -> ChunkRead | None:
        """See `ChunkIndex`; what it belongs to has been looked up.

        Raises:
            CorruptCheckpointError: It is missing, or of a length that it cannot have.
        """
        array = self._array(leaf)
        key, position = array.key(grid_index)
        value = self._entries.get(key)
        found = None if value is None else (0, _length(value))
        if value is not None and array.shard is not None:
            try:
                found = array.shard.place(self._shards[key], position, _length(value))
            except ValueError as error:
                raise self._damage(array, value, str(error)) from error
        if value is None or found is None:
            if array.storage.fills_missing:
                return None
            raise CorruptCheckpointError(
                f"{place_of(self._directory, array.entry)}: its chunk {box} is missing"
            )
        offset_bytes, length_bytes = found
        payload = None
        if isinstance(value, bytes):
            payload = value[offset_bytes : offset_bytes + length_bytes]
        else:
            offset_bytes += value.offset_bytes
        try:
            array.codec.check_length(length_bytes, array.chunk_bytes)
        except ValueError as error:
            raise self._damage(array, value, f"{box} has {error}") from error
        return ChunkRead(
            entry=array.entry,
            box=box,
            file=_file(value),
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
            decoder=array.decoder,
            sums=None,
            payload=payload,
        )

    def _unknown(
        self, requests: Sequence[ReadRequest]
    ) -> Iterator[tuple[str, tuple[_Array, bytes | Reference]]]:
        """What has to be looked up, by key."""
        for request in requests:
            array = self._array(request.leaf)
            if not array.is_looked_up:
                continue
            shape, chunk_shape = array.entry.form.shape, array.entry.form.chunk_shape
            for grid_index, _ in chunks_in(request.box, shape, chunk_shape):
                key, _ = array.key(grid_index)
                value = self._entries.get(key)
                if value is not None and key not in self._shards:
                    yield key, (array, value)

    def _check_end(self, array: _Array, value: bytes | Reference) -> None:
        if isinstance(value, bytes):
            return
        end_bytes, found = value.offset_bytes + value.length_bytes, self._file_bytes
        if end_bytes > found[value.path]:
            raise self._damage(
                array,
                value,
                f"it is missing or cut short: {end_bytes} bytes expected, "
                f"{found[value.path]} found",
            )

    async def _read_index(
        self, array: _Array, shard: Shard, value: bytes | Reference
    ) -> memoryview:
        try:
            start = shard.index_offset(_length(value))
            stop = start + shard.index_bytes
            if isinstance(value, bytes):
                index = value[start:stop]
            else:
                index = bytearray(stop - start)
                path = join(self._directory, value.path)
                await self._store.read_into(path, value.offset_bytes + start, index)
            return await on_worker(shard.open_index, memoryview(index))
        except ValueError as error:
            raise self._damage(array, value, str(error)) from error

    def _damage(
        self, array: _Array, value: bytes | Reference, what: str
    ) -> CorruptCheckpointError:
        path = join(self._directory, _file(value))
        return CorruptCheckpointError(
            f"{path}, which holds leaf {array.entry.name!r}: {what}"
        )

    def _array(self, leaf: int) -> _Array:
        if leaf not in self._arrays:
            storage = self._storages[leaf]
            assert storage is not None
            self._arrays[leaf] = _Array(self._leaves[leaf], storage)
        return self._arrays[leaf]


def _length(value: bytes | Reference) -> int:
    return len(value) if isinstance(value, bytes) else value.length_bytes


def _file(value: bytes | Reference) -> str:
    return DATABASE if isinstance(value, bytes) else value.path
