"""Compressed checkpoints: chosen by store and option, verified like all others."""

import asyncio
import pathlib
import tracemalloc

import jax
import numpy as np
import pytest
import zstandard
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import (
    abstract,
    all_kinds,
    bits,
    differences,
    mesh,
    plain,
    sharded_arrays,
    shardings,
)

import stowax
from stowax._codecs._checksum import seal, unseal
from stowax._codecs._item_manifest import decode_part
from stowax._stores._base import read_bytes
from stowax._stores._open import open_store
from stowax.errors import CorruptCheckpointError
from stowax.options import ArrayOptions, FileOptions, IntegrityOptions
from stowax.testing import MemoryStore


def compressing(use_compression=True, *, store=None, verify=True, **saving):
    """A Context that says whether chunks are compressed."""
    saving = ArrayOptions.Saving(use_compression=use_compression, **saving)
    return stowax.Context(
        array=ArrayOptions(saving=saving),
        file=FileOptions(store=store),
        integrity=IntegrityOptions(verify=verify),
    )


@pytest.fixture(params=["local", "remote"])
def where(request, tmp_path):
    """A store, and a path in it."""
    if request.param == "local":
        return None, str(tmp_path / "checkpoint")
    return MemoryStore(is_remote=True), "/runs/checkpoint"


def manifest_of(store, path):
    """What `stowax.manifest` says."""
    data = asyncio.run(read_bytes(store or open_store(path), f"{path}/stowax.manifest"))
    return unseal(data)


def codecs(store, path):
    """The codec of every leaf that has an array."""
    forms = manifest_of(store, f"{path}/state")["forms"]
    return {form.get("codec") for form in forms if "dtype" in form}


@pytest.mark.parametrize(
    ("place", "use_compression", "expected"),
    [
        ("disk", None, None),
        ("disk", False, None),
        ("disk", True, "zstd"),
        ("memory", None, None),
        ("remote", None, "zstd"),
        ("remote", False, None),
        ("remote", True, "zstd"),
    ],
)
def test_what_is_compressed(tmp_path, place, use_compression, expected):
    """Left to us, chunks are compressed on remote stores; else as the caller says."""
    store = None if place == "disk" else MemoryStore(is_remote=place == "remote")
    path = f"{tmp_path}/checkpoint"
    state = {"w": np.zeros(1000), "n": 1, "s": "text"}

    with compressing(use_compression, store=store):
        stowax.save(path, state)
        assert differences(state, stowax.load(path)) == []

    assert codecs(store, path) == {expected}


def test_less_is_stored(tmp_path):
    """What can be compressed takes less room."""
    state = {"w": np.zeros(100_000), "v": np.arange(100_000) // 1000}

    with compressing():
        stowax.save(tmp_path / "checkpoint", state)

    size_bytes = (tmp_path / "checkpoint/state/d/data-0").stat().st_size
    assert size_bytes < 1_600_000 // 20


@pytest.mark.parametrize("kind", sorted(all_kinds()))
def test_every_kind_of_leaf(where, kind):
    """Whatever can be saved can be saved compressed, with and without a target."""
    store, path = where
    state = all_kinds()[kind]

    with compressing(store=store):
        stowax.save(path, state)
        assert differences(plain(state), stowax.load(path)) == []
        assert differences(state, stowax.load(path, abstract(state))) == []


def test_in_the_background(where):
    """A background save compresses what the values were when it was called."""
    store, path = where
    array = np.arange(50_000.0)

    with compressing(store=store):
        response = stowax.save_async(path, {"w": array})
        array[:] = 0
        response.result()
        loaded = stowax.load(path)

    assert (loaded["w"] == np.arange(50_000.0)).all()


@pytest.mark.parametrize("chunk_byte_size", [None, 64])
@pytest.mark.parametrize("name", ["rows", "both", "columns"])
def test_other_shardings(where, name, chunk_byte_size):
    """Parts of chunks, of many or of few, are loaded onto any other sharding."""
    store, path = where
    array = sharded_arrays()[name]
    storage = ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk_byte_size)
    targets = [*shardings().values(), NamedSharding(mesh(2), P(None, "x"))]

    with compressing(store=store, storage_options=storage):
        stowax.save(path, {"w": array})
        for sharding in targets:
            target = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
            expected = jax.device_put(np.asarray(array), sharding)
            loaded = stowax.load(path, {"w": target})
            assert differences({"w": expected}, loaded, placement=True) == []


def test_converted_and_compressed(where):
    """A storage dtype and compression go together."""
    store, path = where
    storage = ArrayOptions.Saving.StorageOptions(dtype="bfloat16", chunk_byte_size=100)

    with compressing(store=store, storage_options=storage):
        stowax.save(path, {"w": np.arange(1000, dtype=np.float32)})
        loaded = stowax.load(path)

    assert (loaded["w"] == np.arange(1000).astype("bfloat16")).all()


