"""The bytes of our own manifest: a root per item, and a part per writing process.

The root is a sealed JSON document: the skeleton of the tree, the forms of its leaves
and which of them each leaf has, in the order of the skeleton, a digest of every other
document of the item, and one of every part.  A part is
the chunk table of one process as little-endian columns, so that neither writing nor
reading walks over chunks in Python:

    bytes 0-7     magic "STOWAXCT"
    bytes 8-11    u32 format version
    bytes 12-15   u32 length h of the header
    h bytes       JSON header: data files with their sizes, rows n, sums m, bytes
                  between two sums of a payload (in version 1 always a MiB), whether
                  there are remains of other chunks between those of the rows
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

from stowax._codecs._checksum import crc32c, seal_text, unseal
from stowax._codecs._compression import CODECS
from stowax._keypath import KeyPath, Node, from_json, to_json
from stowax._manifest import (
    ChunkTable,
    CustomType,
    Digest,
    LeafEntry,
    LeafForm,
    StoredKind,
)
from stowax._uncollected import uncollected
from stowax.errors import CorruptCheckpointError

SEAL, _ITEM = "stowax-checkpoint", "stowax-item"
UPDATE, FINALIZED = "stowax-update", "stowax-finalized"

# A document says the lowest version whose readers understand it, so that what makes no
# use of newer things stays readable for older releases.
_NEWEST = {SEAL: 1, _ITEM: 3, UPDATE: 1, FINALIZED: 1}
_SINCE_FORMS = 3
"""Before, every leaf stood there with a form of its own."""

_TABLE_VERSION = 2
_FIRST_BLOCK_BYTES = 1 << 20
_LEAST_BLOCK_BYTES = 4 << 10
"""Lengths of blocks: in version 1, where no header says it, and the least."""
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
_KINDS = get_args(StoredKind)
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


def encode_structure(root: Node, leaves: Sequence[LeafEntry]) -> str:
    """The part of a root document that does not change from save to save."""
    forms: dict[int, LeafForm] = {}
    for _, _, form in leaves:
        forms.setdefault(id(form), form)
    positions = {key: position for position, key in enumerate(forms)}
    return _to_json(
        {
            "format": _ITEM,
            "version": _SINCE_FORMS,
            "tree": to_json(root),
            "forms": [_form_to_json(form) for form in forms.values()],
            "leaves": [positions[id(form)] for _, _, form in leaves],
        }
    )


def encode_root(
    structure: str, documents: Mapping[str, Digest], parts: Mapping[str, Digest]
) -> bytes:
    """The root document of an item.

    Args:
        structure: What `encode_structure` made of the tree.
        documents: See `ItemRoot`.
        parts: See `ItemRoot`.
    """
    digests = {"documents": encode_digests(documents), "parts": encode_digests(parts)}
    return seal_text(f"{structure[:-1]},{_to_json(digests)[1:]}")


def _to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


@uncollected()
def decode_root(data: bytes) -> ItemRoot:
    """Reads a root document.

    Raises:
        CorruptCheckpointError: A byte is not what was written, or a newer release of
            this library wrote it.
    """
    document = unseal(data)
    check_version(document, _ITEM)
    try:
        node, paths, names = from_json(document["tree"])
        leaves = _leaves_from_json(document, paths, names)
        return ItemRoot(
            root=node,
            leaves=leaves,
            documents=decode_digests(document["documents"]),
            parts=decode_digests(document["parts"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
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
    said: dict[str, Any] = {
        "files": list(zip(table.files, table.file_size_bytes, strict=True)),
        "rows": len(table),
        "sums": len(table.sums),
        "block": table.block_bytes,
    }
    if table.has_remains:
        said["remains"] = True
    header = json.dumps(said, separators=(",", ":")).encode()
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
        block_bytes = _block_bytes(header, version)
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
            block_bytes=block_bytes,
            has_remains=bool(header.get("remains")),
            **columns,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"it is no chunk table: {error}") from error
    _check_table(table)
    return table


def _block_bytes(header: Mapping[str, Any], version: int) -> int:
    if version == 1:
        return _FIRST_BLOCK_BYTES
    block_bytes = int(header["block"])
    is_power = block_bytes > 0 and block_bytes & (block_bytes - 1) == 0
    if not is_power or not _LEAST_BLOCK_BYTES <= block_bytes <= _FIRST_BLOCK_BYTES:
        raise ValueError(f"blocks of {block_bytes} bytes")
    return block_bytes


def _check_table(table: ChunkTable) -> None:
    """Refuses rows that point outside their file, or have not a sum for each block."""
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
    whole, rest = np.divmod(table.length_bytes, np.uint64(table.block_bytes))
    blocks = whole + (rest > 0)
    is_summed = (counts == np.maximum(blocks, 1).astype(np.int64)).all()
    if not inside.all() or not is_summed or table.sum_ends[-1] != len(table.sums):
        raise CorruptCheckpointError(
            "the chunk table points outside its files, or lacks sums of blocks"
        )


def _form_to_json(form: LeafForm) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": form.kind}
    if form.text is not None:
        document["text"] = form.text
    if form.dtype is not None:
        document["dtype"] = form.dtype
        document["shape"] = list(form.shape)
        document["chunk"] = list(form.chunk_shape)
    if form.codec is not None:
        document["codec"] = form.codec
    if form.write_shape is not None:
        document["write"] = list(form.write_shape)
    if form.prng_impl is not None:
        document["prng"] = form.prng_impl
    if form.sharding is not None:
        document["sharding"] = form.sharding
    if form.custom is not None:
        document["custom"] = {
            "type": form.custom.typestr,
            "facts": form.custom.facts,
        }
    return document


def _leaves_from_json(
    document: Mapping[str, Any], paths: Sequence[KeyPath], names: Sequence[str]
) -> tuple[LeafEntry, ...]:
    described, chosen = document["leaves"], range(len(paths))
    if document["version"] >= _SINCE_FORMS:
        described, chosen = document["forms"], described
    if not all(type(n) is int and 0 <= n < len(described) for n in chosen):
        raise ValueError("a leaf has a form that is not there")
    forms: list[LeafForm] = []
    for position, form in enumerate(described):
        try:
            forms.append(_form_from_json(form))
        except ValueError as error:
            user = names[list(chosen).index(position)]
            raise ValueError(f"leaf {user!r} {error}") from error
    return tuple(
        [
            LeafEntry(path, name, forms[position])
            for path, name, position in zip(paths, names, chosen, strict=True)
        ]
    )


def _form_from_json(document: Mapping[str, Any]) -> LeafForm:
    if document["kind"] not in _KINDS:
        raise ValueError(f"is of the unknown kind {document['kind']!r}")
    write = document.get("write")
    form = LeafForm(
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
    if len(form.chunk_shape) != len(form.shape) or 0 in form.chunk_shape:
        raise ValueError(f"has chunks {form.chunk_shape}")
    if not isinstance(form.sharding, dict | None):
        raise ValueError(f"has the sharding {form.sharding!r:.80}")
    if not isinstance(form.prng_impl, str | None):
        raise ValueError(f"is of keys {form.prng_impl!r:.80}")
    if form.codec is not None and form.codec not in CODECS:
        raise ValueError(f"has the unknown codec {form.codec!r}")
    if form.kind == "integer" and not _INTEGER.fullmatch(form.text or ""):
        raise ValueError(f"is the integer {form.text!r:.80}")
    if form.kind == "bytes" and (form.dtype, len(form.shape)) != ("uint8", 1):
        raise ValueError(f"is bytes of {form.dtype}{form.shape}")
    return form


def _custom_from_json(document: Any) -> CustomType | None:
    if document is None:
        return None
    if not isinstance(document["type"], str):
        raise ValueError(f"stands for {document['type']!r:.80}, no name of a type")
    return CustomType(typestr=document["type"], facts=document["facts"])


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in sizes)
    if any(n < 0 for n in shape):
        raise ValueError(f"has the shape {shape}")
    return shape
