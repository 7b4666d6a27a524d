"""Our manifest and its parts: every byte is checked, and every size."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import trees

from stowax._codecs._checksum import BLOCK_BYTES, crc32c, seal, unseal
from stowax._codecs._compression import CODECS
from stowax._codecs._item_manifest import (
    ItemRoot,
    decode_digests,
    decode_part,
    decode_root,
    digest,
    encode_digests,
    encode_part,
    encode_root,
    encode_structure,
)
from stowax._keypath import flatten, to_json
from stowax._manifest import ChunkTable, CustomType, LeafEntry, LeafForm
from stowax.errors import CorruptCheckpointError

FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("aé"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner),
    max_leaves=3,
)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def encoded(root):
    """The bytes of a root document."""
    structure = encode_structure(root.root, root.leaves)
    return encode_root(structure, root.documents, root.parts)


def build_table(files, rows, block_bytes=BLOCK_BYTES):
    """Makes a table of rows (leaf, file, chunk, offset, length, sums)."""
    leaf, file, chunk, offset, length, sums = (
        zip(*rows, strict=True) if rows else ((),) * 6
    )
    return ChunkTable(
        files=tuple(name for name, _ in files),
        file_size_bytes=tuple(size for _, size in files),
        leaf=np.array(leaf, "<u4"),
        file=np.array(file, "<u4"),
        chunk=np.array(chunk, "<u8"),
        offset_bytes=np.array(offset, "<u8"),
        length_bytes=np.array(length, "<u8"),
        sum_ends=np.cumsum([len(s) for s in sums]).astype("<u8"),
        sums=np.array([value for s in sums for value in s], "<u4"),
        block_bytes=block_bytes,
    )


@st.composite
def roots(draw):
    """Roots of any tree, with leaves of any kind."""
    flat = flatten(draw(trees(st.integers())))
    entries = []
    for path, name in zip(flat.paths, flat.names, strict=True):
        if entries and draw(st.booleans()):
            form = draw(st.sampled_from(entries)).form
            entries.append(LeafEntry(path, name, form))
            continue
        if draw(st.booleans()):
            form = LeafForm(kind="string", text=draw(st.text("aé\n")))
            entries.append(LeafEntry(path, name, form))
            continue
        if draw(st.booleans()):
            text = hex(draw(st.integers()))
            entries.append(LeafEntry(path, name, LeafForm(kind="integer", text=text)))
            continue
        shape = draw(shapes)
        kind = draw(st.sampled_from(["jax.Array", "np.ndarray", "scalar"]))
        custom = CustomType(typestr="a.B", facts=draw(FACTS))
        sharding = {"sharding_type": "NamedSharding", "shape": [2]}
        form = LeafForm(
            kind=kind,
            dtype=draw(st.sampled_from(["bfloat16", "int4"])),
            shape=shape,
            chunk_shape=tuple(max(1, n) for n in shape),
            codec=draw(st.none() | st.sampled_from(sorted(CODECS))),
            write_shape=draw(st.none() | st.just(shape)),
            prng_impl=draw(st.none() | st.just("rbg")),
            sharding=draw(st.none() | st.just(sharding)),
            custom=draw(st.none() | st.just(custom)),
        )
        entries.append(LeafEntry(path, name, form))
    data = draw(st.dictionaries(st.text("abc/é", min_size=1), st.binary(), max_size=3))
    digests = {name: digest(content) for name, content in data.items()}
    return ItemRoot(
        root=flat.root, leaves=tuple(entries), documents=digests, parts=digests
    )


@st.composite
def tables(draw):
    """Tables of any rows."""
    files = draw(st.lists(st.tuples(st.text("ab/é"), st.just(1 << 40)), min_size=1))
    sums = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=4)
    rows = st.tuples(
        st.integers(0, (1 << 32) - 1),
        st.integers(0, len(files) - 1),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 1 << 32),
        st.integers(1, 4 << 10),
        sums,
    )
    block_bytes = draw(st.sampled_from([4 << 10, BLOCK_BYTES, 1 << 20]))
    rows = [
        (leaf, file, chunk, offset, (len(sums) - 1) * block_bytes + last_bytes, sums)
        for leaf, file, chunk, offset, last_bytes, sums in draw(
            st.lists(rows, max_size=5)
        )
    ]
    return files, rows, block_bytes


def same(first, second):
    """Whether two tables are equal, column by column."""
    return all(
        np.array_equal(getattr(first, f.name), getattr(second, f.name))
        for f in dataclasses.fields(first)
    )


@given(roots())
def test_root_there_and_back(root):
    """A root that is written and read is the same."""
    found = decode_root(encoded(root))

    assert to_json(found.root) == to_json(root.root)
    assert [entry[1:] for entry in found.leaves] == [entry[1:] for entry in root.leaves]
    assert (found.documents, found.parts) == (root.documents, root.parts)


@given(tables())
def test_table_there_and_back(case):
    """A table that is written and read is the same, row by row."""
    files, rows, block_bytes = case
    table = build_table(files, rows, block_bytes)

    found = decode_part(encode_part(table))

    assert same(found, table)
    assert len(found) == len(rows)
    for i, (leaf, file, chunk, offset, length, sums) in enumerate(rows):
        first = int(found.sum_ends[i - 1]) if i else 0
        assert (found.leaf[i], found.file[i], found.chunk[i]) == (leaf, file, chunk)
        assert (found.offset_bytes[i], found.length_bytes[i]) == (offset, length)
        assert found.sums[first : int(found.sum_ends[i])].tolist() == sums


def sample_part():
    """A small chunk table, in bytes."""
    rows = [(0, 0, 0, 0, 16, [1]), (1, 0, 0, 64, 16, [2])]
    return encode_part(build_table([("d/data-0", 100)], rows))


def sample_root():
    """A small root, in bytes."""
    flat = flatten({"a": 1})
    entry = LeafEntry(flat.paths[0], "a", LeafForm(kind="scalar", dtype="int64"))
    return encoded(ItemRoot(root=flat.root, leaves=(entry,), documents={}, parts={}))


@pytest.mark.parametrize(
    ("data", "decode"), [(sample_part(), decode_part), (sample_root(), decode_root)]
)
def test_every_damaged_byte_is_found(data, decode):
    """Each flipped byte and each shorter length is refused."""
    decode(data)
    for position in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            with pytest.raises(CorruptCheckpointError):
                decode(bytes(damaged))
        with pytest.raises(CorruptCheckpointError):
            decode(data[:position])


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": []},
        {"forms": [{"kind": "unheard of"}]},
        {"forms": [{"kind": "placeholder"}]},
        {"forms": [{"kind": "scalar", "shape": [-1]}]},
        {"forms": [{"kind": "scalar", "shape": [3], "chunk": [0]}]},
        {"forms": [{"kind": "scalar", "shape": [3], "chunk": []}]},
        {"forms": [{"kind": "scalar", "codec": "lzma"}]},
        {"forms": [{"kind": "jax.Array", "dtype": "int8", "sharding": [1]}]},
        {"forms": [{"kind": "jax.Array", "dtype": "uint32", "prng": 3}]},
        {"forms": [{"kind": "integer", "text": "12"}]},
        {"forms": [{"kind": "integer"}]},
        {"forms": [{"kind": "bytes", "dtype": "int8", "shape": [1], "chunk": [1]}]},
        {"forms": [{"kind": "scalar", "custom": {"type": 3, "facts": None}}]},
        {"forms": [{"kind": "scalar", "custom": {"type": "a"}}]},
        {"forms": [{"kind": "scalar", "custom": []}]},
        {"leaves": "text"},
        {"tree": {"kind": "unheard of", "children": []}},
        {"documents": {"a": [1]}},
        {"documents": []},
        {"parts": None},
    ],
    ids=str,
)
def test_wrong_content_with_right_checksum(changes):
    """What no writer of ours would write is refused, although the seal holds."""
    document = {**unseal(sample_root()), **changes}

    with pytest.raises(CorruptCheckpointError, match="no item manifest"):
        decode_root(seal(document))


@pytest.mark.parametrize("version", [4, "1", None, 1.5])
def test_other_versions(version):
    """A version that this release does not know is refused; the cure is named."""
    document = {**unseal(sample_root()), "version": version}

    with pytest.raises(CorruptCheckpointError, match="upgrade"):
        decode_root(seal(document))


def test_forms_are_written_once():
    """Leaves that are alike share one description, on disk and when they are read."""
    flat = flatten({"a": 1, "b": 2, "c": "x"})
    number, text = LeafForm(kind="scalar", dtype="int64"), LeafForm(kind="string")
    forms = (number, number, text)
    leaves = tuple(map(LeafEntry, flat.paths, flat.names, forms))
    root = ItemRoot(root=flat.root, leaves=leaves, documents={}, parts={})

    document = unseal(encoded(root))
    found = decode_root(encoded(root)).leaves

    assert document["leaves"] == [0, 0, 1]
    assert len(document["forms"]) == 2
    assert found == leaves
    assert found[0].form is found[1].form


@pytest.mark.parametrize("version", [1, 2])
def test_forms_of_older_versions(version):
    """Before there were forms, every leaf was described by itself."""
    document = unseal(sample_root())
    document["leaves"] = document.pop("forms")
    document["version"] = version

    assert decode_root(seal(document)) == decode_root(sample_root())


@pytest.mark.parametrize("position", [1, -1, "0", True])
def test_form_that_is_not_there(position):
    """A leaf without a form is damage, however the position is wrong."""
    document = {**unseal(sample_root()), "leaves": [position]}

    with pytest.raises(CorruptCheckpointError, match="no item manifest"):
        decode_root(seal(document))


def test_other_documents():
    """A sealed document of another kind is no manifest."""
    with pytest.raises(CorruptCheckpointError, match="stowax-item"):
        decode_root(seal({"format": "stowax-checkpoint", "version": 1}))


def with_header(part, version, **changes):
    """A chunk table with another version, and other entries in its header."""
    size_bytes = int.from_bytes(part[12:16], "little")
    header = json.loads(part[16 : 16 + size_bytes]) | changes
    text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    numbers = version.to_bytes(4, "little") + len(text).to_bytes(4, "little")
    body = part[:8] + numbers + text + part[16 + size_bytes : -4]
    return body + crc32c(body).to_bytes(4, "little")


def test_blocks_of_older_tables():
    """Before a table said how far its sums are apart, it was a MiB."""
    rows = [(0, 0, 0, 0, (1 << 20) + 1, [1, 2])]
    table = build_table([("d/data-0", 1 << 30)], rows, 1 << 20)

    found = decode_part(with_header(encode_part(table), 1, block=None))

    assert same(found, table)


@pytest.mark.parametrize("block", [0, -4096, 2048, 3 << 12, 1 << 21, "x", None])
def test_blocks_of_no_such_length(block):
    """Blocks that no writer of ours would make are refused, whatever the checksum."""
    with pytest.raises(CorruptCheckpointError, match="no chunk table"):
        decode_part(with_header(sample_part(), 2, block=block))


def test_tables_of_newer_releases():
    """They are refused by their version."""
    with pytest.raises(CorruptCheckpointError, match="version 3"):
        decode_part(with_header(sample_part(), 3))


@pytest.mark.parametrize(
    "row",
    [
        (0, 1, 0, 0, 16, [1]),
        (0, 0, 0, 96, 16, [1]),
        (0, 0, 0, 1 << 63, 16, [1]),
        (0, 0, 0, 0, (1 << 64) - 1, [1]),
        (0, 0, 0, 0, 16, []),
        (0, 0, 0, 0, 16, [1, 2]),
    ],
)
def test_rows_that_point_outside(row):
    """A row outside its file, or without one checksum for each block, is refused."""
    part = encode_part(build_table([("d/data-0", 100)], [row]))

    with pytest.raises(CorruptCheckpointError, match="outside"):
        decode_part(part)


def test_digests():
    """Digests are what `sha256sum` says, so files with a CRC of their own differ."""
    found = encode_digests({"a": digest(b"hello")})

    assert found == {
        "a": [5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"]
    }
    assert decode_digests(json.loads(json.dumps(found))) == {"a": digest(b"hello")}
    other = encode_part(build_table([("d/data-1", 100)], []))
    assert digest(other) != digest(encode_part(build_table([("d/data-0", 100)], [])))
