"""What the older API saves is whole and durable, or not there, as by the newer one."""

import numpy as np
import pytest

import stowax
from stowax import v0
from stowax._stores._local import LocalStore
from stowax.testing import RecordingStore
from stowax.testing._recording_store import durability_faults

WRITING = ("make_directory", "write", "sync", "publish")


class TouchHandler(v0.CheckpointHandler):
    """A guest that writes when it is called, and once more at the end."""

    def save(self, directory, item):
        (directory / "deep").mkdir()
        (directory / "deep" / "item").write_text(item)

    def restore(self, directory):
        return (directory / "deep" / "item").read_text()

    def finalize(self, directory):
        (directory / "last").write_text("done")


class FailingStore:
    """Forwards to a local store; the n-th call that changes anything fails."""

    def __init__(self, fail_at):
        self.store = LocalStore()
        self.left = fail_at

    def __getattr__(self, name):
        method = getattr(self.store, name)
        if name not in WRITING:
            return method

        async def call(*args, **kwargs):
            self.left -= 1
            if self.left == -1:
                raise OSError(f"{name} failed")
            return await method(*args, **kwargs)

        return call


def within(store):
    """A Context with a store."""
    return stowax.Context(file=stowax.options.FileOptions(store=store))


def save(path, number, kind, **options):
    """Saves something that a number tells from others."""
    store = v0.metadata.metadata_store(enable_write=True, blocking_write=True)
    if kind == "tree":
        handler, args = v0.PyTreeCheckpointHandler(), {"x": np.full(3, number)}
    elif kind == "guest":
        handler, args = TouchHandler(), str(number)
    else:
        handler = v0.CompositeCheckpointHandler()
        args = v0.args.Composite(
            a=v0.args.PyTreeSave({"x": np.full(3, number)}),
            b=v0.args.JsonSave({"number": number}),
        )
    checkpointer = v0.Checkpointer(handler, checkpoint_metadata_store=store)
    checkpointer.save(path, args, **options)


def saved(path, kind):
    """The number."""
    if kind == "tree":
        return v0.PyTreeCheckpointer().restore(path)["x"][0]
    if kind == "guest":
        return int(v0.Checkpointer(TouchHandler()).restore(path))
    restored = v0.Checkpointer(v0.CompositeCheckpointHandler()).restore(path)
    assert restored.a["x"][0] == restored.b["number"]
    return restored.b["number"]


@pytest.mark.parametrize("kind", ["tree", "guest", "composite"])
def test_synced_before_the_publish(tmp_path, kind):
    """Every file and directory is, those of guests and stores of the user as well."""
    recording = RecordingStore(LocalStore())
    with within(recording):
        save(tmp_path / "c", 1, kind)

    (publish,) = [call for call in recording.calls if call.operation == "publish"]
    synced = {
        path.replace(publish.paths[0], str(tmp_path / "c"))
        for call in recording.calls
        if call.operation == "sync" and call.ended < publish.began
        for path in call.paths
    }
    assert {str(path) for path in (tmp_path / "c").rglob("*")} <= synced
    assert durability_faults(recording.calls) == []


@pytest.mark.parametrize("kind", ["tree", "guest", "composite"])
def test_any_call_may_fail(tmp_path, kind):
    """Whichever call of the store fails, the checkpoint is the old one or the new."""
    save(tmp_path / "c", 0, kind)
    number, failures = 0, 0
    while failures == number:
        number += 1
        with within(FailingStore(number - 1)):
            try:
                save(tmp_path / "c", number, kind, force=True)
            except OSError:
                failures += 1
        assert saved(tmp_path / "c", kind) in (0, number)
        if saved(tmp_path / "c", kind) == number:
            break

    assert failures >= 5
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
