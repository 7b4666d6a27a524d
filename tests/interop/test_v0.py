"""What `stowax.v0` writes Orbax v0 reads, and the other way round.

Every test takes both libraries in turn for the save and for the restore; what comes
back is what Orbax alone would give.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from golden_cases import GOLDEN, compare, load_case
from google.protobuf.duration_pb2 import Duration
from sample_trees import differences

import stowax
from stowax import v0
from stowax.errors import TreeMismatchError
from stowax.v0._handler_types import handler_type

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

LIBRARIES = {"orbax": orbax, "stowax": v0}
PAIRS = [("stowax", "stowax"), ("stowax", "orbax"), ("orbax", "stowax")]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Who saves, and who restores."""
    saver, loader = request.param
    return LIBRARIES[saver], LIBRARIES[loader]


def _state():
    return {
        "layers": [{"w": jnp.arange(6.0).reshape(2, 3), "b": np.ones(3)}, {}],
        "step": 7,
        "rate": 0.5,
        "half": jnp.ones(4, jnp.bfloat16),
    }


def test_tree(tmp_path, pair):
    """Trees come back leaf by leaf, with containers, dtypes, texts and metadata."""
    saver, loader = pair
    tree = {**_state(), "name": "a text"}

    with saver.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree, custom_metadata={"run": 1})
    with loader.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "c")
        found = checkpointer.metadata(tmp_path / "c")

    assert differences(tree, restored) == []
    assert found.custom_metadata == {"run": 1}
    assert found.item_handlers == v0.PyTreeCheckpointHandler.typestr()
    assert found.init_timestamp_nsecs < found.commit_timestamp_nsecs


@pytest.mark.parametrize("use_zarr3", [False, True])
@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_storage(tmp_path, pair, use_ocdbt, use_zarr3):
    """So they do in every form in which arrays are stored."""
    saver, loader = pair
    options = {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3}

    with saver.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(tmp_path / "c", _state())
    with loader.PyTreeCheckpointer() as checkpointer:
        assert differences(_state(), checkpointer.restore(tmp_path / "c")) == []
        found = json.loads((tmp_path / "c" / "_METADATA").read_text())
        told = checkpointer.metadata(tmp_path / "c").item_metadata

    assert told.use_zarr3 == use_zarr3
    assert (found["use_ocdbt"], found["use_zarr3"]) == (use_ocdbt, use_zarr3)


def test_tree_metadata(tmp_path, pair):
    """What is told of a tree: shapes, dtypes, shardings, and the user's own words."""
    saver, loader = pair
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
    tree = {"w": jax.device_put(jnp.ones((4, 2)), sharding), "n": 3, "s": "text"}

    with saver.Checkpointer(saver.PyTreeCheckpointHandler()) as checkpointer:
        args = saver.args.PyTreeSave(tree, custom_metadata={"by": ["me"]})
        checkpointer.save(tmp_path / "c", args=args)
    with loader.Checkpointer(loader.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.metadata(tmp_path / "c").item_metadata

    assert found.custom_metadata == {"by": ["me"]}
    assert (found["w"].shape, found["w"].dtype) == ((4, 2), jnp.float32)
    assert found["w"].sharding.to_jax_sharding() == sharding
    assert found["w"].name == "w"
    assert found["n"].dtype == np.int64
    assert type(found["s"]).__name__ == "StringMetadata"


def test_metadata_as_target(tmp_path, pair):
    """Metadata of a tree, given to a restore, asks for what is stored."""
    saver, loader = pair
    tree = {"w": jnp.ones(2), "n": np.arange(3)}

    with saver.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree)
    with loader.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(tmp_path / "c").item_metadata
        args = loader.args.PyTreeRestore(found)
        restored = checkpointer.restore(tmp_path / "c", args=args)

    assert differences(tree, restored) == []


def test_standard_target(tmp_path, pair):
    """A target says shardings and dtypes; without it all is as it was saved."""
    saver, loader = pair
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.P("x"))
    tree = {"w": jnp.arange(8.0), "n": np.arange(3), "k": 1}

    with saver.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree)
    with loader.StandardCheckpointer() as checkpointer:
        target = {
            "w": jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=spread),
            "n": np.zeros(3, np.float32),
            "k": 0,
        }
        restored = checkpointer.restore(tmp_path / "c", target)
        as_saved = checkpointer.restore(tmp_path / "c")

    assert restored["w"].sharding == spread
    assert restored["w"].dtype == jnp.bfloat16
    assert restored["n"].dtype == np.float32
    assert differences(tree, as_saved) == []


