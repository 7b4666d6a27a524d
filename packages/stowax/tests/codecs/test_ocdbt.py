"""What the OCDBT codec promises, with TensorStore as the judge in both directions."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stowax._codecs._checksum import crc32c
from stowax._codecs._ocdbt import (
    MANIFEST_MAGIC,
    MAX_INLINE_BYTES,
    MAX_NAME_BYTES,
    NODE_MAGIC,
    Reference,
)
from stowax._codecs._ocdbt_read import DatabaseDecoder
from stowax._codecs._ocdbt_write import LEAF_KEYS, encode_database
from stowax._codecs._zarr import array_document, chunk_key, dtype_name, encode_trailer
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    InvalidNameError,
    KeyPathCollisionError,
)

_UUID = bytes(range(16))
_NODE_PATH = "d/node"

Entries = dict[str, bytes | Reference]


def _encode(entries: Entries, node_path: str = _NODE_PATH) -> tuple[bytes, bytes]:
    return encode_database(
        entries.items(),
        node_path=node_path,
        uuid=_UUID,
        commit_time_nsecs=1_700_000_000_000_000_000,
    )


def _decode_database(
    manifest: bytes, read: Callable[[Reference], bytes], **limits: int
) -> Entries:
    """Decodes a database whose nodes `read` brings."""
    decoder = DatabaseDecoder(manifest, **limits)
    while decoder.wanted is not None:
        decoder.add(read(decoder.wanted))
    return decoder.entries


def _decode(node: bytes, manifest: bytes, **limits: int) -> Entries:
    """Decodes a database whose only file is the node file."""

    def read(place: Reference) -> bytes:
        return node[place.offset_bytes :][: place.length_bytes]

    return _decode_database(manifest, read, **limits)


def _write(root: Path, entries: Entries, node_path: str = _NODE_PATH) -> None:
    node, manifest = _encode(entries, node_path)
    for path, data in ((node_path, node), ("manifest.ocdbt", manifest)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def _read_from(root: Path) -> Callable[[Reference], bytes]:
    def read(place: Reference) -> bytes:
        with open(root / place.path, "rb") as file:
            file.seek(place.offset_bytes)
            return file.read(place.length_bytes)

    return read


def _decode_all(root: Path) -> dict[str, bytes]:
    """Every value of the database at `root`, wherever it lies."""
    read = _read_from(root)
    entries = _decode_database((root / "manifest.ocdbt").read_bytes(), read)
    return {
        key: read(value) if isinstance(value, Reference) else value
        for key, value in entries.items()
    }


def _open(
    root: Path, context: ts.Context | None = None, **config: object
) -> ts.KvStore:
    spec: dict[str, object] = {"driver": "ocdbt", "base": f"file://{root}/"}
    if config:
        spec["config"] = config
    return ts.KvStore.open(spec, context=context).result()


def _merge(parent: Path, children: list[Path]) -> None:
    """Enters the keys of `children` in `parent` by reference, as Orbax does."""
    context = ts.Context()  # Databases are merged by reference within one only.
    target = _open(parent, context)
    for child in children:
        _open(child, context).experimental_copy_range_to(target).result()


def _list(store: ts.KvStore) -> list[str]:
    return [key.decode() for key in store.list().result()]


def _tensorstore_all(root: Path) -> dict[str, bytes]:
    store = _open(root)
    return {key: bytes(store.read(key).result().value) for key in _list(store)}


# --- the bytes


def test_worked_example() -> None:
    """One array, one chunk: the bytes that the format's description spells out."""
    node = bytes.fromhex(
        "0cdb20de 4200000000000000 0000 00 01 04 00 642f3061 02 00 050b"
        "772f632f30 772f7a6172722e6a736f6e 0c0d 0100 00 8020"
        "7b227a6172722e6a736f6e227d 388fad28"
    )
    manifest = bytes.fromhex(
        "0cdb3a2a 4800000000000000 0000 000102030405060708090a0b0c0d0e0f 00 8008"
        "80c2d72f 04 0100000000 01 04 00 642f3062 01 0100 000042 02420c"
        "00002a36fe9c9717 00 f709ff78"
    )
    entries: Entries = {
        "w/zarr.json": b'{"zarr.json"}',
        "w/c/0": Reference(path="d/0a", offset_bytes=4096, length_bytes=12),
    }

    assert _encode(entries, "d/0b") == (node, manifest)
    assert _decode(node, manifest) == entries


