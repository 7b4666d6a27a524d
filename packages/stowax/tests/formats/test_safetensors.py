"""Checkpoints that the safetensors library wrote, loaded as trees."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from orbax.checkpoint import v1 as orbax
from sample_trees import bits, differences, mesh, shardings

import stowax
from stowax._runtime import default_runtime
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    NotADirectoryLayoutError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.testing import MemoryStore, RecordingStore

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "complex64"),
)


@pytest.fixture
def model():
    """Tensors by name, as a model hub has them."""
    return {
        "layers.0.w": bits("float32", (8, 16)),
        "layers.1.w": bits("float32", (8, 16)) + 1,
        "norm": bits("bfloat16", (8,)),
        "scale": np.float32(3).reshape(()),
    }


def nested(model):
    """The same as a tree."""
    return {
        "layers": [{"w": model["layers.0.w"]}, {"w": model["layers.1.w"]}],
        "norm": model["norm"],
        "scale": model["scale"],
    }


def save_sharded(directory, model):
    """Writes a directory of two files and their index, as the hub has them."""
    directory.mkdir()
    names = sorted(model)
    files = {"model-00001-of-00002.safetensors": names[::2]}
    files["model-00002-of-00002.safetensors"] = names[1::2]
    for file, held in files.items():
        tensors = {name: model[name] for name in held}
        safetensors.flax.save_file(
            {name: jnp.asarray(array) for name, array in tensors.items()},
            directory / file,
            metadata={"format": "flax"},
        )
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in model.values())},
        "weight_map": {name: file for file, held in files.items() for name in held},
    }
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    (directory / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype):
    """Bits are those of the file, whatever they mean."""
    array = bits(dtype, (3, 5))
    path = tmp_path / "model.safetensors"
    data = {"w": jnp.asarray(array)} if dtype != "complex64" else {"w": array}
    save = safetensors.numpy if dtype == "complex64" else safetensors.flax
    save.save_file(data, path)

    assert differences({"w": array}, stowax.load(path)) == []


def test_without_a_target(tmp_path, model):
    """Names are keys, and tensors are arrays in host memory, as in Orbax."""
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"a.b": model["layers.0.w"]}, path)
    loaded = []

    for ocp in (stowax, orbax):
        layout = ocp.options.CheckpointLayout.SAFETENSORS
        with ocp.Context(checkpoint_layout=layout):
            loaded.append(ocp.load(path))

    found, expected = loaded
    assert found.keys() == expected.keys()
    assert type(found["a.b"]) is type(expected["a.b"])
    assert differences(expected, found) == []


def test_into_a_tree(tmp_path, model):
    """Keys, fields and positions are found by the names that they make together."""
    save_sharded(tmp_path / "c", model)

    assert differences(nested(model), stowax.load(tmp_path / "c", nested(model))) == []
    assert differences(model, stowax.load(tmp_path / "c", model)) == []


@pytest.mark.parametrize("name", ["half", "both"])
def test_with_shardings(tmp_path, model, name):
    """Shards are those of the target, and only their bytes are read."""
    save_sharded(tmp_path / "c", model)
    sharding = shardings()[name]
    asked = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=sharding)

    loading = stowax.options.PyTreeOptions.Loading(partial_load=True)
    with stowax.Context(pytree=stowax.options.PyTreeOptions(loading=loading)):
        found = stowax.load(tmp_path / "c", {"layers.0.w": asked})["layers.0.w"]

    assert found.sharding == sharding
    expected = model["layers.0.w"].astype(jnp.bfloat16)
    assert differences(expected, np.asarray(found)) == []


def test_only_the_ranges_that_are_wanted(tmp_path):
    """A slice of a large tensor costs its rows, and no other byte but the header's."""
    array = np.arange(4 << 20, dtype=np.float32).reshape(64, -1)
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"w": array, "v": array + 1}, path)
    recording = RecordingStore(LocalStore())

    with stowax.Context(file=stowax.options.FileOptions(store=recording)):
        found = stowax.load_leaf(path, "w", index=np.s_[3])

    assert (found == array[3]).all()
    read_bytes = sum(
        c.size_bytes for c in recording.calls if c.operation == "read_into"
    )
    assert read_bytes <= array[3].nbytes + (256 << 10)


