"""Orbax loads what we save, and we load what it saves: the same values and dtypes.

The real `orbax.checkpoint` and `tensorstore` are the oracles.
"""

import asyncio
import itertools
import json
import warnings

import jax
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from sample_trees import (
    HOST_DTYPES,
    JAX_DTYPES,
    OWN_DTYPES,
    Layer,
    Nothing,
    Point,
    abstract,
    all_kinds,
    bits,
    containers,
    differences,
    jax_arrays,
    keys,
    mesh,
    numpy_arrays,
    orbax_holds,
    sharded_arrays,
    shardings,
)

import stowax

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def orbax_can(family):
    """The samples of a family, less those that Orbax cannot hold."""
    if family == "containers":
        return {k: c for k, c in containers().items() if k != "unnamed"}
    samples = all_kinds()[family].items()
    return {name: leaf for name, leaf in samples if orbax_holds(leaf)}


FAMILIES = ["jax", "sharded", "keys", "numpy", "scalars", "strings", "containers"]


@pytest.mark.parametrize("family", FAMILIES)
def test_orbax_loads_ours_with_an_abstract_state(tmp_path, family):
    """Values, dtypes, placement and containers are those that we saved."""
    state = orbax_can(family)

    stowax.save(tmp_path / "checkpoint", state)
    loaded = v1.load(tmp_path / "checkpoint", abstract(state))

    # Orbax commits every array to a device; ours and the saved one may be free.
    is_spread = family == "sharded"
    assert differences(state, loaded, placement=is_spread) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_orbax_loads_ours_without_a_target(tmp_path, family):
    """Orbax finds the whole tree by itself; keys and positions are as it has them."""
    state = orbax_can(family)

    stowax.save(tmp_path / "checkpoint", state)
    v1.save(tmp_path / "theirs", state)

    expected = v1.load(tmp_path / "theirs")
    assert differences(expected, v1.load(tmp_path / "checkpoint")) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_orbax_with_an_abstract_state(tmp_path, family):
    """Values, dtypes, placement and containers are those that Orbax saved."""
    state = orbax_can(family)

    v1.save(tmp_path / "checkpoint", state)
    loaded = stowax.load(tmp_path / "checkpoint", abstract(state))

    assert differences(state, loaded, placement=True) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_orbax_without_a_target(tmp_path, family):
    """What comes back equals what Orbax itself gives."""
    state = orbax_can(family)

    v1.save(tmp_path / "checkpoint", state)

    expected = v1.load(tmp_path / "checkpoint")
    assert differences(expected, stowax.load(tmp_path / "checkpoint")) == []


def training_state():
    """A state as training has it."""
    params = {
        "dense": Layer(
            kernel=jax.device_put(bits("float32", (8, 16)), shardings()["both"]),
            bias=jax.device_put(bits("bfloat16", (16,))),
        ),
    }
    zeros = jax.tree.map(np.zeros_like, params)
    adam = optax.ScaleByAdamState(count=np.array(3, np.int32), mu=zeros, nu=zeros)
    return {
        "params": params,
        "opt": (Nothing(), adam, optax.EmptyState()),
        "rng": jax.random.key(5),
        "step": 3,
        "point": Point(x=[1.5, "text"], y=None),
    }


def test_training_state_both_ways(tmp_path):
    """A training state of nested containers goes both ways."""
    state = training_state()
    state["opt"][1].mu["dense"].kernel = np.ones((8, 16), np.float32)

    stowax.save(tmp_path / "ours", state)
    v1.save(tmp_path / "theirs", state)

    target = abstract(state)
    assert differences(state, v1.load(tmp_path / "ours", target)) == []
    assert differences(state, stowax.load(tmp_path / "theirs", target)) == []
    assert differences(state, stowax.load(tmp_path / "ours", target)) == []