@pytest.mark.parametrize("size_bytes", [60 << 10, 1 << 20, (9 << 20) + 4])
def test_chunks_of_any_size(tmp_path, size_bytes):
    """Chunks that are read together and alone, of one MiB of sums and of several."""
    state = {f"w{i}": bits("uint32", (size_bytes // 4,), i) for i in range(3)}

    with compressing():
        stowax.save(tmp_path / "checkpoint", state)

    assert differences(state, stowax.load(tmp_path / "checkpoint")) == []


def test_memory_is_that_of_chunks(tmp_path):
    """A large array is compressed one chunk at a time."""
    state = {"w": np.zeros((64, 1 << 18), np.float32)}
    storage = ArrayOptions.Saving.StorageOptions(chunk_byte_size=1 << 20)

    with compressing(storage_options=storage):
        stowax.save(tmp_path / "warm", {"w": state["w"][:1, :1]})
        tracemalloc.start()
        try:
            stowax.save(tmp_path / "checkpoint", state)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak_bytes < 16 << 20


def small_state():
    """Leaves whose chunks compress well, badly, and not at all."""
    return {
        "w": np.zeros((4, 4), np.float32),
        "v": bits("uint8", (11,)),
        "n": 7,
        "key": jax.random.key(3),
    }


@pytest.fixture
def checkpoint(tmp_path):
    """A small compressed checkpoint to damage."""
    with compressing():
        stowax.save(tmp_path / "checkpoint", small_state())
    return tmp_path / "checkpoint"


def table_of(checkpoint):
    """Where the chunks lie."""
    return decode_part((checkpoint / "state/stowax.chunks.0").read_bytes())


def test_every_flipped_bit_is_found(checkpoint):
    """A flipped bit of any payload is an error that names the leaf that it hits."""
    file = checkpoint / "state/d/data-0"
    content = file.read_bytes()
    names = sorted(small_state())
    table = table_of(checkpoint)
    trials = 0
    for row in range(len(table)):
        start, length = int(table.offset_bytes[row]), int(table.length_bytes[row])
        for position in range(start, start + length):
            for bit in range(8):
                damaged = bytearray(content)
                damaged[position] ^= 1 << bit
                file.write_bytes(damaged)
                with pytest.raises(CorruptCheckpointError) as caught:
                    stowax.load(checkpoint)
                assert f"leaf {names[table.leaf[row]]!r}" in str(caught.value)
                assert str(file) in str(caught.value)
                trials += 1

    assert trials > 500


def test_damage_without_verification(checkpoint):
    """With `verify=False`, what cannot be decoded is an error that names the leaf."""
    file = checkpoint / "state/d/data-0"
    content = bytearray(file.read_bytes())
    table = table_of(checkpoint)
    row = table.leaf.tolist().index(sorted(small_state()).index("w"))
    content[int(table.offset_bytes[row])] ^= 0xFF
    file.write_bytes(content)

    with (
        compressing(verify=False),
        pytest.raises(CorruptCheckpointError, match="leaf 'w'") as caught,
    ):
        stowax.load(checkpoint)

    assert str(file) in str(caught.value)


def test_frame_of_another_length(checkpoint):
    """A frame that claims gigabytes is refused before memory is taken."""
    file = checkpoint / "state/d/data-0"
    content = bytearray(file.read_bytes())
    table = table_of(checkpoint)
    row = table.leaf.tolist().index(sorted(small_state()).index("w"))
    start, length = int(table.offset_bytes[row]), int(table.length_bytes[row])
    # Magic, a header that says "content size of 8 bytes follows, one segment", 1 TiB.
    hostile = b"\x28\xb5\x2f\xfd" + b"\xe0" + (1 << 40).to_bytes(8, "little")
    assert length > len(hostile)
    content[start : start + len(hostile)] = hostile
    assert zstandard.get_frame_parameters(hostile + b"\0" * 9).content_size == 1 << 40
    file.write_bytes(content)

    with (
        compressing(verify=False),
        pytest.raises(CorruptCheckpointError, match=f"leaf 'w'.*{1 << 40} found"),
    ):
        stowax.load(checkpoint)


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": [1 << 50, 2]},
        {"shape": [1 << 50, 2], "chunk": [1 << 50, 2]},
        {"shape": [1 << 19, 4], "chunk": [1 << 19, 4]},
        {"dtype": "complex128"},
        {"codec": None},
    ],
    ids=str,
)
def test_shape_says_what_can_be_stored(checkpoint, facts):
    """A shape that the stored chunks cannot decode to is refused, and named."""
    (checkpoint / "stowax.json").unlink()
    manifest = checkpoint / "state/stowax.manifest"
    document = unseal(manifest.read_bytes())
    (leaf,) = (e for e in document["forms"] if e.get("dtype") == "float32")
    leaf.update(facts)
    manifest.write_bytes(seal(document))

    with pytest.raises(CorruptCheckpointError, match="leaf 'w'"):
        stowax.load(checkpoint / "state", checkpointable_name=None)


def test_read_by_plain_zstd(checkpoint):
    """A payload is a frame that any zstd decodes, to the elements in C order."""
    table = table_of(checkpoint)
    row = table.leaf.tolist().index(sorted(small_state()).index("v"))
    content = (checkpoint / "state/d/data-0").read_bytes()
    start, length = int(table.offset_bytes[row]), int(table.length_bytes[row])

    payload = zstandard.ZstdDecompressor().decompress(content[start : start + length])

    assert payload == small_state()["v"].tobytes()


def test_paths_stay_paths(checkpoint):
    """The files of a compressed checkpoint are those of any other."""
    names = {
        p.name for p in pathlib.Path(checkpoint, "state").rglob("*") if p.is_file()
    }

    assert names == {
        *("stowax.manifest", "stowax.chunks.0", "data-0", "index", "manifest.ocdbt"),
        *("_METADATA", "_sharding", "process_0"),
    }
