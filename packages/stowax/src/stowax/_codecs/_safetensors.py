"""The header of a safetensors file: which tensors it holds, and where.

A file is 8 bytes, the length of the header as a little-endian number; the header, a
JSON object that may end in spaces; and the tensors, in C order, little-endian, one
behind the other without gaps.  The object has an entry for every tensor, `{"dtype",
"shape", "data_offsets"}`, and `__metadata__`, texts by name.  The format is specified
at https://github.com/huggingface/safetensors; what that refuses is refused here, before
any memory is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stowax._codecs._json import as_object, parse
from stowax._codecs._zarr import check_extents, dtype_from_name
from stowax.errors import CorruptCheckpointError, UnsupportedLeafError

LENGTH_BYTES = 8
"""In front of the header."""

HEADER_LIMIT_BYTES = 100_000_000
"""No reader takes a longer one."""

METADATA = "__metadata__"

_ALIGNMENT_BYTES = 8
"""Tensors begin at a multiple of this, so that a mapped file is aligned."""

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}

_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}

DTYPES = tuple(_NAMES)
"""What tensors can be of, as checkpoints call it."""


class Tensor(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """As checkpoints call it, `bfloat16`; empty: not known here."""
    shape: tuple[int, ...]
    offset_bytes: int
    """From the beginning of the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself."""

    tensors: Mapping[str, Tensor]
    """In the order of the file's bytes."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def header_bytes(start: bytes, *, file_bytes: int, where: str) -> int:
    """The length of a header, given what a file begins with.

    Args:
        start: The first `LENGTH_BYTES` bytes.
        file_bytes: Length of the file.
        where: The file, for messages.

    Raises:
        CorruptCheckpointError: No header of that length fits into the file.
    """
    size_bytes = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or file_bytes < LENGTH_BYTES + 2:
        raise _corrupt(where, f"{file_bytes} bytes are too few for a header")
    if size_bytes > HEADER_LIMIT_BYTES:
        raise _corrupt(
            where,
            f"its header is said to have {size_bytes} bytes; {HEADER_LIMIT_BYTES} are "
            "allowed",
        )
    if LENGTH_BYTES + size_bytes > file_bytes:
        raise _corrupt(
            where,
            f"its header is said to have {size_bytes} bytes, the file has {file_bytes}",
        )
    return size_bytes


def decode_header(data: bytes, *, file_bytes: int, where: str) -> Header:
    """Reads a header, and checks that its tensors fill the file.

    Args:
        data: The header, without the length in front of it.
        file_bytes: Length of the file.
        where: The file, for messages.

    Raises:
        CorruptCheckpointError: It is no header, or not of this file; names the tensor.
        UnsupportedLeafError: Names every tensor of a dtype that is not known here.

    Example:
        >>> text = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        >>> header = decode_header(text, file_bytes=8 + len(text) + 8, where="a")
        >>> header.tensors["w"]
        Tensor(dtype='float32', shape=(2,), offset_bytes=62, size_bytes=8)
    """
    if data[:1] != b"{":
        raise _corrupt(where, "its header does not begin with '{'")
    document = as_object(parse(data, f"{where}, header"), where)
    metadata = document.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise _corrupt(where, f"{METADATA!r} holds more than texts")
    begin_bytes = LENGTH_BYTES + len(data)
    unknown: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, said in document.items():
        tensors[name] = _tensor(name, said, begin_bytes, where)
        if not tensors[name].dtype:
            unknown.append(f"  {name}: {said['dtype']}")
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
    _check_places(ordered, begin_bytes, file_bytes, where)
    if unknown:
        raise UnsupportedLeafError(
            f"{where} holds tensors of dtypes that JAX does not have as such:\n"
            + "\n".join(unknown)
        )
    return Header(tensors=ordered, metadata=metadata)


def encode_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """What a file begins with, length and header, given tensors in their order.

    Args:
        tensors: dtype, one of `DTYPES`, and shape by name; they follow each other
            without gaps.
        metadata: Texts by name.

    Raises:
        ValueError: It would be longer than any reader takes.

    Example:
        >>> data = encode_header({"w": ("float32", [2])}, {})
        >>> data[8:].decode()
        '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    """
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype_from_name(dtype).itemsize
        document[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    if len(text) > HEADER_LIMIT_BYTES:
        raise ValueError(
            f"the header has {len(text)} bytes; {HEADER_LIMIT_BYTES} are allowed"
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def encode_index(files: Mapping[str, str], *, size_bytes: int) -> bytes:
    """The document that says which tensor is in which file of a directory.

    Args:
        files: The file of every tensor, by its name.
        size_bytes: Of all tensors.

    Example:
        >>> print(encode_index({"w": "model.safetensors"}, size_bytes=8).decode())
        {
          "metadata": {
            "total_size": 8
          },
          "weight_map": {
            "w": "model.safetensors"
          }
        }
        <BLANKLINE>
    """
    document = {"metadata": {"total_size": size_bytes}, "weight_map": dict(files)}
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _tensor(name: str, said: Any, begin_bytes: int, where: str) -> Tensor:
    """One entry of a header."""
    if not isinstance(said, dict) or set(said) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(where, f"its entry for {name!r:.80} is {said!r:.120}")
    dtype, shape, ends = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or not _are_counts(shape):
        raise _corrupt(where, f"tensor {name!r:.80} is {dtype!r:.40}{shape!r:.80}")
    if not _are_counts(ends) or len(ends) != 2 or ends[0] > ends[1]:
        raise _corrupt(where, f"tensor {name!r:.80} lies at {ends!r:.80}")
    offset_bytes, size_bytes = begin_bytes + ends[0], ends[1] - ends[0]
    if dtype not in _DTYPES:
        return Tensor("", tuple(shape), offset_bytes, size_bytes)
    itemsize = dtype_from_name(_DTYPES[dtype]).itemsize
    try:
        check_extents(shape, itemsize)
    except ValueError as error:
        raise _corrupt(where, f"tensor {name!r:.80} has {error}") from None
    if math.prod(shape) * itemsize != size_bytes:
        raise _corrupt(
            where,
            f"tensor {name!r:.80}, {dtype}{shape!r:.80}, takes "
            f"{math.prod(shape) * itemsize} bytes, and has {size_bytes}",
        )
    return Tensor(_DTYPES[dtype], tuple(shape), offset_bytes, size_bytes)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and value >= 0 for value in values
    )


def _check_places(
    tensors: Mapping[str, Tensor], begin_bytes: int, file_bytes: int, where: str
) -> None:
    """Refuses tensors that share bytes, bytes that are no tensor's, and other lengths.

    Args:
        tensors: In the order of their places.
        begin_bytes: Where the first begins.
        file_bytes: Length of the file.
        where: The file, for messages.
    """
    end_bytes = begin_bytes
    for name, tensor in tensors.items():
        if tensor.offset_bytes != end_bytes:
            fault = "overlaps" if tensor.offset_bytes < end_bytes else "is away from"
            raise _corrupt(
                where,
                f"tensor {name!r:.80} {fault} the one before it: it begins at byte "
                f"{tensor.offset_bytes}, and not at {end_bytes}",
            )
        end_bytes += tensor.size_bytes
    if end_bytes != file_bytes:
        raise _corrupt(
            where, f"its tensors end at byte {end_bytes}, the file at {file_bytes}"
        )


def _corrupt(where: str, fault: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{where} is no whole safetensors file: {fault}.")