def test_orbax_metadata_of_ours(tmp_path):
    """Orbax sees our trees, dtypes, shapes, shardings, times and metadata."""
    state = {"w": sharded_arrays()["both"], "n": 1, "s": "text", "key": keys()["batch"]}

    stowax.save(tmp_path / "ours", state, custom_metadata={"note": "kept"})
    v1.save(tmp_path / "theirs", state, custom_metadata={"note": "kept"})

    ours, theirs = v1.metadata(tmp_path / "ours"), v1.metadata(tmp_path / "theirs")
    assert ours.custom_metadata == {"note": "kept"}
    assert ours.init_timestamp_nsecs <= ours.commit_timestamp_nsecs
    assert ours.metadata["w"].shape == (8, 16)
    assert ours.metadata["w"].dtype == np.float32
    assert (
        ours.metadata["w"].sharding_metadata == theirs.metadata["w"].sharding_metadata
    )
    assert repr(ours.metadata["n"]) == repr(theirs.metadata["n"])
    assert repr(ours.metadata["s"]) == repr(theirs.metadata["s"])
    assert ours.metadata["key"].shape == theirs.metadata["key"].shape
    assert v1.is_orbax_checkpoint(tmp_path / "ours")


def test_our_metadata_of_theirs(tmp_path):
    """`metadata` of a checkpoint of Orbax says what it says of ours."""
    state = {"w": sharded_arrays()["both"], "n": 1, "f": 0.5, "s": "text", "a": [None]}

    stowax.save(tmp_path / "ours", state, custom_metadata={"note": "kept"})
    v1.save(tmp_path / "theirs", state, custom_metadata={"note": "kept"})

    ours, theirs = (stowax.metadata(tmp_path / name) for name in ("ours", "theirs"))
    assert theirs.custom_metadata == {"note": "kept"}
    assert theirs.metadata["w"].sharding == state["w"].sharding
    assert ours.metadata == theirs.metadata


def test_checkpointables_both_ways(tmp_path):
    """Several checkpointables go both ways; JSON is JSON on both sides."""
    parts = {"model": {"w": bits("float32", (3,))}, "config": {"depth": 3}}

    ours = stowax.options.CheckpointablesOptions.create_with_handlers(
        config=stowax.handlers.JsonHandler
    )
    registry = v1.handlers.local_registry()
    registry.add(v1.handlers.JsonHandler, checkpointable_name="config")
    theirs = v1.options.CheckpointablesOptions(registry=registry)
    with stowax.Context(checkpointables=ours):
        stowax.save_checkpointables(tmp_path / "ours", parts)
    with v1.Context(checkpointables_options=theirs):
        v1.save_checkpointables(tmp_path / "theirs", parts)

    assert differences(parts, v1.load_checkpointables(tmp_path / "ours")) == []
    assert differences(parts, stowax.load_checkpointables(tmp_path / "theirs")) == []


def test_older_api_reads_our_item(tmp_path):
    """`PyTreeCheckpointer` of the older API reads the directory of our tree."""
    state = {"w": jax.device_put(bits("float32", (4, 3))), "host": bits("int64", (2,))}

    stowax.save(tmp_path / "checkpoint", state)

    with v0.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = checkpointer.restore(tmp_path / "checkpoint" / "state")
    assert differences(state, loaded) == []


def test_we_read_the_older_api(tmp_path):
    """What `PyTreeCheckpointer` and `StandardCheckpointer` wrote is loaded."""
    state = {"w": jax.device_put(bits("float32", (4, 3))), "host": bits("int64", (2,))}

    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "pytree", state)
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", state)

    for name in ("pytree", "standard"):
        assert differences(state, stowax.load(tmp_path / name)) == []
        assert differences(state, stowax.load(tmp_path / name, abstract(state))) == []


def test_tensorstore_opens_every_array(tmp_path):
    """TensorStore finds every array in our index, with equal values; and no more."""
    state = {
        **jax_arrays(),
        **{f"host_{k}": a for k, a in numpy_arrays().items()},
        **{f"on_{k}": a for k, a in sharded_arrays().items()},
        "number": 7,
        "text": "not an array",
    }
    stowax.save(tmp_path / "checkpoint", state)
    base = {"driver": "file", "path": f"{tmp_path}/checkpoint/state/"}

    for name, value in state.items():
        if isinstance(value, str):
            continue
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        }
        found = ts.open(spec, open=True, read=True).result().read().result()
        value = np.asarray(value)
        if value.dtype.name in (*OWN_DTYPES, *HOST_DTYPES):
            value = value.view(np.uint8)
        assert found.dtype == value.dtype.newbyteorder("="), name
        assert found.shape == value.shape
        assert found.tobytes() == np.ascontiguousarray(value).tobytes()

    database = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    listed = {key.decode().split("/")[0] for key in database.list().result()}
    assert listed == {name for name in state if name != "text"}


