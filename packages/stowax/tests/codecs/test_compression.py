"""A codec gives back what it was given, and believes no payload about its size."""

import contextlib
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stowax._codecs._compression import CODECS

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def decoded(codec, stored, size_bytes):
    """What comes out."""
    out = bytearray(size_bytes)
    codec.decode_into(memoryview(stored), memoryview(out))
    return bytes(out)


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
@given(payload=payloads())
def test_there_and_back(codec, payload):
    """Whatever is compressed comes back, and its length is one that was possible."""
    stored = codec.encode(memoryview(payload))

    least, most = codec.stored_bytes(len(payload))
    assert decoded(codec, stored, len(payload)) == payload
    assert least <= len(stored) <= most


@codecs
@pytest.mark.parametrize("size_bytes", [1 << 17, (1 << 17) + 1, 64 << 20])
def test_extremes_are_possible(codec, size_bytes):
    """The longest run and the purest noise are within the bounds, too."""
    noise = np.random.default_rng(0).bytes(size_bytes)

    least, most = codec.stored_bytes(size_bytes)
    assert least <= len(codec.encode(memoryview(bytes(size_bytes))))
    assert len(codec.encode(memoryview(noise))) <= most
    assert most < size_bytes * 1.01 + 100


@codecs
@given(payload=st.binary(min_size=1, max_size=200), data=st.data())
def test_no_other_length(codec, payload, data):
    """A payload cut short, continued, or of another length is refused."""
    stored = codec.encode(memoryview(payload))
    cut = data.draw(st.integers(0, len(stored) - 1))

    for damaged, size_bytes in [
        (stored[:cut], len(payload)),
        (stored + stored, len(payload)),
        (stored, len(payload) + 1),
        (stored, len(payload) - 1),
    ]:
        with pytest.raises(ValueError):
            decoded(codec, damaged, size_bytes)


@codecs
@given(payload=payloads(), data=st.data())
def test_damage_never_escapes(codec, payload, data):
    """A damaged payload is a ValueError or other bytes; nothing else happens."""
    stored = bytearray(codec.encode(memoryview(payload)))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))

    with contextlib.suppress(ValueError):
        assert len(decoded(codec, stored, len(payload))) == len(payload)


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

    huge = bytearray(zstd.encode(memoryview(bytes(1 << 20))))
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


@codecs
def test_threads_share_a_codec(codec):
    """One codec serves several threads at once."""
    payloads = [
        bytes([n]) * 100_000 + np.random.default_rng(n).bytes(100_000) for n in range(4)
    ]
    wrong = []

    def work(payload):
        for _ in range(20):
            stored = codec.encode(memoryview(payload))
            if decoded(codec, stored, len(payload)) != payload:
                wrong.append(payload)

    threads = [threading.Thread(target=work, args=(p,)) for p in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