_names = st.text(
    st.characters(codec="utf-8") | st.sampled_from("abc/."), min_size=1, max_size=12
)
_references = st.builds(
    Reference,
    path=st.one_of(
        _names,
        st.builds("ocdbt.process_{}/{}".format, st.integers(0, 20), _names),
    ),
    offset_bytes=st.integers(0, 2**62 - 1),
    length_bytes=st.integers(0, 2**62 - 1),
)
_entries = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=300) | _references,
    max_size=30,
)


@given(_entries, st.randoms(use_true_random=False))
def test_round_trip(entries: Entries, random: object) -> None:
    """Every entry comes back, in the order of the bytes of the keys."""
    shuffled = list(entries.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # st.randoms has no type

    node, manifest = _encode(dict(shuffled))
    decoded = _decode(node, manifest)

    assert decoded == entries
    assert list(decoded) == sorted(entries, key=str.encode)
    assert (node, manifest) == _encode(entries)


@pytest.mark.parametrize("count", [1, LEAF_KEYS, LEAF_KEYS + 1, 2 * LEAF_KEYS + 7])
def test_many_keys_round_trip(count: int) -> None:
    """Databases of one, and of several nodes come back."""
    entries: Entries = {
        f"layer_{index:06}/c/0": Reference(
            path=f"ocdbt.process_{index % 3}/d/0",
            offset_bytes=index << 20,
            length_bytes=index,
        )
        for index in range(count)
    }

    assert _decode(*_encode(entries)) == entries


def test_empty_database() -> None:
    """No entries need no node."""
    node, manifest = _encode({})

    assert node == b""
    assert _decode(node, manifest) == {}


def test_every_width_of_integer_round_trips() -> None:
    """Offsets at each border of the variable-length integers come back."""
    offsets = sorted(
        {1 << bits for bits in range(62)} | {(1 << bits) - 1 for bits in range(63)}
    )
    entries: Entries = {
        f"{index:03}": Reference(path="d/0", offset_bytes=offset, length_bytes=1)
        for index, offset in enumerate(offsets)
    }

    assert _decode(*_encode(entries)) == entries


# --- refused before a byte is written


def test_keys_cannot_collide() -> None:
    """Two entries of one key are refused, and the message names the key."""
    entries = [("a/c/0", b"1"), ("b", b"2"), ("a/c/0", b"1")]

    with pytest.raises(KeyPathCollisionError, match="'a/c/0'"):
        encode_database(entries, node_path="d", uuid=_UUID, commit_time_nsecs=0)


@pytest.mark.parametrize("name", ["x" * (MAX_NAME_BYTES + 1), "é" * 32_768, "\ud800"])
@pytest.mark.parametrize("place", ["key", "path", "node path"])
def test_names_that_do_not_fit_are_refused(name: str, place: str) -> None:
    """Keys and paths too long in bytes, or without a UTF-8 form, are refused."""
    path = name if place == "path" else "d/0"
    key = name if place == "key" else "a"
    entries: Entries = {key: Reference(path=path, offset_bytes=0, length_bytes=1)}

    with pytest.raises(InvalidNameError, match=r"65535|UTF-8"):
        _encode(entries, name if place == "node path" else "d/1")


def test_long_inline_values_are_refused() -> None:
    """A value that no reader would accept in a node is a mistake of the caller."""
    _encode({"a": bytes(MAX_INLINE_BYTES)})

    with pytest.raises(ValueError, match="at most 1048576"):
        _encode({"a": bytes(MAX_INLINE_BYTES + 1)})


def test_uuid_has_16_bytes() -> None:
    """A uuid of another length would shift everything behind it."""
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        encode_database([], node_path="d", uuid=b"abc", commit_time_nsecs=0)


# --- TensorStore reads ours

_ODD_NAMES = [
    "",
    "a",
    "a/c/0",
    "c",
    "zarr.json",
    "params/dense/kernel",
    "with blank",
    'quote"back\\slash',
    "new\nline",
    "~é漢😀",
    "..",
    "/absolute",
    "x" * 1000,
]


def test_tensorstore_reads_every_array(tmp_path: Path) -> None:
    """Arrays of any shape, chunked or not, under any name, open in TensorStore."""
    rng = np.random.default_rng(3)
    arrays = {
        name: rng.standard_normal((4, 6)).astype(np.float32) for name in _ODD_NAMES
    } | {
        "scalar": np.array(2.5),
        "empty": np.zeros((3, 0), np.int8),
        "flags": np.array([True, False, True]),
    }
    data = bytearray(b"unreferenced")
    entries: Entries = {}
    for name, array in arrays.items():
        chunks = (2, 3) if array.shape == (4, 6) else array.shape
        prefix = f"{name}/" if name else ""
        entries[prefix + "zarr.json"] = array_document(
            array.shape, dtype_name(array.dtype), chunks
        )
        grid = [
            range(-(-size // max(1, chunk)))
            for size, chunk in zip(array.shape, chunks, strict=True)
        ]
        for index in itertools.product(*grid):
            part = np.ascontiguousarray(
                array[
                    tuple(
                        slice(place * size, (place + 1) * size)
                        for place, size in zip(index, chunks, strict=True)
                    )
                ]
            ).reshape(chunks)
            payload = part.tobytes() + encode_trailer(crc32c(part))
            entries[prefix + chunk_key(index)] = Reference(
                path="d/0", offset_bytes=len(data), length_bytes=len(payload)
            )
            data += payload + bytes(-len(payload) % 64)
    _write(tmp_path, entries)
    (tmp_path / "d/0").write_bytes(data)

    assert _list(_open(tmp_path)) == sorted(entries, key=str.encode)
    for name, array in arrays.items():
        kvstore = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "path": name}
        opened = ts.open({"driver": "zarr3", "kvstore": kvstore}).result()
        np.testing.assert_array_equal(opened.read().result(), array)
        assert opened.shape == array.shape


def test_tensorstore_finds_a_flipped_payload_bit(tmp_path: Path) -> None:
    """The trailer of a chunk protects its payload in other readers too."""
    values = np.arange(4, dtype=np.float32)
    payload = bytearray(values.tobytes() + encode_trailer(crc32c(values)))
    payload[5] ^= 1
    _write(
        tmp_path,
        {"w/zarr.json": array_document((4,), "float32", (4,)), "w/c/0": bytes(payload)},
    )
    kvstore = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "path": "w"}

    with pytest.raises(ValueError, match=r"[Dd]igest mismatch"):
        ts.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


def test_tensorstore_reads_an_empty_database(tmp_path: Path) -> None:
    """The manifest of an empty database is one that TensorStore opens and adds to."""
    _write(tmp_path, {})

    assert _list(_open(tmp_path)) == []

    _open(tmp_path).write("a", b"1").result()
    assert _tensorstore_all(tmp_path) == _decode_all(tmp_path) == {"a": b"1"}


def test_tensorstore_reads_several_nodes(tmp_path: Path) -> None:
    """More keys than one node holds are found through the interior node."""
    entries: Entries = {
        f"layer_{index:06}": f"value {index}".encode()
        for index in range(2 * LEAF_KEYS + 1)
    }
    _write(tmp_path, entries)
    store = _open(tmp_path)

    assert sorted(_list(store)) == sorted(entries)
    for index in (0, LEAF_KEYS - 1, LEAF_KEYS, 2 * LEAF_KEYS - 1, 2 * LEAF_KEYS):
        found = store.read(f"layer_{index:06}").result().value
        assert found == f"value {index}".encode()


@pytest.mark.parametrize("count", [10, LEAF_KEYS + 10])
def test_tensorstore_edits_our_database(tmp_path: Path, count: int) -> None:
    """TensorStore adds to and deletes from a database of ours; we read the result."""
    entries: Entries = {f"k{index:06}": b"%d" % index for index in range(count)}
    _write(tmp_path, entries)

    _open(tmp_path).write("k000003", b"changed").result()
    _open(tmp_path).write("new", bytes(5000)).result()
    _open(tmp_path).delete_range(ts.KvStore.KeyRange("k000005", "k000008")).result()

    expected = entries | {"k000003": b"changed", "new": bytes(5000)}
    for gone in ("k000005", "k000006", "k000007"):
        del expected[gone]
    assert _decode_all(tmp_path) == expected
    assert sorted(_list(_open(tmp_path))) == sorted(expected)


@pytest.mark.parametrize("count", [1, 2 * LEAF_KEYS + 1])
def test_tensorstore_sees_our_statistics(tmp_path: Path, count: int) -> None:
    """Counts and sizes in the manifest are right: later writers add to them."""
    entries: Entries = {
        f"{index:06}": Reference(path="d/0", offset_bytes=0, length_bytes=7)
        for index in range(count)
    }
    _write(tmp_path, entries)

    manifest = ts.ocdbt.dump(ts.KvStore.open(f"file://{tmp_path}/").result()).result()

    root = manifest["versions"][-1]["root"]
    assert root["statistics"] == {
        "num_keys": count,
        "num_tree_bytes": (tmp_path / _NODE_PATH).stat().st_size,
        "num_indirect_value_bytes": 7 * count,
    }


def test_process_directories_are_bases() -> None:
    """A merged database says, as Orbax's do, which part of a path is a base."""
    path = "ocdbt.process_12/d/0"
    node, _ = _encode({"a": Reference(path=path, offset_bytes=0, length_bytes=1)})

    assert bytes([1, len(path), len("ocdbt.process_12/")]) + path.encode() in node


def test_several_process_directories(tmp_path: Path) -> None:
    """One node at the root names data files in the directory of every process."""
    entries: Entries = {"inline": b"value"}
    expected = {"inline": b"value"}
    for process in (0, 1, 10):
        path = tmp_path / f"ocdbt.process_{process}/d/0"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"....process %d" % process)
        entries[f"w/c/{process}"] = Reference(
            path=f"ocdbt.process_{process}/d/0",
            offset_bytes=4,
            length_bytes=path.stat().st_size - 4,
        )
        expected[f"w/c/{process}"] = b"process %d" % process
    _write(tmp_path, entries)

    assert _tensorstore_all(tmp_path) == _decode_all(tmp_path) == expected


