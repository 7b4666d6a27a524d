"""What a failure or a power cut in the middle of a save may take: nothing.

Every save here runs on a store that writes down what it was asked for, or that fails
at the n-th call, for every n that there is.
"""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_failures import FailingStore, InjectedError, PowerCutStore
from sample_trees import bits, differences, mesh, plain

import stowax
from stowax import _composite, _deadline, _operation, _save_composite, training
from stowax._composite import RootFacts
from stowax._context import current_settings
from stowax._digest import PIECE_BYTES
from stowax._runtime import default_runtime
from stowax._stores._local import LocalStore
from stowax.errors import DeadlineError, SaveError, StowaxError
from stowax.handlers import JsonHandler, PyTreeHandler
from stowax.options import (
    AsyncOptions,
    CheckpointablesOptions,
    FileOptions,
    IntegrityOptions,
)
from stowax.testing import MemoryStore, RecordingStore
from stowax.testing._recording_store import durability_faults


class Guest:
    """Saves with plain file calls, and a tree inside."""

    async def save(self, directory):
        writing = await PyTreeHandler().save(directory / "inner", {"x": np.arange(3)})

        async def write():
            path = await directory.await_creation()
            (path / "sub").mkdir()
            (path / "sub" / "notes.txt").write_text("notes")
            await writing

        return write()

    async def load(self, directory):
        async def read():
            assert (directory / "sub" / "notes.txt").read_text() == "notes"

        return read()


def parts(number):
    """Checkpointables of every sort, that differ by the number."""
    return {
        "state": {
            "w": jax.device_put(
                bits("float32", (8, 4), number), NamedSharding(mesh(4), P("x"))
            ),
            "host": np.full((5,), number),
            "text": f"text {number}",
            "nested": [{}, (number, None)],
        },
        "config": {"number": number},
        "guest": Guest(),
    }


def context(store):
    """A Context with a store, in which "config" is JSON."""
    return stowax.Context(
        file=FileOptions(store=store),
        checkpointables=CheckpointablesOptions.create_with_handlers(config=JsonHandler),
    )


def save(path, number, **options):
    """Saves the parts of a number."""
    stowax.save_checkpointables(path, parts(number), **options)


def is_whole(path, number):
    """Whether the checkpoint holds exactly what was saved under the number."""
    targets = {"state": None, "config": None, "guest": Guest()}
    loaded = stowax.load_checkpointables(path, targets)
    return loaded["config"] == {"number": number} and not differences(
        plain(parts(number)["state"]), loaded["state"]
    )


def test_every_file_is_synced_before_the_publish(place):
    """Files and directories are synced before the publish, the parent after it."""
    recording = RecordingStore(LocalStore() if place.store is None else place.store)

    with context(recording):
        save(place / "a/b/checkpoint", 1)
        save(place / "a/b/checkpoint", 2, overwrite=True)
        stowax.save(place / "a/b/single", 3)
        stowax.save_checkpointables(place / "a/b/none", {})

    publishes = [call for call in recording.calls if call.operation == "publish"]
    assert len(publishes) == 4
    assert durability_faults(recording.calls) == []


def test_files_of_guests_are_synced(tmp_path):
    """What a guest wrote with plain file calls is synced by us, before the publish."""
    recording = RecordingStore(LocalStore())

    with context(recording):
        save(tmp_path / "checkpoint", 1)

    (publish,) = [call for call in recording.calls if call.operation == "publish"]
    synced = {
        path.replace(publish.paths[0], str(tmp_path / "checkpoint"))
        for call in recording.calls
        if call.operation == "sync" and call.ended < publish.began
        for path in call.paths
    }
    everything = {str(p) for p in (tmp_path / "checkpoint").rglob("*")}
    assert everything <= synced


def test_power_cut_after_a_save():
    """What was saved is there after a power cut; at its strictest."""
    store = MemoryStore()

    with context(store):
        save("/runs/checkpoint", 1)
    with context(store.durable_view()):
        assert is_whole("/runs/checkpoint", 1)
    with context(store):
        save("/runs/checkpoint", 2, overwrite=True)
    with context(store.durable_view()):
        assert is_whole("/runs/checkpoint", 2)


