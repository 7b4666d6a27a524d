"""How the chunks of an array that others wrote are found and decoded.

A document that is wholly understood becomes an `ArrayStorage`; any other, even if only
one word of it is unknown, is left to TensorStore.  Understood are regular grids of zarr
2 and 3 whose chunks are little-endian elements in C order, perhaps compressed by zstd,
perhaps with the `crc32c` of zarr behind them, each alone or several in a shard::

    value of a key     payload                                  one chunk
                       payload payload payload … index crc32c   a shard
                       index crc32c payload payload payload …   with its index first

The index of a shard holds u64 offset and u64 length of every chunk, in C order of its
grid, both 2^64 - 1 for one that is not stored.

Pure.  Sizes are compared before memory is taken.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import zstandard

from stowax._codecs._checksum import crc32c
from stowax._codecs._compression import fill_from
from stowax._codecs._zarr import TRAILER_BYTES, ZarrVersion, dtype_from_name
from stowax.errors import UnsupportedLeafError

__all__ = ["ArrayStorage", "ChunkCodec", "Shard", "ShardCodec", "array_storage"]

_NOT_STORED = 2**64 - 1
_PLACE = struct.Struct("<QQ")

# zstd blocks of 128 KiB take at least 4 bytes, so nothing grows more than this.
_MOST_PER_BYTE = 1 << 15
# What zstd adds to noise is far less; whatever has more is no chunk of this size.
_SPARE_BYTES = 1 << 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCodec:
    """What was made of the elements of a chunk."""

    is_compressed: bool = False
    has_checksum: bool = False
    is_bool: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the payload is the elements, with nothing to check."""
        return not (self.is_compressed or self.has_checksum or self.is_bool)

    def least_bytes(self, size_bytes: int) -> int:
        """What a payload of `size_bytes` of elements has at least."""
        if self.is_compressed:
            return size_bytes // _MOST_PER_BYTE
        return size_bytes + self.has_checksum * TRAILER_BYTES

    def check_length(self, length_bytes: int, size_bytes: int) -> None:
        """Refuses a length that no payload of `size_bytes` of elements can have.

        Raises:
            ValueError: Says both.
        """
        least = self.least_bytes(size_bytes)
        most = 2 * size_bytes + _SPARE_BYTES if self.is_compressed else least
        if not least <= length_bytes <= most:
            raise ValueError(f"{length_bytes} bytes for {size_bytes} of elements")

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        """Fills `out` with the elements.

        Raises:
            ValueError: `stored` is no payload of that many; `out` may have changed.
        """
        self.check_length(stored.nbytes, out.nbytes)
        if self.has_checksum:
            stored = _without_checksum(stored, "its payload")
        if self.is_compressed:
            _decompress_into(stored, out)
        else:
            out[:] = stored
        if self.is_bool and out.nbytes and np.frombuffer(out, np.uint8).max() > 1:
            raise ValueError("a bool that is neither 0 nor 1")


