import asyncio
import json
import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts
from golden_cases import GOLDEN
from orbax.checkpoint import v1

import stowax
from stowax._box import whole
from stowax._budget import Budget, Scratch
from stowax._formats._base import ReadRequest
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax import OrbaxV1Format
from stowax._formats._orbax_item import open_tree
from stowax._formats._orbax_v0 import OrbaxV0Format
from stowax._stores._local import LocalStore
from stowax.errors import (
    CorruptCheckpointError,
    HostMemoryError,
    InvalidLayoutError,
)
from stowax.testing._memory_store import MemoryStore

UNLIMITED = Scratch(Budget(), 1 << 40)

V1 = OrbaxV1Format()
V0 = OrbaxV0Format()


@pytest.fixture
def checkpoint(tmp_path):
    """A copy, to be changed, of a v1 checkpoint with one item, `state`."""
    return shutil.copytree(GOLDEN / "v1_basic/checkpoint", tmp_path / "checkpoint")


@pytest.fixture
def step(tmp_path):
    """A copy, to be changed, of a directory of steps; the step with two items."""
    root = shutil.copytree(GOLDEN / "v1_training/checkpoint", tmp_path / "run")
    return root / "10"


def _open(form, path, store=None):
    return asyncio.run(form.open(store or LocalStore(), str(path), verify=True))


def _open_tree(path, *, verify=True, store=None):
    store = store or LocalStore()
    return asyncio.run(open_tree(store, str(path), verify=verify))


def _recognises(path):
    return [asyncio.run(form.recognises(LocalStore(), str(path))) for form in (V1, V0)]


def _edit(path, **changes):
    document = json.loads(path.read_text())
    for key, value in changes.items():
        document[key] = value
        if value is None:
            del document[key]
    path.write_text(json.dumps(document))


# --- what is recognised ---------------------------------------------------------------


def test_indicator_file_tells_the_two_apart(checkpoint):
    """The v1 format is known by its indicator, and is the older one without it."""
    assert _recognises(checkpoint) == [True, False]

    (checkpoint / "orbax.checkpoint").unlink()

    assert _recognises(checkpoint) == [False, True]
    assert list(_open(V0, checkpoint).items) == ["state"]


def test_items_alone_are_recognised(step):
    """Root metadata may be lost; the items are still a checkpoint."""
    (step / "_CHECKPOINT_METADATA").unlink()

    assert _recognises(step) == [False, True]
    assert sorted(_open(V0, step).items) == ["opt", "state"]


def test_directory_of_steps_is_no_checkpoint(step):
    """It is not recognised, and if opened nevertheless, the error names its steps."""
    assert _recognises(step.parent) == [False, False]
    with pytest.raises(
        InvalidLayoutError, match=r"directory of checkpoints \(0, 10, 5"
    ):
        _open(V0, step.parent)


def test_empty_directory_is_no_checkpoint(tmp_path):
    """Nothing is made of nothing."""
    assert _recognises(tmp_path) == [False, False]


# --- what is refused ------------------------------------------------------------------


def test_v1_without_root_metadata_is_incomplete(checkpoint):
    """The error says what is missing and what was found."""
    (checkpoint / "_CHECKPOINT_METADATA").unlink()

    with pytest.raises(InvalidLayoutError, match=r"no _CHECKPOINT_METADATA.*state/"):
        _open(V1, checkpoint)


def test_item_of_a_checkpoint_is_no_checkpoint(step):
    """The error proposes the path that was meant."""
    with pytest.raises(InvalidLayoutError, match=r"load_checkpointables.*'opt'"):
        _open(V0, step / "opt")


def test_step_that_lost_its_items_is_incomplete(step):
    """Root metadata alone is no checkpoint."""
    for name in ("state", "opt", "metrics"):
        shutil.rmtree(step / name)

    with pytest.raises(InvalidLayoutError, match="no checkpointable"):
        _open(V0, step)


