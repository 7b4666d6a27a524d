"""Eight simulated processes save safetensors together, on a store in memory."""

import asyncio
import contextvars
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._stores._base import read_bytes, walk
from stowax._tree_values import TreeValues
from stowax.errors import ProcessesError, StowaxError, UnsupportedLeafError
from stowax.testing import (
    MemoryStore,
    RecordingStore,
    SimulatedCluster,
    durability_faults,
)

COUNT = 8
HOST = {
    "both": np.arange(64 * 48, dtype=np.float32).reshape(64, 48),
    "columns": np.arange(1 << 21, dtype=np.int32).reshape(4, -1),
    "copies": np.arange(100, dtype=np.uint8),
    "numpy": np.arange(3.0),
    "rows": np.arange(32, dtype=np.int16).reshape(8, 4),
}
SPECS = {"both": P("x", "y"), "columns": P(None, "y"), "copies": P(), "rows": P("x")}


@pytest.fixture
def cluster():
    """Eight processes, each with one device of the test process."""
    with SimulatedCluster(COUNT) as cluster:
        yield cluster


def state():
    """The arrays, spread over the devices of all processes."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    arrays = {
        name: jax.device_put(HOST[name], NamedSharding(mesh, spec))
        for name, spec in SPECS.items()
    }
    return HOST | arrays


def in_every(cluster, store, function, *, memory_bytes=None, **sizes):
    """Calls `function(index)` in every process, in a Context of its own."""

    def call(index):
        with stowax.Context(
            runtime=cluster.runtimes[index],
            file=stowax.options.FileOptions(store=store),
            memory=stowax.options.MemoryOptions(write_concurrent_bytes=memory_bytes),
            checkpoint_layout="safetensors",
            safetensors=stowax.options.SafetensorsOptions(**sizes),
        ):
            return function(index)

    return cluster.run(call)


def files_in(store, path="/models"):
    """Every file below a directory, with its content."""
    if asyncio.run(store.stat(path)) is None:
        return {}
    return {
        file: asyncio.run(read_bytes(store, file))
        for file, entry in asyncio.run(walk(store, path))
        if not entry.is_directory
    }


def assert_is_saved(tensors):
    """Compares every value, with its dtype and shape."""
    assert tensors.keys() == HOST.keys()
    for name, array in HOST.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


def test_one_file(cluster):
    """One process writes it, of what the others lend; nothing else is left."""
    store, saved = MemoryStore(), state()
    path = "/models/m.safetensors"

    in_every(cluster, store, lambda index: stowax.save(path, saved))

    files = files_in(store)
    assert list(files) == [path]
    assert_is_saved(safetensors.numpy.load(files[path]))


def test_a_directory(cluster):
    """Several processes write files, and the index has them all."""
    memory, saved = MemoryStore(), state()
    store = RecordingStore(memory)

    in_every(
        cluster,
        store,
        lambda index: stowax.save("/models/c", saved),
        max_file_bytes=10_000,
    )

    files = files_in(memory)
    assert len(files) == 4
    tensors = {}
    for file, data in files.items():
        if file.endswith(".safetensors"):
            tensors |= safetensors.numpy.load(data)
    assert_is_saved(tensors)
    assert durability_faults(store.calls) == []
    with stowax.Context(file=stowax.options.FileOptions(store=memory)):
        assert_is_saved(stowax.load("/models/c"))


def test_what_is_held_by_all_is_not_lent(cluster):
    """Then nothing is written but the file."""
    store = RecordingStore(MemoryStore())
    mesh = Mesh(np.array(jax.devices()), ("x",))
    array = jax.device_put(HOST["rows"], NamedSharding(mesh, P()))

    in_every(cluster, store, lambda index: stowax.save("/m.safetensors", {"w": array}))

    assert [call.operation for call in store.calls].count("write") == 1


@pytest.mark.parametrize("memory_bytes", [None, 1000])
def test_in_the_background(cluster, memory_bytes):
    """Each process goes on when its own values are safe, part after part if need be."""
    store, saved = MemoryStore(), state()

    def save(index):
        stowax.save_async("/models/m.safetensors", saved).result()

    in_every(cluster, store, save, memory_bytes=memory_bytes)

    assert_is_saved(safetensors.numpy.load(files_in(store)["/models/m.safetensors"]))


class FullStore(MemoryStore):
    """Has no room for files with a word in their names."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    async def write(self, path, pieces, *, size_bytes=None):
        if self.word in path:
            raise OSError(28, "No space left on device", path)
        await super().write(path, pieces, size_bytes=size_bytes)


