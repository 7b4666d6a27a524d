"""What `delete` promises: a checkpoint goes as a whole, and nothing else goes."""

import asyncio
import json
import os
import posixpath
import threading

import numpy as np
import pytest
from sample_trees import differences

import stowax
from stowax._runtime import Runtime
from stowax._stores._base import REPLACEMENT_SUFFIX, format_replacement
from stowax.errors import (
    CheckpointableNotFoundError,
    CheckpointNotFoundError,
    DeletionInProgressError,
    DeletionRecoveryError,
    InvalidLayoutError,
    InvalidNameError,
    NothingToDeleteError,
    SaveError,
    SaveInProgressError,
)
from stowax.testing import (
    MemoryStore,
    RecordingStore,
    SimulatedCluster,
    durability_faults,
)

STATE = {"a": 1}


def test_deletes(place):
    """A deleted checkpoint is gone, and its name is free again."""
    stowax.save(place / "checkpoint", STATE)

    assert stowax.delete(place / "checkpoint") is True
    with pytest.raises(CheckpointNotFoundError):
        stowax.load(place / "checkpoint")
    stowax.save(place / "checkpoint", {"a": 2})
    assert stowax.load(place / "checkpoint") == {"a": 2}


def test_in_the_background(place):
    """`delete_async` does the same; its result says whether there was something."""
    stowax.save(place / "checkpoint", STATE)

    assert stowax.delete_async(place / "checkpoint").result() is True
    assert stowax.delete_async(place / "checkpoint", missing_ok=True).result() is False


def test_leaves_nothing_behind(tmp_path):
    """No file of the checkpoint stays, and no other file goes."""
    stowax.save(tmp_path / "one", STATE)
    stowax.save(tmp_path / "two", STATE)

    stowax.delete(tmp_path / "one")

    assert os.listdir(tmp_path) == ["two"]
    assert stowax.load(tmp_path / "two") == STATE


def test_missing(place):
    """Nothing at the path is an error, unless that is fine."""
    with pytest.raises(CheckpointNotFoundError, match="missing_ok"):
        stowax.delete(place / "checkpoint")

    assert stowax.delete(place / "checkpoint", missing_ok=True) is False


def test_what_is_no_checkpoint_stays(tmp_path):
    """A directory of steps, a part of a checkpoint, or anything else is refused."""
    stowax.save(tmp_path / "run" / "1", STATE)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("text")

    for name in ("run", "run/1/state", "notes", "file"):
        with pytest.raises(InvalidLayoutError):
            stowax.delete(tmp_path / name)
        assert (tmp_path / name).exists()
    assert stowax.load(tmp_path / "run" / "1") == STATE


def test_a_damaged_checkpoint_goes(tmp_path):
    """Damage is a reason to delete a checkpoint, and no obstacle."""
    path = tmp_path / "checkpoint"
    stowax.save(path, STATE)
    (path / "stowax.json").write_text("nonsense")

    assert stowax.delete(path) is True
    assert not path.exists()


PARTS = {"model": {"w": np.arange(6.0)}, "optimizer": {"m": 2}, "step": 3}


class PausedStore(RecordingStore):
    """Waits before its first link or write, if it is told to."""

    def __init__(self):
        self.memory = MemoryStore()
        super().__init__(self.memory)
        self.is_paused = False
        self.paused, self.go_on = threading.Event(), threading.Event()

    def twin(self):
        """The same files, for somebody else."""
        return RecordingStore(self.memory)

    async def link(self, source, target):
        await self._pause()
        await super().link(source, target)

    async def write(self, path, pieces, *, size_bytes=None):
        await self._pause()
        await super().write(path, pieces, size_bytes=size_bytes)

    async def _pause(self):
        if self.is_paused:
            self.is_paused = False
            self.paused.set()
            await asyncio.to_thread(self.go_on.wait, 20)