@pytest.mark.parametrize(
    "name",
    ["10.orbax-checkpoint-tmp", "10.orbax-checkpoint-tmp-17", "10.partial_save"],
)
def test_unfinished_name_is_refused(step, name):
    """A complete content does not make up for a temporary name."""
    unfinished = step.rename(step.with_name(name))
    opening = open_checkpoint(LocalStore(), str(unfinished), verify=True)

    with pytest.raises(InvalidLayoutError, match=r"unfinished|not finalized"):
        asyncio.run(opening)


def test_msgpack_of_2023_is_named(tmp_path):
    """The oldest format is recognised, and the error says that it is too old."""
    (tmp_path / "checkpoint").write_bytes(b"\x80")

    assert _recognises(tmp_path) == [False, True]
    with pytest.raises(InvalidLayoutError, match="msgpack"):
        _open_tree(_open(V0, tmp_path).items[""])


# --- what is hidden -------------------------------------------------------------------


def test_item_that_is_being_deleted_is_gone(step):
    """The record of a deletion hides its item, whether or not it is still there."""
    (step / "_CHECKPOINT_DELETION").write_text('{"checkpointable_name": "opt"}')

    assert list(_open(V0, step).items) == ["state"]


def test_leftover_of_an_item_is_no_item(step):
    """A temporary item directory is not taken for data."""
    (step / "x.orbax-checkpoint-tmp").mkdir()

    assert sorted(_open(V0, step).items) == ["opt", "state"]


def test_metrics_are_no_item(step):
    """They are the checkpoint's metrics, and not one of its checkpointables."""
    opened = _open(V0, step)

    assert "metrics" not in opened.items
    assert opened.metrics == {"loss": 0.5}


# --- tree items -----------------------------------------------------------------------


def test_missing_tree_document_says_what_is_there(checkpoint):
    """Without `_METADATA` a directory is no tree item."""
    (checkpoint / "state/_METADATA").unlink()

    with pytest.raises(InvalidLayoutError, match=r"no _METADATA.*manifest\.ocdbt"):
        _open_tree(checkpoint / "state")


def test_lost_integrity_manifest_is_not_overlooked(checkpoint):
    """An item that names a manifest loads without it only when told so."""
    _edit(checkpoint / "state/_METADATA", stowax={"manifest": "manifest-7"})

    with pytest.raises(CorruptCheckpointError, match=r"manifest-7.*verify=False"):
        _open_tree(checkpoint / "state")
    assert _open_tree(checkpoint / "state", verify=False).manifest.leaves


def test_database_is_found_when_it_was_not_recorded(checkpoint):
    """Older writers did not say whether arrays lie in a database."""
    _edit(checkpoint / "state/_METADATA", use_ocdbt=None)

    assert _open_tree(checkpoint / "state").manifest.leaves


def test_missing_database_is_named(checkpoint):
    """A database that never was merged, or was removed, is an error of its own."""
    (checkpoint / "state/manifest.ocdbt").unlink()

    with pytest.raises(CorruptCheckpointError, match=r"state: manifest\.ocdbt"):
        _open_tree(checkpoint / "state")


def test_arrays_need_a_directory():
    """What only TensorStore can read is refused in a store without directories."""
    for case in ("v1_basic", "v1_only_strings", "v1_zarr3_files"):
        store = MemoryStore()
        _copy_into(store, GOLDEN / case / "checkpoint/state")
        if case != "v1_zarr3_files":
            assert _open_tree("/item", store=store).manifest.leaves
        else:
            with pytest.raises(InvalidLayoutError, match="file system"):
                _open_tree("/item", store=store)