@pytest.mark.parametrize("overwrite", [False, True])
def test_power_cut_at_every_call(overwrite):
    """After a power cut before any call, the old or the new checkpoint is whole."""
    number = 0
    states = []
    while True:
        base = MemoryStore()
        if overwrite:
            with context(base):
                save("/runs/checkpoint", 1)
        store = PowerCutStore(base, number)
        with context(store):
            save("/runs/checkpoint", 2, overwrite=overwrite)
        if store.view is None:
            break
        with context(store.view):
            if not overwrite and not stowax.is_orbax_checkpoint("/runs/checkpoint"):
                states.append("none")
            elif is_whole("/runs/checkpoint", 2):
                states.append("new")
            else:
                assert is_whole("/runs/checkpoint", 1), store.count
                states.append("old")
        number += 1

    assert number > 15
    assert states[0] == ("old" if overwrite else "none")
    # Everything before the publish leaves the old one.
    assert states[-3] == states[0]


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_failure_at_every_call(tmp_path, kind, after, overwrite):
    """A store that fails at any call leaves the old checkpoint whole.

    The error is the store's, or ours; a draft may only be left if deleting it failed,
    and nobody takes it for a checkpoint.
    """
    base = LocalStore() if kind == "local" else MemoryStore()
    root = str(tmp_path) if kind == "local" else "/runs"
    path = f"{root}/checkpoint"
    with context(base):
        save(f"{root}/neighbour", 9)
        if overwrite:
            save(path, 1)
    number, outcomes = 0, []
    while True:
        store = FailingStore(base, number, after=after)
        try:
            with context(store):
                save(path, 2, overwrite=overwrite)
        except (InjectedError, StowaxError):
            assert store.failed is not None
        else:
            assert store.failed is None
            break
        with context(base):
            is_published = store.failed[0] == "publish" and after
            is_published |= store.failed[1] == [root]
            if is_published:
                assert is_whole(path, 2)
            elif overwrite:
                assert is_whole(path, 1), store.failed
            else:
                assert not stowax.is_orbax_checkpoint(path)
            assert is_whole(f"{root}/neighbour", 9)
            outcomes.append(is_published)
            assert _left_over(base, root) == [], store.failed
            _reset(base, path, overwrite)
        number += 1

    assert number > 15
    assert any(outcomes)
    with context(base):
        assert is_whole(path, 2)


def _left_over(store, root):
    """Names beside the checkpoints."""
    found = stowax._runtime.default_runtime().run(store.list(root))
    return [entry.name for entry in found if ".orbax" in entry.name]


def _reset(store, path, overwrite):
    stowax._runtime.default_runtime().run(store.delete(path))
    if overwrite:
        save(path, 1)


def test_draft_that_could_not_be_deleted(tmp_path, caplog):
    """A draft that stays is said so, is no checkpoint, and hinders no later save."""

    class Stuck(FailingStore):
        async def delete(self, path):
            raise OSError("stuck")

    store = Stuck(LocalStore(), 5)
    with context(store), pytest.raises(InjectedError):
        save(tmp_path / "checkpoint", 1)

    (draft,) = tmp_path.iterdir()
    assert ".orbax-checkpoint-tmp" in draft.name
    assert str(draft) in caplog.text
    with pytest.raises(FileNotFoundError, match="unfinished saves beside it"):
        stowax.load(tmp_path / "checkpoint")
    with pytest.raises(StowaxError):
        stowax.load(draft)
    with context(LocalStore()):
        save(tmp_path / "checkpoint", 2)
        assert is_whole(tmp_path / "checkpoint", 2)


