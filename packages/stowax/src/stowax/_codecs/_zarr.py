"""How one array is written in zarr: its document, its keys, its chunks.

A chunk is the C-order little-endian payload, compressed or not, followed by the CRC-32C
of that in 4 little-endian bytes: the codecs `bytes`, perhaps one of `_compression`, and
`crc32c`, nothing else.  An element of less than 8 bits takes one byte.  Chunks lie at
`c/<i>/<j>...` beside the document `zarr.json`, which is, byte for byte, the one that
TensorStore would write.  That is version 3; in version 2, which older readers know, the
document is `.zarray`, chunks lie at `<i>.<j>...`, and nothing follows their payload.

Some dtypes that JAX has are unknown to TensorStore, which then refuses the whole tree.
All of them take one byte, so to zarr they are `uint8`: their bit patterns.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import ml_dtypes
import numpy as np

from stowax._codecs._compression import CODECS
from stowax.errors import UnsupportedLeafError

__all__ = [
    "DOCUMENT_NAMES",
    "TRAILER_BYTES",
    "ZarrVersion",
    "array_document",
    "check_extents",
    "chunk_key",
    "dtype_from_name",
    "dtype_name",
    "encode_trailer",
]

ZarrVersion = Literal[2, 3]

DOCUMENT_NAMES: Mapping[ZarrVersion, str] = {2: ".zarray", 3: "zarr.json"}
"""What the document is called, beside the chunks."""

TRAILER_BYTES = 4
"""Length of the checksum behind the payload of each chunk, in version 3."""

_UNKNOWN_TO_ZARR = (
    *("float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"),
    *("int1", "uint1", "uint2", "uint4"),
)

_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("float8_e8m0fnu", "int2", "int4"),
        *_UNKNOWN_TO_ZARR,
    )
    # Versions of ml_dtypes differ in the smallest types.
    if hasattr(ml_dtypes, name)
}
# What NumPy allows.
_MOST_AXES = 64
_MOST_BYTES = 2**63 - 1

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: np.dtype) -> str:
    """Returns the name of `dtype`, of either byte order; that of zarr if it has one.

    Raises:
        UnsupportedLeafError: Arrays of `dtype` have no form in a checkpoint.

    Example:
        >>> dtype_name(np.dtype(">f4"))
        'float32'
    """
    try:
        return _NAMES[dtype.newbyteorder("=")]
    except (KeyError, TypeError):  # Some dtypes of NumPy have no order of bytes.
        raise UnsupportedLeafError(
            f"arrays of dtype {dtype} cannot be saved; convert to one of: "
            + ", ".join(_DTYPES)
        ) from None


def dtype_from_name(name: str) -> np.dtype:
    """Returns the dtype, in the machine's byte order, that `dtype_name` calls `name`.

    Raises:
        UnsupportedLeafError: No installed library has that type.

    Example:
        >>> dtype_from_name("bfloat16").itemsize
        2
    """
    try:
        return _DTYPES[name]
    except KeyError:
        raise UnsupportedLeafError(
            f"no installed dtype is called {name!r}; known are: {', '.join(_DTYPES)}. "
            "Newer versions of ml_dtypes may have it"
        ) from None


# Many leaves of a model have the same form: from the cache a document costs 0.2 us.
@functools.lru_cache(maxsize=4096)
def array_document(
    shape: tuple[int, ...],
    dtype_name: str,
    chunk_shape: tuple[int, ...],
    codec: str | None = None,
    version: ZarrVersion = 3,
) -> bytes:
    """Returns the bytes of the document of an array.

    Args:
        shape: Shape of the whole array.
        dtype_name: A name that `dtype_name` returns.
        chunk_shape: Shape of each chunk, as many axes as `shape`.  An empty axis counts
            as 1, which is what the format asks for.
        codec: How chunks are compressed; None: not at all.
        version: Of zarr.

    Raises:
        UnsupportedLeafError: No installed library has that type.
        ValueError: The shapes differ in their number of axes.
    """
    if len(shape) != len(chunk_shape):
        raise ValueError(f"chunks of shape {chunk_shape} in an array of shape {shape}")
    if dtype_name in _UNKNOWN_TO_ZARR:
        dtype_name = "uint8"
    dtype = dtype_from_name(dtype_name)
    chunks = [max(1, size) for size in chunk_shape]
    describe = _document_3 if version == 3 else _document_2
    document = describe(shape, dtype, chunks, codec)
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode("ascii")


def _document_3(
    shape: tuple[int, ...], dtype: np.dtype, chunks: list[int], codec: str | None
) -> dict[str, object]:
    bytes_codec: dict[str, object] = {"name": "bytes"}
    if dtype.itemsize > 1:
        bytes_codec["configuration"] = {"endian": "little"}
    compression = [] if codec is None else [CODECS[codec].document(dtype.itemsize)]
    return {
        "chunk_grid": {"configuration": {"chunk_shape": chunks}, "name": "regular"},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [bytes_codec, *compression, {"name": "crc32c"}],
        "data_type": dtype.name,
        "fill_value": _fill_value(dtype),
        "node_type": "array",
        "shape": shape,
        "zarr_format": 3,
    }


def _document_2(
    shape: tuple[int, ...], dtype: np.dtype, chunks: list[int], codec: str | None
) -> dict[str, object]:
    compressor = None if codec is None else CODECS[codec].compressor()
    # What NumPy has is called as there, with its order of bytes.
    is_numpys = dtype.isbuiltin == 1
    return {
        "chunks": chunks,
        "compressor": compressor,
        "dimension_separator": ".",
        "dtype": dtype.newbyteorder("<").str if is_numpys else dtype.name,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": shape,
        "zarr_format": 2,
    }


def check_extents(shape: Sequence[int], itemsize: int) -> None:
    """Refuses shapes that no array can have, even if it is empty.

    Raises:
        ValueError: Says the shape.
    """
    size_bytes = math.prod(max(1, extent) for extent in shape) * itemsize
    if len(shape) > _MOST_AXES or size_bytes > _MOST_BYTES:
        raise ValueError(f"the shape {list(shape)}, which no array has")


def chunk_key(grid_index: tuple[int, ...], version: ZarrVersion = 3) -> str:
    """Returns where, below the array, the chunk at `grid_index` is stored.

    Example:
        >>> chunk_key((0, 1)), chunk_key(())
        ('c/0/1', 'c')
        >>> chunk_key((0, 1), 2), chunk_key((), 2)
        ('0.1', '0')
    """
    if version == 2:
        return ".".join(map(str, grid_index)) or "0"
    return "/".join(("c", *map(str, grid_index)))


def encode_trailer(crc: int) -> bytes:
    """Returns what stands behind a payload whose CRC-32C is `crc`."""
    return crc.to_bytes(TRAILER_BYTES, "little")


def _fill_value(dtype: np.dtype) -> bool | int | float | list[float]:
    if dtype == np.bool_:
        return False
    if dtype.kind == "c":
        return [0.0, 0.0]
    # ml_dtypes gives most of its types, integers and floats alike, the kind "V".
    is_integer = dtype.kind in "iu" or dtype.name.startswith(("int", "uint"))
    return 0 if is_integer else 0.0