@pytest.mark.parametrize(
    ("written", "read"), list(itertools.permutations(["rows", "both", "columns"], 2))
)
def test_resharding_both_ways(tmp_path, written, read):
    """An array saved on one arrangement is loaded onto another, by either library."""
    array = sharded_arrays()[written]
    target = {
        "w": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings()[read])
    }
    expected = {"w": jax.device_put(np.asarray(array), shardings()[read])}

    stowax.save(tmp_path / "ours", {"w": array})
    v1.save(tmp_path / "theirs", {"w": array})

    for loaded in (
        v1.load(tmp_path / "ours", target),
        stowax.load(tmp_path / "theirs", target),
        stowax.load(tmp_path / "ours", target),
    ):
        assert differences(expected, loaded, placement=True) == []


def test_spread_keys_both_ways(tmp_path):
    """PRNG keys over devices come back over them, and are recorded as Orbax does it."""
    state = {"key": keys()["sharded"]}

    for library in (stowax, v1):
        library.save(tmp_path / library.__name__, state)
        for reader in (stowax, v1):
            loaded = reader.load(tmp_path / library.__name__)["key"]
            assert differences(state["key"], loaded, placement=True) == []
            assert len(loaded.sharding.spec) <= loaded.ndim
        shown = stowax.metadata(tmp_path / library.__name__).metadata["key"]
        assert shown.sharding.spec == P("x")

    ours, theirs = (
        json.loads((tmp_path / library.__name__ / "state" / "_sharding").read_text())
        for library in (stowax, v1)
    )
    specs = [json.loads(*found.values())["partition_spec"] for found in (ours, theirs)]
    assert specs[0] == specs[1] == ["x", None]


def test_onto_fewer_devices(tmp_path):
    """What 8 devices saved is loaded onto one and two, by either library."""
    array = sharded_arrays()["both"]
    stowax.save(tmp_path / "ours", {"w": array})
    v1.save(tmp_path / "theirs", {"w": array})

    one = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    for sharding in (one, NamedSharding(mesh(2), P(None, "x"))):
        target = {"w": jax.ShapeDtypeStruct((8, 16), array.dtype, sharding=sharding)}
        expected = {"w": jax.device_put(np.asarray(array), sharding)}
        for load, name in ((v1.load, "ours"), (stowax.load, "theirs")):
            loaded = load(tmp_path / name, target)
            assert differences(expected, loaded, placement=True) == []


# Orbax makes nonsense of float8_e8m0fnu: 1.0 comes out of it as 1.8446744e+19.
@pytest.mark.parametrize("name", sorted({*JAX_DTYPES} - {"float8_e8m0fnu"}))
def test_casting_is_theirs(tmp_path, name):
    """A dtype that is asked for gives the values that Orbax gives."""
    host = np.arange(6).reshape(2, 3).astype(bits(name, (1,)).dtype)
    state = {"x": jax.device_put(host)}
    target = {"x": jax.ShapeDtypeStruct((2, 3), np.float32)}
    v1.save(tmp_path / "checkpoint", state)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = stowax.load(tmp_path / "checkpoint", target)

    assert differences(v1.load(tmp_path / "checkpoint", target), loaded) == []


def test_orbax_saves_over_ours(tmp_path):
    """A directory of ours may be overwritten by Orbax, and the other way round."""
    stowax.save(tmp_path / "checkpoint", {"x": 1})
    v1.save(tmp_path / "checkpoint", {"x": 2}, overwrite=True)
    assert stowax.load(tmp_path / "checkpoint") == {"x": 2}

    stowax.save(tmp_path / "checkpoint", {"x": 3}, overwrite=True)
    assert v1.load(tmp_path / "checkpoint") == {"x": 3}


def test_handler_alone_both_ways(tmp_path):
    """`PyTreeHandler` alone writes a directory that Orbax reads with its own."""
    state = {"x": jax.device_put(bits("float32", (3,)))}

    async def save():
        await (await stowax.handlers.PyTreeHandler().save(tmp_path / "item", state))

    asyncio.run(save())

    loaded = v1.load(tmp_path / "item", checkpointable_name=None)
    assert differences(state, loaded) == []
