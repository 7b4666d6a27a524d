"""How the payload of a chunk is made smaller, and back: a family of codecs.

The manifest names the codec of a leaf, `zarr.json` has its entry between `bytes` and
`crc32c`.  What a payload decodes to is known from shape and dtype, never from the
payload: one that claims anything else is refused before memory is taken.

Pure: bytes in, bytes out; the GIL is released meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, final

import zstandard

__all__ = ["CODECS", "Codec", "fill_from"]


class Codec(Protocol):
    """One way to compress."""

    def document(self) -> dict[str, Any]:
        """Its entry among the codecs of a `zarr.json`, keys sorted."""
        ...

    def encode(self, payload: memoryview) -> bytes:
        """Compresses a payload."""
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

    _LEVEL = 1
    # A block of at most 128 KiB takes at least 4 bytes.
    _MOST_PER_BYTE = 1 << 15
    # Header, and a block header for each block of what cannot be compressed.
    _OVERHEAD_BYTES = 64
    # What the RFC asks of decoders, and more than this level makes use of.
    _WINDOW_BYTES = 8 << 20

    def document(self) -> dict[str, Any]:
        return {
            "configuration": {"checksum": False, "level": self._LEVEL},
            "name": "zstd",
        }

    def encode(self, payload: memoryview) -> bytes:
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


CODECS: Final[Mapping[str, Codec]] = {"zstd": Zstd()}
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
