"""Orbax and TensorStore read what we write, however the options ask us to write it.

The real `orbax.checkpoint` and `tensorstore` are the oracles, here also for the values
that a conversion gives.
"""

import os
import stat
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from sample_trees import (
    JAX_DTYPES,
    NUMPY_DTYPES,
    abstract,
    bits,
    differences,
    dtype,
    keys,
    mesh,
    sharded_arrays,
)

import stowax
from stowax._codecs._item_manifest import decode_part
from stowax.options import ArrayOptions
from stowax.testing import SimulatedCluster

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*lose values:UserWarning"),
]

StorageOptions = ArrayOptions.Saving.StorageOptions

compressions = pytest.mark.parametrize("compression", ["zstd", "blosc"])


def save(path, state, **saving):
    """Saves with options of saving."""
    context = stowax.Context(array=ArrayOptions(saving=ArrayOptions.Saving(**saving)))
    with context:
        stowax.save(path, state)


def save_theirs(path, state, storage=None, **saving):
    """Saves with the same options of Orbax."""
    context = v1.Context()
    for name, value in saving.items():
        setattr(context.array.saving, name, value)
    for name, value in (storage or {}).items():
        setattr(context.array.saving.storage_options, name, value)
    with context:
        v1.save(path, state)


def state():
    """Leaves of every kind that Orbax can hold, large and small."""
    return {
        "w": jax.device_put(bits("float32", (64, 48))),
        "half": jax.device_put(bits("bfloat16", (33,))),
        "small": jax.device_put(bits("int4", (3,))),
        "zeros": jax.device_put(np.zeros((100, 100), np.float32)),
        "rows": sharded_arrays()["rows"],
        "both": sharded_arrays()["both"],
        "copies": jax.device_put(bits("int32", (8, 6)), NamedSharding(mesh(8), P())),
        "host": bits("float64", (7, 5)),
        "scalar": jnp.float32(2.5),
        "key": keys()["batch"],
        "n": 7,
        "x": 0.5,
        "b": True,
        "s": "text",
        "nested": [{"a": bits("uint8", (5,))}, None, {}],
    }


EVERY_WAY = [
    {"use_compression": True},
    {"use_compression": False},
    {"storage_options": StorageOptions(chunk_byte_size=100)},
    {"storage_options": StorageOptions(chunk_byte_size=100), "use_compression": True},
    *(
        {"storage_options": StorageOptions(compression=compression, **more)}
        for compression in ("zstd", "blosc", "auto")
        for more in ({}, {"chunk_byte_size": 100})
    ),
    {"ocdbt_target_data_file_size": 1000},
    {"ocdbt_target_data_file_size": 1000, "use_compression": True},
    {"ocdbt_target_data_file_size": 0},
    {"use_replica_parallel": False},
    {"use_replica_parallel": True, "max_replicas_for_replica_parallel": 2},
    {"min_slice_bytes_for_replica_parallel": 1 << 30},
    *(
        {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3, "storage_options": options}
        for use_ocdbt, use_zarr3 in ((True, False), (False, True), (False, False))
        for options in (
            StorageOptions(),
            StorageOptions(compression="zstd", chunk_byte_size=100),
            StorageOptions(compression="blosc"),
        )
    ),
    {"enable_replica_parallel_separate_folder": True},
    {"enable_post_merge_validation": False},
    {"enable_pinned_host_transfer": True},
]


@pytest.mark.parametrize("saving", EVERY_WAY, ids=str)
def test_orbax_loads_whatever_the_options(tmp_path, saving):
    """Values and dtypes are those that were saved, with and without a target."""
    saved = state()

    save(tmp_path / "checkpoint", saved, **saving)
    v1.save(tmp_path / "theirs", saved)

    with_target = v1.load(tmp_path / "checkpoint", abstract(saved))
    assert differences(saved, with_target) == []
    expected = v1.load(tmp_path / "theirs")
    assert differences(expected, v1.load(tmp_path / "checkpoint")) == []
    assert (
        differences(saved, stowax.load(tmp_path / "checkpoint", abstract(saved))) == []
    )