def test_failure_of_a_guest(place):
    """A guest that fails in either phase leaves the old checkpoint whole."""

    class Failing:
        def __init__(self, phase):
            self.phase = phase

        async def save(self, directory):
            path = await directory.await_creation()
            (path / "half").write_text("written")
            if self.phase == 1:
                raise KeyError("first")

            async def write():
                raise KeyError("second")

            return write()

        async def load(self, directory):
            raise NotImplementedError

    stowax.save(place / "checkpoint", {"a": 1})
    for phase, word in ((1, "first"), (2, "second")):
        items = {"state": {"a": np.ones(100)}, "bad": Failing(phase)}
        with pytest.raises(KeyError, match=word):
            stowax.save_checkpointables(place / "checkpoint", items, overwrite=True)

        assert stowax.load(place / "checkpoint") == {"a": 1}
        found = stowax._runtime.default_runtime().run(
            (place.store or LocalStore()).list(place.directory)
        )
        assert [entry.name for entry in found] == ["checkpoint"]


def is_empty(store, root):
    """Whether nothing is left below a directory, if it exists at all."""
    run = stowax._runtime.default_runtime().run
    return run(store.stat(root)) is None or run(store.list(root)) == ()


class InterruptingStore(RecordingStore):
    """Interrupts the main thread when one path is written, and never ends to write."""

    def __init__(self, store, name):
        super().__init__(store)
        self.name = name
        self.has_ended = False

    async def make_directory(self, path, *, mode=None):
        await super().make_directory(path, mode=mode)
        await self.interrupt(path)

    async def write(self, path, pieces, *, size_bytes=None):
        await self.interrupt(path)
        await super().write(path, pieces, size_bytes=size_bytes)

    async def interrupt(self, path):
        if self.name not in path.rpartition("/")[2]:
            return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 10)
        finally:
            await asyncio.sleep(0)  # What ends takes a moment.
            self.has_ended = True


def _save_plainly(path, state):
    stowax.save(path, state)


def _save_step(path, state):
    training.Checkpointer(path).save(0, state)


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to threads")
@pytest.mark.parametrize("save_blocking", [_save_plainly, _save_step])
def test_interrupt(place, save_blocking):
    """After Ctrl-C nothing of the save runs any more, and nothing was saved."""
    base = LocalStore() if place.store is None else place.store
    store = InterruptingStore(base, "stowax.json")

    with context(store), pytest.raises(KeyboardInterrupt):
        save_blocking(place / "run", {"host": np.ones(3)})

    assert store.has_ended
    assert is_empty(base, place / "run" if save_blocking is _save_step else place / "")
    with context(base):
        save_blocking(place / "run", {"host": np.ones(3)})


class SlowToStartGuests(stowax._runtime.Runtime):
    """Starts no guest before an interrupt has come."""

    def start_guest(self, awaitable):
        try:
            assert not threading.Event().wait(10)
        finally:
            future = super().start_guest(awaitable)
        return future


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to threads")
def test_interrupt_while_a_step_is_started(place):
    """A step is given up as well when Ctrl-C comes before anybody waits for it."""
    base = LocalStore() if place.store is None else place.store
    store = InterruptingStore(base, "stowax.json")
    runtime = SlowToStartGuests()

    with (
        stowax.Context(file=FileOptions(store=store), runtime=runtime),
        pytest.raises(KeyboardInterrupt),
    ):
        _save_step(place / "run", {"host": np.ones(3)})

    assert store.has_ended
    assert is_empty(base, place / "run")
    runtime.finish()
    assert runtime.unseen_failures.all() == ()
    runtime.close()


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to threads")
def test_interrupt_while_the_draft_is_made(place):
    """Ctrl-C leaves no draft, however early it comes."""
    base = LocalStore() if place.store is None else place.store
    store = InterruptingStore(base, ".orbax-checkpoint-tmp")

    with context(store), pytest.raises(KeyboardInterrupt):
        stowax.save(place / "checkpoint", {"a": 1})

    assert store.has_ended
    assert is_empty(base, place / "")


class InterruptedCommit(stowax._runtime.Runtime):
    """Once armed, is interrupted the next time that it hands a call to the loop."""

    armed = None

    def _begin(self, call):
        armed, self.armed = self.armed, None
        if armed != "before":
            super()._begin(call)
        if armed is not None:
            raise KeyboardInterrupt


