"""Listeners hear of every save and load, in order; what they do changes nothing."""

import asyncio
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as orbax
from orbax_options import orbax_context
from sample_trees import sharded_arrays

import stowax as ocp
from stowax import _deadline, events
from stowax._budget import Ledger
from stowax._report import Report
from stowax._runtime import Runtime, default_runtime
from stowax._stores._local import LocalStore
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster
from stowax.training import Checkpointer

MIB = 1 << 20


class Heard:
    """Keeps what it hears."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    @property
    def kinds(self):
        """What happened, but for progress, which may come before a save is staged."""
        return [event.kind for event in self.events if event.kind != "progress"]

    @property
    def progress_count(self):
        """How often it was told of progress."""
        return sum(event.kind == "progress" for event in self.events)


@pytest.fixture
def heard():
    """A listener that is subscribed."""
    heard = Heard()
    with events.subscribe(heard):
        yield heard


def state():
    """Arrays of some MiB, and a number."""
    return {"w": jnp.arange(MIB, dtype=jnp.float32), "n": np.ones(MIB), "step": 7}


SAVES = {
    "save": lambda path: ocp.save(path, state()),
    "save_async": lambda path: ocp.save_async(path, state()).result(),
    "save_checkpointables": lambda path: ocp.save_checkpointables(path, {"a": state()}),
}
LOADS = {
    "load": lambda path: ocp.load(path),
    "load_async": lambda path: ocp.load_async(path).result(),
    "load_checkpointables": lambda path: ocp.load_checkpointables(path),
    "load_leaf": lambda path: ocp.load_leaf(path, "w"),
    "abstract": lambda path: ocp.load(path, state()),
}


@pytest.mark.parametrize("name", SAVES)
def test_a_save(tmp_path, heard, name):
    """From its start to the moment when it is there for everybody."""
    SAVES[name](tmp_path / "c")

    assert heard.kinds == ["started", "staged", "published"]
    assert 0 < heard.progress_count <= 200
    assert {event.operation for event in heard.events} == {"save"}
    assert {event.path for event in heard.events} == {str(tmp_path / "c")}
    assert {event.in_background for event in heard.events} == {"async" in name}
    assert len({event.id for event in heard.events}) == 1
    assert heard.events[-1].done_bytes == 12 * MIB + 8


@pytest.mark.parametrize("name", LOADS)
def test_a_load(tmp_path, heard, name):
    """From its start to the whole result."""
    ocp.save(tmp_path / "c", state())
    heard.events.clear()

    LOADS[name](tmp_path / "c")

    assert heard.kinds == ["started", "loaded"]
    assert 0 < heard.progress_count <= 200
    assert {event.operation for event in heard.events} == {"load"}
    assert {event.in_background for event in heard.events} == {"async" in name}
    assert heard.events[-1].done_bytes == heard.events[-1].total_bytes
    expected = 4 * MIB if name == "load_leaf" else 12 * MIB + 8
    assert heard.events[-1].total_bytes == expected


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_progress_never_goes_back(data):
    """Of any tree: bytes grow, up to the total, and are few events."""
    sizes = data.draw(st.lists(st.integers(0, 300_000), max_size=20))
    tree = {f"{i}": np.zeros(size, np.uint8) for i, size in enumerate(sizes)}
    heard = Heard()

    with (
        ocp.Context(file=ocp.options.FileOptions(store=MemoryStore())),
        events.subscribe(heard),
    ):
        ocp.save_checkpointables("/c", {"one": tree, "other": tree})
        ocp.load_checkpointables("/c")

    for operation in ("save", "load"):
        told = [e for e in heard.events if e.operation == operation]
        done = [event.done_bytes for event in told]
        assert done == sorted(done)
        assert all(event.done_bytes <= event.total_bytes for event in told)
        assert told[-1].total_bytes == 2 * sum(sizes)
        assert done[-1] == told[-1].total_bytes
        assert len(told) <= 2 * 200 + 5


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_all_bytes_of_any_array(data):
    """However they are stored, bytes and leaves add up to what is saved, and loaded."""
    tree, sizes = {}, {}
    for i in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(0, 40), max_size=3))
        dtype = data.draw(st.sampled_from(["int8", "bfloat16", "float64"]))
        tree[f"{i}"] = np.ones(shape, dtype)
        if tree[f"{i}"].size:
            sizes[f"{i}"] = tree[f"{i}"].nbytes
    context = ocp.Context(file=ocp.options.FileOptions(store=MemoryStore()))
    saving = context.array.saving
    codecs = st.sampled_from(["none", "zstd", "blosc", "auto"])
    saving.storage_options.compression = data.draw(codecs)
    saving.storage_options.chunk_byte_size = data.draw(st.sampled_from([None, 64, 999]))
    saving.ocdbt_target_data_file_size = data.draw(st.sampled_from([None, 2000]))
    context.memory.write_concurrent_bytes = data.draw(st.sampled_from([None, 5000]))
    heard = Heard()

    with context, events.subscribe(heard, leaves=True):
        ocp.save_async("/c", tree).result()
        ocp.load("/c")

    for operation in ("save", "load"):
        told = [e for e in heard.events if e.operation == operation]
        leaves = {e.leaf: e.done_bytes for e in told if e.kind == "leaf"}
        assert leaves == sizes
        assert told[-1].done_bytes == told[-1].total_bytes == sum(sizes.values())


def orbax_checkpoint(path, **saving):
    """Saves a state as Orbax does."""
    with orbax_context(saving):
        orbax.save(path, state())


WAYS = {
    "compressed": (lambda path: compressed_save(path), {}),
    "mapped": (lambda path: ocp.save(path, state()), {"memory_map": True}),
    "cast and padded": (
        lambda path: ocp.save(path, state()),
        {"enable_padding_and_truncation": True},
    ),
    "of Orbax": (orbax_checkpoint, {}),
    "of Orbax, in files": (lambda path: orbax_checkpoint(path, use_ocdbt=False), {}),
}


def compressed_save(path):
    """Saves a state that takes far fewer bytes on disk."""
    context = ocp.Context()
    context.array.saving.use_compression = True
    with context:
        ocp.save(path, state())


@pytest.mark.parametrize("name", WAYS)
def test_a_load_in_any_way(tmp_path, name):
    """Progress is told on the way, and ends where all is loaded, whoever reads."""
    save, loading = WAYS[name]
    save(tmp_path / "c")
    context, heard = ocp.Context(), Heard()
    for option, value in loading.items():
        setattr(context.array.loading, option, value)

    with context, events.subscribe(heard, leaves=True):
        ocp.load(tmp_path / "c")

    assert heard.kinds == ["started", *["leaf"] * 3, "loaded"]
    before_the_last_leaf = "".join(e.kind for e in heard.events).rpartition("leaf")[0]
    assert "progress" in before_the_last_leaf
    assert heard.events[-1].done_bytes == 12 * MIB + 8
    assert heard.events[-1].total_bytes == 12 * MIB + 8


def test_a_load_of_what_is_missing(tmp_path, heard):
    """Zeros in place of chunks that Orbax has not stored are loaded, too."""
    context = ocp.Context()
    context.array.loading.raise_array_data_missing_error = False
    with orbax_context({"use_zarr3": True}):
        orbax.save(tmp_path / "c", {"w": np.ones(MIB)})
    base = {"driver": "file", "path": f"{tmp_path}/c/state/"}
    database = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    database.write("w/c/0", None).result()

    with context:
        assert not ocp.load(tmp_path / "c")["w"].any()

    assert heard.events[-1].done_bytes == heard.events[-1].total_bytes == 8 * MIB


def test_bytes_of_files(tmp_path, heard):
    """Of a save, every file of the checkpoint; of a load, what was read of them."""
    store = RecordingStore(LocalStore())
    with ocp.Context(file=ocp.options.FileOptions(store=store)):
        compressed_save(tmp_path / "c")
        saved = heard.events[-1]
        before = len(store.calls)
        ocp.load(tmp_path / "c")

    files = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert saved.file_bytes == sum(path.stat().st_size for path in files)
    assert saved.file_bytes < saved.total_bytes
    read = sum(call.size_bytes for call in store.calls[before:])
    assert heard.events[-1].file_bytes == read


def report_of(operation):
    """What tells of an operation that has begun."""
    runtime = default_runtime()
    return Report(
        operation,
        "/c",
        in_background=False,
        processes=runtime.processes,
        now_nsecs=runtime.now_nsecs,
        ledger=Ledger(),
    )


def test_a_load_that_begins_again(tmp_path, heard):
    """Of a checkpoint that was replaced meanwhile bytes are told once, in the end."""
    report = report_of("load")
    report.expect(100)
    report.moved(30)
    report.begin_again()
    report.expect(50)
    report.moved(50)
    report.succeeded()
    report.wait()

    assert heard.events[-1].done_bytes == heard.events[-1].total_bytes == 80


def test_a_load_of_a_checkpoint_that_is_replaced(tmp_path, heard):
    """What the first attempt was to read is not expected any more."""

    class Exchanging(LocalStore):
        """Replaces the checkpoint when the first array is about to be read."""

        is_done = False

        async def read_into(self, path, offset_bytes, buffer):
            if "data-" in path and not self.is_done:
                self.is_done = True
                (tmp_path / "c").rename(tmp_path / "old")
                (tmp_path / "other").rename(tmp_path / "c")
            await super().read_into(path, offset_bytes, buffer)

    ocp.save(tmp_path / "c", {"w": np.zeros(1000, np.float32)})
    ocp.save(tmp_path / "other", {"w": np.ones(3000, np.float32)})
    with ocp.Context(file=ocp.options.FileOptions(store=Exchanging())):
        loaded = ocp.load(tmp_path / "c")["w"]

    assert loaded.tolist() == [1] * 3000
    assert heard.kinds[-1] == "loaded"
    assert heard.events[-1].done_bytes == heard.events[-1].total_bytes == 12_000


def test_every_leaf_on_request(tmp_path):
    """Leaves by the names of errors, with their bytes; only to those who ask."""
    with_leaves, without = Heard(), Heard()

    with events.subscribe(with_leaves, leaves=True), events.subscribe(without):
        ocp.save(tmp_path / "c", {"a": {"b": np.zeros(5)}, "step": 7})
        ocp.load(tmp_path / "c")

    leaves = [e for e in with_leaves.events if e.kind == "leaf"]
    assert [(e.operation, e.leaf, e.done_bytes) for e in leaves] == [
        ("save", "a.b", 40),
        ("save", "step", 8),
        ("load", "a.b", 40),
        ("load", "step", 8),
    ]
    assert "leaf" not in without.kinds


def test_each_step_of_a_training_run(tmp_path, heard):
    """A `Checkpointer` saves in the background, whoever waits for it."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_async(1, state()).result()
        checkpointer.save(2, state())
        checkpointer.load()
        checkpointer.load_async(1).result()

    ended = [e for e in heard.events if e.kind in ("published", "loaded")]
    assert [(e.kind, e.path[-2:], e.in_background) for e in ended] == [
        ("published", "/1", True),
        ("published", "/2", True),
        ("loaded", "/2", False),
        ("loaded", "/1", True),
    ]