def test_omitted_chunks_of_older_writers_are_zeros(tmp_path):
    """Where the documents allow chunks to be missing, they were full of zeros."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/w"},
        "metadata": {
            "shape": [4],
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        },
        "create": True,
    }
    ts.open(spec).result().write(np.array([1, 2, 0, 0], np.float32)).result()
    entry = {
        "key_metadata": [{"key": "w", "key_type": 2}],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
    document = {"tree_metadata": {"('w',)": entry}, "use_zarr3": True}
    assert not (tmp_path / "w/c/1").exists()

    (tmp_path / "_METADATA").write_text(json.dumps(document))
    assert _read(tmp_path, "w").tolist() == [1, 2, 0, 0]

    document["store_array_data_equal_to_fill_value"] = True
    (tmp_path / "_METADATA").write_text(json.dumps(document))
    with pytest.raises(CorruptCheckpointError, match="'w'"):
        _read(tmp_path, "w")


def test_recorded_shardings_are_kept():
    """A sharding is described as it was saved."""
    item = GOLDEN / "v1_sharded_8dev/checkpoint/state"
    expected = json.loads((item.parents[1] / "expected.json").read_text())
    tree = expected["checkpoints"]["checkpoint"]["items"]["state"]["tree"]["dict"]

    for leaf in _open_tree(item).manifest.leaves:
        saved = tree[leaf.name]["leaf"].get("sharding")
        if saved is not None and saved["type"] == "NamedSharding":
            assert leaf.form.sharding["partition_spec"] == saved["spec"]
            assert leaf.form.sharding["shape"] == saved["mesh_shape"]


def test_stored_facts_of_every_leaf():
    """Name, dtype and shape of every stored array are those of the saved tree."""
    for case in ("v1_dtypes", "v1_dtypes_zarr2"):
        item = GOLDEN / case / "checkpoint/state"
        expected = json.loads((GOLDEN / case / "expected.json").read_text())
        tree = expected["checkpoints"]["checkpoint"]["items"]["state"]["tree"]
        saved = {leaf["name"]: leaf for leaf in _leaves(tree)}

        found = _open_tree(item).manifest.leaves

        assert {
            leaf.name: [leaf.form.dtype, list(leaf.form.shape)] for leaf in found
        } == {name: [leaf["dtype"], leaf["shape"]] for name, leaf in saved.items()}


def _leaves(node):
    if "leaf" in node:
        return [node["leaf"]]
    return [leaf for child in node["dict"].values() for leaf in _leaves(child)]


def _read(item, name):
    async def read():
        tree = await open_tree(LocalStore(), str(item), verify=True)
        names = [leaf.name for leaf in tree.manifest.leaves]
        leaf = tree.manifest.leaves[names.index(name)]
        out = np.empty(leaf.form.shape, jax.numpy.dtype(leaf.form.dtype))
        request = ReadRequest(
            leaf=names.index(name), box=whole(leaf.form.shape), out=out
        )
        await tree.source.read([request], UNLIMITED)
        return out

    return asyncio.run(read())


def _copy_into(store, directory):
    async def copy():
        for file in files:
            path = f"/item/{file.relative_to(directory).as_posix()}"
            await store.write(path, [file.read_bytes()])

    files = [file for file in directory.rglob("*") if file.is_file()]
    asyncio.run(copy())


def test_tree_without_its_documents_is_not_passed_over(tmp_path):
    """A recorded tree whose `_METADATA` is gone is damage: no other is taken for it."""
    path = tmp_path / "checkpoint"
    v1.save_checkpointables(path, {"state": {"w": 1}, "config": {"lr": 0.1}})
    (path / "state/_METADATA").unlink()

    with pytest.raises(InvalidLayoutError, match="state has no _METADATA"):
        stowax.load(path)


# Another leaf loses range, which is said first.
@pytest.mark.filterwarnings("ignore:.*dtypes asked for")
def test_more_than_the_host_has_memory_for(tmp_path):
    """An array that no host can hold is named, with its size and the way out."""
    path = shutil.copytree(
        GOLDEN / "v1_zarr3_files/checkpoint", tmp_path / "checkpoint"
    )
    shape = json.loads((path / "state/w/zarr.json").read_text())["shape"]
    huge = [10**15, *shape[1:]]
    _edit(path / "state/w/zarr.json", shape=huge)

    with pytest.raises(HostMemoryError, match="load_leaf") as caught:
        stowax.load(path)

    assert isinstance(caught.value, MemoryError)
    size_bytes = 10**15 * 4 * int(np.prod(shape[1:]))
    assert "leaf 'w': " in str(caught.value)
    assert str(huge) in str(caught.value)
    assert f"{size_bytes} bytes" in str(caught.value)
    index = (slice(0, 1),) * len(shape)
    assert stowax.load_leaf(path, "w", index=index).shape == (1,) * len(shape)
