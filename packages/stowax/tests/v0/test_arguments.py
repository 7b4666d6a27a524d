"""Arguments of single leaves: what they say, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stowax
from stowax.errors import TreeMismatchError, UnsupportedLeafError
from stowax.v0._arguments import ArrayRestoreArgs, RestoreArgs, SaveArgs
from stowax.v0._targets import plan_restore
from stowax.v0._tree_metadata import TreeMetadata
from stowax.v0.checkpoint_utils import construct_restore_args
from stowax.v0.metadata import (
    ArrayMetadata,
    NamedShardingMetadata,
    ScalarMetadata,
    ShardingError,
    SingleDeviceShardingMetadata,
    StringMetadata,
)
from stowax.v0.tree import to_shape_dtype_struct

MESH = jax.make_mesh((4, 2), ("x", "y"))
NAMED = jax.sharding.NamedSharding(MESH, jax.P("x", None))
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[2])


def test_aggregation_has_no_effect():
    """Who asks for it is told, where the call is."""
    with pytest.warns(DeprecationWarning, match="aggregate") as caught:
        SaveArgs(aggregate=True)

    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["shape", "global_shape"])
def test_a_shape_has_two_names(name):
    """Either is enough."""
    args = ArrayRestoreArgs(**{name: (4, 2)})

    assert args.shape == args.global_shape == (4, 2)
    assert ArrayRestoreArgs(shape=(4, 2), global_shape=(4, 2)).shape == (4, 2)


def test_a_shape_is_one_shape():
    """Two that differ are refused, with both."""
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(4, 3\)"):
        ArrayRestoreArgs(shape=(4, 2), global_shape=(4, 3))


def test_a_restore_of_everything_needs_no_look():
    """Without an item and arguments nothing is asked of what is stored."""
    assert plan_restore(None, None, None).abstract is None


def test_all_strict_leaves_that_do_not_fit_are_listed():
    """One message has them all, beside others that may be cut."""
    stored = {
        name: to_metadata(jnp.zeros((4, 2))) for name in ("cut", "one", "two", "fits")
    }
    args = {
        "cut": ArrayRestoreArgs(shape=(2, 2), strict=False),
        "one": ArrayRestoreArgs(shape=(2, 2)),
        "two": ArrayRestoreArgs(shape=(4, 4)),
        "fits": ArrayRestoreArgs(shape=(4, 2)),
    }

    with pytest.raises(TreeMismatchError) as caught:
        plan_restore(None, args, stored)

    assert [line.split(":")[0] for line in caught.value.problems] == ["one", "two"]


def to_metadata(array):
    """What `PyTreeHandler.metadata` shows of an array."""
    return stowax.arrays.ArrayMetadata(shape=array.shape, dtype=array.dtype)


def test_arguments_are_made_of_a_target():
    """Every kind of leaf gives the arguments that restore it."""
    args = construct_restore_args(
        {
            "array": jax.device_put(jnp.zeros((4, 2)), NAMED),
            "numpy": np.zeros(3, np.int8),
            "number": 1.5,
            "text": "a",
            "nowhere": jax.ShapeDtypeStruct((2,), jnp.float32),
            "somewhere": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=ONE_DEVICE),
            "left out": ...,
        }
    )

    assert args["array"] == ArrayRestoreArgs(
        sharding=NAMED, global_shape=(4, 2), dtype=np.dtype(np.float32)
    )
    assert args["numpy"] == RestoreArgs(np.ndarray, np.dtype(np.int8))
    assert args["number"] == RestoreArgs(float)
    assert args["text"] == RestoreArgs(str)
    assert args["nowhere"] == RestoreArgs(np.ndarray, np.dtype(np.float32))
    assert args["somewhere"].sharding == ONE_DEVICE
    assert args["left out"] == RestoreArgs(type(...))


def test_arguments_are_made_of_metadata():
    """What a checkpoint tells of its leaves restores them as they were."""
    sharding = NamedShardingMetadata.from_jax_sharding(NAMED)
    common = {"name": "leaf", "directory": None}
    metadata = TreeMetadata(
        tree={
            "array": ArrayMetadata(
                **common, shape=(4, 2), sharding=sharding, dtype=np.dtype(np.float32)
            ),
            "numpy": ArrayMetadata(
                **common, shape=(3,), sharding=None, dtype=np.dtype(np.int8)
            ),
            "number": ScalarMetadata(**common, dtype=np.dtype(np.int64)),
            "text": StringMetadata(**common),
        },
        custom_metadata={"a": 1},
    )

    args = construct_restore_args(metadata)

    assert args["array"].sharding == sharding
    assert args["array"].global_shape == (4, 2)
    assert args["numpy"] == RestoreArgs(np.ndarray, np.dtype(np.int8))
    assert args["number"] == RestoreArgs(int, np.dtype(np.int64))
    assert args["text"] == RestoreArgs(str)
    assert args.custom_metadata == {"a": 1}


def test_a_target_of_something_else_is_refused():
    """The message names the leaf and its type."""
    with pytest.raises(UnsupportedLeafError, match=r"\['a'\]\[1\].*object"):
        construct_restore_args({"a": [1, object()]})
    assert issubclass(UnsupportedLeafError, ValueError)


def test_metadata_is_a_tree():
    """It has the key paths of the tree, and goes through JAX with its facts."""
    metadata = TreeMetadata(
        tree={"a": [1, 2], "b": {"c": 3}}, custom_metadata={"x": [1]}, use_zarr3=True
    )

    doubled = jax.tree.map(lambda one, other: one + other, metadata, metadata)

    assert doubled.tree == {"a": [2, 4], "b": {"c": 6}}
    assert (doubled.custom_metadata, doubled.use_zarr3) == ({"x": [1]}, True)
    leaves = jax.tree_util.tree_leaves_with_path(metadata)
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [
        "['a'][0]",
        "['a'][1]",
        "['b']['c']",
    ]
    assert (sorted(metadata), len(metadata), "a" in metadata) == (["a", "b"], 2, True)
    assert (metadata["b"], metadata.get("z", 0)) == ({"c": 3}, 0)


@pytest.mark.parametrize("sharding", [NAMED, ONE_DEVICE], ids=["named", "one device"])
def test_shardings_are_plain_values(sharding):
    """They go to JAX and back, and are the same as text."""
    cls = NamedShardingMetadata if sharding is NAMED else SingleDeviceShardingMetadata
    found = cls.from_jax_sharding(sharding)

    assert found.to_jax_sharding() == sharding
    assert cls.from_deserialized_dict(found.to_document()) == found
    assert json.loads(found.to_serialized_string()) == found.to_document()


def test_a_sharding_of_other_devices():
    """The message says what to do where this run lacks a device."""
    elsewhere = SingleDeviceShardingMetadata("tpu:1000")

    with pytest.raises(ShardingError, match=r"tpu:1000.*ArrayRestoreArgs\(sharding"):
        elsewhere.to_jax_sharding()
    assert issubclass(ShardingError, ValueError)


def test_an_abstract_array_of_anything():
    """Of keys it is that of their data, because arguments describe them so."""
    keys = jax.random.split(jax.random.key(0), 3)
    metadata = ArrayMetadata(
        name="leaf",
        directory=None,
        shape=(4, 2),
        sharding=NamedShardingMetadata.from_jax_sharding(NAMED),
        dtype=jnp.float32,
    )

    assert to_shape_dtype_struct(keys).shape == (3, 2)
    assert to_shape_dtype_struct(metadata).sharding == NAMED
    assert to_shape_dtype_struct(np.zeros(2), dtype=jnp.int8).dtype == jnp.int8
    assert to_shape_dtype_struct(7, scalar_dtype=float) == 7.0