@pytest.mark.parametrize("compression", ["zstd", "blosc", "auto"])
def test_orbax_loads_large_arrays_compressed(tmp_path, compression):
    """Arrays of many chunks, worth it or not: the whole tree, and leaf by leaf."""
    path = tmp_path / "checkpoint"
    noise = np.random.default_rng(0).standard_normal(1_500_001, np.float32)
    saved = {
        "counts": np.arange(3 << 20, dtype=np.int32).reshape(3, -1),
        "noise": noise,
        "half": jax.device_put(noise.astype("bfloat16")),
        "mask": noise > 1,
        "zeros": jax.device_put(np.zeros((7, 1 << 17)), NamedSharding(mesh(1), P())),
        "few": np.zeros(3),
    }

    save(path, saved, storage_options=StorageOptions(compression=compression))

    assert differences(saved, v1.load(path, abstract(saved))) == []
    whole = v1.load(path)
    context = v1.Context()
    context.pytree.loading.partial_load = True
    for name, array in saved.items():
        assert np.asarray(whole[name]).tobytes() == np.asarray(array).tobytes()
        with context:
            alone = v1.load(path, {name: abstract(array)})
        assert differences({name: array}, alone) == []


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("use_zarr3", [True, False])
def test_orbax_v0_restores_it(tmp_path, use_ocdbt, use_zarr3):
    """The older API, too: an item, and a whole checkpoint as a composite."""
    saved = {"w": bits("float32", (8, 3)), "rows": sharded_arrays()["rows"], "n": 7}
    save(tmp_path / "c", saved, use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)

    with v0.PyTreeCheckpointer() as checkpointer:
        item = checkpointer.restore(tmp_path / "c" / "state")
    handler = v0.CompositeCheckpointHandler(state=v0.PyTreeCheckpointHandler())
    with v0.Checkpointer(handler) as checkpointer:
        asked = v0.args.Composite(state=v0.args.PyTreeRestore())
        composite = checkpointer.restore(tmp_path / "c", args=asked)["state"]

    for found in (item, composite):
        for name, leaf in saved.items():
            assert np.asarray(found[name]).tobytes() == np.asarray(leaf).tobytes()


@compressions
def test_orbax_loads_compressed_from_several_devices(tmp_path, compression):
    """A compressed array is loaded by Orbax onto another sharding."""
    array = sharded_arrays()["rows"]
    target = {
        "w": jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=NamedSharding(mesh(2), P(None, "x"))
        )
    }

    storage = StorageOptions(compression=compression)
    save(tmp_path / "checkpoint", {"w": array}, storage_options=storage)

    expected = {"w": jax.device_put(np.asarray(array), target["w"].sharding)}
    loaded = v1.load(tmp_path / "checkpoint", target)
    assert differences(expected, loaded, placement=True) == []


@pytest.mark.parametrize("compression", ["zstd", "blosc", "auto"])
def test_orbax_loads_what_eight_processes_compressed(tmp_path, compression):
    """Each compresses what it writes, or not; Orbax, TensorStore and we load the same.

    Of several processes none has all of an array, so "auto" goes chunk by chunk.
    """
    spread = NamedSharding(mesh(8), P("x"))
    # Shrinks, but not enough to be worth it.
    noise = np.random.default_rng(0).standard_normal((8, 1 << 15), np.float32)
    zeros = np.zeros_like(noise)
    mixed = np.where(np.arange(8)[:, None] % 2, noise, zeros)
    host = {"noise": noise, "zeros": zeros, "mixed": mixed}
    saved = {name: jax.device_put(array, spread) for name, array in host.items()}
    saved["copies"] = jax.device_put(zeros, NamedSharding(mesh(8), P()))
    saved["numpy"] = np.arange(1 << 18)
    path = tmp_path / "checkpoint"

    with SimulatedCluster(8) as cluster:

        def save_one(index):
            context = stowax.Context(runtime=cluster.runtimes[index])
            context.array.saving.storage_options.compression = compression
            with context:
                stowax.save(path, saved)

        cluster.run(save_one)

    expected = {**host, "copies": zeros, "numpy": saved["numpy"]}
    codec = "zstd" if compression == "zstd" else "blosc"
    for name, array in expected.items():
        base = {"driver": "file", "path": f"{path}/state/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        found = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        assert found.read().result().tobytes() == array.tobytes(), name
        codecs = [codec["name"] for codec in found.codec.to_json()["codecs"]]
        assert codecs == ["bytes", codec, "crc32c"]
    assert differences(saved, stowax.load(path, abstract(saved))) == []
    assert differences(saved, v1.load(path, abstract(saved))) == []
    tables = [
        decode_part((path / f"state/stowax.chunks.{index}").read_bytes())
        for index in range(8)
    ]
    lengths = {name: [] for name in expected}
    for table in tables:
        for leaf, length in zip(table.leaf, table.length_bytes, strict=True):
            lengths[sorted(expected)[leaf]].append(int(length))
    if compression == "auto":
        assert lengths["noise"] == [(128 << 10) + 16] * 8
        assert sum(length > 128 << 10 for length in lengths["mixed"]) == 4
    assert max(lengths["zeros"] + lengths["numpy"]) < 512 << 10
    assert max(lengths["zeros"]) < 4 << 10


@compressions
@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_tensorstore_reads_compressed(tmp_path, name, compression):
    """TensorStore decodes our chunks of every dtype, and knows what they are."""
    array = bits(name, (50, 7))
    storage = StorageOptions(
        chunk_byte_size=200 * array.itemsize, compression=compression
    )
    save(tmp_path / "checkpoint", {"w": array}, storage_options=storage)

    base = {"driver": "file", "path": f"{tmp_path}/checkpoint/state/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": "w/"}
    found = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()

    assert found.read().result().tobytes() == array.tobytes()
    codecs = [codec["name"] for codec in found.codec.to_json()["codecs"]]
    assert codecs == ["bytes", compression, "crc32c"]


@compressions
def test_tensorstore_finds_damage(tmp_path, compression):
    """The checksum behind a compressed chunk is one that TensorStore compares."""
    storage = StorageOptions(compression=compression)
    state = {"w": bits("uint8", (500,))}
    save(tmp_path / "checkpoint", state, storage_options=storage)
    file = tmp_path / "checkpoint/state/d/data-0"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)

    base = {"driver": "file", "path": f"{tmp_path}/checkpoint/state/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": "w/"}
    found = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()

    with pytest.raises(ValueError, match="Digest mismatch"):
        found.read().result()
    with pytest.raises(ValueError, match="Digest mismatch"):
        v1.load(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("limit", "axes"),
    [(256, None), (1024, None), (None, (0,)), (256, (1,)), (64, (0, 1))],
)
def test_orbax_shows_the_chunks(tmp_path, limit, axes):
    """Orbax sees our chunk shapes; where Orbax can do it well, they are its own."""
    arrays = {
        "w": jnp.zeros((64, 64), jnp.float32),
        "host": np.zeros((32, 16), np.float32),
        "rows": jax.device_put(
            np.zeros((16, 64), np.float32), NamedSharding(mesh(8), P("x"))
        ),
    }
    storage = {"chunk_byte_size": limit, "shard_axes": axes}

    save(tmp_path / "ours", arrays, storage_options=StorageOptions(**storage))
    save_theirs(tmp_path / "theirs", arrays, storage)

    def shown(name):
        found = v1.metadata(tmp_path / name).metadata
        return {k: leaf.storage_metadata.chunk_shape for k, leaf in found.items()}

    ours = stowax.metadata(tmp_path / "ours").metadata
    assert shown("ours") == {k: m.storage_metadata.chunk_shape for k, m in ours.items()}
    assert shown("ours") == shown("theirs")
    assert differences(arrays, v1.load(tmp_path / "ours")) == []


