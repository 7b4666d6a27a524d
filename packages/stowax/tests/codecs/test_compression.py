"""A codec gives back what it was given, and believes no payload about its size."""

import importlib
import os
import pathlib
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stowax._codecs._compression import BLOSC, CODECS

DECODE_DAMAGED = pathlib.Path(__file__).with_name("decode_damaged.py")

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def decoded(codec, stored, size_bytes):
    """What comes out."""
    out = bytearray(size_bytes)
    codec.decode_into(memoryview(stored), memoryview(out))
    return bytes(out)


itemsizes = st.sampled_from([1, 2, 4, 8, 16])


def payloads():
    """Bytes that compress well, badly and not at all."""
    noise = st.binary(min_size=1, max_size=4000)
    runs = st.builds(
        lambda piece, count: piece * count,
        st.binary(min_size=1, max_size=9),
        st.integers(1, 100_000),
    )
    return noise | runs


@codecs
@given(payload=payloads(), itemsize=itemsizes)
def test_there_and_back(codec, payload, itemsize):
    """Whatever is compressed comes back, and its length is one that was possible."""
    stored = codec.encode(memoryview(payload), itemsize)

    least, most = codec.stored_bytes(len(payload))
    assert decoded(codec, stored, len(payload)) == payload
    assert least <= len(stored) <= most


@codecs
@pytest.mark.parametrize("size_bytes", [1 << 17, (1 << 17) + 1, 64 << 20])
def test_extremes_are_possible(codec, size_bytes):
    """The longest run and the purest noise are within the bounds, too."""
    noise = np.random.default_rng(0).bytes(size_bytes)

    least, most = codec.stored_bytes(size_bytes)
    assert least <= len(codec.encode(memoryview(bytes(size_bytes)), 4))
    assert len(codec.encode(memoryview(noise), 4)) <= most
    assert most < size_bytes * 1.01 + 100


@codecs
@given(payload=st.binary(min_size=1, max_size=200), data=st.data())
def test_no_other_length(codec, payload, data):
    """A payload cut short, continued, or of another length is refused."""
    stored = codec.encode(memoryview(payload), 1)
    cut = data.draw(st.integers(0, len(stored) - 1))

    for damaged, size_bytes in [
        (stored[:cut], len(payload)),
        (stored + stored, len(payload)),
        (stored, len(payload) + 1),
        (stored, len(payload) - 1),
    ]:
        with pytest.raises(ValueError):
            decoded(codec, damaged, size_bytes)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_damage_never_escapes(codec):
    """Damaged payloads are ValueErrors or other bytes, and touch no other memory.

    In a child, whose memory ends where the payload and its room end: reading or writing
    beyond would be the end of it.
    """
    count = 40_000 if os.environ.get("STOWAX_SOAK") else 1_000

    child = subprocess.run(
        [sys.executable, DECODE_DAMAGED, codec, str(count)],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (child.returncode, child.stderr) == (0, "")
    refused, decoded = map(int, child.stdout.split())
    assert refused + decoded == count
    assert min(refused, decoded) > count // 20


def test_a_frame_cannot_claim_memory():
    """A header that asks for a huge window or content is refused, not believed."""
    zstd = CODECS["zstd"]
    window = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    payload = np.random.default_rng(0).bytes(1 << 20) * 20
    hostile = zstandard.ZstdCompressor(compression_params=window).compressobj(
        size=len(payload)
    )
    stored = hostile.compress(payload) + hostile.flush()
    assert zstandard.get_frame_parameters(stored).window_size >= 16 << 20

    # A whole frame is decoded in one pass, without a window; one cut short is not.
    assert decoded(zstd, stored, len(payload)) == payload
    with pytest.raises(ValueError, match="too much memory"):
        decoded(zstd, stored[:-1], len(payload))

    huge = bytearray(zstd.encode(memoryview(bytes(1 << 20)), 1))
    assert huge[4] & 0xC0 == 0x80  # The content size has four bytes, after the window.
    huge[6:10] = (0xFFFFFFFF).to_bytes(4, "little")
    assert zstandard.get_frame_parameters(huge).content_size == 0xFFFFFFFF
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="4294967295"):
            zstd.decode_into(memoryview(huge), memoryview(bytearray(1 << 20)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"\x01"),  # version of the format
        (2, b"\x81"),  # flags: zstd inside
        (4, (1 << 31).to_bytes(4, "little")),  # bytes of the payload
        (8, (1 << 30).to_bytes(4, "little")),  # bytes of a block
        (12, (1 << 31).to_bytes(4, "little")),  # bytes of the frame
    ],
)
def test_a_header_is_not_believed(place, value):
    """A Blosc frame that claims another form or size is refused, and takes nothing."""
    payload = bytes(1 << 20)
    stored = bytearray(BLOSC.encode(memoryview(payload), 4))
    stored[place : place + len(value)] = value

    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            decoded(BLOSC, stored, len(payload))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@given(payload=payloads(), itemsize=itemsizes)
def test_stored_as_it_is(payload, itemsize):
    """A frame may have the payload as it is behind its header, and decodes alike."""
    stored = BLOSC.store(memoryview(payload), itemsize)

    assert stored[16:] == payload
    assert decoded(BLOSC, stored, len(payload)) == payload


def test_blocks_are_small():
    """Blocks that we write are within what we read, however long elements are."""
    for itemsize in (1, 2, 4, 8, 16):
        stored = BLOSC.encode(memoryview(bytes(64 << 20)), itemsize)
        assert struct.unpack_from("<I", stored, 8)[0] <= 1 << 20


def test_large_blocks_are_refused():
    """Decoding takes memory by the block, so large ones are refused, if well-formed."""
    payload = bytes(8 << 20)
    stored = bytearray(BLOSC.store(memoryview(payload), 4))
    struct.pack_into("<I", stored, 8, 4 << 20)

    assert importlib.import_module("numcodecs.blosc").decompress(stored) == payload
    with pytest.raises(ValueError, match="blocks of 4194304 bytes"):
        decoded(BLOSC, stored, len(payload))


def test_nobody_is_warned():
    """The library is loaded when it is needed, and what it tells is for others."""
    program = (
        "import sys, threading, stowax\n"
        "from stowax._codecs._compression import BLOSC\n"
        "assert 'numcodecs' not in sys.modules\n"
        "work = lambda: BLOSC.encode(memoryview(bytes(100)), 4)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert 'numcodecs' in sys.modules\n"
    )

    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (child.returncode, child.stderr) == (0, "")


@codecs
def test_threads_share_a_codec(codec):
    """One codec serves several threads at once."""
    payloads = [
        bytes([n]) * 100_000 + np.random.default_rng(n).bytes(100_000) for n in range(4)
    ]
    wrong = []

    def work(payload):
        for _ in range(20):
            stored = codec.encode(memoryview(payload), 4)
            if decoded(codec, stored, len(payload)) != payload:
                wrong.append(payload)

    threads = [threading.Thread(target=work, args=(p,)) for p in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