def test_a_save_that_is_refused(tmp_path, heard):
    """It fails with the error that the caller gets."""
    with pytest.raises(ocp.errors.UnsupportedLeafError) as caught:
        ocp.save(tmp_path / "c", {"w": object()})

    assert heard.kinds == ["started", "failed"]
    assert heard.events[-1].error is caught.value


def test_a_save_that_fails_in_the_background(heard):
    """After it was staged, with what `result()` raises."""

    class FullStore(MemoryStore):
        async def write(self, path, pieces, *, size_bytes=None):
            if "data-" in path:
                raise OSError(28, "No space left on device", path)
            await super().write(path, pieces, size_bytes=size_bytes)

    with ocp.Context(file=ocp.options.FileOptions(store=FullStore())):
        response = ocp.save_async("/c", state())
        with pytest.raises(OSError, match="No space"):
            response.result()

    assert heard.kinds == ["started", "staged", "failed"]
    assert isinstance(heard.events[-1].error, OSError)


@pytest.mark.parametrize("leaves", [None, "n"])
def test_a_verification(tmp_path, heard, leaves):
    """It tells of the bytes of files, whether of all or of some."""
    ocp.save_checkpointables(tmp_path / "c", {"a": state(), "blob": Blob()})
    heard.events.clear()

    report = ocp.verify(tmp_path / "c", leaves=leaves)

    assert heard.kinds == ["started", "verified"]
    assert heard.progress_count
    assert {event.operation for event in heard.events} == {"verify"}
    assert heard.events[-1].done_bytes == report.checked_bytes
    assert heard.events[-1].total_bytes == report.checked_bytes