# Orbax makes nonsense of float8_e8m0fnu, and cannot make a bool of the smallest floats.
_SAME_CASTS = sorted({*JAX_DTYPES} - {"float8_e8m0fnu", "bool"})


@pytest.mark.parametrize("stored", _SAME_CASTS)
def test_conversions_are_theirs(tmp_path, stored):
    """A storage dtype gives the values that Orbax stores, from every dtype."""
    host = {
        name: np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype(name))
        for name in _SAME_CASTS
    }
    host["fractions"] = np.array([0.1, 1.7, -0.3, 1.5], np.float32)
    saved = {name: jax.device_put(array) for name, array in host.items()}
    saved["host"] = np.array([1.25, 0.5])
    if not stored.startswith("complex"):
        # Such a number leaves Orbax without metadata, so to it ours is an array.
        saved["n"] = 1
    storage = {"dtype": dtype(stored)}

    save(tmp_path / "ours", saved, storage_options=StorageOptions(**storage))
    save_theirs(tmp_path / "theirs", saved, storage)

    expected = v1.load(tmp_path / "theirs")
    assert differences(expected, v1.load(tmp_path / "ours")) == []
    assert differences(expected, stowax.load(tmp_path / "ours")) == []


def test_own_options_of_a_leaf_are_theirs(tmp_path):
    """The same creator leads to the same dtypes and chunks as in Orbax."""
    state = {"small": {"w": jnp.ones((8, 8))}, "large": [jnp.ones((8, 8)), np.ones(8)]}

    def creator_for(options):
        def creator(key, value):
            if "small" in jax.tree_util.keystr(key):
                return options(dtype=jnp.float16)
            if isinstance(value, np.ndarray):
                return options(shard_axes=(0,))
            return None

        return creator

    general = {"dtype": jnp.float32, "chunk_byte_size": 64}
    save(
        tmp_path / "ours",
        state,
        storage_options=StorageOptions(**general),
        scoped_storage_options_creator=creator_for(StorageOptions),
    )
    theirs = v1.options.ArrayOptions.Saving.StorageOptions
    save_theirs(
        tmp_path / "theirs",
        state,
        general,
        scoped_storage_options_creator=creator_for(theirs),
    )

    def facts(path):
        found = jax.tree.leaves(v1.metadata(path).metadata)
        return [(leaf.dtype, leaf.storage_metadata.chunk_shape) for leaf in found]

    assert facts(tmp_path / "ours") == facts(tmp_path / "theirs")
    assert differences(v1.load(tmp_path / "theirs"), v1.load(tmp_path / "ours")) == []


