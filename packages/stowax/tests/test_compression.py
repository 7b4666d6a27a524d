"""Compressed checkpoints: chosen by store and option, verified like all others."""

import asyncio
import importlib
import pathlib
import re
import tracemalloc

import jax
import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_states import context, examples, states
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
from stowax._engine_encode import AHEAD_BYTES
from stowax._plan import _write
from stowax._plan._chunk_shape import CODED_CHUNK_LIMIT_BYTES
from stowax._stores._base import read_bytes
from stowax._stores._open import open_store
from stowax.errors import CorruptCheckpointError, UnsupportedOptionError
from stowax.options import ArrayOptions, FileOptions, IntegrityOptions
from stowax.testing import MemoryStore

StorageOptions = ArrayOptions.Saving.StorageOptions

every_compression = pytest.mark.parametrize("compression", ["zstd", "blosc", "auto"])


def compressing(
    use_compression=True,
    *,
    compression=None,
    storage=None,
    store=None,
    verify=True,
    **saving,
):
    """A Context that says whether chunks are compressed, and how."""
    saving = ArrayOptions.Saving(
        use_compression=use_compression,
        storage_options=StorageOptions(compression=compression, **(storage or {})),
        **saving,
    )
    return stowax.Context(
        array=ArrayOptions(saving=saving),
        file=FileOptions(store=store),
        integrity=IntegrityOptions(verify=verify),
    )


def codec_of_each(path, store=None):
    """The codec of every leaf that has an array, by the name of the leaf."""
    found = manifest_of(store, f"{path}/state")
    forms = [found["forms"][position] for position in found["leaves"]]
    return {
        name: form.get("codec")
        for name, form in zip(found["tree"]["keys"], forms, strict=True)
        if "dtype" in form
    }


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


@pytest.mark.parametrize("place", ["disk", "remote"])
@pytest.mark.parametrize("use_compression", [None, False, True])
@pytest.mark.parametrize(
    ("compression", "expected"),
    [("none", None), ("zstd", "zstd"), ("blosc", "blosc"), ("auto", "blosc")],
)
def test_what_is_compressed_how(
    tmp_path, place, use_compression, compression, expected
):
    """What is said of how to compress comes before whether to."""
    store = None if place == "disk" else MemoryStore(is_remote=True)
    path = f"{tmp_path}/checkpoint"
    state = {"w": np.zeros((512, 512), np.float32), "s": "text"}

    with compressing(use_compression, compression=compression, store=store):
        stowax.save(path, state)
        assert differences(state, stowax.load(path)) == []

    assert codecs(store, path) == {expected}


def test_leaf_by_leaf(where):
    """Each leaf may be compressed in its own way; the others as all are."""
    store, path = where
    state = {name: np.zeros((512, 512), np.float32) for name in "abcde"}
    own = {"a": "none", "b": "zstd", "c": "blosc", "d": "auto"}

    def creator(key, value):
        return StorageOptions(compression=own.get(key[0].key))

    for general in (None, "blosc"):
        with compressing(
            compression=general, store=store, scoped_storage_options_creator=creator
        ):
            stowax.save(path, state, overwrite=True)
            assert differences(state, stowax.load(path)) == []

        rest = {None: "zstd", "blosc": "blosc"}[general]
        expected = {"a": None, "b": "zstd", "c": "blosc", "d": "blosc", "e": rest}
        assert codec_of_each(path, store) == expected


@pytest.mark.parametrize("compression", ["gzip", "", "Blosc", True, 1, ["zstd"]])
def test_no_such_compression(tmp_path, compression):
    """A leaf's compression that does not exist is refused by name; nothing is left."""

    def creator(key, value):
        if key[0].key == "w":
            return StorageOptions(compression=compression)
        return None

    expected = f"w: compression is {compression!r}; it takes 'none', "
    with (
        compressing(scoped_storage_options_creator=creator),
        pytest.raises(UnsupportedOptionError, match=re.escape(expected)),
    ):
        stowax.save(tmp_path / "checkpoint", {"v": np.ones(3), "w": np.ones(3)})

    assert list(tmp_path.iterdir()) == []