@final
@dataclass(frozen=True, kw_only=True)
class Shard:
    """How chunks lie together in one value."""

    chunk_counts: tuple[int, ...]
    """Chunks in every dimension."""
    index_first: bool = False

    @functools.cached_property
    def chunk_count(self) -> int:
        return math.prod(self.chunk_counts)

    @functools.cached_property
    def index_bytes(self) -> int:
        """Length of the index with its checksum."""
        return _PLACE.size * self.chunk_count + TRAILER_BYTES

    def index_offset(self, length_bytes: int) -> int:
        """Where, in a shard of that length, the index begins.

        Raises:
            ValueError: The shard is too short for it.
        """
        if length_bytes < self.index_bytes:
            raise ValueError(
                f"a shard of {length_bytes} bytes has no room for its index"
            )
        return 0 if self.index_first else length_bytes - self.index_bytes

    def open_index(self, index: memoryview) -> memoryview:
        """The index without its checksum.

        Raises:
            ValueError: A bit is not what was written.
        """
        return _without_checksum(index, "the index of the shard")

    def place(
        self, index: memoryview, position: int, length_bytes: int
    ) -> tuple[int, int] | None:
        """Offset and length of one chunk; None: it is not stored.

        Args:
            index: What `open_index` returned.
            position: Of the chunk, in C order.
            length_bytes: Of the whole shard.

        Raises:
            ValueError: The index points out of the shard.
        """
        offset, length = _PLACE.unpack_from(index, position * _PLACE.size)
        if offset == length == _NOT_STORED:
            return None
        if offset + length > length_bytes:
            raise ValueError("the index of the shard points out of it")
        return offset, length


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCodec:
    """A shard of a single chunk, read as a whole: one that brings its own index."""

    shard: Shard
    chunk: ChunkCodec
    fills_missing: bool

    def check_length(self, length_bytes: int, size_bytes: int) -> None:
        """Refuses a length that no shard with `size_bytes` of elements can have.

        Raises:
            ValueError: Says both.
        """
        least = self.chunk.least_bytes(size_bytes) + self.shard.index_bytes
        # Between chunk and index may lie what nobody refers to any more.
        if not least <= length_bytes <= 2 * size_bytes + _SPARE_BYTES:
            raise ValueError(
                f"{length_bytes} bytes for a shard of {size_bytes} of elements"
            )

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        """Fills `out` with the elements of the chunk.

        Raises:
            ValueError: `stored` is no such shard; `out` may have changed.
        """
        self.check_length(stored.nbytes, out.nbytes)
        start = self.shard.index_offset(stored.nbytes)
        index = self.shard.open_index(stored[start : start + self.shard.index_bytes])
        place = self.shard.place(index, 0, stored.nbytes)
        if place is None:
            if not self.fills_missing:
                raise ValueError("its chunk is not stored")
            out[:] = bytes(out.nbytes)
            return
        offset, length = place
        self.chunk.decode_into(stored[offset : offset + length], out)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayStorage:
    """How an array is stored: where its chunks lie, and what was made of them."""

    version: ZarrVersion
    codec: ChunkCodec
    shard: Shard | None = None
    """None: every chunk has a key of its own."""
    fills_missing: bool = False
    """Whether a chunk that is missing is zeros; else it is damage."""

    def split(self, grid_index: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """Index of the value that holds a chunk, and the chunk's position in it."""
        if self.shard is None:
            return tuple(grid_index), 0
        outer: list[int] = []
        ordinal = 0
        for i, count in zip(grid_index, self.shard.chunk_counts, strict=True):
            above, inside = divmod(i, count)
            outer.append(above)
            ordinal = ordinal * count + inside
        return tuple(outer), ordinal

    def key(self, index: Sequence[int]) -> str:
        """Where, below the array, the value with an index is stored.

        Example:
            >>> plain = ChunkCodec()
            >>> [ArrayStorage(version=n, codec=plain).key((0, 1)) for n in (2, 3)]
            ['0.1', 'c/0/1']
        """
        if self.version == 3:
            return "/".join(("c", *map(str, index)))
        return ".".join(map(str, index)) or "0"


def array_storage(
    data: bytes, version: ZarrVersion, *, fills_missing: bool
) -> ArrayStorage | None:
    """Says how the chunks of an array are stored; None: TensorStore is to read it.

    Args:
        data: A document that `decode_array_document` has accepted.
        version: Of zarr.
        fills_missing: Whether a chunk that is missing has the array's fill value.
    """
    try:
        document = json.loads(data)
        if fills_missing and not _is_zero(document["fill_value"]):
            return None
        read = _storage_of_3 if version == 3 else _storage_of_2
        return read(document, fills_missing=fills_missing)
    except (LookupError, TypeError, ValueError, AttributeError, UnsupportedLeafError):
        # Some part of it is not as those that are known here.
        return None


def _storage_of_3(
    document: dict[str, Any], *, fills_missing: bool
) -> ArrayStorage | None:
    grid, keys = document["chunk_grid"], document["chunk_key_encoding"]
    understood = {
        *("chunk_grid", "chunk_key_encoding", "codecs", "data_type", "fill_value"),
        *("node_type", "shape", "zarr_format"),
        # About the array, and not about its chunks.
        *("attributes", "dimension_names"),
    }
    if (
        not document.keys() <= understood
        or document["node_type"] != "array"
        or grid.keys() != {"name", "configuration"}
        or grid["name"] != "regular"
        or grid["configuration"].keys() != {"chunk_shape"}
        or keys not in _DEFAULT_KEYS
    ):
        return None
    dtype = dtype_from_name(document["data_type"])
    chunks, codecs = grid["configuration"]["chunk_shape"], document["codecs"]
    shard = None
    if codecs[0]["name"] == "sharding_indexed":
        (sharding,) = codecs
        if sharding.keys() != {"name", "configuration"}:
            return None
        shard = _shard(sharding["configuration"], chunks)
        codecs = sharding["configuration"]["codecs"]
        if shard is None:
            return None
    elif 0 in chunks:
        return None
    codec = _codec_of_3(codecs, dtype)
    if codec is None:
        return None
    return ArrayStorage(
        version=3, codec=codec, shard=shard, fills_missing=fills_missing
    )


def _shard(configuration: dict[str, Any], shard_shape: list[int]) -> Shard | None:
    understood = {"chunk_shape", "codecs", "index_codecs", "index_location"}
    location: Literal["start", "end"] = configuration.get("index_location", "end")
    chunk_shape = configuration["chunk_shape"]
    if (
        not configuration.keys() <= understood
        or configuration["index_codecs"] != [_LITTLE_ENDIAN, {"name": "crc32c"}]
        or location not in ("start", "end")
        or len(chunk_shape) != len(shard_shape)
        or any(
            n < 1 or m < 1 or m % n
            for n, m in zip(chunk_shape, shard_shape, strict=True)
        )
    ):
        return None
    return Shard(
        chunk_counts=tuple(
            m // n for n, m in zip(chunk_shape, shard_shape, strict=True)
        ),
        index_first=location == "start",
    )


def _codec_of_3(codecs: list[dict[str, Any]], dtype: np.dtype) -> ChunkCodec | None:
    first, *others = codecs
    if first != _LITTLE_ENDIAN and (first != {"name": "bytes"} or dtype.itemsize > 1):
        return None
    is_compressed = bool(others) and others[0].get("name") == "zstd"
    if is_compressed:
        zstd = others.pop(0)
        if not zstd.keys() <= {"name", "configuration"}:
            return None
        if not zstd.get("configuration", {}).keys() <= {"level", "checksum"}:
            return None
    if others not in ([], [{"name": "crc32c"}]):
        return None
    return ChunkCodec(
        is_compressed=is_compressed,
        has_checksum=bool(others),
        is_bool=dtype == np.bool_,
    )


def _storage_of_2(
    document: dict[str, Any], *, fills_missing: bool
) -> ArrayStorage | None:
    understood = {
        *("chunks", "compressor", "dimension_separator", "dtype", "fill_value"),
        *("filters", "order", "shape", "zarr_format"),
    }
    compressor, recorded = document["compressor"], document["dtype"]
    if (
        not document.keys() <= understood
        or document["filters"] is not None
        or document["order"] != "C"
        or document.get("dimension_separator", ".") != "."
        or 0 in document["chunks"]
    ):
        return None
    if compressor is not None and (
        compressor["id"] != "zstd" or not compressor.keys() <= {"id", "level"}
    ):
        return None
    if recorded[0] in "<|":
        dtype = np.dtype(recorded)
    elif recorded[0] in ">=":
        return None
    else:
        dtype = dtype_from_name(recorded)
    return ArrayStorage(
        version=2,
        codec=ChunkCodec(
            is_compressed=compressor is not None, is_bool=dtype == np.bool_
        ),
        fills_missing=fills_missing,
    )


_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_DEFAULT_KEYS = (
    {"name": "default"},
    {"name": "default", "configuration": {"separator": "/"}},
)


def _is_zero(fill_value: Any) -> bool:
    """Whether it is zero to the last bit; -0.0 and NaN are not."""
    values = fill_value if isinstance(fill_value, list) else [fill_value]
    return all(value is None or repr(value) in _ZEROS for value in values)


_ZEROS = ("0", "0.0", "False")


def _without_checksum(data: memoryview, what: str) -> memoryview:
    inside = data[:-TRAILER_BYTES]
    stored = int.from_bytes(data[-TRAILER_BYTES:], "little")
    if crc32c(inside) != stored:
        raise ValueError(f"{what} does not match its checksum")
    return inside


def _decompress_into(stored: memoryview, out: memoryview) -> None:
    """Fills `out` from one zstd frame, or several; not all say what is in them."""
    _check_frames(stored)
    # Memory of its own is a window, at most 128 MiB, and not what a frame may claim.
    reader = zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True)
    try:
        fill_from(reader, out)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _check_frames(stored: memoryview) -> None:
    """Refuses bytes that are not whole frames, to the last one.

    A reader stops where enough has come out of it: what is left then, or is missing,
    such as the checksum of a frame that lost the bit that announces one, it never sees.

    Raises:
        ValueError: A frame ends elsewhere, or is none.
    """
    at = 0
    try:
        while at < stored.nbytes:
            at += _frame_bytes(stored[at:])
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if at != stored.nbytes:
        raise ValueError("its last frame of zstd is cut short")


def _frame_bytes(data: memoryview) -> int:
    """Length of the frame that bytes begin with, as RFC 8878 has frames and blocks."""
    if int.from_bytes(data[:4], "little") >> 4 == _SKIPPABLE_MAGIC:
        return 8 + int.from_bytes(data[4:8], "little")
    has_checksum = zstandard.get_frame_parameters(data).has_checksum
    at = zstandard.frame_header_size(data)
    is_last = False
    while not is_last:
        header = int.from_bytes(data[at : at + 3], "little")
        is_last, kind, size_bytes = bool(header & 1), header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == _RUN else size_bytes)
        is_last |= at > data.nbytes
    return at + TRAILER_BYTES * has_checksum


_SKIPPABLE_MAGIC = 0x184D2A5
_RUN = 1
"""Kind of the block that is one byte, repeated."""