@pytest.mark.parametrize("shardings", [True, False])
def test_without_recorded_shardings(tmp_path, shardings):
    """Without `_sharding` Orbax needs an abstract state, as with one of its own."""
    saved = {"w": sharded_arrays()["both"]}
    save(tmp_path / "ours", saved, enable_write_sharding_file=shardings)
    save_theirs(tmp_path / "theirs", saved, enable_write_sharding_file=shardings)

    for name in ("ours", "theirs"):
        loaded = v1.load(tmp_path / name, abstract(saved))
        assert differences(saved, loaded, placement=True) == []
        if shardings:
            assert differences(saved, v1.load(tmp_path / name)) == []
        else:
            with pytest.raises(ValueError, match=r"[Ss]harding"):
                v1.load(tmp_path / name)


def test_without_array_metadata(tmp_path):
    """Without `array_metadatas` Orbax takes PRNG keys for integers; we do not."""
    saved = {"key": jax.random.key(3), "w": jnp.ones(3)}
    save(tmp_path / "ours", saved, array_metadata_store=None)
    save_theirs(tmp_path / "theirs", saved, array_metadata_store=None)

    expected = {"key": jax.random.key_data(saved["key"]), "w": saved["w"]}
    for name in ("ours", "theirs"):
        assert not (tmp_path / name / "state/array_metadatas").exists()
        assert differences(expected, v1.load(tmp_path / name)) == []
    assert differences(saved, stowax.load(tmp_path / "ours")) == []


def test_keys_keep_their_dtype(tmp_path):
    """A storage dtype spares PRNG keys: Orbax loads ours, but not its own."""
    saved = {"key": jax.random.key(3), "w": jnp.ones(3, jnp.float32)}
    save(tmp_path / "ours", saved, storage_options=StorageOptions(dtype=jnp.bfloat16))
    save_theirs(tmp_path / "theirs", saved, {"dtype": jnp.bfloat16})

    expected = {"key": saved["key"], "w": saved["w"].astype(jnp.bfloat16)}
    assert differences(expected, v1.load(tmp_path / "ours")) == []
    assert differences(expected, stowax.load(tmp_path / "ours")) == []
    with pytest.raises(TypeError, match="PRNG key data"):
        v1.load(tmp_path / "theirs")


def test_chunks_of_lengths_without_divisors(tmp_path):
    """Where Orbax falls to single elements, ours are near the limit; it reads them."""
    saved = {"w": jnp.arange(1009, dtype=jnp.float32)}
    save(tmp_path / "ours", saved, storage_options=StorageOptions(chunk_byte_size=400))
    save_theirs(tmp_path / "theirs", saved, {"chunk_byte_size": 400})

    shown = {
        name: v1.metadata(tmp_path / name).metadata["w"].storage_metadata.chunk_shape
        for name in ("ours", "theirs")
    }
    assert shown == {"ours": (92,), "theirs": (1,)}
    assert differences(saved, v1.load(tmp_path / "ours")) == []


def test_replicas_write_whole_shards(tmp_path):
    """Orbax cuts a shard among its replicas; ours is written whole, by one process."""
    array = jax.device_put(np.zeros((16, 4)), NamedSharding(mesh(8), P()))
    save(tmp_path / "ours", {"w": array})
    save_theirs(tmp_path / "theirs", {"w": array}, use_replica_parallel=True)

    shown = {
        name: v1.metadata(tmp_path / name).metadata["w"].storage_metadata.chunk_shape
        for name in ("ours", "theirs")
    }
    assert shown == {"ours": (16, 4), "theirs": (2, 4)}


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_permission_mode_is_theirs(tmp_path, mode):
    """The same directories get the same bits; ours also those that the umask takes."""
    contexts = {"ours": stowax.Context(), "theirs": v1.Context()}
    for context in contexts.values():
        context.file.path_permission_mode = mode
    umask = os.umask(0o022)
    os.umask(umask)

    with contexts["ours"]:
        stowax.save(tmp_path / "ours", {"w": jnp.ones(3)})
    with contexts["theirs"], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v1.save(tmp_path / "theirs", {"w": jnp.ones(3)})

    for name in ("", "state", "_CHECKPOINT_METADATA", "state/_METADATA"):
        ours, theirs = ((tmp_path / n / name).stat().st_mode for n in contexts)
        assert (ours & ~umask if name == "" else ours) == theirs, name
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == mode