@every_compression
def test_less_is_stored(tmp_path, compression):
    """What can be compressed takes less room."""
    state = {"w": np.zeros(200_000), "v": np.arange(200_000) // 1000}

    with compressing(compression=compression):
        stowax.save(tmp_path / "checkpoint", state)

    size_bytes = (tmp_path / "checkpoint/state/d/data-0").stat().st_size
    assert size_bytes < 3_200_000 // 20


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
@pytest.mark.parametrize("kind", sorted(all_kinds()))
def test_every_kind_of_leaf(where, kind, compression):
    """Whatever can be saved can be saved compressed, with and without a target."""
    store, path = where
    state = all_kinds()[kind]

    with compressing(compression=compression, store=store):
        stowax.save(path, state)
        assert differences(plain(state), stowax.load(path)) == []
        assert differences(state, stowax.load(path, abstract(state))) == []


@every_compression
def test_in_the_background(where, compression):
    """A background save compresses what the values were when it was called."""
    store, path = where
    array = np.arange(200_000.0)

    with compressing(compression=compression, store=store):
        response = stowax.save_async(path, {"w": array})
        array[:] = 0
        response.result()
        loaded = stowax.load(path)

    assert (loaded["w"] == np.arange(200_000.0)).all()


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
@pytest.mark.parametrize("chunk_byte_size", [None, 64])
@pytest.mark.parametrize("name", ["rows", "both", "columns"])
def test_other_shardings(where, name, chunk_byte_size, compression):
    """Parts of chunks, of many or of few, are loaded onto any other sharding."""
    store, path = where
    array = sharded_arrays()[name]
    storage = {"chunk_byte_size": chunk_byte_size}
    targets = [*shardings().values(), NamedSharding(mesh(2), P(None, "x"))]

    with compressing(compression=compression, store=store, storage=storage):
        stowax.save(path, {"w": array})
        for sharding in targets:
            target = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
            expected = jax.device_put(np.asarray(array), sharding)
            loaded = stowax.load(path, {"w": target})
            assert differences({"w": expected}, loaded, placement=True) == []


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_converted_and_compressed(where, compression):
    """A storage dtype and compression go together."""
    store, path = where
    storage = {"dtype": "bfloat16", "chunk_byte_size": 100}

    with compressing(compression=compression, store=store, storage=storage):
        stowax.save(path, {"w": np.arange(1000, dtype=np.float32)})
        loaded = stowax.load(path)

    assert (loaded["w"] == np.arange(1000).astype("bfloat16")).all()


@every_compression
@pytest.mark.parametrize("size_bytes", [60 << 10, 1 << 20, (9 << 20) + 4])
def test_chunks_of_any_size(tmp_path, size_bytes, compression):
    """Chunks that are read together and alone, of one MiB of sums and of several."""
    state = {f"w{i}": bits("uint32", (size_bytes // 4,), i) % 1000 for i in range(3)}

    with compressing(compression=compression):
        stowax.save(tmp_path / "checkpoint", state)

    assert differences(state, stowax.load(tmp_path / "checkpoint")) == []


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_memory_is_that_of_chunks(tmp_path, compression):
    """A large array is compressed a few chunks at a time."""
    noise = np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.float32)
    state = {"w": np.tile(noise, (200, 1))}
    storage = {"chunk_byte_size": 1 << 20}

    with compressing(compression=compression, storage=storage):
        stowax.save(tmp_path / "warm", {"w": state["w"][:1, :1]})
        tracemalloc.start()
        try:
            stowax.save(tmp_path / "checkpoint", state)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    # Two files, and what every worker holds while it compresses.
    assert peak_bytes < 2 * AHEAD_BYTES + (16 << 20) < state["w"].nbytes // 3


def small_state():
    """Leaves whose chunks compress well, badly, and not at all."""
    return {
        "w": np.zeros((4, 4), np.float32),
        "v": bits("uint8", (11,)),
        "n": 7,
        "key": jax.random.key(3),
    }


@pytest.fixture(params=["zstd", "blosc"])
def checkpoint(request, tmp_path):
    """A small compressed checkpoint to damage."""
    with compressing(compression=request.param):
        stowax.save(tmp_path / "checkpoint", small_state())
    return tmp_path / "checkpoint"


def table_of(checkpoint):
    """Where the chunks lie."""
    return decode_part((checkpoint / "state/stowax.chunks.0").read_bytes())


@pytest.fixture(scope="class")
def auto_from_first_byte():
    """Lets a sample decide about arrays and chunks of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_write, "_AUTO_FROM_BYTES", 1)
        patch.setattr(_write, "_AUTO_CHUNK_FROM_BYTES", 1)
        yield


@pytest.mark.usefixtures("auto_from_first_byte")
class TestAny:
    """What holds of any tree."""

    @given(
        state=states(),
        compression=st.sampled_from(["zstd", "blosc", "auto"]),
        chunk_byte_size=st.sampled_from([None, 16, 100]),
        file_bytes=st.sampled_from([0, 50, 1000]),
    )
    @examples(25)
    def test_any_tree(self, state, compression, chunk_byte_size, file_bytes):
        """Any tree, however it is compressed and cut, comes back bit for bit."""
        saving = ArrayOptions.Saving(
            storage_options=StorageOptions(
                compression=compression, chunk_byte_size=chunk_byte_size
            ),
            ocdbt_target_data_file_size=file_bytes,
        )

        with context(MemoryStore(), saving=saving):
            stowax.save("/checkpoint", state)
            target = abstract(state)

            exact = stowax.load("/checkpoint", target)
            assert differences(state, exact, placement=True) == []
            assert differences(plain(state), stowax.load("/checkpoint")) == []

    @given(
        leaves=st.lists(
            st.tuples(st.integers(0, 5000), st.integers(1, 8)), max_size=12
        ),
        compression=st.sampled_from(["zstd", "blosc", "auto"]),
        limit_bytes=st.integers(1, 20_000),
        file_bytes=st.sampled_from([0, 1000, 4000]),
        chunk_byte_size=st.sampled_from([None, 64, 1000]),
    )
    @examples(25)
    def test_any_budget(
        self, leaves, compression, limit_bytes, file_bytes, chunk_byte_size
    ):
        """However little is staged at once, codecs and values are the same."""
        rng = np.random.default_rng(0)
        state = {
            f"{i}": rng.integers(0, 1 << width, size, np.uint8)
            for i, (size, width) in enumerate(leaves)
        }
        storage = {"chunk_byte_size": chunk_byte_size}
        found = []
        for limit in (limit_bytes, None):
            store = MemoryStore()
            tight = compressing(
                compression=compression,
                store=store,
                storage=storage,
                ocdbt_target_data_file_size=file_bytes,
            )
            tight.memory.write_concurrent_bytes = limit
            with tight:
                stowax.save_async("/checkpoint", state).result()
                assert differences(state, stowax.load("/checkpoint")) == []
            found.append(codec_of_each("/checkpoint", store))

        assert found[0] == found[1]


class TestAuto:
    """What a sample decides."""

    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda: np.zeros((512, 512), np.float32), "blosc"),
            (lambda: np.zeros((512, 511), np.float32), None),  # less than 1 MiB
            (lambda: np.arange(1 << 19), "blosc"),
            (lambda: np.arange(1 << 20) % 100 == 0, "blosc"),
            (lambda: bits("float32", (1024, 512)), None),
            (lambda: weights(1 << 20).astype("bfloat16"), None),
            (lambda: weights(1 << 20).astype("float64"), "blosc"),
            (lambda: np.repeat(weights(1 << 10), 1 << 10), "blosc"),
            (
                lambda: np.asfortranarray(np.arange(1 << 19).reshape(1 << 9, -1)),
                "blosc",
            ),
            (lambda: np.arange(1 << 20)[::2], "blosc"),
            (lambda: np.zeros((0, 1 << 20)), None),
            (lambda: jax.device_put(np.zeros((1 << 18,), np.int32)), "blosc"),
        ],
    )
    def test_what_shrinks(self, tmp_path, make, expected):
        """Large arrays that shrink are compressed, noise and small ones are not."""
        state = {"w": make()}

        with compressing(compression="auto"):
            stowax.save(tmp_path / "checkpoint", state)

        assert codec_of_each(tmp_path / "checkpoint") == {"w": expected}
        assert differences(state, stowax.load(tmp_path / "checkpoint")) == []

    def test_shards(self, tmp_path):
        """The sample is taken of all shards that one process holds."""
        spread = NamedSharding(mesh(8), P("x"))
        mostly_zeros = np.zeros((8, 1 << 16), np.float32)
        mostly_zeros[:2] = weights(1 << 17).reshape(2, -1)
        mostly_noise = weights(1 << 19).reshape(8, -1)
        mostly_noise[0] = 0
        state = {
            "few": jax.device_put(mostly_zeros, spread),
            "many": jax.device_put(mostly_noise, spread),
        }

        with compressing(compression="auto"):
            stowax.save(tmp_path / "checkpoint", state)

        found = codec_of_each(tmp_path / "checkpoint")
        assert found == {"few": "blosc", "many": None}
        assert differences(state, stowax.load(tmp_path / "checkpoint")) == []

    def test_a_later_save_chooses_anew(self, tmp_path):
        """Saves of one structure are not bound to what the first one chose."""
        zeros, noise = np.zeros((512, 512)), weights(1 << 18).astype("f4")
        noise = noise.view("f8").reshape(256, 512).repeat(2, axis=0)
        noise[::2] *= 3
        states = [
            {"a": zeros, "b": noise},
            {"a": noise, "b": zeros},
            {"a": zeros, "b": zeros},
            {"a": noise, "b": noise},
            {"a": zeros, "b": noise},
        ]

        for step, state in enumerate(states):
            with compressing(compression="auto"):
                stowax.save(tmp_path / f"{step}", state)
            expected = {
                name: "blosc" if array is zeros else None
                for name, array in state.items()
            }
            assert codec_of_each(tmp_path / f"{step}") == expected
            assert differences(state, stowax.load(tmp_path / f"{step}")) == []

    @pytest.mark.filterwarnings("ignore:.*lose values:UserWarning")
    def test_in_the_dtype_that_is_stored(self, tmp_path):
        """The sample is of what is written, not of what it was before."""
        storage = {"dtype": "int8"}
        state = {"w": weights(1 << 21) / 100}

        with compressing(compression="auto", storage=storage):
            stowax.save(tmp_path / "checkpoint", state)

        assert codec_of_each(tmp_path / "checkpoint") == {"w": "blosc"}

    def test_tiny_chunks(self, tmp_path):
        """Chunks that are too small for a header of their own stay as they are."""
        storage = {"chunk_byte_size": 32 << 10}

        with compressing(compression="auto", storage=storage):
            stowax.save(tmp_path / "checkpoint", {"w": np.zeros((512, 512))})

        assert codec_of_each(tmp_path / "checkpoint") == {"w": None}

    @given(
        parts=st.lists(
            st.tuples(st.booleans(), st.integers(1, 1 << 19)), min_size=1, max_size=6
        ),
        chunk_byte_size=st.sampled_from([None, 1 << 16, 1 << 18]),
    )
    # One element more than fills a chunk.
    @example(parts=[(False, 3), (True, 524286), (True, 524288)], chunk_byte_size=None)
    @examples(25)
    def test_never_larger(self, parts, chunk_byte_size):
        """Whatever an array is made of, it takes no more room than in the same chunks.

        The last of several is padded to a whole one, compressed or not.
        """
        pieces = [weights(n) if noisy else np.zeros(n, "f4") for noisy, n in parts]
        state = {"w": np.concatenate(pieces)}
        storage = {"chunk_byte_size": chunk_byte_size}
        store = MemoryStore()

        with compressing(compression="auto", store=store, storage=storage):
            stowax.save("/auto", state)
            assert differences(state, stowax.load("/auto")) == []
        same = {"chunk_byte_size": chunk_byte_size or CODED_CHUNK_LIMIT_BYTES}
        with compressing(compression="none", store=store, storage=same):
            stowax.save("/none", state)

        assert data_bytes(store, "/auto") <= data_bytes(store, "/none")


def weights(count):
    """Noise as in a trained layer."""
    noise = np.random.default_rng(0).standard_normal(min(count, 1 << 16), np.float32)
    return np.resize(noise * 0.02, count)


def data_bytes(store, path):
    """What the chunks of a checkpoint take."""
    data = asyncio.run(read_bytes(store, f"{path}/state/stowax.chunks.0"))
    return int(decode_part(data).length_bytes.sum())


# Sums are compared before anything is decoded, so one codec stands for all.
@pytest.mark.parametrize("checkpoint", ["zstd"], indirect=True)
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


@pytest.mark.parametrize(
    ("checkpoint", "hostile", "found_bytes"),
    [
        # Magic, a header that says "content size of 8 bytes, one segment", 1 TiB.
        ("zstd", b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little"), 1 << 40),
        # Versions, LZ4 shuffled by bit, elements of 4 bytes, 4 GiB.
        ("blosc", b"\2\1\x24\4\xff\xff\xff\xff", (1 << 32) - 1),
    ],
    indirect=["checkpoint"],
)
def test_frame_of_another_length(checkpoint, hostile, found_bytes):
    """A frame that claims gigabytes is refused before memory is taken."""
    file = checkpoint / "state/d/data-0"
    content = bytearray(file.read_bytes())
    table = table_of(checkpoint)
    row = table.leaf.tolist().index(sorted(small_state()).index("w"))
    start, length = int(table.offset_bytes[row]), int(table.length_bytes[row])
    assert length > len(hostile)
    content[start : start + len(hostile)] = hostile
    file.write_bytes(content)

    with (
        compressing(verify=False),
        pytest.raises(CorruptCheckpointError, match=f"leaf 'w'.*{found_bytes} found"),
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


def decompress_blosc(frame):
    """By the library that the save has loaded; before, it would warn."""
    return importlib.import_module("numcodecs.blosc").decompress(frame)


@pytest.mark.parametrize(
    ("checkpoint", "decode"),
    [
        ("zstd", zstandard.ZstdDecompressor().decompress),
        ("blosc", decompress_blosc),
    ],
    indirect=["checkpoint"],
)
def test_read_by_plain_libraries(checkpoint, decode):
    """A payload is a frame that the codec's library decodes, to elements in C order."""
    table = table_of(checkpoint)
    row = table.leaf.tolist().index(sorted(small_state()).index("v"))
    content = (checkpoint / "state/d/data-0").read_bytes()
    start, length = int(table.offset_bytes[row]), int(table.length_bytes[row])

    payload = decode(content[start : start + length])

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