@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_placeholders_of_orbax(tmp_path, use_ocdbt):
    """What Orbax saved as `...` is that for us, whoever asks and however."""
    path = tmp_path / "c"
    tree = {"w": np.ones(2), "n": {"x": [..., 2]}}
    with orbax.PyTreeCheckpointer(use_ocdbt=use_ocdbt) as checkpointer:
        checkpointer.save(path, tree)
        assert differences(tree, checkpointer.restore(path)) == []
    like = {"w": np.zeros(2), "n": {"x": [1, 1]}}

    checkpointer = v0.PyTreeCheckpointer()
    told = checkpointer.metadata(path).item_metadata.tree
    args = v0.checkpoint_utils.construct_restore_args(told)
    original = {"new": v0.Transform(original_key="n/x/0")}

    assert told["n"]["x"][0] is ...
    assert differences(tree, checkpointer.restore(path)) == []
    assert differences(tree, checkpointer.restore(path, like)) == []
    assert differences(tree, checkpointer.restore(path, restore_args=args)) == []
    assert checkpointer.restore(path, {"new": 1}, transforms=original) == {"new": ...}
    assert differences(tree, v0.StandardCheckpointer().restore(path)) == []


def test_value_for_a_placeholder(tmp_path):
    """Who asks for a value where none is stored is told so."""
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": ..., "b": 1})
    asked = {"a": np.ndarray, "b": int}
    args = {key: v0.RestoreArgs(restore_type=cls) for key, cls in asked.items()}

    with pytest.raises(TreeMismatchError, match=r"a: asked .*, stored placeholder"):
        v0.PyTreeCheckpointer().restore(tmp_path / "c", restore_args=args)


def test_tree_of_nothing_but_placeholders(tmp_path):
    """It has no array to open."""
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": ...})

    assert v0.PyTreeCheckpointer().restore(tmp_path / "c") == {"a": ...}


@pytest.mark.parametrize("loader", LIBRARIES)
def test_devices_that_are_not_here(tmp_path, loader):
    """Arrays of other devices are told of, and restored only where that is said."""
    library, device = LIBRARIES[loader], jax.devices()[3]
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": jax.device_put(jnp.ones(2), device)})
    document = tmp_path / "c" / "_sharding"
    document.write_text(document.read_text().replace("cpu:3", "tpu:99"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[1])

    checkpointer = library.Checkpointer(library.StandardCheckpointHandler())
    found = checkpointer.metadata(tmp_path / "c").item_metadata["w"].sharding
    args = library.args.StandardRestore(fallback_sharding=here)
    restored = checkpointer.restore(tmp_path / "c", args=args)

    assert found.device_str == "tpu:99"
    assert restored["w"].sharding == here
    with pytest.raises(ValueError):
        checkpointer.restore(tmp_path / "c", args=library.args.StandardRestore())


def test_padding(tmp_path, pair):
    """`strict=False` cuts and pads; otherwise another shape is an error."""
    saver, loader = pair
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    with saver.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": jnp.arange(4.0)})
    with loader.StandardCheckpointer() as checkpointer:
        target = {"w": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=device)}
        restored = checkpointer.restore(tmp_path / "c", target, strict=False)
        with pytest.raises(ValueError, match="w"):
            checkpointer.restore(tmp_path / "c", target)

    assert restored["w"].tolist() == [0, 1, 2, 3, 0, 0]


def test_save_args(tmp_path, pair):
    """`SaveArgs` say dtype and chunks of single leaves."""
    saver, loader = pair
    tree = {"w": jnp.arange(8.0), "v": jnp.arange(8.0)}
    args = {
        "w": saver.SaveArgs(dtype=np.dtype(jnp.bfloat16)),
        "v": saver.SaveArgs(chunk_byte_size=8),
    }

    with saver.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree, save_args=args)
    with loader.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "c")
        found = checkpointer.metadata(tmp_path / "c").item_metadata

    assert (restored["w"].dtype, restored["v"].dtype) == (jnp.bfloat16, jnp.float32)
    assert found["v"].storage.chunk_shape == (2,)


def _save_composite(library, path):
    args = library.args
    with library.Checkpointer(library.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path,
            args.Composite(
                state=args.StandardSave({"w": jnp.arange(3.0)}),
                extra=args.PyTreeSave({"pair": [1, "two"]}),
                config=args.JsonSave({"depth": 3}),
                metrics=args.JsonSave({"loss": 0.5}),
                limit=args.ProtoSave(Duration(seconds=9)),
                array=args.ArraySave(np.arange(4)),
                key=args.JaxRandomKeySave(jax.random.key(7)),
                raw_key=args.JaxRandomKeySave(jax.random.PRNGKey(7)),
                numpy_key=args.NumpyRandomKeySave(np.random.RandomState(7).get_state()),
            ),
            custom_metadata={"run": 1},
        )