class TestOneCheckpointable:
    """One goes, the others stay as they are."""

    def test_the_others_stay(self, place):
        """They are loaded and verified as before, and metadata is kept."""
        path = place / "checkpoint"
        stowax.save_checkpointables(path, PARTS, custom_metadata={"a": 1})

        assert stowax.delete(path, checkpointable_name="optimizer") is True
        loaded = stowax.load_checkpointables(path)
        assert differences({"model": PARTS["model"], "step": 3}, loaded) == []
        assert stowax.verify(path).damages == ()
        found = stowax.checkpointables_metadata(path)
        assert (found.custom_metadata, sorted(found.metadata)) == (
            {"a": 1},
            ["model", "step"],
        )
        with pytest.raises(CheckpointableNotFoundError):
            stowax.load(path, checkpointable_name="optimizer")

    def test_again(self, place):
        """Then there is nothing to delete."""
        path = place / "checkpoint"
        stowax.save_checkpointables(path, PARTS)
        stowax.delete(path, checkpointable_name="step")

        with pytest.raises(NothingToDeleteError, match=r"'step'.*'model'"):
            stowax.delete(path, checkpointable_name="step")
        assert issubclass(NothingToDeleteError, FileNotFoundError)
        gone = stowax.delete(path, checkpointable_name="step", missing_ok=True)
        assert gone is False
        with pytest.raises(CheckpointNotFoundError):
            stowax.delete(place / "nothing", checkpointable_name="step")

    def test_the_only_one_stays(self, place):
        """A checkpoint of nothing is none."""
        stowax.save(place / "checkpoint", STATE)

        with pytest.raises(InvalidLayoutError, match="nothing but 'state'"):
            stowax.delete(place / "checkpoint", checkpointable_name="state")
        assert stowax.load(place / "checkpoint") == STATE

    @pytest.mark.parametrize("name", ["", "..", "a/b", "metrics", "_METADATA/x", 3])
    def test_what_is_no_name(self, place, name):
        """Nothing is looked for under it."""
        stowax.save_checkpointables(place / "checkpoint", PARTS)

        with pytest.raises(InvalidNameError):
            stowax.delete(place / "checkpoint", checkpointable_name=name)

    def test_nothing_stays_behind(self, tmp_path):
        """Its files are gone, and so is the directory that they were in."""
        path = tmp_path / "checkpoint"
        stowax.save_checkpointables(path, PARTS)
        stowax.delete(path, checkpointable_name="optimizer")

        assert os.listdir(tmp_path) == ["checkpoint"]
        assert not (path / "optimizer").exists()

    def test_no_byte_of_the_others_is_written(self):
        """They get a second name: what is written are two documents."""
        store = RecordingStore(MemoryStore())
        with stowax.Context(file=stowax.options.FileOptions(store=store)):
            stowax.save_checkpointables("/runs/checkpoint", PARTS)
            before = len(store.calls)
            stowax.delete("/runs/checkpoint", checkpointable_name="optimizer")

        written = [
            posixpath.basename(call.paths[0])
            for call in store.calls[before:]
            if call.operation == "write"
        ]
        assert sorted(written) == ["_CHECKPOINT_METADATA", "stowax.json"]
        assert durability_faults(store.calls) == []

    def test_permissions_stay(self, tmp_path):
        """Of the checkpoint, of its directories, and of its files."""
        path = tmp_path / "checkpoint"
        with stowax.Context(
            file=stowax.options.FileOptions(path_permission_mode=0o710)
        ):
            stowax.save_checkpointables(path, PARTS)
        (path / "model").chmod(0o750)
        (path / "model" / "_METADATA").chmod(0o640)
        stowax.delete(path, checkpointable_name="optimizer")

        modes = [
            found.stat().st_mode & 0o777
            for found in (path, path / "model", path / "model" / "_METADATA")
        ]
        assert modes == [0o710, 0o750, 0o640]

    def test_what_orbax_has_begun_to_delete(self, tmp_path):
        """Of our checkpoints, too, it is hidden, and is what can be deleted."""
        path = tmp_path / "c"
        stowax.save_checkpointables(path, PARTS)
        record = {"checkpointable_name": "optimizer"}
        (path / "_CHECKPOINT_DELETION").write_text(json.dumps(record))
        for file in (path / "optimizer" / "d").iterdir():
            file.unlink()

        assert sorted(stowax.load_checkpointables(path)) == ["model", "step"]
        with pytest.raises(DeletionInProgressError, match="finishes it"):
            stowax.load(path, checkpointable_name="optimizer")
        with pytest.raises(DeletionRecoveryError, match="'optimizer'"):
            stowax.delete(path, checkpointable_name="step")
        assert stowax.delete(path, checkpointable_name="optimizer") is True
        assert not (path / "_CHECKPOINT_DELETION").exists()
        assert not stowax.verify(path).damages
        assert sorted(stowax.load_checkpointables(path)) == ["model", "step"]

    @pytest.mark.parametrize("call", ["link", "write", "sync", "publish"])
    def test_a_failure_leaves_all_of_it(self, call):
        """Whichever call fails first, it is as it was, and nothing is beside it."""
        memory = MemoryStore()

        class Failing(RecordingStore):
            is_armed = False

        async def fail(self, *arguments, **options):
            if Failing.is_armed:
                raise OSError(5, "Input/output error")
            return await getattr(RecordingStore, call)(self, *arguments, **options)

        setattr(Failing, call, fail)
        with stowax.Context(file=stowax.options.FileOptions(store=Failing(memory))):
            stowax.save_checkpointables("/runs/checkpoint", PARTS)
            Failing.is_armed = True
            with pytest.raises(OSError, match="Input/output"):
                stowax.delete("/runs/checkpoint", checkpointable_name="optimizer")

        assert [e.name for e in asyncio.run(memory.list("/runs"))] == ["checkpoint"]
        with stowax.Context(file=stowax.options.FileOptions(store=memory)):
            loaded = stowax.load_checkpointables("/runs/checkpoint")
        assert differences(PARTS, loaded) == []

    def test_while_somebody_saves_there(self):
        """Neither loses what the other one did, in this process or in another."""
        store = PausedStore()
        file = stowax.options.FileOptions(store=store)
        with stowax.Context(file=file):
            stowax.save_checkpointables("/c", PARTS)
            store.is_paused = True
            response = stowax.delete_async("/c", checkpointable_name="step")
            store.paused.wait(20)
            with pytest.raises(SaveInProgressError):
                stowax.save("/c", STATE, overwrite=True)
        # Another process, which knows nothing of the first.
        runtime = Runtime()
        with stowax.Context(
            file=stowax.options.FileOptions(store=store.twin()), runtime=runtime
        ):
            stowax.save_checkpointables(
                "/c", {"state": STATE, "step": 4}, overwrite=True
            )
        store.go_on.set()
        with pytest.raises(SaveError, match="was replaced"):
            response.result()

        with stowax.Context(
            file=stowax.options.FileOptions(store=store.twin()), runtime=runtime
        ):
            assert stowax.load_checkpointables("/c") == {"state": STATE, "step": 4}
        runtime.close()
        assert [e.name for e in asyncio.run(store.list("/"))] == ["c"]

    def test_while_a_save_is_under_way(self):
        """It waits to be waited for, as a second save does."""
        store = PausedStore()
        with stowax.Context(file=stowax.options.FileOptions(store=store)):
            stowax.save_checkpointables("/c", PARTS)
            store.is_paused = True
            response = stowax.save_checkpointables_async("/c", PARTS, overwrite=True)
            with pytest.raises(SaveInProgressError, match="under way"):
                stowax.delete("/c", checkpointable_name="step")
            store.go_on.set()
            response.result()

            assert stowax.delete("/c", checkpointable_name="step") is True

    def test_after_a_replacement_that_was_interrupted(self, tmp_path):
        """The checkpoint is found under the name that it was about to lose."""
        path, draft = tmp_path / "c", "c.orbax-checkpoint-tmp-1"
        stowax.save_checkpointables(path, PARTS)
        record = path.with_name(path.name + REPLACEMENT_SUFFIX)
        record.write_bytes(format_replacement(draft))
        path.rename(path.with_name(draft))

        assert stowax.delete(path, checkpointable_name="step") is True
        assert sorted(stowax.load_checkpointables(path)) == ["model", "optimizer"]
        assert os.listdir(tmp_path) == ["c"]

    def test_several_processes(self):
        """All of them call it, and one does it."""
        store = MemoryStore()

        def work(index):
            with stowax.Context(
                runtime=cluster.runtimes[index],
                file=stowax.options.FileOptions(store=store),
            ):
                stowax.save_checkpointables("/runs/checkpoint", PARTS)
                gone = stowax.delete("/runs/checkpoint", checkpointable_name="step")
                return gone, sorted(stowax.load_checkpointables("/runs/checkpoint"))

        with SimulatedCluster(2) as cluster:
            found = cluster.run(work)

        assert found == [(True, ["model", "optimizer"])] * 2


