"""What the checksums promise: every damage is found, and found where it is."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax._codecs._checksum import (
    BLOCK_BYTES,
    RunningChecksum,
    crc32c,
    seal,
    unseal,
    verify_blocks,
)
from stowax.errors import CorruptCheckpointError

_DOCUMENT = {"format": 1, "name": "é,\n\ud800", "leaves": [{"shape": [2, 3]}, None]}


def _noise(size_bytes: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, size_bytes, np.uint8)


def _sums(data: np.ndarray) -> tuple[int, ...]:
    checksum = RunningChecksum()
    checksum.update(data)
    return checksum.finish()


def _crc_of_one_byte(value: int) -> int:
    """The reflected polynomial division that defines CRC-32C (Castagnoli)."""
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


@given(st.binary(max_size=200))
def test_is_the_castagnoli_crc(data: bytes) -> None:
    """The checksum is the CRC-32C of RFC 3720, as its definition computes it."""
    expected = 0xFFFFFFFF
    for byte in data:
        expected = expected >> 8 ^ _crc_of_one_byte((expected ^ byte) & 0xFF)

    assert crc32c(data) == expected ^ 0xFFFFFFFF


@given(st.binary(), st.binary())
def test_continues(first: bytes, second: bytes) -> None:
    """A checksum continued over the rest is that of the whole."""
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.ones((3, 5), ml_dtypes.bfloat16),
        np.ones(9, ml_dtypes.int4),
        np.array(2.5),
        np.zeros((4, 0, 2)),
    ],
)
def test_takes_any_contiguous_array(array: np.ndarray) -> None:
    """An array of any dtype and shape has the checksum of its bytes."""
    checksum = RunningChecksum()
    checksum.update(array)

    assert crc32c(array) == checksum.value == crc32c(array.tobytes())


@pytest.mark.parametrize("wrap", [np.asarray, memoryview])
def test_refuses_strided_memory(wrap: type) -> None:
    """Memory with gaps is refused, not summed in some other order."""
    strided = wrap(np.arange(10, dtype=np.uint8)[::2])

    with pytest.raises(ValueError, match="C-contiguous"):
        crc32c(strided)


@pytest.mark.parametrize(
    "size_bytes",
    [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES],
)
@pytest.mark.parametrize("piece_bytes", [300_001, BLOCK_BYTES, 5 * BLOCK_BYTES])
def test_notes_every_block(size_bytes: int, piece_bytes: int) -> None:
    """The notes are the checksums up to every block border, however the bytes come."""
    data = _noise(size_bytes)
    checksum = RunningChecksum()

    for start in range(0, size_bytes, piece_bytes):
        checksum.update(data[start : start + piece_bytes])

    ends = [*range(BLOCK_BYTES, size_bytes, BLOCK_BYTES), size_bytes]
    assert checksum.finish() == tuple(crc32c(data[:end]) for end in ends)
    assert checksum.value == checksum.finish()[-1] == crc32c(data)


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("end", range(4))
def test_verifies_any_run_of_blocks(first: int, end: int) -> None:
    """Whole blocks are verified without the bytes before or behind them."""
    data = _noise(2 * BLOCK_BYTES + 10)
    run = data[first * BLOCK_BYTES : end * BLOCK_BYTES]

    assert verify_blocks(run, _sums(data), first_block=first) is None


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("position", [0, BLOCK_BYTES - 1, BLOCK_BYTES, -1])
def test_finds_the_first_bad_block(first: int, position: int) -> None:
    """A damaged byte is reported as the block, counted in the stream, that has it."""
    data = _noise(4 * BLOCK_BYTES + 10)
    sums = _sums(data)
    run = data[first * BLOCK_BYTES :].copy()

    run[position] ^= 4

    bad_block = first + (position % len(run)) // BLOCK_BYTES
    assert verify_blocks(run, sums, first_block=first) == bad_block


def test_finds_a_block_of_another_place() -> None:
    """A block that is whole, but belongs elsewhere, is bad."""
    data = _noise(3 * BLOCK_BYTES)

    assert verify_blocks(data[BLOCK_BYTES:], _sums(data)) == 0


def test_finds_missing_and_extra_bytes() -> None:
    """A run that stops inside a block, or goes on behind the last, is bad there."""
    data = _noise(2 * BLOCK_BYTES)
    sums = _sums(data)

    assert verify_blocks(data[:-1], sums) == 1
    assert verify_blocks(data[: BLOCK_BYTES - 1], sums) == 0
    assert verify_blocks(np.append(data, data[:1]), sums) == 2


def test_refuses_blocks_outside_the_stream() -> None:
    """An index that is no block of the stream is a mistake of the caller."""
    for first_block in (-1, 2):
        with pytest.raises(ValueError, match="of a stream of 1 blocks"):
            verify_blocks(b"", (0,), first_block=first_block)


_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "crc32c"), _json))
def test_sealed_documents_round_trip(document: dict[str, object]) -> None:
    """A sealed document is one line of JSON, and comes back as it was."""
    data = seal(document)

    assert unseal(data) == document
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert list(json.loads(data)) == [*document, "crc32c"]


@pytest.mark.parametrize("document", [{}, {"": 0}, _DOCUMENT])
def test_any_damage_breaks_the_seal(document: dict[str, object]) -> None:
    """Every byte replaced by every other, every cut, every byte added: all found."""
    data = seal(document)
    damaged = [
        data[:position] + bytes([byte]) + data[position + 1 :]
        for position in range(len(data))
        for byte in range(256)
        if byte != data[position]
    ]
    damaged += [data[:end] for end in range(len(data))]
    damaged += [data[start:] for start in range(1, len(data))]
    damaged += [data + b"\n", data + b" ", b" " + data, data + data]

    for bytes_on_disk in damaged:
        with pytest.raises(CorruptCheckpointError):
            unseal(bytes_on_disk)


@pytest.mark.parametrize(
    "body",
    [b"[1", b'"text', b"{]", b"{1:2", b'{"a":"\xff"', b"", b'{"a":' + b"[" * 99999],
)
def test_a_right_seal_on_something_else_is_damage(body: bytes) -> None:
    """A checksum alone makes no document: what is under it must be a JSON object."""
    data = b'%b,"crc32c":"%08x"}\n' % (body, crc32c(body))

    with pytest.raises(CorruptCheckpointError):
        unseal(data)


def test_seal_refuses_what_it_cannot_keep() -> None:
    """An entry of the seal's name, or a number that JSON has not, is an error."""
    with pytest.raises(ValueError, match="crc32c"):
        seal({"crc32c": 1})
    with pytest.raises(ValueError, match="JSON"):
        seal({"loss": float("nan")})
