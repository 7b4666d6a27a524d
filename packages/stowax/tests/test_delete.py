"""What `delete` promises: a checkpoint goes as a whole, and nothing else goes."""

import asyncio
import os

import pytest

import stowax
from stowax.errors import (
    CheckpointNotFoundError,
    InvalidLayoutError,
    UnsupportedOptionError,
)
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster

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


def test_one_checkpointable(place):
    """What comes in a later release says so, and deletes nothing."""
    stowax.save(place / "checkpoint", STATE)

    with pytest.raises(UnsupportedOptionError, match="later release"):
        stowax.delete(place / "checkpoint", checkpointable_name="state")
    assert stowax.load(place / "checkpoint") == STATE


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