@pytest.mark.parametrize("word", [".loans/3", "m.safetensors.orbax-checkpoint-tmp"])
def test_no_room(cluster, word):
    """Everybody hears of a failure, and nothing is left."""
    store, saved = FullStore(word), state()

    def save(index):
        with pytest.raises((OSError, StowaxError), match="No space left"):
            stowax.save("/models/m.safetensors", saved)

    in_every(cluster, store, save)

    assert files_in(store) == {}


def test_trees_that_differ(cluster):
    """A process that saves another tree is found, and nothing is left."""
    store, saved = MemoryStore(), state()

    def save(index):
        mine = dict(saved)
        if index == 5:
            mine["more"] = np.zeros(3)
        with pytest.raises(ProcessesError, match="0 and 5 differ"):
            stowax.save("/models/m.safetensors", mine)

    in_every(cluster, store, save)

    assert files_in(store) == {}


def test_saves_that_cross(monkeypatch):
    """Two at a time, begun in another order by each, do not wait for each other."""
    # As where devices have memory of their own.
    monkeypatch.setattr(JaxArrayLeaf, "takes_memory", lambda *_, borrow: True)
    store = MemoryStore()
    with SimulatedCluster(2) as pair:
        mesh = Mesh(np.array(jax.devices()), ("x",))
        array = jax.device_put(HOST["columns"], NamedSharding(mesh, P(None, "x")))
        begun = threading.Barrier(2)

        def save(index):
            def one(name):
                # A file for each: both processes write, and lend.
                stowax.save_async(f"/models/{name}", {"v": array, "w": array}).result()

            names = ["x", "y"] if index == 0 else ["y", "x"]
            threads = []
            for name in names:
                context = contextvars.copy_context()
                thread = threading.Thread(target=context.run, args=(one, name))
                thread.start()
                threads.append(thread)
                if name == names[0]:
                    begun.wait(20)
            for thread in threads:
                thread.join()

        memory_bytes = array.nbytes // 2
        in_every(pair, store, save, memory_bytes=memory_bytes, max_file_bytes=1)

    for path in ("/models/x", "/models/y"):
        with stowax.Context(file=stowax.options.FileOptions(store=store)):
            loaded = stowax.load(path)
        for name in ("v", "w"):
            np.testing.assert_array_equal(loaded[name], HOST["columns"], strict=True)


def test_one_that_lends_where_the_primary_does_not(cluster):
    """What it lent is deleted, whatever the primary thinks is lent."""
    store = MemoryStore()
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = jax.device_put(HOST["rows"], NamedSharding(mesh, P("x")))
    copies = jax.device_put(HOST["rows"], NamedSharding(mesh, P()))

    def save(index):
        with pytest.raises(ProcessesError, match="differ"):
            stowax.save("/models/m.safetensors", {"w": spread if index else copies})

    in_every(cluster, store, save)

    assert files_in(store) == {}


def test_texts_that_differ(cluster):
    """Each file would have those of its writer: all have to give the same."""
    store, saved = MemoryStore(), state()

    def save(index):
        with pytest.raises(ProcessesError, match="custom_metadata"):
            stowax.save("/m.safetensors", saved, custom_metadata={"host": f"{index}"})

    in_every(cluster, store, save)


@pytest.mark.parametrize("failing", [0, 2], ids=["the writer", "a lender"])
def test_one_that_cannot_bring_it_to_the_host(cluster, monkeypatch, failing):
    """The others hear why, and do not wait for what never comes."""
    store, saved = MemoryStore(), state()
    fetch = TreeValues.fetch

    def fail(self, *arguments, **options):
        if self.processes.index == failing:
            raise MemoryError(f"no memory in process {failing}")
        return fetch(self, *arguments, **options)

    monkeypatch.setattr(TreeValues, "fetch", fail)

    def save(index):
        with pytest.raises((MemoryError, StowaxError), match="no memory in process"):
            stowax.save("/models/m.safetensors", saved)

    in_every(cluster, store, save)

    assert files_in(store) == {}


def test_one_that_cannot(cluster):
    """A leaf that one process cannot save stops all of them."""
    store, saved = MemoryStore(), state()

    def save(index):
        mine = saved | ({"numpy": "text"} if index == 2 else {})
        with pytest.raises(UnsupportedLeafError, match="arrays alone"):
            stowax.save("/models/m.safetensors", mine)

    in_every(cluster, store, save)

    assert files_in(store) == {}