def test_tensorstore_copies_our_databases_by_reference(tmp_path: Path) -> None:
    """Databases of ours below a parent are merged into it without copying data."""
    expected: dict[str, bytes] = {}
    children = [tmp_path / f"ocdbt.process_{process}" for process in (0, 1)]
    for process, child in enumerate(children):
        value = b"data of %d" % process
        (child / "d").mkdir(parents=True)
        (child / "d/0").write_bytes(value)
        _write(
            child,
            {
                f"w{process}": Reference(
                    path="d/0", offset_bytes=0, length_bytes=len(value)
                )
            },
        )
        expected[f"w{process}"] = value

    _merge(tmp_path, children)

    assert _decode_all(tmp_path) == _tensorstore_all(tmp_path) == expected


# --- we read TensorStore's


@pytest.mark.parametrize("compression", [None, {"id": "zstd", "level": 3}])
@pytest.mark.parametrize("max_decoded_node_bytes", [500, 100_000_000])
def test_reads_what_tensorstore_wrote(
    tmp_path: Path, compression: object, max_decoded_node_bytes: int
) -> None:
    """Values inside and outside, one node or three levels, compressed or not."""
    rng = np.random.default_rng(5)
    expected = {
        f"params/layer_{index:03}/{'kernel' * (index % 3)}/c/0": rng.bytes(
            int(rng.integers(0, 300))
        )
        for index in range(300)
    }
    store = _open(
        tmp_path,
        compression=compression,
        max_decoded_node_bytes=max_decoded_node_bytes,
        max_inline_value_bytes=100,
    )
    with ts.Transaction() as transaction:
        for key, value in expected.items():
            store.with_transaction(transaction)[key] = value

    assert _decode_all(tmp_path) == expected