def test_out_of_sight_before_the_first_file_goes():
    """The checkpoint loses its name, durably, before any of its files is deleted."""
    store = RecordingStore(MemoryStore())
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        stowax.save("/runs/checkpoint", STATE)
        before = len(store.calls)
        stowax.delete("/runs/checkpoint")

    changes = [
        call
        for call in store.calls[before:]
        if call.operation in ("publish", "sync", "delete")
    ]
    renamed, synced, deleted = changes
    assert [call.operation for call in changes] == ["publish", "sync", "delete"]
    assert renamed.paths[0] == "/runs/checkpoint"
    assert renamed.paths[1].startswith("/runs/checkpoint.orbax-checkpoint-tmp-delete-")
    assert synced.paths == ("/runs",)
    assert deleted.paths == renamed.paths[1:]
    assert renamed.ended < synced.began
    assert synced.ended < deleted.began


def test_several_processes():
    """All processes hear what was there; the primary one deletes."""
    stores = [RecordingStore(MemoryStore())]
    stores.append(RecordingStore(stores[0]))

    def work(index):
        context = stowax.Context(
            runtime=cluster.runtimes[index],
            file=stowax.options.FileOptions(store=stores[index]),
        )
        with context:
            stowax.save("/runs/checkpoint", STATE)
            found = stowax.delete("/runs/checkpoint")
            again = stowax.delete("/runs/checkpoint", missing_ok=True)
            with pytest.raises(CheckpointNotFoundError):
                stowax.delete("/runs/checkpoint")
            return found, again

    with SimulatedCluster(2) as cluster:
        assert cluster.run(work) == [(True, False)] * 2
    assert asyncio.run(stores[0].stat("/runs/checkpoint")) is None
    assert [c for c in stores[1].calls if c.operation == "delete"] == []


def test_options_of_saves_do_not_matter(tmp_path):
    """What only a save could not follow does not stand in the way."""
    stowax.save(tmp_path / "checkpoint", {"a": 1})
    context = stowax.Context()
    context.atomicity.mode = "commit_file"

    with context:
        stowax.delete(tmp_path / "checkpoint")

    assert not stowax.is_orbax_checkpoint(tmp_path / "checkpoint")