def test_a_verification_that_finds_damage(tmp_path, heard):
    """It has failed, with the error that has all damage."""
    ocp.save(tmp_path / "c", state())
    file = tmp_path / "c/state/d/data-0"
    file.write_bytes(b"?" + file.read_bytes()[1:])
    heard.events.clear()

    with pytest.raises(ocp.errors.DamageError) as caught:
        ocp.verify(tmp_path / "c")

    assert heard.kinds == ["started", "failed"]
    assert heard.events[-1].error is caught.value


class Blob:
    """Writes a file of its own."""

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            (path / "blob").write_bytes(bytes(5 * MIB))

        return write()

    async def load(self, directory):
        raise NotImplementedError


def test_a_load_that_fails(tmp_path, heard):
    """Whatever is wrong, also if there is nothing at all."""
    with pytest.raises(ocp.errors.CheckpointNotFoundError) as caught:
        ocp.load(tmp_path / "c")

    assert heard.kinds == ["started", "failed"]
    assert heard.events[-1].error is caught.value


def test_a_load_that_takes_too_long(heard):
    """The deadline is the reason, and not that something was cancelled."""

    class SlowStore(MemoryStore):
        async def read_into(self, path, offset_bytes, buffer):
            await asyncio.sleep(30)

    store = SlowStore()
    with ocp.Context(file=ocp.options.FileOptions(store=store)):
        ocp.save("/c", {"w": 1})
    heard.events.clear()

    with (
        ocp.Context(
            file=ocp.options.FileOptions(store=store),
            asynchronous=ocp.options.AsyncOptions(timeout_secs=0.1),
        ),
        pytest.raises(ocp.errors.DeadlineError) as caught,
    ):
        ocp.load("/c")

    assert heard.kinds == ["started", "failed"]
    assert heard.events[-1].error is caught.value