def test_reads_the_newest_of_many_versions(tmp_path: Path) -> None:
    """Older versions, in the manifest and in the version tree, are left alone."""
    for index in range(40):
        _open(tmp_path, version_tree_arity_log2=1).write("a", b"%d" % index).result()
        _open(tmp_path).write(f"k{index}", b"").result()

    expected = {f"k{index}": b"" for index in range(40)} | {"a": b"39"}
    assert _decode_all(tmp_path) == expected


def test_reads_merged_interior_nodes(tmp_path: Path) -> None:
    """Nodes under a base, and the bases in them, add up to the right paths."""
    _open(tmp_path, max_decoded_node_bytes=500).write("own", b"value").result()
    expected = {"own": b"value"}
    children = [tmp_path / f"ocdbt.process_{process}" for process in (0, 1)]
    for process, child in enumerate(children):
        store = _open(child, max_decoded_node_bytes=500, max_inline_value_bytes=10)
        values = {f"p{process}/{index:04}": b"%0200d" % index for index in range(200)}
        with ts.Transaction() as transaction:
            for key, value in values.items():
                store.with_transaction(transaction)[key] = value
        expected |= values

    _merge(tmp_path, children)

    assert _decode_all(tmp_path) == expected


def test_numbered_manifests_are_left_to_others(tmp_path: Path) -> None:
    """A manifest that is spread over several files is refused by its name."""
    _open(tmp_path, manifest_kind="numbered").write("a", b"1").result()

    with pytest.raises(InvalidLayoutError, match="numbered"):
        _decode_all(tmp_path)


