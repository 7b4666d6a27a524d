"""OCDBT, TensorStore's database of key and value, as far as a checkpoint needs it.

A database is a file `manifest.ocdbt` and any number of data files.  The manifest points
at the root of a B-tree, whose leaf nodes hold, for each key, the value itself or where
in which data file it lies.  Nodes are stored in data files too; a data file has no form
of its own::

    manifest.ocdbt ──> interior node ──> leaf node ──> a/c/0      file, offset, length
                            │                          a/zarr.json        inline value
                            └──────────> leaf node ──> b/c/0/0    file, offset, length
                                                       b/zarr.json        inline value

Manifest and nodes share an *envelope*: magic, length, format version, compression,
body, CRC-32C.  Inside, integers are unsigned LEB128 ("varint"), and the fields of n
records are stored by column: every record's first field, then every record's second.
Each node has a table of the files it refers to.  A path in it is written as a *base*
(such as `ocdbt.process_0/`) and the rest, and the paths in a node that lies under a
base are relative to that base.

What we write is the smallest valid form: one version (generation 1), uncompressed
nodes, no shared prefixes.  What we read is the newest version of any database with a
single manifest, among them those that TensorStore wrote, with zstd-compressed nodes,
shared prefixes and any number of levels.

The format's documentation: https://google.github.io/tensorstore/kvstore/ocdbt/
"""

from __future__ import annotations

import io
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stowax._codecs._checksum import crc32c
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    InvalidNameError,
    KeyPathCollisionError,
)

if TYPE_CHECKING:
    # `collections.abc.Buffer` needs Python 3.12.
    from typing_extensions import Buffer

__all__ = ["Reference", "decode_database", "encode_database"]

MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")
NODE_MAGIC = bytes.fromhex("0cdb20de")

LEAF_KEYS = 20_000
"""Keys in a full leaf node.

TensorStore parses a node that exceeds its cache anew for every key it looks up.
Orbax's cache is 100 MB; a node of this size takes about 4 MB.
"""

MAX_NAME_BYTES = 65_535
"""Length of the longest key and of the longest path."""

MAX_INLINE_BYTES = 1 << 20
"""Length of the longest value that may stand in a node."""

_NOWHERE = 2**64 - 1
"""Offset and length of the root of an empty database."""

_MAX_OFFSET = 2**63 - 1

_ENVELOPE_BYTES = 4 + 8 + 1 + 1 + 4

# What a node and an entry cost at least while they are decoded: without it a few bytes
# that refer to themselves over and over would be free.
_NODE_COST_BYTES = 4096
_ENTRY_COST_BYTES = 256

