"""Eight simulated processes save a module, its optimizer and their data together."""

import functools
import json

import grain
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
import stowax_flax
import stowax_grain
import stowax_optax
from stowax.testing import MemoryStore, SimulatedCluster

COUNT = 8
ROUNDS = 8
"""Saves of one test: a file that one process takes from another is not always seen."""


@pytest.fixture(scope="module")
def cluster():
    """Eight processes, each with one device of the test process."""
    with SimulatedCluster(COUNT) as cluster:
        yield cluster


def in_every(cluster, store, function):
    """Calls `function(index)` in every process, in a Context of its own."""

    def call(index):
        runtime = cluster.runtimes[index]
        file = stowax.options.FileOptions(store=store)
        with stowax.Context(runtime=runtime, file=file):
            return function(index)

    return cluster.run(call)


def module(seed):
    """A module whose kernel is spread over the devices of all processes."""
    made = nnx.Linear(8, 8, rngs=nnx.Rngs(seed))
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = NamedSharding(mesh, P("x"))
    nnx.update(made, jax.device_put(nnx.state(made), spread))
    return made


def optimizer_state(model):
    """The state of an optimizer that has taken one step."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = optax.adam(1e-3)
    return tx.update(params, tx.init(params))[1]


def data(index):
    """The shard of one process, advanced by as many elements as its index says."""
    return iter(grain.MapDataset.range(index, 800, COUNT).to_iter_dataset())


@pytest.mark.parametrize("make_store", [MemoryStore, lambda: None], ids=["ram", "disk"])
def test_eight_save_what_adapters_wrap(cluster, tmp_path, make_store):
    """Every save of eight processes succeeds; each loads its data, and one the rest."""
    store = make_store()
    model, fresh = module(0), module(1)
    state = optimizer_state(model)
    shards = [data(index) for index in range(COUNT)]
    for index, shard in enumerate(shards):
        for _ in range(index):
            next(shard)

    def save(index):
        for step in range(ROUNDS):
            parts = {
                "model": stowax_flax.Module(model),
                "opt": stowax_optax.State(state),
                "data": stowax_grain.Iterator(shards[index]),
            }
            stowax.save_checkpointables(tmp_path / str(step), parts)

    def load_data(index):
        resumed = data(index)
        wrapped = stowax_grain.Iterator(resumed)
        path = tmp_path / str(ROUNDS - 1)
        stowax.load_checkpointables(path, {"data": wrapped})
        return next(resumed)

    in_every(cluster, store, save)
    resumed = in_every(cluster, store, load_data)
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        for step in range(ROUNDS):
            loaded = stowax_optax.State(jax.tree.map(np.zeros_like, state))
            parts = {"model": stowax_flax.Module(fresh), "opt": loaded}
            stowax.load_checkpointables(tmp_path / str(step), parts)

    assert resumed == [next(shard) for shard in shards]
    same = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(
        same, nnx.to_pure_dict(nnx.state(fresh)), nnx.to_pure_dict(nnx.state(model))
    )
    jax.tree.map(same, loaded.value, state)


def test_documents_are_those_of_the_primary(cluster, tmp_path):
    """What is said once for all is what the primary process says, whatever it reads."""
    path = tmp_path / "checkpoint"
    state = optimizer_state(module(0))

    def save(index):
        iterator = stowax_grain.Iterator(
            data(index),
            tag=f"of {index}",
            process_index=COUNT - 1 - index,
            process_count=COUNT,
        )
        opt = stowax_optax.State(state, tag=f"of {index}")
        stowax.save_checkpointables(path, {"opt": opt, "data": iterator})

    in_every(cluster, None, save)

    def tag(document):
        return json.loads((path / document).read_text())["tag"]

    assert tag("opt/optax.json") == tag("data/data.json") == "of 0"
    assert [tag(f"data/process_{index}-of-8.json") for index in range(COUNT)] == [
        f"of {COUNT - 1 - index}" for index in range(COUNT)
    ]