def test_composite(tmp_path, pair):
    """Every kind of item in one checkpoint, each asked for by its arguments."""
    saver, loader = pair
    args = loader.args

    _save_composite(saver, tmp_path / "c")
    with loader.Checkpointer(loader.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            tmp_path / "c",
            args.Composite(
                state=args.StandardRestore(),
                extra=args.PyTreeRestore(),
                config=args.JsonRestore(),
                metrics=args.JsonRestore(),
                limit=args.ProtoRestore(Duration),
                array=args.ArrayRestore(),
                key=args.JaxRandomKeyRestore(),
                raw_key=args.JaxRandomKeyRestore(),
                numpy_key=args.NumpyRandomKeyRestore(),
            ),
        )
        found = checkpointer.metadata(tmp_path / "c")

    assert restored.state["w"].tolist() == [0, 1, 2]
    assert restored.extra == {"pair": [1, "two"]}
    assert (restored.config, restored.metrics) == ({"depth": 3}, {"loss": 0.5})
    assert restored.limit.seconds == 9
    assert restored.array.tolist() == [0, 1, 2, 3]
    assert restored.key == jax.random.key(7)
    assert (restored.raw_key == jax.random.PRNGKey(7)).all()
    again = np.random.RandomState()
    again.set_state(restored.numpy_key)
    assert again.rand() == np.random.RandomState(7).rand()
    assert found.custom_metadata == {"run": 1}
    assert found.item_handlers["config"] == v0.JsonCheckpointHandler.typestr()
    assert found.item_metadata.state["w"].shape == (3,)


def test_composite_without_arguments(tmp_path, pair):
    """Items are found by what the checkpoint has recorded of them."""
    saver, loader = pair
    with saver.Checkpointer(saver.CompositeCheckpointHandler()) as checkpointer:
        args = saver.args.Composite(
            state=saver.args.StandardSave({"w": jnp.arange(3.0)}),
            config=saver.args.JsonSave({"depth": 3}),
        )
        checkpointer.save(tmp_path / "c", args)
    with loader.Checkpointer(loader.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(tmp_path / "c")

    assert sorted(restored.keys()) == ["config", "state"]
    assert restored.config == {"depth": 3}


def test_one_item_of_a_composite(tmp_path, pair):
    """A checkpointer of one handler restores from the directory of an item."""
    saver, loader = pair

    _save_composite(saver, tmp_path / "c")
    with loader.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "c" / "state")

    assert restored["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("JsonCheckpointHandler", {"depth": [1, None, "x"]}),
        ("ArrayCheckpointHandler", np.arange(6).reshape(2, 3)),
        ("ArrayCheckpointHandler", 2.5),
        ("ArrayCheckpointHandler", 3),
    ],
)
def test_single_item(tmp_path, pair, name, item):
    """A handler alone, whose item lies at the path itself."""
    saver, loader = pair

    with saver.Checkpointer(getattr(saver, name)()) as checkpointer:
        checkpointer.save(tmp_path / "c", item)
    with loader.Checkpointer(getattr(loader, name)()) as checkpointer:
        restored = checkpointer.restore(tmp_path / "c")
        found = checkpointer.metadata(tmp_path / "c").item_handlers

    assert differences(item, restored) == []
    assert found == getattr(v0, name).typestr()


def test_in_the_background(tmp_path, pair):
    """An `AsyncCheckpointer` writes the same."""
    saver, loader = pair

    with saver.AsyncCheckpointer(saver.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=saver.args.PyTreeSave(_state()))
        checkpointer.wait_until_finished()
    with loader.AsyncCheckpointer(loader.PyTreeCheckpointHandler()) as checkpointer:
        assert differences(_state(), checkpointer.restore(tmp_path / "c")) == []


def test_partial_restore(tmp_path, pair):
    """`partial_restore` takes of a tree what the item names."""
    saver, loader = pair

    with saver.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": np.ones(2), "b": {"c": 1, "d": 2}})
    with loader.PyTreeCheckpointer() as checkpointer:
        args = loader.args.PyTreeRestore({"b": {"d": 0}}, partial_restore=True)
        assert checkpointer.restore(tmp_path / "c", args=args) == {"b": {"d": 2}}


