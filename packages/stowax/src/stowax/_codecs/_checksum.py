"""CRC-32C over bytes, over a stream block by block, and over a JSON document.

One pass over a chunk serves two readers.  The running CRC is noted at every block
boundary of the stream; the last note, the CRC of the whole chunk, is also what zarr's
`crc32c` codec stores behind it.  Since a CRC can be continued from any earlier value,
the notes on both sides of a run of whole blocks verify that run without the rest::

    block        0        1        2     (end)
             |--------|--------|-----|
    notes             a        b     c        blocks [1, 3): crc(bytes, a) == c

A CRC-32C finds every error burst of at most 32 bits, so no single damaged byte passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c as _crc32c_of_bytes

from stowax.errors import CorruptCheckpointError

if TYPE_CHECKING:
    # `collections.abc.Buffer` needs Python 3.12.
    from typing_extensions import Buffer

__all__ = [
    "BLOCK_BYTES",
    "RunningChecksum",
    "crc32c",
    "seal",
    "seal_text",
    "unseal",
    "verify_blocks",
]

BLOCK_BYTES = 128 << 10
"""Bytes between two notes of a running checksum: what a partial read verifies.

A part of an array that lies in runs of a MiB then takes an eighth more than it needs;
half of that would cost a tenth more time for each sum.
"""

_SEAL_BYTES = len(b'"crc32c":"00000000"}\n')


def crc32c(data: Buffer, value: int = 0) -> int:
    """Returns the CRC-32C of `data`, continued from `value`.

    Args:
        data: C-contiguous bytes, memory view or NumPy array of any dtype; never copied.
        value: CRC-32C of what came before.

    Raises:
        ValueError: `data` is not C-contiguous.

    Example:
        >>> crc32c(b"56789", crc32c(b"1234")) == crc32c(b"123456789") == 0xE3069283
        True
    """
    return _crc32c_of_bytes(_flat(data), value)


class RunningChecksum:
    """CRC-32C of a stream that arrives in pieces, noted at each block boundary.

    Args:
        block_bytes: Length of a block.

    Example:
        >>> checksum = RunningChecksum()
        >>> checksum.update(b"1234")
        >>> checksum.update(b"56789")
        >>> [hex(value) for value in checksum.finish()]
        ['0xe3069283']
    """

    __slots__ = ("_block_bytes", "_block_left_bytes", "_sums", "_value")

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._value = 0
        self._sums: list[int] = []
        self._block_bytes = self._block_left_bytes = block_bytes

    @property
    def value(self) -> int:
        """CRC-32C of everything so far."""
        return self._value

    def update(self, piece: Buffer) -> None:
        """Appends `piece`, of any size, to the stream."""
        rest = _flat(piece)
        while rest.nbytes:
            part = rest[: self._block_left_bytes]
            self._value = _crc32c_of_bytes(part, self._value)
            self._block_left_bytes -= part.nbytes
            if not self._block_left_bytes:
                self._sums.append(self._value)
                self._block_left_bytes = self._block_bytes
            rest = rest[part.nbytes :]

    def finish(self) -> tuple[int, ...]:
        """Returns the value at the end of every block; the last may be a short one.

        An empty stream has one value, 0.  The last is always that of the whole stream.
        """
        at_border = self._block_left_bytes == self._block_bytes
        ended_on_border = bool(self._sums) and at_border
        return tuple(self._sums if ended_on_border else [*self._sums, self._value])


def verify_blocks(
    data: Buffer,
    sums: Sequence[int],
    *,
    first_block: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> int | None:
    """Compares a run of blocks with the values noted when they were written.

    The caller answers for the length of `data`: a run that ends early on a block border
    is a shorter run, and right.

    Args:
        data: The bytes from the beginning of block `first_block` to the end of any
            block.
        sums: What `RunningChecksum.finish` returned for the whole stream.
        first_block: Index of the block at which `data` begins.
        block_bytes: Length of a block.

    Returns:
        None when every byte is right, else the index, in the stream, of the first bad
        block.
    """
    if not 0 <= first_block <= len(sums):
        raise ValueError(f"block {first_block} of a stream of {len(sums)} blocks")
    rest = _flat(data)
    value = sums[first_block - 1] if first_block else 0
    block = first_block
    while rest.nbytes:
        part = rest[:block_bytes]
        value = _crc32c_of_bytes(part, value)
        if block >= len(sums) or value != sums[block]:
            return block
        rest = rest[part.nbytes :]
        block += 1
    return None


def seal(document: Mapping[str, Any]) -> bytes:
    r"""Returns `document` as one line of JSON whose last entry is its own checksum.

    Example:
        >>> seal({"format": 1})
        b'{"format":1,"crc32c":"d4b3dc61"}\n'
    """
    if "crc32c" in document:
        raise ValueError("the entry 'crc32c' of a sealed document is its checksum")
    return seal_text(json.dumps(document, separators=(",", ":"), allow_nan=False))


def seal_text(text: str) -> bytes:
    """Does the same to a JSON object that has no spaces and no entry `crc32c` yet."""
    return _sealed(text[:-1].encode("ascii"))


def unseal(data: bytes) -> dict[str, Any]:
    """Returns the document that `seal` made into `data`, without its checksum.

    Raises:
        CorruptCheckpointError: `data` is not, byte for byte, what `seal` returned.  The
            message names no path; the caller knows it.
    """
    body = data[:-_SEAL_BYTES].removesuffix(b",")
    # The seal is rebuilt and compared as bytes: "1F" instead of "1f" is damage too.
    if not body or _sealed(body) != data:
        raise CorruptCheckpointError(
            f"a document of {len(data)} bytes does not match its own checksum"
        )
    try:
        # A text that ends in "}" is an object or no JSON at all.
        return json.loads((body + b"}").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"a document of {len(data)} bytes is not a JSON object: {error}"
        ) from error


def _sealed(body: bytes) -> bytes:
    comma = b"" if body == b"{" else b","
    return b'%b%b"crc32c":"%08x"}\n' % (body, comma, _crc32c_of_bytes(body))


def _flat(data: Buffer) -> memoryview:
    """`data` as bytes in the order of memory, without a copy."""
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise ValueError("a checksum needs a C-contiguous array")
        # The dtypes of ml_dtypes (bfloat16, ...) refuse the buffer protocol.
        return data.reshape(-1).view(np.uint8).data
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("a checksum needs a C-contiguous buffer")
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