# --- damage


def _sealed(
    magic: bytes, body: bytes, header: bytes = b"\0\0", length_error: int = 0
) -> bytes:
    """An envelope with the right length and checksum around any body."""
    length = 12 + len(header + body) + 4 + length_error
    data = magic + struct.pack("<Q", length) + header + body
    return data + struct.pack("<I", crc32c(data))


_SAMPLE: Entries = {
    "a/c/0": Reference(path="ocdbt.process_0/d/0", offset_bytes=300, length_bytes=40),
    "a/zarr.json": b"{}",
    "b/c/0": Reference(path="ocdbt.process_1/d/0", offset_bytes=0, length_bytes=4),
}


@pytest.mark.parametrize("part", [0, 1])
def test_every_flipped_bit_and_every_cut_is_found(part: int) -> None:
    """Any bit and any end of node or manifest: damage is reported, nothing else."""
    files = _encode(_SAMPLE)
    data = files[part]
    damaged = [data[:end] for end in range(len(data))] + [data + b"\0"]
    for position, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        damaged.append(bytes(flipped))

    for bytes_on_disk in damaged:
        node, manifest = (
            (bytes_on_disk, files[1]) if part == 0 else (files[0], bytes_on_disk)
        )
        if part == 0 and len(node) > len(files[0]):
            continue  # What lies behind a node in its file is not part of it.
        with pytest.raises(CorruptCheckpointError):
            _decode(node, manifest)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _manifest_body(root_length: int, height: int) -> bytes:
    """A manifest whose root has its height for an offset."""
    _, manifest = _encode({"a": b"1"}, "d")
    body = manifest[14:-4]
    start = body.index(b"\x01\x01\0d") + 4  # behind the table of files
    place = bytes([0, height]) + _varint(root_length)
    return body[:start] + bytes([1, 1, height]) + place + bytes(3 + 8 + 1)


def _interior_body(height: int, child_length: int, **columns: bytes) -> bytes:
    """An interior node with three children at one place: their height, again."""
    parts = {
        "height": bytes([height]),
        "file_count": b"\1",
        "path_lengths": b"\1",
        "base_lengths": b"\0",
        "paths": b"d",
        "count": b"\3",
        "shared": bytes(2),
        "key_lengths": b"\1\1\1",
        "inherited": b"\1\1\1",
        "keys": b"abc",
        "file_ids": bytes(3),
        "offsets": bytes([height - 1] * 3),
        "lengths": _varint(child_length) * 3,
        "statistics": bytes(9),
    }
    assert columns.keys() <= parts.keys()
    return b"".join((parts | columns).values())


def _leaf_body(**columns: bytes) -> bytes:
    """A leaf with a value outside, `a`, and one inside, `b`."""
    parts = {
        "height": b"\0",
        "file_count": b"\1",
        "path_lengths": b"\4",
        "base_lengths": b"\0",
        "paths": b"d/0a",
        "count": b"\2",
        "shared": b"\0",
        "key_lengths": b"\1\1",
        "keys": b"ab",
        "lengths": b"\4\1",
        "kinds": b"\1\0",
        "file_ids": b"\0",
        "offsets": b"\7",
        "inline": b"x",
    }
    assert columns.keys() <= parts.keys()
    return b"".join((parts | columns).values())


def _decode_levels(*bodies: bytes) -> Entries:
    """Decodes a tree given as the bodies of its nodes by height, leaf first."""
    nodes = [_sealed(NODE_MAGIC, body) for body in bodies]
    manifest = _manifest_body(len(nodes[-1]), len(nodes) - 1)
    return _decode_database(
        _sealed(MANIFEST_MAGIC, manifest), lambda place: nodes[place.offset_bytes]
    )


def _sealed_length(body: bytes) -> int:
    return len(_sealed(NODE_MAGIC, body))


