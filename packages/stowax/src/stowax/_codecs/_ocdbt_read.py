"""The bytes of a database → keys, values and references; `_ocdbt` has the form.

Nothing is believed: magic, lengths, checksums and bounds are compared, and memory is
counted before it is taken.
"""

from __future__ import annotations

import io
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from stowax._codecs._checksum import crc32c
from stowax._codecs._ocdbt import (
    MANIFEST_MAGIC,
    MAX_INLINE_BYTES,
    MAX_NAME_BYTES,
    NODE_MAGIC,
    NOWHERE,
    Reference,
)
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

_MAX_OFFSET = 2**63 - 1

# What a node and an entry cost at least while they are decoded: without it a few bytes
# that refer to themselves over and over would be free.
_NODE_COST_BYTES = 4096
_ENTRY_COST_BYTES = 256


class DatabaseDecoder:
    """Decodes the newest version of a database, one node after the other.

    Whoever uses it brings the bytes: it says which node it wants, until there is none.
    Nothing in them is believed before it is checked: whatever they are, the outcome is
    a database or one of the errors below, in bounded memory.

    Args:
        manifest: The bytes of `manifest.ocdbt`.
        limit_bytes: About how much memory the result may take.  The default is enough
            for two million arrays.

    Raises:
        CorruptCheckpointError: The bytes are damaged, or need more than `limit_bytes`.
        InvalidLayoutError: A form of the database that is not read here: a numbered
            manifest, or a later version of the format.
    """

    def __init__(self, manifest: bytes, *, limit_bytes: int = 1 << 31) -> None:
        self._allowance = _Allowance(limit_bytes)
        root = _decode_manifest(manifest, self._allowance)
        self._pending = [] if root is None else [root]
        self._previous: bytes | None = None
        self.entries: dict[str, bytes | Reference] = {}
        """Every key of the nodes so far, in order."""
        self.wanted = self._next()
        """The node that is to be brought; None: the database is complete."""

    def add(self, data: bytes) -> None:
        """Takes the bytes of the node that is wanted.

        Raises:
            CorruptCheckpointError, InvalidLayoutError: See above.
        """
        place = self._pending.pop()
        node = _open_node(place, data, self._allowance)
        height = node.byte()
        if height != place.height:
            raise node.damage(f"height {height} where {place.height} was promised")
        if height:
            self._pending += reversed(_decode_interior(node, place))
        else:
            for key, value in _decode_leaf(node, place):
                if self._previous is not None and key <= self._previous:
                    raise node.damage("keys are out of order")
                self.entries[node.text(key, "key")] = value
                self._previous = key
        self.wanted = self._next()

    def _next(self) -> Reference | None:
        if not self._pending:
            return None
        reference = self._pending[-1].reference
        self._allowance.take(_NODE_COST_BYTES + reference.length_bytes)
        return reference


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


def _open_node(place: _Place, data: bytes, allowance: _Allowance) -> _Body:
    reference = place.reference
    name = (
        f"the index node at byte {reference.offset_bytes} of {reference.path!r} "
        f"({reference.length_bytes} bytes)"
    )
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
    if offset_bytes == length_bytes == NOWHERE:
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