_PROCESS_BASE = re.compile(r"ocdbt\.process_\d+/", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A range of bytes in a data file."""

    path: str
    """Relative to the root of the database, `d/0a` or `ocdbt.process_0/d/0a`.

    A decoded path is what was stored; whoever opens it refuses one that would leave
    the root.
    """

    offset_bytes: int
    length_bytes: int


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


def decode_database(
    manifest: bytes,
    read: Callable[[Reference], bytes],
    *,
    limit_bytes: int = 1 << 31,
) -> dict[str, bytes | Reference]:
    """Returns every key, in order, of the newest version of a database.

    Nothing in the bytes is believed before it is checked: whatever they are, the
    outcome is a database or one of the errors below, in bounded memory.

    Args:
        manifest: The bytes of `manifest.ocdbt`.
        read: Returns the bytes of a node; called once per node, never for more than
            `limit_bytes`.  What it raises is passed on.
        limit_bytes: About how much memory the result may take.  The default is enough
            for two million arrays.

    Raises:
        CorruptCheckpointError: The bytes are damaged, or need more than `limit_bytes`.
        InvalidLayoutError: A form of the database that is not read here: a numbered
            manifest, a later version of the format, or zstd nodes where the package
            `zstandard` is not installed.
    """
    allowance = _Allowance(limit_bytes)
    root = _decode_manifest(manifest, allowance)
    entries: dict[str, bytes | Reference] = {}
    pending = [] if root is None else [root]
    previous: bytes | None = None
    while pending:
        place = pending.pop()
        node = _open_node(place, read, allowance)
        height = node.byte()
        if height != place.height:
            raise node.damage(f"height {height} where {place.height} was promised")
        if height:
            pending += reversed(_decode_interior(node, place))
            continue
        for key, value in _decode_leaf(node, place):
            if previous is not None and key <= previous:
                raise node.damage("keys are out of order")
            entries[node.text(key, "key")] = value
            previous = key
    return entries


# --- writing


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
            offset_bytes=_NOWHERE,
            length_bytes=_NOWHERE,
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


# --- reading


class _Allowance:
    """Memory that decoding may still take."""

    __slots__ = ("_left_bytes",)

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    def take(self, size_bytes: int) -> None:
        """Called before the memory is taken."""
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise CorruptCheckpointError(
                "the database would need more memory than any checkpoint of its kind"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a node is, and what it inherits from the way there."""

    reference: Reference
    base: str
    """What the paths in the node are relative to."""

    height: int
    prefix: bytes
    """The beginning of every key in the node, not repeated there."""


class _Body:
    """The body of a manifest or node, read from front to back."""

    __slots__ = ("_data", "_name", "_position", "allowance")

    def __init__(self, name: str, data: memoryview, allowance: _Allowance) -> None:
        self._name = name
        self._data = data
        self._position = 0
        self.allowance = allowance

    @property
    def left_bytes(self) -> int:
        return len(self._data) - self._position

    def damage(self, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._name} is damaged: {what}")

    def unread(self, what: str) -> InvalidLayoutError:
        return InvalidLayoutError(f"{self._name} {what}")

    def take(self, size_bytes: int) -> memoryview:
        if size_bytes > self.left_bytes:
            raise self.damage(f"{size_bytes} bytes wanted, {self.left_bytes} left")
        start = self._position
        self._position += size_bytes
        return self._data[start : self._position]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        return int(self.varints(1)[0])

    def count(self) -> int:
        """The number of records that follow."""
        count = self.varint()
        # Each has at least one byte in a column.
        if count > self.left_bytes:
            raise self.damage(f"{count} records in {self.left_bytes} bytes")
        self.allowance.take(count * _ENTRY_COST_BYTES)
        return count

    def varints(self, count: int) -> np.ndarray:
        """A column of `count` integers, as uint64."""
        if count > self.left_bytes:
            raise self.damage(f"{count} integers in {self.left_bytes} bytes")
        window = np.frombuffer(
            self._data, np.uint8, min(10 * count, self.left_bytes), self._position
        )
        ends = np.flatnonzero(window < 0x80)[:count] + 1
        if len(ends) < count:
            raise self.damage("an integer does not end")
        starts = np.concatenate(([0], ends[:-1])) if count else ends
        widths = ends - starts
        width = int(widths.max(initial=0))
        if width > 10 or (width == 10 and window[ends[widths == 10] - 1].max() > 1):
            raise self.damage("an integer has more than 64 bits")
        values = np.zeros(count, np.uint64)
        for place in range(width):
            reaching = widths > place
            groups = window[starts[reaching] + place] & 0x7F
            values[reaching] |= groups.astype(np.uint64) << np.uint64(7 * place)
        self._position += int(ends[-1]) if count else 0
        return values

    def sizes(self, count: int) -> list[int]:
        """A column of lengths or counts, each of something that is kept in memory."""
        # No honest length exceeds 32 bits, and sums of those cannot overflow.
        values = self.varints(count)
        if values.max(initial=0) >> 32:
            raise self.damage("a length of more than 4 GiB")
        return values.tolist()

    def ids(self, count: int, file_count: int) -> list[int]:
        """A column of indexes into the table of files."""
        values = self.varints(count)
        if count and values.max() >= file_count:
            raise self.damage(f"a file that is not among the {file_count} files")
        return values.tolist()

    def names(
        self, count: int, columns: int = 0
    ) -> tuple[list[bytes], list[list[int]]]:
        """Names that share prefixes with their predecessors.

        Between their lengths and their text stand `columns` more columns of lengths.
        """
        shared = [0, *self.sizes(count - 1)] if count else []
        own = self.sizes(count)
        others = [self.sizes(count) for _ in range(columns)]
        if count and max(map(operator.add, shared, own)) > MAX_NAME_BYTES:
            raise self.damage(f"a name of more than {MAX_NAME_BYTES} bytes")
        self.allowance.take(sum(shared) + sum(own))
        texts = self.values(own)
        if not any(shared):
            return texts, others
        names: list[bytes] = []
        name = b""
        for shared_bytes, text in zip(shared, texts, strict=True):
            if shared_bytes > len(name):
                raise self.damage("a name shares more than its predecessor has")
            name = name[:shared_bytes] + text
            names.append(name)
        return names, others

    def values(self, lengths: Sequence[int]) -> list[bytes]:
        text = bytes(self.take(sum(lengths)))
        ends = itertools.accumulate(lengths)
        return [
            text[end - length : end] for end, length in zip(ends, lengths, strict=True)
        ]

    def text(self, name: bytes, what: str) -> str:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damage(f"a {what} is not UTF-8") from error

    def finish(self) -> None:
        if self.left_bytes:
            raise self.damage(f"{self.left_bytes} bytes too many")


def _open_envelope(
    name: str, magic: bytes, data: bytes, allowance: _Allowance
) -> _Body:
    body = _Body(name, memoryview(data), allowance)
    if data[:4] != magic:
        raise body.damage(f"it begins with {data[:4].hex()}, not {magic.hex()}")
    length = int.from_bytes(data[4:12], "little")
    if length != len(data):
        raise body.damage(f"it has {len(data)} bytes and says {length}")
    inside = memoryview(data)[:-4]
    stored, found = int.from_bytes(data[-4:], "little"), crc32c(inside)
    if stored != found:
        raise body.damage(f"its checksum is {found:08x}, stored is {stored:08x}")
    body = _Body(name, inside[12:], allowance)
    version, compression = body.varint(), body.varint()
    if version:
        raise body.unread(f"has version {version} of the format, known is 0")
    if compression > 1:
        raise body.unread(f"is compressed by the unknown method {compression}")
    rest = body.take(body.left_bytes)
    if compression:
        rest = memoryview(_decompress(body, rest))
    return _Body(name, rest, allowance)


def _decompress(body: _Body, frame: memoryview) -> bytes:
    # Optional: only databases that others wrote have compressed nodes.
    try:
        import zstandard
    except ImportError as error:
        raise body.unread(
            "is compressed with zstd; install the package 'zstandard' to read it"
        ) from error
    # In pieces: the frame does not say how long it will be, and may be made to explode.
    out = io.BytesIO()
    try:
        with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
            while piece := reader.read(1 << 20):
                body.allowance.take(len(piece))
                out.write(piece)
    except zstandard.ZstdError as error:
        raise body.damage(f"zstd: {error}") from error
    return out.getvalue()


def _open_node(
    place: _Place, read: Callable[[Reference], bytes], allowance: _Allowance
) -> _Body:
    reference = place.reference
    allowance.take(_NODE_COST_BYTES + reference.length_bytes)
    name = (
        f"the index node at byte {reference.offset_bytes} of {reference.path!r} "
        f"({reference.length_bytes} bytes)"
    )
    data = read(reference)
    if len(data) != reference.length_bytes:
        raise CorruptCheckpointError(f"{name} is cut short after {len(data)} bytes")
    return _open_envelope(name, NODE_MAGIC, data, allowance)


def _decode_manifest(data: bytes, allowance: _Allowance) -> _Place | None:
    """Where the root of the newest version is; None for an empty database."""
    body = _open_envelope("manifest.ocdbt", MANIFEST_MAGIC, data, allowance)
    body.take(16)  # uuid
    if kind := body.varint():
        raise body.unread(f"is of the kind {kind} (numbered); read are single ones")
    body.varints(2)  # longest inline value, longest node
    body.byte()  # arity of the version tree
    if body.varint():  # compression of future nodes, and its level
        body.take(4)
    files = _decode_files(body, "")
    count = body.count()
    if not count:
        raise body.damage("it has no version")
    generations = body.varints(count)
    heights = body.take(count)
    ids = body.ids(count, len(files))
    offsets, lengths = body.varints(count), body.varints(count)
    body.varints(3 * count)  # statistics
    body.take(8 * count)  # commit times
    older_count = body.count()
    body.varints(5 * older_count)
    body.take(9 * older_count)  # commit times, heights
    body.finish()
    if (generations[1:] <= generations[:-1]).any():
        raise body.damage("its versions are out of order")
    offset_bytes, length_bytes = int(offsets[-1]), int(lengths[-1])
    if offset_bytes == length_bytes == _NOWHERE:
        return None
    path, base = files[ids[-1]]
    return _Place(
        reference=_reference(body, path, offset_bytes, length_bytes),
        base=base,
        height=heights[-1],
        prefix=b"",
    )


def _decode_interior(node: _Body, place: _Place) -> list[_Place]:
    files = _decode_files(node, place.base)
    count = _entry_count(node)
    keys, (inherited,) = node.names(count, columns=1)
    ids = node.ids(count, len(files))
    offsets, lengths = node.varints(count).tolist(), node.varints(count).tolist()
    node.varints(3 * count)  # statistics
    node.finish()
    children: list[_Place] = []
    for key, inherited_bytes, file_id, offset_bytes, length_bytes in zip(
        keys, inherited, ids, offsets, lengths, strict=True
    ):
        if inherited_bytes > len(key):
            raise node.damage("a child inherits more than its key")
        prefix = place.prefix + key[:inherited_bytes]
        node.allowance.take(len(prefix))
        path, base = files[file_id]
        child = _Place(
            reference=_reference(node, path, offset_bytes, length_bytes),
            base=base,
            height=place.height - 1,
            prefix=prefix,
        )
        children.append(child)
    return children


def _decode_leaf(
    node: _Body, place: _Place
) -> Iterator[tuple[bytes, bytes | Reference]]:
    files = _decode_files(node, place.base)
    count = _entry_count(node)
    suffixes, _ = node.names(count)
    lengths = node.varints(count)
    kinds = np.frombuffer(node.take(count), np.uint8)
    if kinds.max() > 1:
        raise node.damage("a value is neither inline nor outside")
    outside = kinds == 1
    outside_count = int(np.count_nonzero(outside))
    ids = node.ids(outside_count, len(files))
    offsets = node.varints(outside_count).tolist()
    inline_lengths = lengths[~outside]
    if inline_lengths.max(initial=0) > MAX_INLINE_BYTES:
        raise node.damage(f"an inline value of more than {MAX_INLINE_BYTES} bytes")
    inline = iter(node.values(inline_lengths.tolist()))
    node.finish()
    node.allowance.take(count * len(place.prefix))
    ranges = zip(ids, offsets, lengths[outside].tolist(), strict=True)
    longest = max(map(len, suffixes)) + len(place.prefix)
    if longest > MAX_NAME_BYTES:
        raise node.damage(f"a key of {longest} bytes")
    for suffix, is_outside in zip(suffixes, outside.tolist(), strict=True):
        key = place.prefix + suffix
        if is_outside:
            file_id, offset_bytes, length_bytes = next(ranges)
            path = files[file_id][0]
            yield key, _reference(node, path, offset_bytes, length_bytes)
        else:
            yield key, next(inline)


def _entry_count(node: _Body) -> int:
    count = node.count()
    if not count:
        raise node.damage("it has no entry")
    return count


def _decode_files(body: _Body, base: str) -> list[tuple[str, str]]:
    """Of each file its path, and the base of the paths in it, both from the root."""
    names, (base_lengths,) = body.names(body.count(), columns=1)
    body.allowance.take(2 * len(base) * len(names))
    files: list[tuple[str, str]] = []
    for name, base_length in zip(names, base_lengths, strict=True):
        if base_length > len(name):
            raise body.damage("the base of a path is longer than the path")
        path = base + body.text(name, "path")
        if len(path) > MAX_NAME_BYTES:
            raise body.damage(f"a path of more than {MAX_NAME_BYTES} bytes")
        files.append((path, base + body.text(name[:base_length], "path")))
    return files


def _reference(
    body: _Body, path: str, offset_bytes: int, length_bytes: int
) -> Reference:
    if offset_bytes + length_bytes > _MAX_OFFSET:
        raise body.damage("a range ends beyond the end of any file")
    return Reference(path=path, offset_bytes=offset_bytes, length_bytes=length_bytes)