def _stage(path):
    """A save that is about to be committed."""
    return _save_composite.stage_composite(
        path,
        {"guest": Guest(), "state": {"a": np.ones(3)}},
        current_settings(),
        overwrite=False,
        facts=RootFacts(custom_metadata={}),
        borrow=True,
        in_background=True,
    )


def _error_of(call):
    """What a call raises; within a time, as it may hang."""
    errors = []

    def run():
        try:
            call()
        except BaseException as error:  # noqa: BLE001 the test looks at it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    return errors[0] if errors else None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["finish", "start"])
def test_interrupt_as_the_commit_begins(place, way, when):
    """Ctrl-C before anybody waits for the commit leaves no draft, and frees the path.

    It is no chance whether the commit had begun.
    """
    runtime = InterruptedCommit()
    with stowax.Context(file=FileOptions(store=place.store), runtime=runtime):
        staged = _stage(place / "checkpoint")
        runtime.armed = when
        error = _error_of(getattr(staged, way))

        assert isinstance(error, KeyboardInterrupt)
        assert is_empty(place.store or LocalStore(), place / "")
        gc.collect()  # What was never awaited would be told of.
        save(place / "checkpoint", 1)
    runtime.close()


class Interrupting(Guest):
    """Is interrupted while it stages."""

    async def save(self, directory):
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("error")
def test_interrupt_while_staging(place):
    """Ctrl-C in a first phase leaves no draft, and ends second phases of others."""
    with pytest.raises(KeyboardInterrupt):
        stowax.save_checkpointables(
            place / "checkpoint", {"guest": Guest(), "then": Interrupting()}
        )

    assert is_empty(place.store or LocalStore(), place / "")
    gc.collect()  # What was never awaited would be told of.


@pytest.mark.filterwarnings("error")
def test_commit_that_is_late_before_it_begins():
    """A phase in words is whole, and what is not waited for any more is ended."""
    settings = stowax.Context(file=FileOptions(store=MemoryStore())).settings()
    operation = _operation.in_place("/checkpoint", settings)

    async def nothing():
        pass

    async def commit():
        await _composite.finish_items(operation, {"a": nothing(), "b": nothing()})
        assert operation.phase in ("writing a", "writing b")
        await _composite.finish_items(operation, {})
        assert operation.phase in ("writing a", "writing b")
        operation.deadline = 0
        late = operation.attempt(_composite.finish_items(operation, {"c": nothing()}))
        assert isinstance(await late, DeadlineError)

    operation.runtime.run(commit())
    gc.collect()  # What was never awaited would be told of.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", ["finish", "start"])
def test_closed_before_the_commit(place, way):
    """A save whose runtime is closed before it is committed is refused at once."""
    runtime = stowax._runtime.Runtime()
    with stowax.Context(file=FileOptions(store=place.store), runtime=runtime):
        staged = _stage(place / "checkpoint")
    runtime.close()

    error = _error_of(getattr(staged, way))
    staged.cancel()

    assert isinstance(error, RuntimeError)
    assert "closed" in str(error)
    assert runtime.reserve(staged._reservation)
    gc.collect()  # What was never awaited would be told of.


class SlowToPublish(RecordingStore):
    """While it publishes, an hour passes on the clock of the loop."""

    async def publish(self, draft, final, *, replace):
        await super().publish(draft, final, replace=replace)
        loop = asyncio.get_running_loop()
        then = loop.time() + 3600
        loop.time = lambda: then
        for _ in range(3):
            await asyncio.sleep(0)  # Timers that are due go off here.


def test_deadline_does_not_cover_the_publish(place):
    """What is published is not said to have been given up."""
    base = LocalStore() if place.store is None else place.store
    stowax.save(place / "checkpoint", {"a": 1})
    runtime = stowax._runtime.Runtime()

    with stowax.Context(file=FileOptions(store=SlowToPublish(base)), runtime=runtime):
        stowax.save(place / "checkpoint", {"a": 2}, overwrite=True)
    runtime.close()

    assert stowax.load(place / "checkpoint") == {"a": 2}