_LONG = MAX_NAME_BYTES + 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"keys": b"ba"}, "out of order"),
        ({"keys": b"aa"}, "out of order"),
        ({"keys": b"a\xff"}, "a key is not UTF-8"),
        ({"paths": b"d/0\xff"}, "a path is not UTF-8"),
        ({"file_ids": b"\1"}, "not among the 1 files"),
        ({"shared": b"\2"}, "shares more"),
        ({"kinds": b"\2\0"}, "neither inline nor outside"),
        ({"base_lengths": b"\5"}, "longer than the path"),
        ({"offsets": _varint(2**63 - 4)}, "beyond the end"),
        ({"offsets": b"\xff" * 9 + b"\2"}, "more than 64 bits"),
        ({"offsets": b"\x80" * 10 + b"\0"}, "does not end"),
        ({"offsets": b"\x80", "inline": b""}, "does not end"),
        ({"key_lengths": b"\1" + _varint(2**32)}, "4 GiB"),
        ({"count": b"\0"}, "no entry"),
        ({"count": b"\x50"}, "80 records in"),
        ({"lengths": b"\4\2"}, "2 bytes wanted, 1 left"),
        ({"offsets": b"", "inline": b""}, "1 integers in 0 bytes"),
        ({"inline": b"xy"}, "1 bytes too many"),
        (
            {"key_lengths": b"\1" + _varint(_LONG), "keys": b"a" + b"b" * _LONG},
            "a name of more than 65535",
        ),
        (
            {
                "lengths": b"\4" + _varint(MAX_INLINE_BYTES + 1),
                "inline": bytes(MAX_INLINE_BYTES + 1),
            },
            "an inline value of more than",
        ),
    ],
)
def test_contradictions_in_a_leaf_are_named(
    columns: dict[str, bytes], message: str
) -> None:
    """Where a node that is whole cannot be right, the message says why."""
    assert len(_decode_levels(_leaf_body())) == 2

    with pytest.raises(CorruptCheckpointError, match=message):
        _decode_levels(_leaf_body(**columns))


def test_contradictions_between_levels_are_named() -> None:
    """Keys and paths that are too long or too short only together are found."""
    leaf = _leaf_body()
    base = b"b" * 60_000
    long_path = _leaf_body(path_lengths=_varint(9_000), paths=bytes(9_000))
    long_key = _leaf_body(key_lengths=b"\1" + _varint(9_000), keys=b"a" + b"b" * 9_000)
    one_key = {
        "count": b"\1",
        "shared": b"",
        "inherited": b"\1",
        "key_lengths": b"\1",
        "keys": b"a",
        "file_ids": b"\0",
        "offsets": b"\0",
        "statistics": bytes(3),
    }

    def root(over: bytes, **columns: bytes) -> bytes:
        lengths = _varint(_sealed_length(over))
        return _interior_body(1, 0, **(one_key | {"lengths": lengths} | columns))

    assert list(_decode_levels(leaf, root(leaf))) == ["aa", "ab"]
    with pytest.raises(CorruptCheckpointError, match="more than its key"):
        _decode_levels(leaf, root(leaf, inherited=b"\2"))
    columns = {"path_lengths": _varint(60_000), "base_lengths": _varint(60_000)}
    with pytest.raises(CorruptCheckpointError, match="a path of more than 65535"):
        _decode_levels(long_path, root(long_path, paths=base, **columns))
    columns = {"inherited": _varint(60_000), "key_lengths": _varint(60_000)}
    with pytest.raises(CorruptCheckpointError, match="a key of 69000 bytes"):
        _decode_levels(long_key, root(long_key, keys=base, **columns))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (_sealed(MANIFEST_MAGIC, _leaf_body()), "begins with 0cdb3a2a"),
        (_sealed(NODE_MAGIC, _leaf_body())[:17], "17 bytes and says 39"),
        (_sealed(NODE_MAGIC, _leaf_body(), length_error=1), "39 bytes and says 40"),
    ],
)
def test_contradictions_in_an_envelope_are_named(node: bytes, message: str) -> None:
    """Something else in the place of a node is not taken for one."""
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(len(node), 0))

    with pytest.raises(CorruptCheckpointError, match=message):
        _decode_database(manifest, lambda place: node)


