"""Keys, values and references → the bytes of a database; `_ocdbt` has the form."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stowax._codecs._checksum import crc32c
from stowax._codecs._ocdbt import (
    MANIFEST_MAGIC,
    MAX_INLINE_BYTES,
    MAX_NAME_BYTES,
    NODE_MAGIC,
    NOWHERE,
    Reference,
)
from stowax.errors import InvalidNameError, KeyPathCollisionError

if TYPE_CHECKING:
    # `collections.abc.Buffer` needs Python 3.12.
    from typing_extensions import Buffer

LEAF_KEYS = 20_000
"""Keys in a full leaf node.

TensorStore parses a node that exceeds its cache anew for every key it looks up.
Orbax's cache is 100 MB; a node of this size takes about 4 MB.
"""

_ENVELOPE_BYTES = 4 + 8 + 1 + 1 + 4

_PROCESS_BASE = re.compile(r"ocdbt\.process_\d+/", re.ASCII)


def encode_database(
    entries: Iterable[tuple[str, bytes | Reference]],
    *,
    node_path: str,
    uuid: bytes,
    commit_time_nsecs: int,
) -> tuple[bytes, bytes]:
    """Returns the bytes of the node file and those of `manifest.ocdbt`.

    The same arguments give the same bytes, whatever the order of `entries`.

    Args:
        entries: Each key with its value (at most 1 MiB), or with where its value is.
        node_path: Where the node file will be, relative to the root of the database.
        uuid: 16 bytes that no other database has.
        commit_time_nsecs: Time of writing, since 1970.

    Returns:
        Every node of the tree, one after the other (nothing when there are no entries),
        and the manifest.

    Raises:
        KeyPathCollisionError: Two entries have the same key.
        InvalidNameError: A key or a path is too long or is not Unicode.
        ValueError: A value is too long to stand in the database, or `uuid` has not 16
            bytes.
    """
    if len(uuid) != 16:
        raise ValueError(f"a database's uuid has 16 bytes, not {len(uuid)}")
    keys, values = _sort_entries(entries)
    nodes: list[bytes] = []
    leaves: list[_Subtree] = []
    offset_bytes = 0
    for start in range(0, len(keys), LEAF_KEYS):
        part = slice(start, start + LEAF_KEYS)
        node, value_bytes = _encode_leaf(keys[part], values[part])
        leaf = _Subtree(
            lowest_key=keys[start],
            height=0,
            offset_bytes=offset_bytes,
            length_bytes=len(node),
            key_count=len(keys[part]),
            tree_bytes=len(node),
            value_bytes=value_bytes,
        )
        nodes.append(node)
        leaves.append(leaf)
        offset_bytes += len(node)
    root = leaves[0] if leaves else None
    if len(leaves) > 1:
        node = _encode_interior(leaves, node_path)
        nodes.append(node)
        root = _Subtree(
            lowest_key=keys[0],
            height=1,
            offset_bytes=offset_bytes,
            length_bytes=len(node),
            key_count=len(keys),
            tree_bytes=offset_bytes + len(node),
            value_bytes=sum(leaf.value_bytes for leaf in leaves),
        )
    manifest = _encode_manifest(root, node_path, uuid, commit_time_nsecs)
    return b"".join(nodes), manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subtree:
    """A node in the node file, and what is said of it where it is referred to."""

    lowest_key: bytes
    height: int
    offset_bytes: int
    length_bytes: int
    key_count: int
    tree_bytes: int
    """Length of all nodes from this one down."""

    value_bytes: int
    """Length of all values outside the nodes."""


def _sort_entries(
    entries: Iterable[tuple[str, bytes | Reference]],
) -> tuple[list[bytes], list[bytes | Reference]]:
    # A stable sort by key alone: values have no order.
    records = sorted(
        ((_encode_name(key), value) for key, value in entries),
        key=operator.itemgetter(0),
    )
    keys = [key for key, _ in records]
    for key, following in itertools.pairwise(keys):
        if key == following:
            raise KeyPathCollisionError(
                f"two arrays would be stored under the key {key.decode()!r}; "
                "rename one of the leaves"
            )
    return keys, [value for _, value in records]


def _encode_name(name: str) -> bytes:
    try:
        data = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidNameError(
            f"{name[:80]!r} cannot be stored as UTF-8: {error.reason}"
        ) from error
    if len(data) > MAX_NAME_BYTES:
        raise InvalidNameError(
            f"{name[:80]!r}... takes {len(data)} bytes; names in a checkpoint take at "
            f"most {MAX_NAME_BYTES}"
        )
    return data


def _encode_leaf(
    keys: Sequence[bytes], values: Sequence[bytes | Reference]
) -> tuple[bytes, int]:
    """The node, and how many bytes lie outside it."""
    inline: list[bytes] = []
    outside: list[Reference] = []
    kinds = bytearray(len(keys))
    lengths: list[int] = []
    for index, value in enumerate(values):
        if isinstance(value, Reference):
            kinds[index] = 1
            outside.append(value)
            lengths.append(value.length_bytes)
        else:
            inline.append(value)
            lengths.append(len(value))
    if inline and max(map(len, inline)) > MAX_INLINE_BYTES:
        raise ValueError(f"a value in the database takes at most {MAX_INLINE_BYTES} B")
    table, file_ids = _encode_files([reference.path for reference in outside])
    node = _seal_envelope(
        NODE_MAGIC,
        b"\0",  # height
        table,
        _varint(len(keys)),
        bytes(len(keys) - 1),  # nothing shared with the previous key
        _varints([len(key) for key in keys]),
        *keys,
        _varints(lengths),
        kinds,
        _varints(file_ids),
        _varints([reference.offset_bytes for reference in outside]),
        *inline,
    )
    return node, sum(reference.length_bytes for reference in outside)


def _encode_interior(children: Sequence[_Subtree], node_path: str) -> bytes:
    count = len(children)
    return _seal_envelope(
        NODE_MAGIC,
        bytes([children[0].height + 1]),
        _encode_file(node_path),
        _varint(count),
        bytes(count - 1),  # nothing shared with the previous key
        _varints([len(child.lowest_key) for child in children]),
        bytes(count),  # nothing of the key left out in the child
        *(child.lowest_key for child in children),
        bytes(count),  # file id
        _varints([child.offset_bytes for child in children]),
        _varints([child.length_bytes for child in children]),
        _varints([child.key_count for child in children]),
        _varints([child.tree_bytes for child in children]),
        _varints([child.value_bytes for child in children]),
    )


def _encode_manifest(
    root: _Subtree | None, node_path: str, uuid: bytes, commit_time_nsecs: int
) -> bytes:
    if root is None:
        node_path = ""
        root = _Subtree(
            lowest_key=b"",
            height=0,
            offset_bytes=NOWHERE,
            length_bytes=NOWHERE,
            key_count=0,
            tree_bytes=0,
            value_bytes=0,
        )
    return _seal_envelope(
        MANIFEST_MAGIC,
        # The configuration steers TensorStore's later writes, not the reading of ours;
        # it is the one that Orbax chooses.
        uuid,
        _varint(0),  # a single manifest
        _varint(1024),  # longest inline value
        _varint(100_000_000),  # longest node
        b"\x04",  # 16 versions in a node of the version tree
        _varint(1),  # zstd, of level
        (0).to_bytes(4, "little"),
        _encode_file(node_path),
        _varint(1),  # one version:
        _varint(1),  # its generation
        bytes([root.height]),
        _varint(0),  # file id
        _varint(root.offset_bytes),
        _varint(root.length_bytes),
        _varint(root.key_count),
        _varint(root.tree_bytes),
        _varint(root.value_bytes),
        commit_time_nsecs.to_bytes(8, "little"),
        _varint(0),  # no nodes of older versions
    )


def _encode_file(path: str) -> bytes:
    """A table of one file, without a base: the nodes under it stay relative to root."""
    data = _encode_name(path)
    return b"".join((_varint(1), _varint(len(data)), _varint(0), data))


def _encode_files(paths: Sequence[str]) -> tuple[bytes, list[int]]:
    """The table of the distinct `paths`, and the index of each path in it.

    TensorStore sorts by (base, rest), and so do we.
    """
    files = sorted((_encode_name(_base(path)), path) for path in set(paths))
    names = [_encode_name(path) for _, path in files]
    ids = {path: index for index, (_, path) in enumerate(files)}
    table = b"".join(
        (
            _varint(len(files)),
            bytes(max(0, len(files) - 1)),  # nothing shared with the previous path
            _varints([len(name) for name in names]),
            _varints([len(base) for base, _ in files]),
            *names,
        )
    )
    return table, [ids[path] for path in paths]


def _base(path: str) -> str:
    found = _PROCESS_BASE.match(path)
    return found.group() if found else ""


def _seal_envelope(magic: bytes, *body: Buffer) -> bytes:
    inner = b"".join(body)
    length = len(inner) + _ENVELOPE_BYTES
    # Format version 0, compression 0.
    data = b"".join((magic, length.to_bytes(8, "little"), b"\0\0", inner))
    return data + crc32c(data).to_bytes(4, "little")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(column: Sequence[int]) -> bytes:
    values = np.array(column, np.uint64)
    if not values.size:
        return b""
    width = max(1, -(-int(values.max()).bit_length() // 7))
    if width == 1:
        return values.astype(np.uint8).tobytes()
    # One row per value, one group of 7 bits per place; a group is written when it or a
    # higher one is not zero, and bit 7 is set when a higher one is.
    rests = values[:, None] >> (7 * np.arange(width, dtype=np.uint64))
    groups = (rests & 0x7F | (rests >= 0x80) * np.uint64(0x80)).astype(np.uint8)
    written = rests > 0
    written[:, 0] = True
    return groups[written].tobytes()