@pytest.mark.parametrize("fails", [False, True])
def test_scratch_is_deleted_by_a_worker(fails):
    """What guests leave outside the store holds up no other operation as it goes."""
    deleting = []
    is_watching = True

    def hook(event, args):
        if is_watching and event == "shutil.rmtree" and "stowax-" in str(args[0]):
            deleting.append((threading.current_thread().name, args[0]))

    sys.addaudithook(hook)  # Stays until the process ends.
    store = MemoryStore()
    try:
        with context(FailingStore(store, 0 if fails else None, names=("publish",))):
            if fails:
                with pytest.raises(InjectedError):
                    save("/checkpoint", 1)
            else:
                save("/checkpoint", 1)
    finally:
        is_watching = False

    assert deleting
    assert all(thread.startswith("stowax-worker") for thread, _ in deleting)
    assert not any(os.path.exists(path) for _, path in deleting)


class Files:
    """Saves itself as files of given sizes."""

    def __init__(self, **sizes_bytes):
        self.sizes_bytes = sizes_bytes

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            for name, size_bytes in self.sizes_bytes.items():
                (path / name).write_bytes(bytes(size_bytes))

        return write()

    async def load(self, directory):
        async def read():
            for name, size_bytes in self.sizes_bytes.items():
                assert (directory / name).read_bytes() == bytes(size_bytes)

        return read()


class RenamingStore(RecordingStore):
    """Between a look at a directory and its sync, another process changes names."""

    async def sync(self, paths):
        for path in paths:
            name = path.rpartition("/")[2]
            if name == "draft":
                os.rename(path, path.removesuffix("draft") + "final")
            elif name == "lock":
                os.remove(path)
        await super().sync(paths)


def test_files_that_other_processes_rename(tmp_path):
    """A file that is renamed under our eyes is saved as it is called at the end."""
    store = RenamingStore(LocalStore())

    with context(store):
        files = Files(draft=10, lock=0, other=5)
        stowax.save_checkpointables(tmp_path / "checkpoint", {"files": files})

    written = Files(final=10, other=5)
    stowax.load_checkpointables(tmp_path / "checkpoint", {"files": written})
    found = sorted(path.name for path in (tmp_path / "checkpoint/files").iterdir())
    assert found == ["final", "other"]
    synced = {p.rpartition("/")[2] for c in store.calls for p in c.paths}
    assert "final" in synced


class PieceStore(RecordingStore):
    """Remembers the largest piece that it was given, or asked to fill."""

    largest_bytes = 0

    async def read_into(self, path, offset_bytes, buffer):
        self.largest_bytes = max(self.largest_bytes, memoryview(buffer).nbytes)
        await super().read_into(path, offset_bytes, buffer)

    async def write(self, path, pieces, *, size_bytes=None):
        def watched():
            for piece in pieces:
                self.largest_bytes = max(self.largest_bytes, memoryview(piece).nbytes)
                yield piece

        await super().write(path, watched(), size_bytes=size_bytes)


def test_large_files_of_guests_go_in_pieces(place):
    """However large a guest's file is, little of it is in memory at once."""
    store = PieceStore(LocalStore() if place.store is None else place.store)
    files = Files(large=2 * PIECE_BYTES + 1)

    with context(store):
        stowax.save_checkpointables(place / "checkpoint", {"files": files})

    assert 0 < store.largest_bytes <= PIECE_BYTES
    stowax.load_checkpointables(place / "checkpoint", {"files": files})


class Late:
    """A guest that goes on when its save has been given up."""

    def __init__(self, *, creates):
        self.creates = creates
        self.gate = threading.Event()
        self.ended = threading.Event()
        self.error = None

    async def save(self, directory):
        async def write():
            try:
                path = None if self.creates else await directory.await_creation()
                self.gate.wait()
                if path is None:
                    path = await directory.await_creation()
                (path / "deep").mkdir(parents=True)
                (path / "deep" / "file").write_text("late")
            except Exception as error:  # noqa: BLE001 the test looks at it
                self.error = error
            finally:
                self.ended.set()

        return write()

    async def load(self, directory):
        raise NotImplementedError