def test_a_parent_may_refer_to_the_nodes_of_its_children(tmp_path: Path) -> None:
    """Paths in a node under a base are below that base, as TensorStore has it."""
    expected: dict[str, bytes] = {}
    lengths: list[int] = []
    for process, key in enumerate("ab"):
        child = tmp_path / f"ocdbt.process_{process}"
        place = Reference(path="d/0", offset_bytes=0, length_bytes=9)
        entries: Entries = {key: place}
        _write(child, entries, "d/1")
        (child / "d/0").write_bytes(b"process %d" % process)
        expected[key] = b"process %d" % process
        lengths.append((child / "d/1").stat().st_size)
    base = len("ocdbt.process_0/")
    root = _interior_body(
        1,
        0,
        file_count=b"\2",
        path_lengths=bytes([0, base + 3, base + 3]),
        base_lengths=bytes([base, base]),
        paths=b"ocdbt.process_0/d/1ocdbt.process_1/d/1",
        count=b"\2",
        shared=b"\0",
        key_lengths=b"\1\1",
        inherited=b"\0\0",
        keys=b"ab",
        file_ids=b"\0\1",
        offsets=b"\0\0",
        lengths=bytes(lengths),
        statistics=bytes([1, 1, *lengths, 9, 9]),
    )
    node = _sealed(NODE_MAGIC, root)
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(len(node), 1))
    (tmp_path / "d").write_bytes(b"." + node)  # the root is at offset 1
    (tmp_path / "manifest.ocdbt").write_bytes(manifest)

    assert _decode_all(tmp_path) == _tensorstore_all(tmp_path) == expected


def test_bases_add_up_over_levels() -> None:
    """A base under a base under the root is relative to both."""
    leaf = _leaf_body()
    inner = _interior_body(
        1, _sealed_length(leaf), path_lengths=b"\3", base_lengths=b"\2", paths=b"y/d"
    )
    outer = _interior_body(
        2, _sealed_length(inner), path_lengths=b"\3", base_lengths=b"\2", paths=b"x/d"
    )

    decoded = _decode_levels(leaf, inner, outer)

    assert list(decoded)[:3] == ["aaa", "aab", "aba"]
    assert decoded["cca"] == Reference(path="x/y/d/0a", offset_bytes=7, length_bytes=4)


def test_a_node_has_the_length_that_its_parent_says() -> None:
    """Another node in the place of the right one is refused, even if it is whole."""
    node = _sealed(NODE_MAGIC, _leaf_body())
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(len(node) + 1, 0))

    with pytest.raises(CorruptCheckpointError, match="cut short after 39 bytes"):
        _decode_database(manifest, lambda place: node)


def test_versions_are_in_order() -> None:
    """Two versions of one generation leave open which is the newest."""
    _, manifest = _encode({"a": b"1"}, "d")
    body = manifest[14:-4]
    start = body.index(b"\1\1\0d") + 4
    columns = bytes(2 * 7 + 2 * 8)

    for generations, message in ((b"\1\2", "begins with"), (b"\2\2", "out of order")):
        versions = b"\2" + generations + columns + b"\0"
        with pytest.raises(CorruptCheckpointError, match=message):
            _decode_database(
                _sealed(MANIFEST_MAGIC, body[:start] + versions), lambda place: b""
            )


def test_many_small_entries_count() -> None:
    """Entries take more memory than their bytes, and the limit knows."""
    node, manifest = _encode({f"{index:04}": b"" for index in range(2000)})

    with pytest.raises(CorruptCheckpointError, match="memory"):
        _decode(node, manifest, limit_bytes=10 * len(node))