class Busy:
    """Blocks when it is loaded."""

    def __init__(self):
        self.go_on = threading.Event()
        self.ended = threading.Event()

    async def save(self, directory):
        return await ocp.handlers.PyTreeHandler().save(directory, {"w": 1})

    async def load(self, directory):
        async def block():
            self.go_on.wait()
            self.ended.set()

        return block()


def test_a_load_that_blocks(tmp_path, monkeypatch, heard):
    """It has failed when it is given up, and not when its thread comes to an end."""
    monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)
    busy = Busy()
    ocp.save_checkpointables(tmp_path / "c", {"busy": busy})
    heard.events.clear()

    with ocp.Context(asynchronous=ocp.options.AsyncOptions(timeout_secs=0.2)):
        response = ocp.load_checkpointables_async(tmp_path / "c", {"busy": busy})
    with pytest.raises(ocp.errors.DeadlineError) as caught:
        response.result()
    busy.go_on.set()
    assert busy.ended.wait(60)
    ocp.load(tmp_path / "c", checkpointable_name="busy")

    assert heard.kinds == ["started", "failed", "started", "loaded"]
    assert heard.events[1].error is caught.value


def test_a_call_is_heard_of_when_it_is_made(tmp_path):
    """Whoever listens at that moment hears all of it, and the thread is not asked."""
    ocp.save(tmp_path / "c", state())
    heard, late = Heard(), Heard()
    with events.subscribe(heard):
        response = ocp.load_async(tmp_path / "c")
    with events.subscribe(late):
        response.result()

    assert heard.events[0].kind == "started"
    assert heard.events[0].in_background
    assert late.events == []


def test_a_listener_that_fails(tmp_path, heard, caplog):
    """It is logged once, hears no more of it, and the save goes on for the others.

    Of the next one it hears again.
    """
    calls = []

    def broken(event):
        calls.append(event.kind)
        raise ZeroDivisionError

    with events.subscribe(broken), caplog.at_level(logging.ERROR, "stowax"):
        ocp.save(tmp_path / "c", state())
        ocp.save(tmp_path / "d", state())

    assert calls == ["started", "started"]
    assert [r.message for r in caplog.records] == [
        f"a listener failed, and hears no more of the save of {tmp_path / name}"
        for name in ("c", "d")
    ]
    assert heard.kinds[-1] == "published"
    assert ocp.load(tmp_path / "c")["step"] == 7


def test_the_end_of_a_subscription(tmp_path):
    """What begins afterwards is not heard of; what is under way, to its end."""
    heard = Heard()
    subscription = events.subscribe(heard)
    response = ocp.save_async(tmp_path / "a", state())
    subscription.close()
    subscription.close()
    response.result()
    ocp.save(tmp_path / "b", state())

    assert heard.kinds == ["started", "staged", "published"]


def test_operations_side_by_side(tmp_path, heard):
    """Each has a number, and its events keep their order."""
    responses = [ocp.save_async(tmp_path / str(i), state()) for i in range(4)]
    threads = [
        threading.Thread(target=lambda i=i: ocp.load(tmp_path / str(i)))
        for i in range(4)
    ]
    for response in responses:
        response.result()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    by_id = {}
    for event in heard.events:
        by_id.setdefault(event.id, []).append(event)
    assert len(by_id) == 8
    for told in by_id.values():
        assert len({event.path for event in told}) == 1
        kinds = [event.kind for event in told]
        assert kinds[0] == "started"
        assert kinds[-1] in ("published", "loaded")
        assert [event.elapsed_secs for event in told] == sorted(
            event.elapsed_secs for event in told
        )