def test_metadata_reads_no_tensor(tmp_path, model):
    """Names, shapes and dtypes come from the headers, and the texts beside them."""
    save_sharded(tmp_path / "c", model)
    recording = RecordingStore(LocalStore())

    with stowax.Context(file=stowax.options.FileOptions(store=recording)):
        found = stowax.metadata(tmp_path / "c")

    assert found.custom_metadata == {"format": "flax"}
    assert found.metadata.keys() == model.keys()
    for name, leaf in found.metadata.items():
        assert (leaf.shape, leaf.dtype) == (model[name].shape, model[name].dtype)
    tensors_bytes = sum(array.nbytes for array in model.values())
    files_bytes = sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    read = [c.size_bytes for c in recording.calls if c.operation == "read_into"]
    # The checkpoint is looked at once, and its tree once.
    assert sum(read) <= 2 * (files_bytes - tensors_bytes)


def test_renamed(tmp_path, model):
    """Rules stand between the names of a program and those of the file."""
    save_sharded(tmp_path / "c", model)
    asked = {"blocks": nested(model)["layers"], "norm": model["norm"]}
    asked["scale"] = model["scale"]
    loading = stowax.options.PyTreeOptions.Loading(rename={"blocks": "layers"})

    with stowax.Context(pytree=stowax.options.PyTreeOptions(loading=loading)):
        found = stowax.load(tmp_path / "c", asked)

    assert differences(asked, found) == []


def test_what_does_not_fit(tmp_path, model):
    """All of it at once, by name."""
    save_sharded(tmp_path / "c", model)
    asked = nested(model)
    asked["norm"] = np.zeros((9,), jnp.bfloat16)
    asked["layers"].append({"w": model["layers.0.w"]})

    with pytest.raises(TreeMismatchError, match=r"(?s)layers\.2\.w.*norm"):
        stowax.load(tmp_path / "c", asked)


def test_a_placeholder_covers_what_is_below(tmp_path, model):
    """Also where the file knows no tree."""
    save_sharded(tmp_path / "c", model)
    asked = {**nested(model), "layers": stowax.PLACEHOLDER}

    found = stowax.load(tmp_path / "c", asked)

    assert found["layers"] is stowax.PLACEHOLDER
    assert (found["norm"] == model["norm"]).all()


def test_a_leaf_of_a_file(tmp_path, model):
    """One tensor, by its name."""
    save_sharded(tmp_path / "c", model)

    found = stowax.load_leaf(tmp_path / "c", "layers.1.w", index=np.s_[2:4, 0])

    assert (found == model["layers.1.w"][2:4, 0]).all()


def test_in_any_store(model):
    """Headers and tensors come through the store that the Context names."""
    memory = MemoryStore()
    data = safetensors.numpy.save({"w": model["layers.0.w"]})

    default_runtime().run(memory.write("/models/a.safetensors", [data]))
    with stowax.Context(file=stowax.options.FileOptions(store=memory)):
        found = stowax.load("/models/a.safetensors")

    assert differences({"w": model["layers.0.w"]}, found) == []


