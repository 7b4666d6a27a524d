"""Arrays in databases of others, read by the index of the database.

TensorStore writes them, and reads them too.  In a store that is no directory it cannot,
so what is loaded from there was read without it.
"""

import asyncio
import json
import os
import random
import re
import tempfile
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_databases import write_database
from sample_trees import NUMPY_DTYPES, bits, differences

from stowax._box import Box, whole
from stowax._budget import Budget, Scratch
from stowax._codecs._checksum import crc32c
from stowax._codecs._ocdbt import Reference
from stowax._codecs._ocdbt_write import encode_database
from stowax._codecs._zarr import array_document
from stowax._database_source import open_database
from stowax._formats._base import ReadRequest
from stowax._keypath import Key, Node
from stowax._manifest import LeafEntry, LeafForm, Manifest
from stowax._stores._local import LocalStore
from stowax._tensorstore import TensorStoreSource
from stowax.errors import CorruptCheckpointError, InvalidLayoutError, StowaxError
from stowax.testing import MemoryStore, RecordingStore

UNLIMITED = Scratch(Budget(), 1 << 40)

DAMAGE_COUNT = 20_000 if os.environ.get("STOWAX_SOAK") else 150

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3}}
CRC = {"name": "crc32c"}


def sharded(chunk_shape, *codecs, location="end"):
    """Codecs of an array in shards."""
    configuration = {
        "chunk_shape": list(chunk_shape),
        "codecs": list(codecs),
        "index_codecs": [LITTLE, CRC],
        "index_location": location,
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def write(directory, arrays, *, context=None, inline_bytes=1024):
    """Writes arrays with TensorStore: name to (values, chunk shape, codecs).

    Codecs are those of zarr 3, or of zarr 2 the compressor.
    """
    context = context or ts.Context()
    for name, (array, chunk_shape, codecs) in arrays.items():
        base = {"driver": "file", "path": f"{directory}/"}
        kvstore = {
            "driver": "ocdbt",
            "base": base,
            "path": name,
            "config": {"max_inline_value_bytes": inline_bytes},
        }
        if isinstance(codecs, list):
            if array.dtype.itemsize == 1:
                codecs = json.loads(json.dumps(codecs).replace(ONE, BARE))
            grid = {"configuration": {"chunk_shape": chunk_shape}, "name": "regular"}
            metadata = {"chunk_grid": grid, "codecs": codecs}
        else:
            metadata = {"chunks": chunk_shape, "compressor": codecs}
        spec = {
            "driver": "zarr3" if isinstance(codecs, list) else "zarr",
            "kvstore": kvstore,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        opened = ts.open(
            spec, create=True, dtype=array.dtype, shape=array.shape, context=context
        )
        opened.result().write(array).result()


ONE, BARE = json.dumps(LITTLE), json.dumps({"name": "bytes"})


def manifest(names):
    """An item of arrays."""
    leaves = tuple(
        LeafEntry((Key("key", name),), name, LeafForm(kind="np.ndarray"))
        for name in names
    )
    return Manifest(root=Node(kind="none"), leaves=leaves)


def no_others(_):
    """The other source, where none must be needed."""
    raise AssertionError("TensorStore is asked")


async def opened(
    store, directory, names, *, use_zarr3=True, fills_missing=False, others=no_others
):
    """A source for the arrays of these names."""
    source = await open_database(
        store,
        str(directory),
        manifest(names),
        use_zarr3=use_zarr3,
        fills_missing=fills_missing,
        others=others,
    )
    assert source is not None
    return source


def empty_for(leaf, box):
    """Memory that holds nothing of use yet."""
    kind = np.dtype(getattr(ml_dtypes, leaf.form.dtype, leaf.form.dtype))
    return np.full(box.shape, 0x55, np.dtype(f"V{kind.itemsize}")).view(kind)


async def fill(source, leaves, boxes):
    """Reads boxes by position of the leaf."""
    requests = []
    for position, box in boxes:
        leaf = leaves[position]
        box = box or whole(leaf.form.shape)
        requests.append(ReadRequest(leaf=position, box=box, out=empty_for(leaf, box)))
    await source.read(requests, UNLIMITED)
    return [request.out for request in requests]


def read(directory, names, boxes=None, *, store=None, **how):
    """Reads arrays by their names, whole or the given boxes by position."""

    async def run():
        source = await opened(store or LocalStore(), directory, names, **how)
        leaves = source.manifest.leaves
        return await fill(
            source, leaves, boxes or [(i, None) for i in range(len(names))]
        )

    return asyncio.run(run())


def read_by_tensorstore(directory, names, *, use_zarr3=True, fills_missing=False):
    """The same by the general reader."""

    async def run():
        source = TensorStoreSource(
            Path(directory),
            manifest(names).leaves,
            use_ocdbt=True,
            use_zarr3=use_zarr3,
            fills_missing=fills_missing,
        )
        leaves = await source.array_facts()
        return await fill(source, leaves, [(i, None) for i in range(len(names))])

    return asyncio.run(run())


async def copy_of(directory):
    """A directory in memory, where TensorStore cannot see it."""
    store = RecordingStore(MemoryStore())
    for name, data in files_below(directory).items():
        await store.write(f"/item/{name}", [data])
    return store


def files_below(directory):
    """The contents of all files, by path."""
    files = [file for file in Path(directory).rglob("*") if file.is_file()]
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


# --- what comes back


@st.composite
def arrays(draw, use_zarr3):
    """An array, the shape of its chunks and how they are stored."""
    chunk = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    shard = tuple(n * draw(st.integers(1, 3)) for n in chunk)
    shape = tuple(draw(st.integers(0, 2 * n)) for n in shard)
    array = bits(draw(st.sampled_from(NUMPY_DTYPES)), shape, draw(st.integers(0, 99)))
    if not use_zarr3:
        return array, shard, draw(st.sampled_from([None, {"id": "zstd", "level": 1}]))
    codecs = [LITTLE, *draw(st.sampled_from([[], [ZSTD], [CRC], [ZSTD, CRC]]))]
    if draw(st.booleans()):
        location = draw(st.sampled_from(["start", "end"]))
        codecs = sharded(chunk, *codecs, location=location)
    return array, shard, codecs


@settings(deadline=None, max_examples=60)
@given(data=st.data(), use_zarr3=st.booleans(), inline_bytes=st.sampled_from([0, 64]))
def test_any_array_and_any_box(data, use_zarr3, inline_bytes):
    """Any boxes of arrays in chunks or shards are what was written, bit for bit."""
    named = {
        f"a{i}": data.draw(arrays(use_zarr3))
        for i in range(data.draw(st.integers(1, 3)))
    }
    boxes = [(i, None) for i in range(len(named))]
    for position, (array, *_) in enumerate(named.values()):
        ends = [
            sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in array.shape
        ]
        boxes.append(
            (position, Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))
        )

    with tempfile.TemporaryDirectory() as directory:
        write(directory, named, inline_bytes=inline_bytes)
        found = read(directory, [*named], boxes, use_zarr3=use_zarr3)
        general = read_by_tensorstore(directory, [*named], use_zarr3=use_zarr3)

    values = [array for array, *_ in named.values()]
    for (position, box), part in zip(boxes, found, strict=True):
        array = values[position]
        expected = array if box is None else array[box.within(whole(array.shape))]
        assert differences(np.array(expected), part) == []
    assert differences(values, general) == []


LARGE = (3 << 20) // 4
"""Elements of four bytes in a chunk that is not read together with others."""


@pytest.mark.parametrize(
    "codecs",
    [
        [LITTLE],
        [LITTLE, ZSTD],
        [LITTLE, CRC],
        sharded([LARGE], LITTLE),
        sharded([LARGE], LITTLE, ZSTD),
        sharded([LARGE], LITTLE, CRC),
        sharded([LARGE // 3], LITTLE),
        sharded([LARGE // 3], LITTLE, ZSTD, location="start"),
    ],
)
def test_large_chunks(tmp_path, codecs):
    """Chunks of more than a MiB come back, too, whole and in part."""
    array = bits("float32", (LARGE * 2 - 5,))
    write(tmp_path, {"w": (array, [LARGE], codecs)})
    boxes = [(0, None), (0, Box((LARGE - 9,), (LARGE + 9,))), (0, Box((7,), (LARGE,)))]

    whole_array, *parts = read(tmp_path, ["w"], boxes)

    assert differences(array, whole_array) == []
    for (_, box), part in zip(boxes[1:], parts, strict=True):
        assert differences(array[box.start[0] : box.stop[0]], part) == []


def test_plain_chunks_are_read_in_part(tmp_path):
    """Of a large chunk that is stored as it is, only what is needed is read."""
    array = bits("float32", (LARGE,))
    write(tmp_path, {"w": (array, [LARGE], sharded([LARGE], LITTLE))})

    async def run():
        store = await copy_of(tmp_path)
        source = await opened(store, "/item", ["w"])
        before = len(store.calls)
        box = Box((LARGE - 100,), (LARGE - 50,))
        (part,) = await fill(source, source.manifest.leaves, [(0, box)])
        return part, store.calls[before:]

    part, calls = asyncio.run(run())

    assert differences(array[-100:-50], part) == []
    assert sum(call.size_bytes for call in calls) <= (1 << 20) + 20


@pytest.mark.parametrize("max_decoded_node_bytes", [500, 100_000_000])
def test_databases_of_several_processes(tmp_path, max_decoded_node_bytes):
    """The chunks of a merged database lie with the processes that wrote them."""
    context = ts.Context()
    config = {"max_decoded_node_bytes": max_decoded_node_bytes}
    values = {f"p{i}/w{k}": bits("int16", (600 * k,)) for i in range(3) for k in (1, 2)}
    target = ts.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{tmp_path}/", "config": config},
        context=context,
    ).result()
    for i in range(3):
        child = tmp_path / f"ocdbt.process_{i}"
        named = {n: (a, a.shape, [LITTLE]) for n, a in values.items() if n[1] == str(i)}
        write(child, named, context=context)
        spec = {"driver": "ocdbt", "base": f"file://{child}/"}
        store = ts.KvStore.open(spec, context=context).result()
        store.experimental_copy_range_to(target).result()

    found = read(tmp_path, [*values])

    assert differences([*values.values()], found) == []


def test_forms_that_only_tensorstore_knows(tmp_path):
    """They are read by it, beside others that are not."""
    gzip = [LITTLE, {"name": "gzip", "configuration": {"level": 1}}]
    big = [{"name": "bytes", "configuration": {"endian": "big"}}]
    named = {
        f"a{i}": (bits("float32", (7, 3), i), [4, 2], codecs)
        for i, codecs in enumerate([[LITTLE], gzip, sharded([4, 1], *big), [LITTLE]])
    }
    write(tmp_path, named)
    asked = []

    def others(leaves):
        source = TensorStoreSource(tmp_path, leaves, use_ocdbt=True, use_zarr3=True)

        class Asked:
            async def read(self, requests, scratch, arrived=None):
                asked.extend(request.leaf for request in requests)
                await source.read(requests, scratch, arrived)

        return Asked()

    found = read(tmp_path, [*named], others=others)

    assert differences([array for array, *_ in named.values()], found) == []
    assert asked == [1, 2]


def test_numbered_manifests_are_left_to_others(tmp_path):
    """A form of database that is not read here is no damage."""
    spec = {
        "driver": "ocdbt",
        "base": f"file://{tmp_path}/",
        "config": {"manifest_kind": "numbered"},
    }
    ts.KvStore.open(spec).result().write("w/zarr.json", b"{}").result()

    found = asyncio.run(
        open_database(
            LocalStore(),
            str(tmp_path),
            manifest(["w"]),
            use_zarr3=True,
            fills_missing=False,
            others=no_others,
        )
    )

    assert found is None


# --- what is missing


@pytest.mark.parametrize("is_sharded", [True, False])
def test_missing_chunks(tmp_path, is_sharded):
    """They are damage, or zeros where writers left them out; in shards as well."""
    codecs = sharded([2], LITTLE) if is_sharded else [LITTLE]
    array = np.array([0, 0, 3, 4, 0, 0, 0, 0], np.int32)
    kvstore = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "path": "w"}
    grid = {
        "name": "regular",
        "configuration": {"chunk_shape": [4 if is_sharded else 2]},
    }
    metadata = {"shape": [8], "chunk_grid": grid, "codecs": codecs}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}
    store = ts.open(spec, create=True, dtype="int32").result()
    store.write(array).result()

    (found,) = read(tmp_path, ["w"], fills_missing=True)

    assert differences(array, found) == []
    with pytest.raises(CorruptCheckpointError, match=r"leaf 'w'.*\[0:2\] is missing"):
        read(tmp_path, ["w"])
    assert read(tmp_path, ["w"], [(0, Box((2,), (4,)))])[0].tolist() == [3, 4]


def test_missing_array_is_named(tmp_path):
    """The error names the leaf and the item."""
    write(tmp_path, {"w": (bits("int8", (3,)), [3], [LITTLE])})

    with pytest.raises(CorruptCheckpointError, match=r"leaf 'gone' of .* is missing"):
        read(tmp_path, ["w", "gone"])


def test_missing_file_is_named(tmp_path):
    """The error names the file, and the leaf that it held."""
    entries = {"w/zarr.json": _plain(100), "w/c/0": place("d/0", 0, 100)}
    database(tmp_path, entries)

    with pytest.raises(CorruptCheckpointError, match=r"/d/0 .*leaf 'w'"):
        read(tmp_path, ["w"])


# --- what is asked of the store


def test_reads_are_few(tmp_path):
    """Of 500 arrays: the index is read once, and their chunks together."""
    values = {f"w{i}": bits("float32", (500,), i) for i in range(500)}
    write_database(tmp_path, values, max_inline_value_bytes=1024)  # So does Orbax.

    async def run():
        store = await copy_of(tmp_path)
        before = len(store.calls)
        source = await opened(store, "/item", [*values])
        described = store.calls[before:]
        leaves = source.manifest.leaves
        found = await fill(source, leaves, [(i, None) for i in range(500)])
        return found, described, store.calls[before + len(described) :]

    found, described, calls = asyncio.run(run())

    assert differences([*values.values()], found) == []
    assert [c.operation for c in described] == ["stat", "read_into"] * 2
    assert {c.operation for c in calls} == {"read_into"}
    assert len(calls) <= 3
    assert sum(c.size_bytes for c in calls) <= 1.05 * 500 * 2000


# --- hostile databases


def database(directory, entries, files=None, *, node_path="d/node"):
    """Writes a database with right checksums, whatever it says."""
    node, found = encode_database(
        entries.items(), node_path=node_path, uuid=bytes(16), commit_time_nsecs=0
    )
    for name, data in {
        "d/node": node,
        "manifest.ocdbt": found,
        **(files or {}),
    }.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def place(path, offset_bytes, length_bytes):
    """A range of a file."""
    return Reference(path=path, offset_bytes=offset_bytes, length_bytes=length_bytes)


def test_paths_do_not_lead_out(tmp_path):
    """A chunk, a document or a node that would be read elsewhere is refused."""
    (tmp_path / "secret").write_bytes(b"12345678")
    document = array_document((4,), "int8", (4,))
    for path in ("../secret", str(tmp_path / "secret"), "d/../../secret"):
        away = place(path, 0, 8)
        item = tmp_path / "item"
        database(item, {"w/zarr.json": document, "w/c/0": away})
        with pytest.raises(CorruptCheckpointError, match="not a plain path below"):
            read(item, ["w"])
        database(item, {"w/zarr.json": away})
        with pytest.raises(CorruptCheckpointError, match="not a plain path below"):
            read(item, ["w"])
        database(item, {"w/zarr.json": document}, node_path=path)
        with pytest.raises(CorruptCheckpointError, match="not a plain path below"):
            read(item, ["w"])


@pytest.mark.parametrize("shape", [(4,), (1 << 40,), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("codec", [None, "zstd"])
def test_promises_take_no_memory(tmp_path, shape, codec):
    """Sizes that the files do not bear out are refused before memory is taken."""
    for length in (0, 8, 1 << 41, 1 << 50):
        document = array_document(shape, "int8", shape, codec)
        database(
            tmp_path,
            {
                "w/zarr.json": document,
                "w/c" + "/0" * len(shape): place("d/0", 0, length),
            },
            {"d/0": b""},
        )

        with pytest.raises(CorruptCheckpointError, match="leaf 'w'"):
            read(tmp_path, ["w"], [(0, Box((0,) * len(shape), (1,) * len(shape)))])


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_bools_are_zero_or_one(tmp_path, use_zarr3):
    """Another byte is damage, as it is to TensorStore."""
    document = json.loads(_plain(3)) | {"data_type": "bool"}
    older = {"shape": [3], "chunks": [3], "dtype": "|b1", "compressor": None}
    older |= {"fill_value": None, "filters": None, "order": "C", "zarr_format": 2}
    entries = {
        "w/zarr.json": json.dumps(document).encode(),
        "w/.zarray": json.dumps(older).encode(),
        "w/c/0": b"\1\2\0",
        "w/0": b"\1\2\0",
    }
    database(tmp_path, entries)

    for reader in (read, read_by_tensorstore):
        with pytest.raises(CorruptCheckpointError, match="bool"):
            reader(tmp_path, ["w"], use_zarr3=use_zarr3)


def test_nodes_are_held_against_their_files(tmp_path):
    """A node of which the manifest says more than its file has takes no memory."""
    database(tmp_path, {"w/zarr.json": _plain(100)})
    found = bytearray((tmp_path / "manifest.ocdbt").read_bytes())
    length = (tmp_path / "d/node").stat().st_size
    # Height, file, offset and length of the root; one byte each is enough for them.
    (at,) = re.finditer(rb"\x00\x00\x00" + re.escape(varint(length)), found)
    found[at.end() - len(varint(length)) : at.end()] = varint(1 << 30)
    found[4:12] = len(found).to_bytes(8, "little")
    found[-4:] = crc32c(found[:-4]).to_bytes(4, "little")
    (tmp_path / "manifest.ocdbt").write_bytes(found)

    tracemalloc.start()
    with pytest.raises(CorruptCheckpointError, match="d/node is missing or cut short"):
        read(tmp_path, ["w"])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 1 << 24


def varint(value):
    """An unsigned integer as databases have it."""
    groups = [value >> shift & 0x7F for shift in range(0, value.bit_length(), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def test_ranges_may_overlap(tmp_path):
    """Chunks that share bytes, of whatever length, are each what their range says."""
    entries = {
        "a/zarr.json": _plain(100),
        "a/c/0": place("d/0", 0, 100),
        "b/zarr.json": _plain(10),
        "b/c/0": place("d/0", 20, 10),
    }
    database(tmp_path, entries, {"d/0": bytes(range(100))})

    a, b = read(tmp_path, ["a", "b"])

    assert a.tolist() == [*range(100)]
    assert b.tolist() == [*range(20, 30)]


def _plain(size):
    document = json.loads(array_document((size,), "int8", (size,)))
    return json.dumps(document | {"codecs": [{"name": "bytes"}]}).encode()


@pytest.mark.parametrize("kind", ["directory", "pipe", "missing"])
def test_what_is_no_file_is_no_file(tmp_path, kind):
    """A node or a chunk in the place of which something else stands is damage."""
    entries = {"w/zarr.json": _plain(100), "w/c/0": place("d/0", 0, 100)}
    database(tmp_path, entries, {"d/0": bytes(100)})
    for name in ("d/0", "d/node", "manifest.ocdbt"):
        file = tmp_path / name
        file.rename(tmp_path / "aside")
        if kind == "directory":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)

        with pytest.raises(CorruptCheckpointError, match=name):
            read(tmp_path, ["w"])

        if kind != "missing":
            file.rename(tmp_path / f"was {file.name}")
        (tmp_path / "aside").rename(file)


@pytest.fixture(scope="module")
def damaged_place(tmp_path_factory):
    """A checkpoint with all that there is: its values, and its files."""
    directory = tmp_path_factory.mktemp("damaged")
    shapes = {"float32": (30, 20), "bool": (900,), "int4": (7,)}
    forms = [[LITTLE], [LITTLE, ZSTD], [LITTLE, ZSTD, CRC]]
    forms += [sharded([], *form) for form in forms]
    named = {}
    for name, shape in shapes.items():
        for i, form in enumerate(forms):
            chunk = [-(-n // 2) for n in shape]
            if form[0]["name"] == "sharding_indexed":
                form = sharded(
                    [n // (i % 2 + 1) or 1 for n in chunk],
                    *form[0]["configuration"]["codecs"],
                )
                inner = form[0]["configuration"]["chunk_shape"]
                chunk = [-(-n // m) * m for n, m in zip(chunk, inner, strict=True)]
            named[f"{name}{i}"] = (bits(name, shape, i), chunk, form)
    write(directory, named, inline_bytes=200)
    files = {f: f.read_bytes() for f in directory.rglob("*") if f.is_file()}
    return directory, {name: array for name, (array, *_) in named.items()}, files


def read_with_others(directory, names):
    """Reads arrays, by TensorStore where a damaged document asks for that."""

    def others(leaves):
        return TensorStoreSource(directory, leaves, use_ocdbt=True, use_zarr3=True)

    return read(directory, names, others=others)


def outcome(reader, directory, names):
    """What a reader makes of a database: its values, or its error."""
    try:
        return [(a.dtype, a.shape, a.tobytes()) for a in reader(directory, names)]
    except StowaxError as error:
        return error


def _harm(content, rng):
    """The content with a bit flipped, an end cut off, or a part overwritten."""
    content = bytearray(content)
    how, place = rng.randrange(4), rng.randrange(len(content))
    if how == 0:
        del content[place:]
    elif how == 1:
        length = min(rng.randrange(1, 64), len(content) - place)
        content[place : place + length] = bytes(length)
    else:
        content[place] ^= 1 << rng.randrange(8)
    return bytes(content)


def test_damage_is_no_worse_than_in_tensorstore(damaged_place):
    """Damage gives what was saved, an error of ours, or what all others see."""
    directory, values, files = damaged_place
    names = [*values]
    saved = outcome(read, directory, names)
    assert saved == [(a.dtype, a.shape, a.tobytes()) for a in values.values()]
    rng = random.Random(5)
    found = {"saved": 0, "error": 0, "others": 0}

    for _ in range(DAMAGE_COUNT):
        file = rng.choice([*files])
        file.write_bytes(_harm(files[file], rng))
        result = outcome(read_with_others, directory, names)
        if isinstance(result, CorruptCheckpointError | InvalidLayoutError):
            found["error"] += 1
        elif result == saved:
            found["saved"] += 1
        else:
            found["others"] += 1
            assert result == outcome(read_by_tensorstore, directory, names)
        file.write_bytes(files[file])

    assert all(found.values()), found
