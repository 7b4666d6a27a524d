"""Chunks written are chunks read, each once, and verified before anybody sees them."""

import asyncio
import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import NUMPY_DTYPES, bits, differences

from stowax._box import Box, whole
from stowax._budget import Budget, Scratch
from stowax._codecs._checksum import crc32c
from stowax._codecs._zarr import TRAILER_BYTES, dtype_name
from stowax._engine_read import ChunkSource
from stowax._engine_write import write_chunks
from stowax._formats._base import ReadRequest
from stowax._keypath import Key, Node
from stowax._manifest import LeafEntry, LeafForm, Manifest
from stowax._plan import _chunk_shape, _write
from stowax._plan._write import ArrayLayout, plan_write
from stowax.errors import CorruptCheckpointError
from stowax.testing import MemoryStore, RecordingStore

UNLIMITED = Scratch(Budget(), 1 << 40)


class Staged:
    """Parts that are there from the beginning."""

    def __init__(self, parts):
        self.parts = parts

    async def staged(self, file):
        pass

    def written(self, file):
        pass


async def write(store, arrays, *, limit_bytes=64 << 20, codec=None, passed=None):
    """Writes arrays, whole, and returns the manifest of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunk_shape, "CHUNK_LIMIT_BYTES", limit_bytes)
        patch.setattr(_write, "FILE_LIMIT_BYTES", limit_bytes)
        layouts = {
            i: ArrayLayout(
                shape=a.shape,
                dtype=a.dtype,
                parts=((whole(a.shape), (0,)),) if a.size else (),
                codec=codec,
            )
            for i, a in enumerate(arrays)
        }
        plan = plan_write(layouts, process_index=0, data_directory="d/")
    staged = Staged([arrays[part.leaf] for part in plan.parts])
    table, _ = await write_chunks(store, "/item", plan, staged, passed)
    leaves = tuple(
        LeafEntry(
            (Key("key", f"leaf{i}"),),
            f"leaf{i}",
            LeafForm(
                kind="np.ndarray",
                dtype=dtype_name(a.dtype),
                shape=a.shape,
                chunk_shape=plan.chunk_shapes[i],
                codec=codec,
            ),
        )
        for i, a in enumerate(arrays)
    )
    return Manifest(root=Node(kind="none"), leaves=leaves, chunks=(table,))


async def read(store, manifest, boxes, *, verify=True, arrived=None):
    """Reads boxes of leaves."""
    requests = [
        ReadRequest(
            leaf=leaf,
            box=box,
            out=np.full(box.shape, 1, bits(manifest.leaves[leaf].form.dtype, ()).dtype),
        )
        for leaf, box in boxes
    ]
    source = ChunkSource(store, "/item", manifest, verify=verify)
    await source.read(requests, UNLIMITED, arrived)
    return [request.out for request in requests]


@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_box_of_any_array(data):
    """Any boxes, overlapping ones too, hold what was written, for any chunks."""
    arrays = []
    for seed in range(data.draw(st.integers(1, 3))):
        shape = tuple(data.draw(st.lists(st.integers(0, 7), max_size=3)))
        arrays.append(bits(data.draw(st.sampled_from(NUMPY_DTYPES)), shape, seed))
    boxes = []
    for _ in range(data.draw(st.integers(0, 4))):
        leaf = data.draw(st.integers(0, len(arrays) - 1))
        ends = [
            sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))
            for n in arrays[leaf].shape
        ]
        boxes.append((leaf, Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))))
    limit = data.draw(st.sampled_from([1, 16, 64, 1 << 20]))

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, arrays, limit_bytes=limit)
        return await read(store, manifest, boxes)

    for (leaf, box), found in zip(boxes, asyncio.run(there_and_back()), strict=True):
        expected = arrays[leaf][box.within(whole(arrays[leaf].shape))]
        assert differences(expected, found) == []


@pytest.mark.parametrize("codec", [None, "zstd"])
@pytest.mark.parametrize("limit_bytes", [10_000, 3 << 20, 64 << 20])
def test_what_has_passed_is_told(codec, limit_bytes):
    """All bytes of arrays, each once, and of large ones piece by piece."""
    arrays = [np.arange(3 << 20), np.arange(7, dtype="i1"), np.ones((3, 1000))]
    boxes = [
        (0, whole((3 << 20,))),
        (0, Box((5,), (2 << 20,))),
        (1, whole((7,))),
        (2, Box((0, 10), (3, 990))),
    ]
    passed, arrived = [], []

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(
            store, arrays, limit_bytes=limit_bytes, codec=codec, passed=passed.append
        )
        await read(store, manifest, boxes, arrived=arrived.extend)

    asyncio.run(there_and_back())

    assert sum(passed) == sum(array.nbytes for array in arrays)
    told = dict.fromkeys(range(3), 0)
    for leaf, size_bytes in arrived:
        told[leaf] += size_bytes
    assert told == {0: 8 * ((3 << 20) + (2 << 20) - 5), 1: 7, 2: 8 * 3 * 980}
    if codec is None:
        assert max(passed) <= 4 << 20
        assert max(size_bytes for _, size_bytes in arrived) <= 4 << 20


def test_bytes_on_disk():
    """A chunk is its elements in C order, then their CRC-32C; padding is zero."""
    array = np.arange(6, dtype="<u2").reshape(2, 3).T

    async def there():
        store = MemoryStore()
        manifest = await write(store, [array, np.array(7, "<u2")])
        (entry,) = await store.list("/item/d")
        content = bytearray(entry.size_bytes)
        await store.read_into("/item/d/data-0", 0, content)
        return manifest, bytes(content)

    manifest, content = asyncio.run(there())

    payload = array.tobytes()
    first = payload + crc32c(payload).to_bytes(TRAILER_BYTES, "little")
    assert content[:16] == first
    assert content[16:64] == bytes(48)
    assert content[64:66] == b"\7\0"
    assert len(content) == 70
    assert manifest.chunks[0].sums.tolist() == [crc32c(payload), crc32c(b"\7\0")]


def test_edge_chunks_are_padded_with_zeros():
    """A chunk at the edge has the size of all others."""
    array = np.full((3,), 0xFFFF, "<u2")

    async def there():
        store = MemoryStore()
        manifest = await write(store, [array], limit_bytes=4)
        contents = []
        for entry in await store.list("/item/d"):
            content = bytearray(entry.size_bytes)
            await store.read_into(f"/item/d/{entry.name}", 0, content)
            contents.append(bytes(content))
        return manifest, b"".join(contents)

    manifest, content = asyncio.run(there())

    assert manifest.leaves[0].form.chunk_shape == (2,)
    assert b"\xff\xff\0\0" + crc32c(b"\xff\xff\0\0").to_bytes(4, "little") in content


class Watched:
    """Leaves that note which threads look one up."""

    def __init__(self, leaves):
        self.leaves = leaves
        self.threads = set()

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        return self.leaves[index]


def test_reads_are_planned_off_the_loop():
    """However many chunks there are, the engine's loop goes on meanwhile."""

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, [np.arange(5.0)])
        leaves = Watched(manifest.leaves)
        source = ChunkSource(
            store, "/item", dataclasses.replace(manifest, leaves=leaves), verify=True
        )
        out = np.empty(5)
        await source.read([ReadRequest(leaf=0, box=whole((5,)), out=out)], UNLIMITED)
        return out, leaves.threads

    out, threads = asyncio.run(there_and_back())

    assert out.tolist() == [0, 1, 2, 3, 4]
    assert threads
    assert threading.get_ident() not in threads


