"""Several real JAX processes save and load one checkpoint together."""

import asyncio
import collections
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
from multihost import _launcher, trees
from stowax._codecs._item_manifest import decode_part
from stowax._stores._local import LocalStore
from stowax.testing import RecordingStore

MIB = 1 << 20


class CountingStore(RecordingStore):
    """Counts what is read of data files."""

    def __init__(self):
        super().__init__(LocalStore())
        self.read_bytes = 0

    async def read_into(self, path, offset_bytes, buffer):
        if "/d/data-" in path:
            self.read_bytes += memoryview(buffer).nbytes
        await super().read_into(path, offset_bytes, buffer)


def chunk_tables(item):
    """The chunk table of every process that wrote, by its index."""
    parts = sorted(item.glob("stowax.chunks.*"))
    return {int(p.suffix[1:]): decode_part(p.read_bytes()) for p in parts}


def _save(index, path):
    stowax.save(path, trees.state())


@pytest.fixture(scope="module")
def saved_by(tmp_path_factory):
    """Path of what a number of processes have saved; not to be written to."""

    @functools.cache
    def save(count):
        path = tmp_path_factory.mktemp(f"saved_by_{count}") / "checkpoint"
        _launcher.launch(count, _save, path)
        return path

    return save


@pytest.mark.parametrize("count", [2, 4])
def test_one_process_loads_what_many_saved(saved_by, count):
    """What processes save together is one checkpoint, read bit for bit by anyone."""
    path = saved_by(count)

    loaded = stowax.load(path)

    assert trees.differences(loaded, trees.expected()) == []
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("count", [2, 4])
def test_every_shard_is_written_once(saved_by, count):
    """The data areas of the processes together hold every byte of the state once."""
    item = saved_by(count) / "state"
    tables = chunk_tables(item)

    areas = sorted(p.name for p in item.glob("ocdbt.process_*"))
    chunks = [
        row
        for table in tables.values()
        for row in zip(table.leaf.tolist(), table.chunk.tolist(), strict=True)
    ]
    files = {
        (item / name).relative_to(item): size_bytes
        for table in tables.values()
        for name, size_bytes in zip(table.files, table.file_size_bytes, strict=True)
    }
    on_disk = {f.relative_to(item): f.stat().st_size for f in item.glob("**/d/data-*")}
    leaves = jax.tree.leaves(trees.expected())
    # A Python number has 8 bytes in an array of its own, a bool 1; strings have none.
    arrays = [np.asarray(leaf) for leaf in leaves if not isinstance(leaf, str)]

    assert areas == [f"ocdbt.process_{index}" for index in range(count)]
    assert max(collections.Counter(chunks).values()) == 1
    assert sum(sum(t.length_bytes.tolist()) for t in tables.values()) == sum(
        array.nbytes for array in arrays
    )
    assert on_disk == files
    # Behind each chunk a checksum of 4 bytes and less than a cache line of padding.
    assert sum(files.values()) < sum(a.nbytes for a in arrays) + len(chunks) * 68


def _save_recorded(index, path):
    store = RecordingStore(LocalStore())
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        stowax.save(path, trees.state())
    return [(call.operation, call.paths) for call in store.calls]


def test_primary_alone_publishes(launch, tmp_path):
    """One process publishes; the others only write their own files, and sync them."""
    primary, other = launch(2, _save_recorded, tmp_path / "checkpoint")
    written = [paths[0] for operation, paths in other if operation == "write"]
    synced = [path for op, paths in other if op == "sync" for path in paths]

    assert [operation for operation, _ in primary].count("publish") == 1
    assert {operation for operation, _ in other} <= {"make_directory", "write", "sync"}
    assert [path.partition("/state/")[2] for path in written] == [
        "ocdbt.process_1/d/data-0",
        "stowax.chunks.1",
    ]
    assert set(written) <= set(synced)


def _save_replicas(index, path):
    sharding = NamedSharding(trees.global_mesh(), P())
    host = np.arange(100, dtype=np.float32)
    stowax.save(path, {str(i): trees.on_devices(host, sharding) for i in range(8)})


def test_replicas_are_shared_out(launch, tmp_path):
    """Processes that hold the same arrays write an equal share of them each."""
    launch(4, _save_replicas, tmp_path / "checkpoint")

    tables = chunk_tables(tmp_path / "checkpoint" / "state")

    assert {index: len(table) for index, table in tables.items()} == dict.fromkeys(
        range(4), 2
    )


def _load(index, path):
    """Loads onto two meshes; returns what was not as it should be."""
    found = []
    for is_turned in (False, True):
        mesh = trees.global_mesh(is_turned=is_turned)
        abstract = trees.only_global(trees.abstract_arrays(mesh))
        loaded = stowax.load(path, abstract)
        expected = trees.only_global(trees.host_values())
        found += trees.differences(loaded, expected)
        found += trees.misplaced(loaded["global"], abstract["global"])
    return found