def outlast(path):
    """Has a guest go on, to its end, when its save has been given up."""
    late = Late(creates=True)
    with stowax.Context(asynchronous=AsyncOptions(timeout_secs=1)):
        response = stowax.save_checkpointables_async(path, {"late": late})
    with pytest.raises(DeadlineError):
        response.result()
    late.gate.set()
    assert late.ended.wait(10)
    return late


def test_guest_that_comes_too_late(tmp_path, monkeypatch):
    """A guest that begins to write when all is over is told so, and leaves nothing."""
    monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)

    late = outlast(tmp_path / "a")

    assert isinstance(late.error, SaveError)
    assert str(tmp_path / "a") in str(late.error)
    assert list(tmp_path.iterdir()) == []


def test_guest_that_is_given_up_is_no_news(tmp_path, monkeypatch, caplog):
    """The response tells of it; asyncio has no failure of its own to log."""
    monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)

    outlast(tmp_path / "a")
    default_runtime().finish()
    gc.collect()

    assert [record.getMessage() for record in caplog.records] == []


def test_guest_that_is_slow_to_stop(tmp_path):
    """What a guest writes while the save is given up goes with the draft."""
    late = Late(creates=False)
    timer = threading.Timer(1.5, late.gate.set)

    with stowax.Context(asynchronous=AsyncOptions(timeout_secs=1)):
        response = stowax.save_checkpointables_async(tmp_path / "a", {"late": late})
    timer.start()
    with pytest.raises(DeadlineError):
        response.result()

    assert late.gate.is_set()
    assert late.error is None
    assert list(tmp_path.iterdir()) == []


AUDIT = """
    import sys
    import threading
    import jax, numpy as np
    import stowax
    from stowax.options import IntegrityOptions

    root = sys.argv[1]
    opened = []

    def hook(event, args):
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path = args[0]
        if not isinstance(path, (str, bytes)) or root not in str(path):
            return
        if event == "open":
            flags = args[2]
            is_writing = flags & 3 or flags & (64 | 512)  # O_CREAT, O_TRUNC
            if not is_writing:
                return
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            frames.append(frame.f_code.co_filename.replace("\\\\", "/"))
            frame = frame.f_back
        ours = [f for f in frames if "/stowax/" in f and "/site-packages/" not in f]
        opened.append((event, str(path), ours[0] if ours else frames[0]))

    state = {
        "w": jax.device_put(np.arange(12.0, dtype=np.float32)),
        "host": np.arange(3), "text": "text", "key": jax.random.key(1),
    }
    items = {"state": state, "step": 3}
    stowax.save_checkpointables(root + "/warm", items)  # Lazy imports are done here.
    stowax.load(root + "/warm")
    sys.addaudithook(hook)
    stowax.save_checkpointables(root + "/checkpoint", items)
    stowax.save_checkpointables(root + "/checkpoint", items, overwrite=True)
    saving = len(opened)
    stowax.load(root + "/checkpoint")
    stowax.load_checkpointables(root + "/checkpoint")
    stowax.metadata(root + "/checkpoint")
    with stowax.Context(integrity=IntegrityOptions(verify=False)):
        stowax.load(root + "/checkpoint")
    for event, path, module in opened[:saving]:
        print("save", event, module)
    for event, path, module in opened[saving:]:
        print("load", event, path, module)
"""


def test_only_one_module_writes(tmp_path):
    """Only the local store opens or changes files of a checkpoint; no load does."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDIT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) > 10
    wrong = [x for x in lines if not x.startswith("save")]
    wrong += [x for x in lines if not x.endswith("stowax/_stores/_local.py")]
    assert wrong == []


def test_verification_is_on_by_default():
    """Nobody has to ask for checksums."""
    assert IntegrityOptions().verify