def test_the_budget_is_seen(heard):
    """What copies of NumPy arrays take of it, now and at most, and what they may."""
    tree = {f"{i}": np.ones(MIB // 8) for i in range(32)}
    runtime, store = Runtime(), MemoryStore()
    context = ocp.Context(runtime=runtime, file=ocp.options.FileOptions(store=store))
    context.memory.write_concurrent_bytes = 8 * MIB
    with context:
        ocp.save_async("/c", tree).result()
        ocp.save_async("/d", {"w": np.ones(MIB // 8)}).result()
    runtime.close()

    published = [event for event in heard.events if event.kind == "published"]
    assert {event.memory_bytes for event in published} == {0}
    assert {event.memory_limit_bytes for event in published} == {8 * MIB}
    assert 4 * MIB <= published[0].peak_memory_bytes <= 8 * MIB
    assert published[1].peak_memory_bytes == MIB


def test_the_default_budget_is_seen(tmp_path, heard):
    """Where no option sets it, it is known when a save is staged, or a load begins."""
    runtime = Runtime()
    with ocp.Context(runtime=runtime):
        ocp.save_async(tmp_path / "c", {"w": np.ones(MIB)}).result()
        ocp.load(tmp_path / "c")
    runtime.close()

    told = {e.kind: e for e in heard.events if e.operation == "save"}
    assert told["started"].memory_limit_bytes is None
    assert told["staged"].memory_limit_bytes > 8 * MIB
    assert told["staged"].peak_memory_bytes == 8 * MIB
    assert {e.memory_limit_bytes for e in heard.events if e.operation == "load"} == {
        48 * MIB
    }


def test_each_process_tells_what_it_does():
    """Of a save by several, each has events of its own, and of its own bytes."""
    store, heard = MemoryStore(), Heard()
    array = sharded_arrays()["rows"]
    with SimulatedCluster(2) as cluster, events.subscribe(heard, leaves=True):

        def save(index):
            options = ocp.options.FileOptions(store=store)
            with ocp.Context(file=options, runtime=cluster.runtimes[index]):
                ocp.save("/c", {"w": array})

        cluster.run(save)

    for index in range(2):
        told = [e for e in heard.events if e.process_index == index]
        kinds = [e.kind for e in told if e.kind not in ("progress", "leaf")]
        assert kinds == ["started", "staged", "published"]
        assert [e.leaf for e in told if e.kind == "leaf"] == ["w"]
        assert len({e.id for e in told}) == 1
        assert told[-1].total_bytes == told[-1].done_bytes == array.nbytes // 2


def test_a_load_in_waves_knows_its_whole_size(tmp_path, heard):
    """However little is read at one time, progress is told of the whole."""
    state = {f"{i}": np.ones(MIB, np.float32) for i in range(4)}
    ocp.save(tmp_path / "c", state)
    asked = {name: jax.ShapeDtypeStruct((MIB,), jnp.bfloat16) for name in state}
    heard.events.clear()

    with ocp.Context(memory=ocp.options.MemoryOptions(read_concurrent_bytes=8 * MIB)):
        ocp.load(tmp_path / "c", asked)

    told = [e for e in heard.events if e.kind == "progress"]
    assert {e.total_bytes for e in told} == {16 * MIB}
    assert max(e.memory_bytes for e in told) >= 4 * MIB
    assert heard.events[-1].done_bytes == 16 * MIB


def test_a_leaf_in_several_places_is_told_once(tmp_path):
    """Also where its places are filled one after the other."""
    heard = Heard()
    ocp.save(tmp_path / "c", {"a": np.ones(1000, np.float32)})
    asked = {name: jax.ShapeDtypeStruct((1000,), jnp.bfloat16) for name in "xyz"}
    context = ocp.Context(memory=ocp.options.MemoryOptions(read_concurrent_bytes=1))
    context.pytree.loading.rename = dict.fromkeys("xyz", "a")

    with context, events.subscribe(heard, leaves=True):
        ocp.load(tmp_path / "c", asked)

    told = [(e.leaf, e.done_bytes) for e in heard.events if e.kind == "leaf"]
    assert told == [("a", 12_000)]
    assert heard.events[-1].done_bytes == heard.events[-1].total_bytes == 12_000


def test_nothing_comes_after_the_end(heard):
    """What goes wrong with a callback does not take back what was published."""
    report = report_of("save")
    report.succeeded()
    report.failed(KeyboardInterrupt())
    report.leaf("w", 1)
    report.wait()

    assert heard.kinds == ["started", "published"]
