"""Headers of safetensors files, with the safetensors library as the oracle."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from stowax._codecs._safetensors import (
    HEADER_LIMIT_BYTES,
    LENGTH_BYTES,
    decode_header,
    header_bytes,
)
from stowax.errors import CorruptCheckpointError, UnsupportedLeafError

DTYPES = ("bool", "uint8", "int16", "float16", "float32", "int64", "complex64")

NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(
    lambda name: name != "__metadata__"
)
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    max_size=6,
)
TEXTS = st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=8))


def read_header(data, where="a.safetensors"):
    """What a file of these bytes says."""
    start = data[:LENGTH_BYTES]
    size_bytes = header_bytes(start, file_bytes=len(data), where=where)
    header = data[LENGTH_BYTES : LENGTH_BYTES + size_bytes]
    return decode_header(header, file_bytes=len(data), where=where)


def filled(tensors):
    """Arrays of the given dtypes and shapes."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 2, shape).astype(dtype)
        for name, (dtype, shape) in tensors.items()
    }


@given(TENSORS, TEXTS)
def test_what_the_library_writes_is_decoded(tensors, texts):
    """In whatever order it puts the tensors."""
    # Texts without a tensor are no JSON as version 0.8.0 writes them.
    texts = texts if tensors else {}
    arrays = filled(tensors)
    data = safetensors.numpy.save(arrays, texts or None)

    header = read_header(data)

    assert header.metadata == texts
    assert header.tensors.keys() == arrays.keys()
    for name, (dtype, shape, offset_bytes, size_bytes) in header.tensors.items():
        assert (np.dtype(dtype), shape) == (arrays[name].dtype, arrays[name].shape)
        held = data[offset_bytes : offset_bytes + size_bytes]
        assert held == arrays[name].tobytes()


@given(st.data())
def test_whatever_the_library_refuses_is_refused(data):
    """One flipped bit of a header: either nothing changed that matters, or an error."""
    arrays = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(2, np.int8)}
    file = bytearray(safetensors.numpy.save(arrays, {"format": "np"}))
    size_bytes = LENGTH_BYTES + int.from_bytes(file[:LENGTH_BYTES], "little")
    bit = data.draw(st.integers(0, size_bytes * 8 - 1))
    file[bit // 8] ^= 1 << bit % 8

    try:
        expected = safetensors.numpy.load(bytes(file)).keys()
    except (safetensors.SafetensorError, KeyError):
        with pytest.raises((CorruptCheckpointError, UnsupportedLeafError)):
            read_header(bytes(file))
        return
    try:
        found = read_header(bytes(file)).tensors.keys()
    except CorruptCheckpointError:
        return  # To be stricter than the library loses nothing that anybody wrote.
    assert found == expected


def with_header(document, payload=b""):
    """A file of any header."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + payload


def entry(dtype="F32", shape=(2,), ends=(0, 8)):
    """One entry of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(ends)}


BAD = {
    "nothing": b"",
    "a length alone": (2).to_bytes(8, "little"),
    "a huge length": (2**63).to_bytes(8, "little") + b"{}",
    "a longer header than allowed": (HEADER_LIMIT_BYTES + 1).to_bytes(8, "little")
    + b"{}",
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "no JSON": with_header(b"{]"),
    "no object": with_header([1]),
    "no UTF-8": with_header(b'{"\xff":1}'),
    "nested without end": with_header(b'{"a":' * 100_000),
    "a key twice": with_header(b'{"a":1,"a":2}'),
    "numbers as metadata": with_header({"__metadata__": {"a": 1}}),
    "an entry that is none": with_header({"w": 3}, bytes(8)),
    "an entry without places": with_header({"w": {"dtype": "F32"}}, bytes(8)),
    "another length": with_header({"w": entry(shape=(3,))}, bytes(8)),
    "a negative extent": with_header({"w": entry(shape=(-2,))}, bytes(8)),
    "a fraction": with_header({"w": entry(shape=(2.0,))}, bytes(8)),
    "a truth value": with_header({"w": entry(shape=(2, True))}, bytes(8)),
    "too many axes": with_header({"w": entry(shape=(1,) * 70 + (2,))}, bytes(8)),
    "a product beyond 64 bits": with_header(
        {"w": entry(shape=(2**32, 2**32, 0), ends=(0, 0))}
    ),
    "a place from its end to its beginning": with_header(
        {"w": entry(ends=(8, 0))}, bytes(8)
    ),
    "bytes of two tensors": with_header(
        {"v": entry(), "w": entry(ends=(4, 12))}, bytes(12)
    ),
    "bytes of no tensor": with_header({"w": entry(ends=(4, 12))}, bytes(12)),
    "bytes behind the last": with_header({"w": entry()}, bytes(9)),
    "fewer bytes than are said": with_header({"w": entry()}, bytes(7)),
}


@pytest.mark.parametrize("name", BAD)
def test_no_whole_file(name):
    """What is no whole file is refused in words, before anything is allocated."""
    with pytest.raises(CorruptCheckpointError, match=r"a\.safetensors"):
        read_header(BAD[name])


def test_a_dtype_that_jax_does_not_have():
    """All such tensors are named at once; no name of ours hides one of theirs."""
    data = with_header(
        {
            "v": entry("F4", (2,), (0, 1)),
            "w": entry("float32", (2,), (1, 9)),
            "x": entry(ends=(9, 17)),
        },
        bytes(17),
    )

    with pytest.raises(UnsupportedLeafError, match=r"v: F4\n  w: float32$"):
        read_header(data)