@pytest.mark.parametrize(("writers", "readers"), [(2, 2), (4, 4), (4, 2), (2, 4)])
def test_loads_onto_any_mesh(launch, saved_by, writers, readers):
    """Number of processes and order of devices may differ from those of the save."""
    assert launch(readers, _load, saved_by(writers)) == [[]] * readers


def _save_then_load_plainly(index, path):
    state = trees.state()
    stowax.save(path, state)
    loaded = stowax.load(path)
    differences = trees.differences(loaded, trees.expected())
    return differences + trees.misplaced(loaded["global"], state["global"])


def test_loads_as_saved_without_target(launch, tmp_path):
    """Without a target the same processes get the arrays spread as they were."""
    assert launch(2, _save_then_load_plainly, tmp_path / "checkpoint") == [[], []]


def _save_rows(index, path):
    # Four shards of 2 MiB, one on each device.
    sharding = NamedSharding(trees.global_mesh(), P(trees.AXES))
    rows = np.arange(8 * MIB // 4, dtype=np.float32).reshape(4, -1)
    stowax.save(path, {"rows": trees.on_devices(rows, sharding)})


def _load_rows(index, path):
    return [_load_rows_onto(path, is_turned=is_turned) for is_turned in (False, True)]


def _load_rows_onto(path, *, is_turned):
    sharding = NamedSharding(trees.global_mesh(is_turned=is_turned), P(trees.AXES))
    shape = (4, 2 * MIB // 4)
    target = {"rows": jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)}
    store = CountingStore()
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        loaded = stowax.load(path, target)
    rows = np.arange(8 * MIB // 4, dtype=np.float32).reshape(4, -1)
    return trees.differences(loaded, {"rows": rows}), store.read_bytes


def test_reads_only_what_its_devices_need(launch, tmp_path):
    """Each of two processes reads half of the bytes, whoever wrote them."""
    launch(4, _save_rows, tmp_path / "checkpoint", devices=1)

    results = launch(2, _load_rows, tmp_path / "checkpoint")

    assert results == [[([], 4 * MIB)] * 2] * 2


def _load_alone(index, path, reader):
    return _load(index, path) if index == reader else None


@pytest.mark.parametrize("reader", [0, 1])
def test_load_waits_for_nobody(launch, saved_by, reader):
    """One process of several may load alone, its part of a global array too."""
    assert launch(2, _load_alone, saved_by(2), reader)[reader] == []


def _save_in_background(index, path):
    host = np.arange(1000.0)
    array = trees.on_devices(host, NamedSharding(trees.global_mesh(), P("process")))
    responses = []
    for step in range(3):
        mine = np.full(4, step)
        tree = {"step": step, "numpy": mine, "array": array}
        responses.append(stowax.save_async(path / str(step), tree))
        mine[:] = -1
    array.delete()
    # Asked for in another order in every process.
    for response in responses if index else reversed(responses):
        response.result()


def test_saves_in_the_background(launch, tmp_path):
    """Saves go on side by side, and values may change once `save_async` returns."""
    launch(2, _save_in_background, tmp_path)

    for step in range(3):
        expected = {
            "step": step,
            "numpy": np.full(4, step),
            "array": np.arange(1000.0, dtype=np.float32),
        }
        loaded = stowax.load(tmp_path / str(step))
        assert trees.differences(loaded, expected) == []


class Journal:
    """Saves itself: a tree by all processes, and a plain file by each of them."""

    def __init__(self, tree=None):
        self.tree = tree
        self.lines = []

    async def save(self, directory):
        writing = await stowax.handlers.PyTreeHandler().save(
            directory / "tree", self.tree
        )
        line = f"written by {jax.process_index()}"

        async def finish():
            path = await directory.await_creation()
            (path / f"journal_{jax.process_index()}.txt").write_text(line)
            await writing

        return finish()

    async def load(self, directory):
        reading = await stowax.handlers.PyTreeHandler().load(directory / "tree")

        async def finish():
            self.tree = await reading
            self.lines = [p.read_text() for p in sorted(directory.glob("*.txt"))]

        return finish()


def _with_config_as_json():
    return stowax.Context(
        checkpointables=stowax.options.CheckpointablesOptions.create_with_handlers(
            config=stowax.handlers.JsonHandler
        )
    )


def _save_checkpointables(index, path):
    with _with_config_as_json():
        stowax.save_checkpointables(
            path,
            {
                "model": trees.state(),
                "journal": Journal(trees.state()),
                "config": {"depth": 3, "names": ["a", None]},
            },
        )


def test_saves_checkpointables(launch, tmp_path):
    """Trees, documents and objects that save themselves go into one checkpoint."""
    launch(2, _save_checkpointables, tmp_path / "checkpoint")

    journal = Journal()
    with _with_config_as_json():
        loaded = stowax.load_checkpointables(
            tmp_path / "checkpoint", {"model": None, "journal": journal, "config": None}
        )

    assert trees.differences(loaded["model"], trees.expected()) == []
    assert trees.differences(journal.tree, trees.expected()) == []
    assert journal.lines == ["written by 0", "written by 1"]
    assert loaded["config"] == {"depth": 3, "names": ["a", None]}
    sealed = json.loads((tmp_path / "checkpoint" / "stowax.json").read_text())
    assert "journal/journal_1.txt" in str(sealed)


def _overwrite(index, path):
    for step in range(3):
        sharding = NamedSharding(trees.global_mesh(), P("process"))
        array = trees.on_devices(np.full(4, step, np.int32), sharding)
        stowax.save(path, {"step": array}, overwrite=True)


def test_overwrites(launch, tmp_path):
    """What several processes saved, they replace."""
    launch(2, _overwrite, tmp_path / "checkpoint")

    loaded = stowax.load(tmp_path / "checkpoint")

    assert trees.differences(loaded, {"step": np.full(4, 2, np.int32)}) == []
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def _write_item_alone(index, path):
    if index:
        # What one process does by itself must not set it apart from the others.
        with pytest.raises(FileNotFoundError):
            stowax.load(path, checkpointable_name=None)

    async def write():
        await (await stowax.handlers.PyTreeHandler().save(path, trees.state()))

    asyncio.run(write())


def test_handler_alone_writes_an_item_together(launch, tmp_path):
    """A `PyTreeHandler` used by itself writes one item in several processes too."""
    launch(2, _write_item_alone, tmp_path / "item")

    loaded = stowax.load(tmp_path / "item", checkpointable_name=None)

    assert trees.differences(loaded, trees.expected()) == []


def _save_on_some_devices(index, path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("device",))
    array = trees.on_devices(np.arange(6), NamedSharding(mesh, P("device")))
    stowax.save(path, {"array": array})
    return trees.differences(stowax.load(path), {"array": np.arange(6, dtype=np.int32)})


def test_array_of_one_process(launch, tmp_path):
    """An array on devices of one process is written by it, and loaded by all."""
    results = launch(2, _save_on_some_devices, tmp_path / "checkpoint")

    assert results == [[], []]


TENSORS = {
    "copies": np.arange(100, dtype=np.int16),
    "rows": np.arange(1 << 20, dtype=np.float32).reshape(16, -1),
    "columns": np.arange(1 << 20, dtype=np.float32).reshape(16, -1),
}
TENSOR_SPECS = {"copies": P(), "rows": P("x"), "columns": P(None, "x")}


def _save_tensors(index, path):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    state = {
        name: trees.on_devices(array, NamedSharding(mesh, TENSOR_SPECS[name]))
        for name, array in TENSORS.items()
    }
    sizes = stowax.options.SafetensorsOptions(max_file_bytes=5 * MIB)
    with stowax.Context(checkpoint_layout="safetensors", safetensors=sizes):
        stowax.save_async(path, state).result()


@pytest.mark.parametrize("name", ["m.safetensors", "directory"])
def test_safetensors(launch, tmp_path, name):
    """Each file is written by one process, of what both hold; nothing else stays."""
    path = tmp_path / name
    launch(2, _save_tensors, path)

    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    found = {}
    for file in files:
        found |= safetensors.numpy.load_file(file)

    assert len(files) == (1 if path.is_file() else 2)
    assert found.keys() == TENSORS.keys()
    for leaf, array in TENSORS.items():
        np.testing.assert_array_equal(found[leaf], array, strict=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def _save_in_parts(index, path):
    state = trees.state()
    names = sorted(state)
    half = len(names) // 2
    first = stowax.partial.save_async(path, {n: state[n] for n in names[:half]})
    stowax.partial.save(path, {n: state[n] for n in names[half:]})
    first.result()
    stowax.partial.save(path, {names[0]: state[names[0]]}, replace=True)
    stowax.partial.finalize(path)


def test_a_session(tmp_path):
    """What processes save in parts is one checkpoint, as if it were saved at once."""
    _launcher.launch(2, _save_in_parts, tmp_path / "checkpoint")

    loaded = stowax.load(tmp_path / "checkpoint")

    assert trees.differences(loaded, trees.expected()) == []
    stowax.verify(tmp_path / "checkpoint")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
