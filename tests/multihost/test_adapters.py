"""Several real JAX processes save a module, its optimizer and their data together."""

import grain
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
import stowax_flax
import stowax_grain
import stowax_optax
from multihost import _launcher, trees

COUNT = 2


def training():
    """A module and its optimizer, on one device."""
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def data(index):
    """The shard of one process."""
    return iter(grain.MapDataset.range(index, 100, COUNT).to_iter_dataset())


def held(node):
    """The values that an NNX object holds, as plain dicts."""
    return nnx.to_pure_dict(nnx.state(node))


def numbered(tree, first):
    """A tree like this one in host memory, whose elements are counted from `first`."""

    def count(leaf):
        numbers = np.arange(first, first + leaf.size)
        return numbers.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.map(count, tree)


def spread(node, first):
    """Numbers the values of an NNX object, spread over the devices of all processes."""

    def place(host):
        spec = P(trees.AXES) if host.ndim else P()
        return trees.on_devices(host, NamedSharding(trees.global_mesh(), spec))

    nnx.update(node, jax.tree.map(place, numbered(nnx.state(node), first)))


def wrapped(model, optimizer):
    """What is saved and loaded of the training itself."""
    return {
        "model": stowax_flax.Module(model),
        "optimizer": stowax_optax.State(optimizer),
    }


def differences(model, optimizer):
    """Where the values are not those that were saved."""
    return [
        *trees.differences(held(model), numbered(held(model), 1), "model"),
        *trees.differences(held(optimizer), numbered(held(optimizer), 9), "optimizer"),
    ]


def _save(index, path):
    model, optimizer = training()
    spread(model, 1)
    spread(optimizer, 9)
    shard = data(index)
    for _ in range(index + 3):
        next(shard)
    iterator = {"data": stowax_grain.Iterator(shard)}
    stowax.save_checkpointables(path, wrapped(model, optimizer) | iterator)
    return next(shard)


def _load(index, path):
    model, optimizer = training()
    spread(model, 0)
    spread(optimizer, 0)
    shard = data(index)
    iterator = {"data": stowax_grain.Iterator(shard)}
    stowax.load_checkpointables(path, wrapped(model, optimizer) | iterator)
    return differences(model, optimizer), next(shard)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path of what two processes have saved, and the element each would see next."""
    path = tmp_path_factory.mktemp("adapters") / "checkpoint"
    return path, _launcher.launch(COUNT, _save, path)


def test_the_same_processes_go_on(launch, saved):
    """Each process gets its part of module and optimizer, and its own position."""
    path, following = saved

    results = launch(COUNT, _load, path)

    assert results == [([], element) for element in following]


def test_one_process_loads_what_two_saved(saved):
    """Module and optimizer do not depend on the number of processes."""
    path, _ = saved
    model, optimizer = training()

    stowax.load_checkpointables(path, wrapped(model, optimizer))

    assert differences(model, optimizer) == []


def test_every_document_is_there_once(saved):
    """Beside the tree lies one document; of the data, an index and every position."""
    path, _ = saved

    documents = {file.relative_to(path).as_posix() for file in path.rglob("*.json*")}

    assert documents >= {"model/nnx.json", "optimizer/optax.json"}
    assert {file.name for file in (path / "data").iterdir()} == {
        "data.json",
        "process_0-of-2.json",
        "process_1-of-2.json",
    }