def test_without_an_index(tmp_path, model):
    """All files of the directory are read, if no name is in two of them."""
    save_sharded(tmp_path / "c", model).unlink()
    assert differences(model, stowax.load(tmp_path / "c")) == []

    file = tmp_path / "c" / "model-00001-of-00002.safetensors"
    (tmp_path / "c" / "copy.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(InvalidLayoutError, match=r"both copy.* and model-00001"):
        stowax.load(tmp_path / "c")


@pytest.mark.parametrize("library", [stowax, orbax])
def test_a_file_within_the_directory_of_a_tree(tmp_path, model, library):
    """A tree stays one, whatever somebody puts beside its documents."""
    library.save(tmp_path / "c", {"w": np.arange(3)})
    tensors = {"other": model["layers.0.w"]}
    for directory in (tmp_path / "c", tmp_path / "c" / "state"):
        safetensors.numpy.save_file(tensors, directory / "m.safetensors")

    found = stowax.load(tmp_path / "c")
    alone = stowax.load(tmp_path / "c" / "state", checkpointable_name=None)

    assert found["w"].tolist() == alone["w"].tolist() == [0, 1, 2]


def test_a_directory_named_like_a_file(tmp_path, model):
    """What is a directory is told by the disk, and not by its name."""
    directory = tmp_path / "m.safetensors"
    directory.mkdir()
    safetensors.numpy.save_file({"w": model["layers.0.w"]}, directory / directory.name)

    found = stowax.load(directory)

    assert differences({"w": model["layers.0.w"]}, found) == []


def edit_index(path, **changes):
    """Changes keys of an index."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_index_that_names_other_files(tmp_path, model):
    """Files that are missing, or lie elsewhere, or lack a tensor, are named."""
    index = save_sharded(tmp_path / "c", model)
    good = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(good.values()))

    for bad, match in (
        ({"norm": "gone.safetensors"}, r"are not there: gone\.safetensors"),
        ({"norm": "../c/" + first}, "no file of the directory"),
        ({"norm": 3}, "a file name"),
        ({"absent": second}, "'absent' is not in"),
    ):
        edit_index(index, weight_map=good | bad)
        with pytest.raises(CorruptCheckpointError, match=match):
            stowax.load(tmp_path / "c")
    for bad in (None, [], "x"):
        edit_index(index, weight_map=bad)
        with pytest.raises(CorruptCheckpointError, match="weight_map"):
            stowax.load(tmp_path / "c")


def test_two_indices(tmp_path, model):
    """Two checkpoints in one directory cannot be told apart."""
    index = save_sharded(tmp_path / "c", model)
    index.with_name("other.safetensors.index.json").write_bytes(index.read_bytes())

    with pytest.raises(InvalidLayoutError, match="several checkpoints"):
        stowax.load(tmp_path / "c")


def test_cut_short(tmp_path, model):
    """A file that is not whole is no checkpoint, and no array is made of it."""
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"w": model["layers.0.w"]}, path)
    data = path.read_bytes()

    for size_bytes in (0, 5, 8, 40, len(data) - 1):
        path.write_bytes(data[:size_bytes])
        with pytest.raises(CorruptCheckpointError, match=r"m\.safetensors"):
            stowax.load(path)


def test_a_dtype_that_jax_does_not_have(tmp_path):
    """The tensor is named."""
    text = b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    data = len(text).to_bytes(8, "little") + text + b"\0"
    (tmp_path / "m.safetensors").write_bytes(data)

    with pytest.raises(UnsupportedLeafError, match="w: F4"):
        stowax.load(tmp_path / "m.safetensors")


def test_no_such_file(tmp_path):
    """Nothing there, and a file of another kind, are told apart."""
    with pytest.raises(CheckpointNotFoundError):
        stowax.load(tmp_path / "m.safetensors")
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(NotADirectoryLayoutError, match=r"\.safetensors"):
        stowax.load(tmp_path / "m.bin")


def test_a_directory_of_models_is_not_replaced(tmp_path, model):
    """`overwrite=True` replaces checkpoints, and deletes nothing else."""
    save_sharded(tmp_path / "c", model)

    with pytest.raises(stowax.errors.CheckpointExistsError, match="not replaced"):
        stowax.save(tmp_path / "c", model, overwrite=True)
    assert (tmp_path / "c" / "config.json").exists()


def test_a_mesh_of_eight(tmp_path):
    """Columns of a tensor over eight devices, as a program would ask for them."""
    array = bits("float32", (16, 64))
    safetensors.numpy.save_file({"w": array}, tmp_path / "m.safetensors")
    sharding = jax.NamedSharding(mesh(8), jax.P(None, "x"))
    asked = {"w": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)}

    found = stowax.load(tmp_path / "m.safetensors", asked)["w"]

    assert found.sharding == sharding
    assert differences(array, np.asarray(found)) == []