def _mutate(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for place, inserted, dropped in edits:
        start = place % (len(data) + 1)
        data = data[:start] + inserted + data[start + dropped :]
    return data


_edits = st.lists(
    st.tuples(st.integers(0, 300), st.binary(max_size=10), st.integers(0, 10)),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(_edits, _edits, _edits)
def test_hostile_bytes_under_right_checksums(
    leaf_edits: list[tuple[int, bytes, int]],
    interior_edits: list[tuple[int, bytes, int]],
    manifest_edits: list[tuple[int, bytes, int]],
) -> None:
    """Bytes changed by someone who also mends lengths and sums never crash us."""
    node, _ = _encode(_SAMPLE)
    leaf = _sealed(NODE_MAGIC, _mutate(node[14:-4], leaf_edits))
    root = _interior_body(1, len(leaf))
    root = _sealed(NODE_MAGIC, _mutate(root, interior_edits))
    manifest = _manifest_body(len(root), 1)
    manifest = _sealed(MANIFEST_MAGIC, _mutate(manifest, manifest_edits))
    nodes = {0: leaf, 1: root}

    try:
        decoded = _decode_database(
            manifest,
            lambda place: nodes.get(place.offset_bytes, b""),
            limit_bytes=1 << 20,
        )
    except (CorruptCheckpointError, InvalidLayoutError):
        # A changed version or kind makes a form that we do not read.
        return

    assert list(decoded) == sorted(decoded, key=str.encode)
    if not (leaf_edits or interior_edits or manifest_edits):
        assert len(decoded) == 3 * len(_SAMPLE)


def test_a_tree_that_repeats_itself_is_refused() -> None:
    """A hundred nodes that stand for 3 to the power of 100 keys are refused in time."""
    node, _ = _encode({"": b"1"})
    nodes = [node]
    for height in range(1, 101):
        nodes.append(_sealed(NODE_MAGIC, _interior_body(height, len(nodes[-1]))))
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(len(nodes[100]), 100))

    with pytest.raises(CorruptCheckpointError, match="memory"):
        _decode_database(
            manifest, lambda place: nodes[place.offset_bytes], limit_bytes=1 << 24
        )


def test_height_falls_with_every_level() -> None:
    """A node that refers to itself is refused: its height is not one less."""
    length = len(_sealed(NODE_MAGIC, _interior_body(2, 70)))
    node = _sealed(NODE_MAGIC, _interior_body(2, length))
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(length, 2))

    with pytest.raises(CorruptCheckpointError, match="height 2 where 1 was promised"):
        _decode_database(manifest, lambda place: node)


_LIMIT_BYTES = 1 << 22


def _bombs() -> dict[str, bytes]:
    """Node bodies of a few kilobytes, each asking for gigabytes in its own way."""
    # 4,000 keys, each of them the one before and one byte more: 64 KiB each.
    count = 4_000
    shared = _varint(60_000) * (count - 1)
    growing = b"\0\0" + _varint(count) + shared + _varint(60_001) + b"\1" * (count - 1)
    return {
        "explodes": _sealed(NODE_MAGIC, zstandard.compress(bytes(1 << 28), 3), b"\0\1"),
        "shared prefixes": _sealed(NODE_MAGIC, growing + b"x" * 64_000),
        "many entries": _sealed(NODE_MAGIC, b"\0\0" + _varint(2**60)),
        "long key": _sealed(NODE_MAGIC, b"\0\0\1" + _varint(2**63)),
        "many files": _sealed(NODE_MAGIC, b"\0" + _varint(2**64 - 1)),
    }


@pytest.mark.parametrize("name", list(_bombs()))
def test_bombs_take_no_memory(name: str) -> None:
    """What would unpack to more than the limit is refused before it does."""
    node = _bombs()[name]
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(len(node), 0))

    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError):
            _decode(node, manifest, limit_bytes=_LIMIT_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 4 * _LIMIT_BYTES


def test_nothing_beyond_the_limit_is_read() -> None:
    """The reader is not asked for a node of a length that no database has."""
    manifest = _sealed(MANIFEST_MAGIC, _manifest_body(2**40, 0))

    def read(place: Reference) -> bytes:
        raise AssertionError(f"asked for {place}")

    with pytest.raises(CorruptCheckpointError, match="memory"):
        _decode_database(manifest, read)


def test_a_later_format_is_left_to_later_readers() -> None:
    """A version or compression that we do not know is not called damage."""
    _, manifest = _encode({})
    later = _sealed(MANIFEST_MAGIC, manifest[14:-4], b"\1\0")
    smaller = _sealed(MANIFEST_MAGIC, manifest[14:-4], b"\0\2")

    with pytest.raises(InvalidLayoutError, match="version 1"):
        _decode(b"", later)
    with pytest.raises(InvalidLayoutError, match="unknown method 2"):
        _decode(b"", smaller)


def test_errors_of_the_reader_are_passed_on() -> None:
    """A node file that is not there is the reader's error, unchanged."""
    _, manifest = _encode(_SAMPLE)

    def read(place: Reference) -> bytes:
        raise FileNotFoundError(place.path)

    with pytest.raises(FileNotFoundError, match=_NODE_PATH):
        _decode_database(manifest, read)
