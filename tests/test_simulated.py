"""Eight simulated processes save and load together, on a store in memory."""

import asyncio
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import stowax
from stowax._codecs._checksum import unseal
from stowax._codecs._item_manifest import decode_part
from stowax._stores._base import read_bytes
from stowax.errors import (
    BackgroundSaveError,
    PeerFailedError,
    ProcessesError,
    UnsupportedLeafError,
)
from stowax.testing import (
    MemoryStore,
    RecordingStore,
    SimulatedCluster,
    durability_faults,
)
from stowax.training import Checkpointer

COUNT = 8
PATH = "/runs/checkpoint"

SPECS = {"both": P("x", "y"), "rows": P("x"), "copies": P(), "keys": P(("x", "y"))}


class FullStore(MemoryStore):
    """Has no room for the files of one process."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    async def write(self, path, pieces, *, size_bytes=None):
        if f"ocdbt.process_{self.index}/" in path:
            raise OSError(28, "No space left on device", path)
        await super().write(path, pieces, size_bytes=size_bytes)


@pytest.fixture
def cluster():
    """Eight processes, each with one device of the test process."""
    with SimulatedCluster(COUNT) as cluster:
        yield cluster


def in_every(cluster, store, function, *, compressions=(None,) * COUNT):
    """Calls `function(index)` in every process, in a Context of its own."""

    def call(index):
        runtime = cluster.runtimes[index]
        file = stowax.options.FileOptions(store=store)
        context = stowax.Context(runtime=runtime, file=file)
        context.array.saving.storage_options.compression = compressions[index]
        with context:
            return function(index)

    return cluster.run(call)


def host_state():
    """Values in host memory; PRNG keys by their data."""
    return {
        "both": np.arange(64, dtype=np.float32).reshape(8, 8),
        "rows": np.arange(12, dtype=np.int32).reshape(4, 3),
        "copies": np.arange(100, dtype=np.uint8),
        "keys": np.arange(16, dtype=np.uint32).reshape(8, 2),
        "numpy": np.arange(3.0),
        "step": 7,
        "name": "text",
    }


def state():
    """The same, spread over the devices of all processes."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    host = host_state()
    arrays = {
        name: jax.device_put(host[name], NamedSharding(mesh, spec))
        for name, spec in SPECS.items()
    }
    arrays["keys"] = jax.random.wrap_key_data(arrays["keys"])
    return host | arrays


def in_host_memory(loaded):
    """A loaded state as NumPy arrays and numbers."""

    def value(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return jax.tree.map(value, loaded)


def assert_is_saved(loaded):
    """Compares every value, with its dtype and shape."""
    same = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(same, in_host_memory(loaded), host_state())


def test_eight_save_and_load(cluster):
    """What eight processes save, each loads onto its own device, and one in whole."""
    store = MemoryStore()
    saved = state()
    own = [SingleDeviceSharding(device) for device in jax.devices()]

    def load(index):
        def target(leaf):
            if not isinstance(leaf, jax.Array):
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own[index])

        return stowax.load(PATH, jax.tree.map(target, saved))

    in_every(cluster, store, lambda index: stowax.save(PATH, saved))
    everybody = in_every(cluster, store, load)
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        alone = stowax.load(PATH)

    assert_is_saved(alone)
    for index, loaded in enumerate(everybody):
        assert_is_saved(loaded)
        assert {loaded[name].sharding for name in SPECS} == {own[index]}


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_eight_save_into_the_same_directories(cluster, use_zarr3):
    """Arrays that are directories have chunks of all processes, each written once."""
    store = RecordingStore(MemoryStore())
    saved = state()

    def save(index):
        context = stowax.Context(
            runtime=cluster.runtimes[index],
            file=stowax.options.FileOptions(store=store),
        )
        context.array.saving.use_ocdbt = False
        context.array.saving.use_zarr3 = use_zarr3
        with context:
            stowax.save(PATH, saved)

    cluster.run(save)
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        assert_is_saved(stowax.load(PATH))

    assert durability_faults(store.calls) == []
    written = {c.paths[0] for c in store.calls if c.operation == "write"}
    tail = "c/3/1" if use_zarr3 else "3.1"
    assert any(path.endswith(f"/state/both/{tail}") for path in written)


def test_eight_save_compressed(cluster):
    """Eight processes compress each what they write; everything comes back."""
    store = MemoryStore(is_remote=True)
    saved = state()

    in_every(cluster, store, lambda index: stowax.save(PATH, saved))
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        alone = stowax.load(PATH)

    assert_is_saved(alone)
    manifest = asyncio.run(read_bytes(store, f"{PATH}/state/stowax.manifest"))
    forms = unseal(manifest)["forms"]
    assert {form.get("codec") for form in forms if "dtype" in form} == {"zstd"}


