"""What the zarr encoding promises: the bytes that TensorStore would write."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from stowax._codecs._checksum import crc32c
from stowax._codecs._compression import CODECS
from stowax._codecs._zarr import (
    TRAILER_BYTES,
    array_document,
    chunk_key,
    dtype_from_name,
    dtype_name,
    encode_trailer,
)
from stowax.errors import UnsupportedLeafError

_STANDARD = [
    *("bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    *("int4", "int2"),
]
_UNKNOWN_TO_TENSORSTORE = [
    *("float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"),
    *("int1", "uint1", "uint2", "uint4"),
]


def _tensorstore_array(
    name: str,
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    compression: Sequence[object] = (),
) -> ts.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": "memory://",
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "data_type": name,
            "shape": shape,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk_shape},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                *compression,
                {"name": "crc32c"},
            ],
        },
    }
    return ts.open(spec, create=True, context=ts.Context()).result()


@pytest.mark.parametrize("name", _STANDARD + _UNKNOWN_TO_TENSORSTORE)
def test_dtypes_round_trip(name: str) -> None:
    """Every dtype has one name, and every name its dtype."""
    dtype = dtype_from_name(name)

    assert dtype_name(dtype) == dtype.name == name
    assert dtype == np.dtype(getattr(ml_dtypes, name, name))


def test_every_dtype_of_jax_has_a_name() -> None:
    """What `jax.numpy` has a name for can be stored; a new one makes this speak."""
    kinds = {value for value in vars(jnp).values() if isinstance(value, type(jnp.int8))}

    names = {dtype_name(np.dtype(kind)) for kind in kinds}

    assert len(names) > 25
    assert names <= {*_STANDARD, *_UNKNOWN_TO_TENSORSTORE}


@pytest.mark.parametrize("name", _STANDARD + _UNKNOWN_TO_TENSORSTORE)
def test_tensorstore_opens_every_dtype(name: str) -> None:
    """A dtype that TensorStore does not know is `uint8` to it: the bit patterns."""
    known = name not in _UNKNOWN_TO_TENSORSTORE
    values = np.arange(2, dtype=np.uint8).astype(dtype_from_name(name))
    context = ts.Context()
    store = ts.KvStore.open("memory://", context=context).result()
    store["zarr.json"] = array_document((2,), name, (2,))
    store[chunk_key((0,))] = values.tobytes() + encode_trailer(crc32c(values))

    array = ts.open({"driver": "zarr3", "kvstore": "memory://"}, context=context)
    found = array.result().read().result()

    assert found.dtype == (dtype_from_name(name) if known else np.uint8)
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("spelling", [">i8", "<i8", "longlong", np.int64])
def test_spelling_of_a_dtype_does_not_matter(spelling: str) -> None:
    """Byte order and platform names are not part of the name."""
    assert dtype_name(np.dtype(spelling)) == "int64"


@pytest.mark.parametrize("dtype", ["O", "S3", "U2", "M8[s]", "V4", "i4,f4", "(2,)i1"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    """What a checkpoint cannot hold is refused with the list of what it can."""
    with pytest.raises(UnsupportedLeafError, match=r"convert to one of: bool, int8"):
        dtype_name(np.dtype(dtype))


def test_unknown_names_are_refused() -> None:
    """A name from a checkpoint that no library knows is an error that says so."""
    with pytest.raises(UnsupportedLeafError, match="'float7'"):
        dtype_from_name("float7")


@pytest.mark.parametrize("name", _STANDARD)
@pytest.mark.parametrize(
    ("shape", "chunk_shape"),
    [((), ()), ((7,), (7,)), ((4, 6), (2, 3)), ((3, 0), (3, 0)), ((0,), (1,))],
)
def test_documents_are_those_of_tensorstore(
    name: str, shape: tuple[int, ...], chunk_shape: tuple[int, ...]
) -> None:
    """`zarr.json` is byte for byte what TensorStore writes for the same array."""
    array = _tensorstore_array(name, shape, tuple(max(1, size) for size in chunk_shape))
    theirs = array.kvstore.read("zarr.json").result().value

    assert array_document(shape, name, chunk_shape) == theirs


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("name", ["complex128", "float32", "uint8"])
def test_compressed_chunks_are_read_by_tensorstore(name: str, codec: str) -> None:
    """The document is the one TensorStore writes, and it reads our compressed chunk."""
    values = np.arange(6).reshape(2, 3).astype(name)
    document = CODECS[codec].document(values.itemsize)
    array = _tensorstore_array(name, (2, 3), (2, 3), [document])

    ours = CODECS[codec].encode(memoryview(values.tobytes()), values.itemsize)
    stored = ours + encode_trailer(crc32c(ours))
    array.kvstore.write(chunk_key((0, 0)), stored).result()

    theirs = array.kvstore.read("zarr.json").result().value
    assert array_document((2, 3), name, (2, 3), codec) == theirs
    assert array.read().result().tolist() == values.tolist()


@pytest.mark.parametrize("name", _STANDARD)
def test_chunks_are_those_of_tensorstore(name: str) -> None:
    """Payload and trailer, at the key of the chunk, are what TensorStore stores."""
    values = np.arange(24).reshape(4, 6) % 3
    values = np.where(values == 2, 0, values)  # 2 is beyond int2
    values = values.astype(dtype_from_name(name))
    array = _tensorstore_array(name, (4, 6), (2, 3))

    array.write(values).result()

    for row in range(2):
        for column in range(2):
            part = values[2 * row : 2 * row + 2, 3 * column : 3 * column + 3].copy()
            ours = part.tobytes() + encode_trailer(crc32c(part))
            theirs = array.kvstore.read(chunk_key((row, column))).result().value
            assert ours == theirs
            assert len(ours) == part.nbytes + TRAILER_BYTES


def test_key_of_the_only_chunk_of_a_scalar() -> None:
    """The chunk of an array without axes has a key without indexes."""
    array = _tensorstore_array("float32", (), ())

    array.write(np.float32(2.5)).result()

    assert chunk_key(()).encode() in array.kvstore.list().result()


def test_documents_come_from_a_cache() -> None:
    """Arrays of one form share one document."""
    assert array_document((9, 9), "int8", (9, 9)) is array_document(
        (9, 9), "int8", (9, 9)
    )


def test_chunks_have_the_axes_of_their_array() -> None:
    """Chunks with other axes than their array are a mistake of the caller."""
    with pytest.raises(ValueError, match="chunks of shape"):
        array_document((4, 6), "int8", (4,))
