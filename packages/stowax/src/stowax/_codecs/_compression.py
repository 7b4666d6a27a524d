"""How the payload of a chunk is made smaller, and back: a family of codecs.

The manifest names the codec of a leaf, `zarr.json` has its entry between `bytes` and
`crc32c`.  What a payload decodes to is known from shape and dtype, never from the
payload: one that claims anything else is refused before memory is taken.

Pure: bytes in, bytes out; the GIL is released meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import struct
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol, final

import numpy as np
import zstandard

__all__ = ["BLOSC", "CODECS", "Codec", "fill_from"]


class Codec(Protocol):
    """One way to compress."""

    limit_bytes: int
    """The longest payload that it can encode."""

    def document(self, itemsize: int) -> dict[str, Any]:
        """Its entry among the codecs of the `zarr.json` of an array, keys sorted."""
        ...

    def compressor(self) -> dict[str, Any]:
        """What the `.zarray` of an array says of it instead."""
        ...

    def encode(self, payload: memoryview, itemsize: int) -> bytes:
        """Compresses a payload of elements of so many bytes each."""
        ...

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        """Fills `out`, writable bytes, with the payload that `encode` was given.

        Takes a few MiB beside `out` at most, whatever `stored` claims to be.

        Raises:
            ValueError: `stored` is no payload of that length; `out` may have changed.
        """
        ...

    def stored_bytes(self, size_bytes: int) -> tuple[int, int]:
        """The least and the most that a payload of `size_bytes` can be encoded to."""
        ...


@final
class Zstd:
    """Zstandard, a frame per payload, as in RFC 8878.

    Level 1: the noise of weights shrinks no further on higher levels, only slower.
    """

    limit_bytes = 2**63 - 1

    _LEVEL = 1
    # A block of at most 128 KiB takes at least 4 bytes.
    _MOST_PER_BYTE = 1 << 15
    # Header, and a block header for each block of what cannot be compressed.
    _OVERHEAD_BYTES = 64
    # What the RFC asks of decoders, and more than this level makes use of.
    _WINDOW_BYTES = 8 << 20

    def document(self, itemsize: int) -> dict[str, Any]:
        return {
            "configuration": {"checksum": False, "level": self._LEVEL},
            "name": "zstd",
        }

    def compressor(self) -> dict[str, Any]:
        return {"id": "zstd", "level": self._LEVEL}

    def encode(self, payload: memoryview, itemsize: int) -> bytes:
        # One per call: a compressor must not serve two threads at once.
        return zstandard.ZstdCompressor(level=self._LEVEL).compress(payload)

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        try:
            self._decode_into(stored, out)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error

    def _decode_into(self, stored: memoryview, out: memoryview) -> None:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != out.nbytes:
            raise ValueError(f"{out.nbytes} bytes expected, {frame.content_size} found")
        decompressor = zstandard.ZstdDecompressor(max_window_size=self._WINDOW_BYTES)
        fill_from(decompressor.stream_reader(stored), out)

    def stored_bytes(self, size_bytes: int) -> tuple[int, int]:
        least = -(-size_bytes // self._MOST_PER_BYTE)
        return least, size_bytes + size_bytes // 256 + self._OVERHEAD_BYTES


@final
class Blosc:
    """LZ4 behind a shuffle of bits, a Blosc frame (version 2) per payload.

    Shuffled by bit, the signs, exponents and leading digits of weights lie together,
    and the noise of their last digits apart.  By byte, which is faster for what hardly
    differs, noise shrinks half as much and takes longer: docs/how-to/storage.md has the
    figures.  A payload that does not shrink is stored as it is behind the header.
    """

    # What the header's 32 bits can say as a signed number, with the header itself.
    limit_bytes = 2**31 - 1 - 16

    _NAME, _LEVEL, _BIT_SHUFFLE = b"lz4", 5, 2
    # Version, version of the inner format, flags, size of an element; bytes of the
    # payload, of a block and of the frame.
    _HEADER = struct.Struct("<BBBBIII")
    _VERSION = 2
    # In the flags: stored as it is; and the inner format in the upper three bits.
    _STORED, _INNER_SHIFT, _LZ4 = 0x02, 5, 1
    # Blosc takes three times a block to decode; what it writes at this level has 1 MiB.
    _BLOCK_LIMIT_BYTES = 2 << 20
    # A byte of LZ4 continues a run by 255.
    _MOST_PER_BYTE = 256

    def document(self, itemsize: int) -> dict[str, Any]:
        return {
            "configuration": {
                "blocksize": 0,
                "clevel": self._LEVEL,
                "cname": self._NAME.decode(),
                "shuffle": "bitshuffle",
                "typesize": itemsize,
            },
            "name": "blosc",
        }

    def compressor(self) -> dict[str, Any]:
        return {
            "blocksize": 0,
            "clevel": self._LEVEL,
            "cname": self._NAME.decode(),
            "id": "blosc",
            "shuffle": self._BIT_SHUFFLE,
        }

    def encode(self, payload: memoryview, itemsize: int) -> bytes:
        return self._encode(payload, itemsize, self._LEVEL)

    def store(self, payload: memoryview, itemsize: int) -> bytes:
        """Makes a frame that has the payload in it as it is, at the speed of a copy."""
        return self._encode(payload, itemsize, 0)

    def _encode(self, payload: memoryview, itemsize: int, level: int) -> bytes:
        elements = np.frombuffer(payload, np.uint8)
        library = _blosc()
        return library.compress(
            elements, self._NAME, level, self._BIT_SHUFFLE, 0, itemsize
        )

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        self._check_header(stored, out.nbytes)
        try:
            _blosc().decompress(stored, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def _check_header(self, stored: memoryview, size_bytes: int) -> None:
        """Refuses all that the library would believe: it is told no lengths."""
        if stored.nbytes < self._HEADER.size:
            raise ValueError(f"{stored.nbytes} bytes are no frame")
        version, _, flags, _, payload_bytes, block_bytes, frame_bytes = (
            self._HEADER.unpack_from(stored)
        )
        if payload_bytes != size_bytes:
            raise ValueError(f"{size_bytes} bytes expected, {payload_bytes} found")
        if frame_bytes != stored.nbytes:
            raise ValueError(f"{stored.nbytes} bytes hold a frame of {frame_bytes}")
        is_known = flags & self._STORED or flags >> self._INNER_SHIFT == self._LZ4
        if version != self._VERSION or not is_known:
            raise ValueError(f"a frame of version {version} with flags {flags:#x}")
        if block_bytes > self._BLOCK_LIMIT_BYTES:
            raise ValueError(f"it asks for blocks of {block_bytes} bytes")

    def stored_bytes(self, size_bytes: int) -> tuple[int, int]:
        header_bytes = self._HEADER.size
        return header_bytes + size_bytes // self._MOST_PER_BYTE, (
            header_bytes + size_bytes
        )


class _BloscLibrary(NamedTuple):
    """What is called of it; both without the GIL."""

    compress: Callable[[np.ndarray, bytes, int, int, int, int], bytes]
    decompress: Callable[[memoryview, memoryview], object]


@functools.cache
def _blosc() -> _BloscLibrary:
    """Loads the library, which takes longer than many a checkpoint, when it is needed.

    On any thread but the main one it starts no threads of its own, as long as nobody
    sets its `use_threads`; either way it gives the same bytes.
    """
    # It tells everybody who has the package `crc32c`, as all our users have, that it
    # would rather use another; past all filters, in front of which it puts its own.
    told = "crc32c usage is deprecated"
    with _loading, warnings.catch_warnings(record=True) as caught:
        # By name: it has no types.
        blosc = importlib.import_module("numcodecs.blosc")
    for warning in caught:
        if not str(warning.message).startswith(told):  # Another thread's, maybe.
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return _BloscLibrary(blosc.compress, blosc.decompress)


# Filters of warnings are set and set back by one thread at a time.
_loading: Final = threading.Lock()


BLOSC: Final = Blosc()

CODECS: Final[Mapping[str, Codec]] = {"zstd": Zstd(), "blosc": BLOSC}
"""By the name that manifests use."""


def fill_from(reader: zstandard.ZstdDecompressionReader, out: memoryview) -> None:
    """Fills `out` with what comes out of a reader.

    Raises:
        ValueError: It is less, or more.
    """
    filled_bytes = 0
    while filled_bytes < out.nbytes:
        count = reader.readinto(out[filled_bytes:])
        if not count:
            raise ValueError(f"it ends after {filled_bytes} of {out.nbytes} bytes")
        filled_bytes += count
    if reader.read(1):
        raise ValueError(f"it goes on after {out.nbytes} bytes")