def test_each_chunk_is_read_once():
    """However many boxes need a chunk, its bytes come once; neighbours together."""
    arrays = [np.arange(100), np.arange(50)]

    async def there_and_back():
        store = RecordingStore(MemoryStore())
        manifest = await write(store, arrays)
        boxes = [(0, Box((0,), (60,))), (0, Box((40,), (100,))), (1, whole((50,)))]
        await read(store, manifest, boxes)
        return [call for call in store.calls if call.operation == "read_into"]

    assert len(asyncio.run(there_and_back())) == 1


def test_unneeded_chunks_are_not_read():
    """What nobody asked for is not touched: it may be damaged or gone."""

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, [np.arange(4), np.zeros(0)])
        await store.delete("/item/d/data-0")
        return await read(store, manifest, [(1, whole((0,)))])

    assert asyncio.run(there_and_back())[0].shape == (0,)


@pytest.mark.parametrize("limit_bytes", [64, 1 << 20], ids=["together", "alone"])
def test_damage_is_named(limit_bytes):
    """A damaged chunk is named by leaf, box and file, as one plain error."""
    arrays = [np.arange(40.0), np.arange(40.0)]

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, arrays, limit_bytes=limit_bytes)
        path = f"/item/{manifest.chunks[0].files[-1]}"
        entry = await store.stat(path)
        content = bytearray(entry.size_bytes)
        await store.read_into(path, 0, content)
        content[-TRAILER_BYTES - 1] ^= 1
        await store.delete(path)
        await store.write(path, [content])
        boxes = [(0, whole((40,))), (1, whole((40,)))]
        with pytest.raises(CorruptCheckpointError, match="leaf 'leaf1'") as caught:
            await read(store, manifest, boxes)
        assert path in str(caught.value)
        unverified = await read(store, manifest, boxes, verify=False)
        assert unverified[0].tolist() == arrays[0].tolist()
        assert unverified[1].tolist() != arrays[1].tolist()

    asyncio.run(there_and_back())


def test_chunk_that_the_table_lacks():
    """A chunk that no table lists is an error, not zeros."""

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, [np.arange(4)])
        leaves = (*manifest.leaves, manifest.leaves[0])
        manifest = Manifest(root=manifest.root, leaves=leaves, chunks=manifest.chunks)
        with pytest.raises(CorruptCheckpointError, match="not in the manifest"):
            await read(store, manifest, [(1, whole((4,)))])

    asyncio.run(there_and_back())


def test_chunk_of_another_length():
    """A chunk whose length does not fit its leaf is an error."""

    async def there_and_back():
        store = MemoryStore()
        manifest = await write(store, [np.arange(4)])
        (leaf,) = manifest.leaves
        form = dataclasses.replace(leaf.form, dtype="int32")
        wrong = leaf._replace(form=form)
        manifest = Manifest(root=manifest.root, leaves=(wrong,), chunks=manifest.chunks)
        with pytest.raises(CorruptCheckpointError, match="16 expected"):
            await read(store, manifest, [(0, whole((4,)))])

    asyncio.run(there_and_back())