def test_samples_of_eight_agree(cluster):
    """What each has of an array differs; how it is compressed is said once, for all.

    A later save, of values that a sample says the opposite of, is no exception.
    """
    store = MemoryStore()
    mesh = Mesh(np.array(jax.devices()), ("x",))
    host = np.zeros((COUNT, 1 << 16), np.float32)
    host[::2] = np.random.default_rng(0).standard_normal((COUNT // 2, 1 << 16))

    for path, values in (("/1", host), ("/2", host[::-1])):
        array = jax.device_put(values, NamedSharding(mesh, P("x")))
        save = functools.partial(stowax.save, path, {"w": array})
        in_every(cluster, store, lambda _, f=save: f(), compressions=["auto"] * COUNT)

        with stowax.Context(file=stowax.options.FileOptions(store=store)):
            loaded = stowax.load(path)
        assert (np.asarray(loaded["w"]) == values).all()
        manifest = asyncio.run(read_bytes(store, f"{path}/state/stowax.manifest"))
        assert [form["codec"] for form in unseal(manifest)["forms"]] == ["blosc"]
        for index in range(COUNT):
            name = f"{path}/state/stowax.chunks.{index}"
            table = decode_part(asyncio.run(read_bytes(store, name)))
            is_noise = values[index].any()
            assert (table.length_bytes.sum() > values[index].nbytes // 2) == is_noise


def test_compressions_that_differ(cluster):
    """Processes that are told to compress one array differently are refused."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    array = jax.device_put(np.zeros((COUNT, 100)), NamedSharding(mesh, P("x")))
    told = ["zstd"] * (COUNT - 1) + ["blosc"]
    store = MemoryStore()

    def save(index):
        with pytest.raises(ProcessesError, match=r"0 and 7 differ .* compression"):
            stowax.save(PATH, {"w": array})

    in_every(cluster, store, save, compressions=told)

    assert asyncio.run(store.stat(PATH)) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"use_replica_parallel": True}, [2] * COUNT),
        ({"use_replica_parallel": False}, [16, *[0] * (COUNT - 1)]),
        ({"max_replicas_for_replica_parallel": 2}, [8, 8, *[0] * (COUNT - 2)]),
        ({"min_slice_bytes_for_replica_parallel": 16}, [2] * COUNT),
        ({"min_slice_bytes_for_replica_parallel": 17}, [16, *[0] * (COUNT - 1)]),
    ],
    ids=str,
)
def test_who_shares_the_work(cluster, options, expected):
    """Replicas are written by those processes among which the options share them."""
    store = MemoryStore()
    mesh = Mesh(np.array(jax.devices()), ("x",))
    copies = [jax.device_put(jnp.ones(4), NamedSharding(mesh, P())) for _ in range(16)]

    def save(index):
        saving = stowax.options.ArrayOptions.Saving(**options)
        context = stowax.Context(stowax._context.current_context())
        context.array.saving = saving
        with context:
            stowax.save(PATH, copies)

    in_every(cluster, store, save)

    assert asyncio.run(chunk_counts(store)) == expected


async def chunk_counts(store):
    """How many chunks each process has written."""
    files = [f"{PATH}/state/stowax.chunks.{index}" for index in range(COUNT)]
    parts = [await read_bytes(store, file, limit_bytes=1 << 20) for file in files]
    return [len(decode_part(part)) for part in parts]


def test_eight_share_out_the_work(cluster):
    """Each of eight processes writes its own shards, and replicas in its turn."""
    store = MemoryStore()
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = jax.device_put(jnp.zeros((8, 4)), NamedSharding(mesh, P("x")))
    copies = [jax.device_put(jnp.ones(4), NamedSharding(mesh, P())) for _ in range(16)]
    tree = {"spread": spread, "copies": copies}

    in_every(cluster, store, lambda index: stowax.save(PATH, tree))

    assert asyncio.run(chunk_counts(store)) == [3] * COUNT


def test_eight_save_in_the_background(cluster):
    """Several background saves of all processes go on side by side."""
    store = MemoryStore()
    saved = state()

    def save(index):
        responses = [stowax.save_async(f"/runs/{n}", saved) for n in range(4)]
        for response in responses[index % 4 :] + responses[: index % 4]:
            response.result()

    in_every(cluster, store, save)

    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        for step in range(4):
            assert_is_saved(stowax.load(f"/runs/{step}"))


class Note:
    """Saves itself: a tree together with all, and a file of its own."""

    def __init__(self, index=None):
        self.index = index

    async def save(self, directory):
        writing = await stowax.handlers.PyTreeHandler().save(
            directory / "tree", state()
        )

        async def finish():
            path = await directory.await_creation()
            (path / f"note_{self.index}").write_text(f"from {self.index}")
            await writing

        return finish()

    async def load(self, directory):
        async def finish():
            self.notes = [note.read_text() for note in sorted(directory.glob("note_*"))]

        return finish()


def test_eight_objects_save_themselves(cluster):
    """What user code of eight processes writes goes into the checkpoint of all."""
    store = MemoryStore()

    in_every(
        cluster,
        store,
        lambda index: stowax.save_checkpointables(PATH, {"note": Note(index)}),
    )
    note = Note()
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        stowax.load_checkpointables(PATH, {"note": note})
        tree = stowax.load(f"{PATH}/note/tree", checkpointable_name=None)

    assert note.notes == [f"from {index}" for index in range(COUNT)]
    assert_is_saved(tree)


@pytest.mark.parametrize("where", [0, 5])
def test_failure_of_one_is_that_of_all(cluster, where):
    """When one of eight cannot write, all fail, name it, and leave the store empty."""
    store = FullStore(where)

    def save(index):
        with pytest.raises((OSError, PeerFailedError)) as caught:
            stowax.save(PATH, state())
        return caught.type, str(caught.value)

    errors = in_every(cluster, store, save)

    for index, (kind, message) in enumerate(errors):
        assert kind is (OSError if index == where else PeerFailedError)
        assert index == where or f"process {where}: OSError" in message
    assert asyncio.run(store.list("/runs")) == ()
    store.index = None
    in_every(cluster, store, lambda index: stowax.save(PATH, state()))


@pytest.mark.parametrize("where", [0, 3])
def test_process_that_is_gone(cluster, where):
    """Who has ended before the save is named in all others, and nothing is saved."""
    store = MemoryStore()

    def save(index):
        if index == where:
            raise ZeroDivisionError
        with pytest.raises(PeerFailedError, match=f"process {where} is missing"):
            stowax.save(PATH, {"a": 1})

    with pytest.raises(ExceptionGroup) as caught:
        in_every(cluster, store, save)

    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    left = asyncio.run(store.stat("/runs"))
    assert left is None or asyncio.run(store.list("/runs")) == ()


def test_tree_that_one_cannot_take(cluster):
    """A handler used alone says in all processes that one cannot take its tree."""
    store = MemoryStore()

    def save(index):
        tree = {"a": object() if index == 3 else 1}

        async def write():
            await (await stowax.handlers.PyTreeHandler().save(PATH, tree))

        options = stowax.options.AsyncOptions(timeout_secs=20)
        file = stowax.options.FileOptions(store=store)
        runtime = cluster.runtimes[index]
        with (
            stowax.Context(runtime=runtime, file=file, asynchronous=options),
            pytest.raises(UnsupportedLeafError) as caught,
        ):
            asyncio.run(write())
        return str(caught.value)

    for index, message in enumerate(cluster.run(save)):
        assert "'a'" in message
        assert index == 3 or "process 3: UnsupportedLeafError" in message


class Unwritable:
    """Cannot be saved: fails in its second phase."""

    async def save(self, directory):
        async def write():
            raise ArithmeticError("cannot write the state")

        return write()

    async def load(self, directory):
        raise NotImplementedError


def test_failure_that_only_some_have_seen(cluster):
    """A failed step is reported by the next save in all, whoever has seen it."""
    store = MemoryStore()

    def save(index):
        context = stowax.Context(
            runtime=cluster.runtimes[index],
            file=stowax.options.FileOptions(store=store),
            asynchronous=stowax.options.AsyncOptions(timeout_secs=20),
        )
        checkpointer = Checkpointer("/runs", context=context)
        response = checkpointer.save_checkpointables_async(
            0, {"bad": Unwritable()}, force=True
        )
        if index != 3:
            with pytest.raises((ArithmeticError, PeerFailedError)):
                response.result()
        with pytest.raises(BackgroundSaveError) as caught:
            checkpointer.save(1, {"a": 1}, force=True)
        assert checkpointer.save(2, {"a": 1}, force=True)
        return str(caught.value)

    for index, message in enumerate(cluster.run(save)):
        assert "an earlier save" in message
        assert index == 3 or "process 3: BackgroundSaveError" in message
