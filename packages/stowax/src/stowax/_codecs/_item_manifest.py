"""The bytes of our own manifest: a root per item, and a part per writing process.

The root is a sealed JSON document: the skeleton of the tree, the stored leaves in its
order, a digest of every other document of the item, and one of every part.  A part is
the chunk table of one process as little-endian columns, so that neither writing nor
reading walks over chunks in Python:

    bytes 0-7     magic "STOWAXCT"
    bytes 8-11    u32 format version
    bytes 12-15   u32 length h of the header
    h bytes       JSON header: data files with their sizes, rows n, sums m
    28 n bytes    columns leaf u32, file u32, chunk u64, offset u64, length u64 …
    …             sum_ends u64[n], sums u32[m]
    last 4 bytes  CRC-32C of everything before

Pure: bytes in, facts out.  Every size is checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from stowax._codecs._checksum import crc32c, seal, unseal
from stowax._codecs._compression import CODECS
from stowax._keypath import Node, from_json, leaf_name, to_json
from stowax._manifest import ChunkTable, CustomType, Digest, LeafEntry, LeafKind
from stowax.errors import CorruptCheckpointError

SEAL, _ITEM = "stowax-checkpoint", "stowax-item"

# A document says the lowest version whose readers understand it, so that what makes no
# use of newer things stays readable for older releases.
_NEWEST = {SEAL: 1, _ITEM: 2}
_SINCE_CODEC = _SINCE_KINDS = 2
"""Readers before would take what is compressed for the elements themselves, and do not
know all kinds of leaves."""

_TABLE_VERSION = 1
_MAGIC = b"STOWAXCT"
_PREFIX = struct.Struct("<8sII")
_COLUMNS = (
    ("leaf", "<u4"),
    ("file", "<u4"),
    ("chunk", "<u8"),
    ("offset_bytes", "<u8"),
    ("length_bytes", "<u8"),
    ("sum_ends", "<u8"),
)
_KINDS = get_args(LeafKind)
_NEW_KINDS = ("integer", "bytes")
_INTEGER = re.compile("-?0x[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRoot:
    """What the root document of an item says."""

    root: Node
    leaves: tuple[LeafEntry, ...]
    documents: Mapping[str, Digest]
    """Every document of the item that others read, relative to its directory."""
    parts: Mapping[str, Digest]
    """Chunk tables, one per writing process, in order of the processes."""


def digest(data: bytes) -> Digest:
    """The digest of a whole document."""
    return Digest(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def encode_digests(digests: Mapping[str, Digest]) -> dict[str, Any]:
    """Digests as JSON: name → [size, SHA-256]."""
    return {name: [d.size_bytes, d.sha256] for name, d in digests.items()}


def decode_digests(document: Any) -> dict[str, Digest]:
    """Reads what `encode_digests` wrote.

    Raises:
        ValueError, TypeError, AttributeError: It is something else.
    """
    return {
        name: Digest(size_bytes=int(size), sha256=str(sha256))
        for name, (size, sha256) in document.items()
    }


def encode_root(root: ItemRoot) -> bytes:
    """The root document of an item."""
    return seal(
        {
            "format": _ITEM,
            "version": max(map(_version, root.leaves), default=1),
            "tree": to_json(root.root),
            "leaves": [_leaf_to_json(entry) for entry in root.leaves],
            "documents": encode_digests(root.documents),
            "parts": encode_digests(root.parts),
        }
    )


def _version(entry: LeafEntry) -> int:
    """The lowest version whose readers understand a leaf."""
    if entry.codec is not None:
        return _SINCE_CODEC
    return _SINCE_KINDS if entry.kind in _NEW_KINDS else 1


def decode_root(data: bytes) -> ItemRoot:
    """Reads a root document.

    Raises:
        CorruptCheckpointError: A byte is not what was written, or a newer release of
            this library wrote it.
    """
    document = unseal(data)
    check_version(document, _ITEM)
    try:
        node, paths = from_json(document["tree"])
        leaves = tuple(
            _leaf_from_json(entry, path)
            for entry, path in zip(document["leaves"], paths, strict=True)
        )
        return ItemRoot(
            root=node,
            leaves=leaves,
            documents=decode_digests(document["documents"]),
            parts=decode_digests(document["parts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # The seal held, so this is no damage by accident: somebody wrote it wrong.
        raise CorruptCheckpointError(f"it is no item manifest: {error}") from error


def check_version(document: Mapping[str, Any], name: str) -> None:
    """Refuses documents of another kind or of a newer format.

    Raises:
        CorruptCheckpointError: Says which version was found, and what to do.
    """
    if document.get("format") != name:
        raise CorruptCheckpointError(
            f"expected a {name!r} document, found {document.get('format')!r}"
        )
    version = document.get("version")
    if not isinstance(version, int) or version > _NEWEST[name]:
        raise CorruptCheckpointError(
            f"it has format version {version!r} and this release reads up to "
            f"{_NEWEST[name]}: upgrade with `pip install --upgrade stowax`"
        )


def encode_part(table: ChunkTable) -> bytes:
    """The chunk table of one process."""
    header = json.dumps(
        {
            "files": list(zip(table.files, table.file_size_bytes, strict=True)),
            "rows": len(table),
            "sums": len(table.sums),
        },
        separators=(",", ":"),
    ).encode()
    pieces = [_PREFIX.pack(_MAGIC, _TABLE_VERSION, len(header)), header]
    pieces += [
        np.ascontiguousarray(getattr(table, name), dtype).tobytes()
        for name, dtype in _COLUMNS
    ]
    pieces.append(np.ascontiguousarray(table.sums, "<u4").tobytes())
    body = b"".join(pieces)
    return body + crc32c(body).to_bytes(4, "little")


def decode_part(data: bytes) -> ChunkTable:
    """Reads a chunk table.

    Raises:
        CorruptCheckpointError: A byte is not what was written.
    """
    if len(data) < _PREFIX.size + 4:
        raise CorruptCheckpointError(f"a chunk table of {len(data)} bytes is cut short")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CorruptCheckpointError("the chunk table does not match its checksum")
    magic, version, header_bytes = _PREFIX.unpack_from(data)
    if magic != _MAGIC or version > _TABLE_VERSION:
        raise CorruptCheckpointError(
            f"{magic!r} of version {version} is no chunk table this release reads"
        )
    try:
        offset = _PREFIX.size + header_bytes
        header = json.loads(data[_PREFIX.size : offset])
        rows, sums = int(header["rows"]), int(header["sums"])
        row_bytes = sum(np.dtype(dtype).itemsize for _, dtype in _COLUMNS)
        if rows < 0 or offset + rows * row_bytes + sums * 4 + 4 != len(data):
            raise ValueError(f"{rows} rows and {sums} sums in {len(data)} bytes")
        columns: dict[str, np.ndarray] = {}
        for name, dtype in _COLUMNS:
            columns[name] = np.frombuffer(data, dtype, rows, offset)
            offset += columns[name].nbytes
        table = ChunkTable(
            files=tuple(str(name) for name, _ in header["files"]),
            file_size_bytes=tuple(int(size) for _, size in header["files"]),
            sums=np.frombuffer(data, "<u4", sums, offset),
            **columns,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"it is no chunk table: {error}") from error
    _check_table(table)
    return table


def build_table(
    files: Sequence[tuple[str, int]],
    rows: Sequence[tuple[int, int, int, int, int, Sequence[int]]],
) -> ChunkTable:
    """Makes a table of rows (leaf, file, chunk, offset, length, sums)."""
    leaf, file, chunk, offset, length, sums = (
        zip(*rows, strict=True) if rows else ((),) * 6
    )
    ends = np.cumsum([len(s) for s in sums], dtype="<u8") if rows else ()
    return ChunkTable(
        files=tuple(name for name, _ in files),
        file_size_bytes=tuple(size for _, size in files),
        leaf=np.array(leaf, "<u4"),
        file=np.array(file, "<u4"),
        chunk=np.array(chunk, "<u8"),
        offset_bytes=np.array(offset, "<u8"),
        length_bytes=np.array(length, "<u8"),
        sum_ends=np.array(ends, "<u8"),
        sums=np.array([value for s in sums for value in s], "<u4"),
    )


def _check_table(table: ChunkTable) -> None:
    """Refuses rows that point outside their file or their sums."""
    if len(table) == 0:
        return
    sizes = np.array(table.file_size_bytes, np.uint64)
    inside = table.file < len(sizes)
    if inside.all():
        size = sizes[table.file]
        inside = (table.offset_bytes <= size) & (
            table.length_bytes <= size - np.minimum(table.offset_bytes, size)
        )
    counts = np.diff(table.sum_ends.astype(np.int64), prepend=0)
    if not inside.all() or (counts < 1).any() or table.sum_ends[-1] != len(table.sums):
        raise CorruptCheckpointError("the chunk table points outside its files")


def _leaf_to_json(entry: LeafEntry) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": entry.kind}
    if entry.text is not None:
        document["text"] = entry.text
    if entry.dtype is not None:
        document["dtype"] = entry.dtype
        document["shape"] = list(entry.shape)
        document["chunk"] = list(entry.chunk_shape)
    if entry.codec is not None:
        document["codec"] = entry.codec
    if entry.write_shape is not None:
        document["write"] = list(entry.write_shape)
    if entry.prng_impl is not None:
        document["prng"] = entry.prng_impl
    if entry.sharding is not None:
        document["sharding"] = entry.sharding
    if entry.custom is not None:
        document["custom"] = {
            "type": entry.custom.typestr,
            "facts": entry.custom.facts,
        }
    return document


def _leaf_from_json(document: Mapping[str, Any], path: Any) -> LeafEntry:
    if document["kind"] not in _KINDS:
        raise ValueError(f"unknown kind of leaf {document['kind']!r}")
    write = document.get("write")
    entry = LeafEntry(
        path=path,
        name=leaf_name(path),
        kind=document["kind"],
        dtype=document.get("dtype"),
        shape=_shape(document.get("shape", ())),
        chunk_shape=_shape(document.get("chunk", ())),
        codec=document.get("codec"),
        write_shape=None if write is None else _shape(write),
        text=document.get("text"),
        prng_impl=document.get("prng"),
        sharding=document.get("sharding"),
        custom=_custom_from_json(document.get("custom")),
    )
    if len(entry.chunk_shape) != len(entry.shape) or 0 in entry.chunk_shape:
        raise ValueError(f"leaf {entry.name!r} has chunks {entry.chunk_shape}")
    if not isinstance(entry.sharding, dict | None):
        raise ValueError(f"leaf {entry.name!r} has the sharding {entry.sharding!r:.80}")
    if not isinstance(entry.prng_impl, str | None):
        raise ValueError(f"leaf {entry.name!r} is of keys {entry.prng_impl!r:.80}")
    if entry.codec is not None and entry.codec not in CODECS:
        raise ValueError(f"leaf {entry.name!r} has the unknown codec {entry.codec!r}")
    if entry.kind == "integer" and not _INTEGER.fullmatch(entry.text or ""):
        raise ValueError(f"leaf {entry.name!r} is the integer {entry.text!r:.80}")
    if entry.kind == "bytes" and (entry.dtype, len(entry.shape)) != ("uint8", 1):
        raise ValueError(f"leaf {entry.name!r} is bytes of {entry.dtype}{entry.shape}")
    return entry


def _custom_from_json(document: Any) -> CustomType | None:
    if document is None:
        return None
    if not isinstance(document["type"], str):
        raise ValueError(f"{document['type']!r:.80} is no name of a type")
    return CustomType(typestr=document["type"], facts=document["facts"])


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in sizes)
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return shape
