"""Eight simulated processes save to a session together, on a store in memory."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from sample_trees import differences

import stowax
from stowax import partial
from stowax.errors import PartialSaveReplacementError, StowaxError
from stowax.testing import (
    MemoryStore,
    RecordingStore,
    SimulatedCluster,
    durability_faults,
)

COUNT = 8
HOST = {
    "both": np.arange(64 * 48, dtype=np.float32).reshape(64, 48),
    "rows": np.arange(32, dtype=np.int16).reshape(8, 4),
}


@pytest.fixture
def cluster():
    """Eight processes, each with one device of the test process."""
    with SimulatedCluster(COUNT) as cluster:
        yield cluster


def spread(name, factor=1):
    """An array over the devices of all processes."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    spec = {"both": P("x", "y"), "rows": P("x")}[name]
    return jax.device_put(HOST[name] * factor, NamedSharding(mesh, spec))


def in_every(cluster, store, function):
    """Calls `function(index)` in every process, in a Context of its own."""

    def call(index):
        with stowax.Context(
            runtime=cluster.runtimes[index],
            file=stowax.options.FileOptions(store=store),
        ):
            return function(index)

    return cluster.run(call)


def test_together(cluster):
    """Updates of all processes, one on top of the other, become one checkpoint."""
    store = RecordingStore(MemoryStore())
    both, rows, more = spread("both"), spread("rows"), spread("both", 2)

    def run(_):
        partial.save("/c", {"a": both, "n": np.arange(3)}, custom_metadata={"x": 1})
        response = partial.save_async("/c", {"b": rows})
        partial.save("/c", {"a": more}, replace=True)
        response.result()
        partial.finalize("/c")
        return stowax.load("/c")

    loaded = in_every(cluster, store, run)

    # Every process has its part of the arrays.
    expected = {"a": more, "b": rows, "n": np.arange(3)}
    for index, state in enumerate(loaded):
        assert state.keys() == expected.keys()
        for name in ("a", "b"):
            shards = state[name].addressable_shards
            (here,) = [s for s in shards if s.device == jax.devices()[index]]
            whole = np.asarray(expected[name])
            assert np.array_equal(here.data, whole[here.index])
    assert durability_faults(store.calls) == []


def test_on_disk(cluster, tmp_path):
    """Orbax reads what they made; and finishes what they have begun."""
    both, rows = spread("both"), spread("rows")

    def run(_):
        for name in ("ours", "theirs"):
            partial.save(tmp_path / name, {"a": both})
            partial.save(tmp_path / name, {"b": rows, "n": 1})
        partial.finalize(tmp_path / "ours")

    in_every(cluster, None, run)
    v1.partial.finalize(tmp_path / "theirs")

    expected = {"a": both, "b": rows, "n": 1}
    for name in ("ours", "theirs"):
        for library in (v1, stowax):
            loaded = library.load(tmp_path / name, expected)
            assert differences(expected, loaded) == []
    stowax.verify(tmp_path / "ours")


def test_a_clash(cluster):
    """What the primary finds in the way, all processes hear of."""
    store = MemoryStore()
    both = spread("both")

    def run(_):
        partial.save("/c", {"a": both})
        with pytest.raises(PartialSaveReplacementError, match="'a'"):
            partial.save("/c", {"a": both, "b": 1})
        partial.save("/c", {"b": 2})
        partial.finalize("/c")
        return stowax.load("/c")["b"]

    assert in_every(cluster, store, run) == [2] * COUNT


@pytest.mark.parametrize("index", [0, 5])
def test_one_that_cannot_take_part(cluster, index):
    """All processes fail together, and the session goes on without it."""
    store = MemoryStore()
    both = spread("both")

    def run(here):
        partial.save("/c", {"a": both})
        failing = {"b": object() if here == index else 1}
        with pytest.raises(StowaxError, match="'b'"):
            partial.save("/c", failing)
        partial.save("/c", {"b": 2})
        partial.finalize("/c")
        return stowax.load("/c")["b"]

    assert in_every(cluster, store, run) == [2] * COUNT


def test_a_session_that_is_not_there(cluster):
    """All processes hear that there is nothing to finish."""

    def run(_):
        with pytest.raises(FileNotFoundError, match="no session"):
            partial.finalize("/c")

    in_every(cluster, MemoryStore(), run)