def test_read_by_the_newer_api(tmp_path):
    """What it writes, `stowax.load` loads, verified."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "direct", _state())
    _save_composite(v0, tmp_path / "composite")

    assert differences(_state(), stowax.load(tmp_path / "direct")) == []
    loaded = stowax.load_checkpointables(
        tmp_path / "composite", {"state": None, "config": None, "limit": Duration}
    )
    assert loaded["config"] == {"depth": 3}
    assert loaded["limit"].seconds == 9
    for name in ("direct", "composite"):
        assert stowax.verify(tmp_path / name).damages == ()


def test_reads_the_newer_api(tmp_path):
    """What `stowax.save` writes, it restores, item by item or together."""
    stowax.save_checkpointables(tmp_path / "c", {"state": _state(), "extra": {"x": 1}})

    with v0.PyTreeCheckpointer() as checkpointer:
        assert differences(_state(), checkpointer.restore(tmp_path / "c/state")) == []
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        args = v0.args.Composite(extra=v0.args.PyTreeRestore())
        assert checkpointer.restore(tmp_path / "c", args).extra == {"x": 1}


# --- checkpoints that released versions of Orbax wrote --------------------------------

DIRECT = ["v0_array", "v0_json", "v0_pytree", "v0_pytree_files", "v0_standard"]
COMPOSITE = ["v0_composite", "v0_manager", "v1_training"]
ITEMS = sorted(
    path.name
    for path in GOLDEN.iterdir()
    if path.name.startswith(("v1_", "mp2_"))
    and path.name not in ("v1_training", "v1_interrupted_rename", "v1_partial_pending")
)


@pytest.mark.parametrize("name", DIRECT)
def test_golden_direct(name):
    """One item at the path itself, by the handler that the checkpoint names."""
    for path, content in load_case(name).checkpoints.items():
        handler = handler_type(content["item_handlers"])()
        with v0.Checkpointer(handler) as checkpointer:
            restored = checkpointer.restore(path)
            found = checkpointer.metadata(path)

        if isinstance(handler, v0.ArrayCheckpointHandler):
            restored = {"checkpoint": restored}
        assert _item_differences(content["item"], restored) == []
        assert found.custom_metadata == content["custom_metadata"]
        assert found.item_handlers == content["item_handlers"]


@pytest.mark.parametrize("name", COMPOSITE)
def test_golden_composite(name):
    """Items side by side, and the steps of a training run."""
    for path, content in load_case(name).checkpoints.items():
        args = {
            item: v0.args.JsonRestore()
            if described["kind"] == "json"
            else v0.args.PyTreeRestore()
            for item, described in content["items"].items()
        }
        registry = v0.DefaultCheckpointHandlerRegistry()
        if "metrics" in args:
            metrics = v0.JsonCheckpointHandler("metrics")
            registry.add("metrics", v0.args.JsonRestore, metrics)
        handler = v0.CompositeCheckpointHandler(handler_registry=registry)
        with v0.Checkpointer(handler) as checkpointer:
            restored = checkpointer.restore(path, v0.args.Composite(**args))

        assert restored.keys() == content["items"].keys()
        for item, described in content["items"].items():
            assert _item_differences(described, restored[item]) == []


@pytest.mark.parametrize("name", ITEMS)
def test_golden_items(name):
    """Trees of the newer API, one by one, by the handler of trees."""
    for path, content in load_case(name).checkpoints.items():
        for item, described in content["items"].items():
            if described["kind"] == "pytree":
                with v0.PyTreeCheckpointer() as checkpointer, jax.enable_x64(True):
                    restored = checkpointer.restore(path / item)
                assert _item_differences(described, restored) == []


def _item_differences(item, value):
    if item["kind"] == "pytree":
        return compare(item["tree"], value)
    assert item["kind"] == "json", item["kind"]
    return [] if value == item["json"] else [f"other JSON: {value}"]


def test_every_golden_case_of_the_older_api_is_there():
    """A case that is added has its place in a table above."""
    there = {path.name for path in Path(GOLDEN).glob("v0_*")}

    assert there == {name for name in [*DIRECT, *COMPOSITE] if name.startswith("v0_")}


def test_what_is_there_and_cannot_be_read(tmp_path):
    """It is no checkpoint that is not found: nobody may start from scratch over it."""
    path = tmp_path / "c"
    orbax.PyTreeCheckpointer().save(path, {"a": np.arange(3)})
    document = path / "_METADATA"
    document.write_text(document.read_text().replace("np.ndarray", "weird"))

    for library in (orbax, v0):
        with pytest.raises(ValueError, match="weird") as caught:
            library.PyTreeCheckpointer().restore(path)
        assert not isinstance(caught.value, FileNotFoundError)
