"""What fails in one process ends in all of them, says where, and leaves nothing."""

import asyncio
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
from multihost import trees
from stowax._runtime import default_runtime
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointExistsError,
    DeadlineError,
    PeerFailedError,
    ProcessesError,
    StowaxError,
    UnsupportedLeafError,
)
from stowax.testing import RecordingStore


class FullDisk(RecordingStore):
    """Has no room for one file."""

    def __init__(self, name):
        super().__init__(LocalStore())
        self.name = name

    async def write(self, path, pieces, *, size_bytes=None):
        if path.endswith(self.name):
            raise OSError(28, "No space left on device", path)
        await super().write(path, pieces, size_bytes=size_bytes)


class StuckDisk(FullDisk):
    """Never ends to write one file."""

    async def write(self, path, pieces, *, size_bytes=None):
        if path.endswith(self.name):
            await asyncio.Event().wait()
        await super().write(path, pieces, size_bytes=size_bytes)


class Failing:
    """Cannot be saved: fails before or after it has handed its tree over."""

    def __init__(self, phase):
        self.phase = phase

    async def save(self, directory):
        if self.phase == "first":
            raise ArithmeticError("cannot take the state")
        writing = await stowax.handlers.PyTreeHandler().save(directory, trees.state())

        async def finish():
            await writing
            if self.phase == "second":
                raise ArithmeticError("cannot write the state")

        return finish()

    async def load(self, directory):
        raise NotImplementedError


def _error(save, *args, **kwargs):
    """The error of a save, as the text of its type and its message."""
    try:
        save(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 the test looks at it
        return type(error), str(error)
    return None


def _then_save(path, error):
    """Saves again, as a program does that has handled the error.

    Returns:
        The error; and what the primary, which removes the draft, has left.
    """
    left = [] if jax.process_index() else os.listdir(path.parent)
    stowax.save(path, trees.state())
    return error, left


def _assert_all_saved(path):
    assert trees.differences(stowax.load(path), trees.expected()) == []
    assert os.listdir(path.parent) == [path.name]


def _save_again(index, path):
    stowax.save(path, trees.state())
    error = _error(stowax.save, path, {"other": jnp.ones(3)})
    stowax.save(path, trees.state(), overwrite=True)
    return error


def test_existing_path(launch, tmp_path):
    """All processes learn that something is at the path, and leave it there."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_again, path)

    (kind, message), (kind_elsewhere, message_elsewhere) = results
    assert kind is kind_elsewhere is CheckpointExistsError
    assert message.startswith(f"{path} exists already")
    assert f"process 0: CheckpointExistsError: {message}" in message_elsewhere
    _assert_all_saved(path)


def _save_unsupported(index, path, where, name):
    checkpointables = {name: {"a": [object() if index == where else 1]}}
    return _then_save(path, _error(stowax.save_checkpointables, path, checkpointables))


# What is called "state" is a tree; for another name a handler is looked for first.
@pytest.mark.parametrize("name", ["state", "item"])
@pytest.mark.parametrize("where", [0, 1])
def test_unsupported_leaf(launch, tmp_path, where, name):
    """A leaf that one process cannot save is named in all, with the process."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_unsupported, path, where, name)

    for index, ((kind, message), left) in enumerate(results):
        assert kind is UnsupportedLeafError
        assert "a.0" in message
        assert index == where or f"process {where}: UnsupportedLeafError" in message
        assert left == []
    _assert_all_saved(path)


def _save_failing(index, path, where, phase):
    checkpointables = {
        "first": trees.state(),
        "item": Failing(phase if index == where else "none"),
        "last": trees.state(),
    }
    return _then_save(path, _error(stowax.save_checkpointables, path, checkpointables))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("phase", ["first", "second"])
def test_failing_handler(launch, tmp_path, where, phase):
    """A handler that fails in one process fails the save of all, at once."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_failing, path, where, phase)

    for index, ((kind, message), left) in enumerate(results):
        assert kind is (ArithmeticError if index == where else PeerFailedError)
        assert index == where or f"process {where}: ArithmeticError: cannot" in message
        assert left == []
    _assert_all_saved(path)


def _save_on_full_disk(index, path, where, name):
    store = FullDisk(name) if index == where else None
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        error = _error(stowax.save, path, trees.state())
    return _then_save(path, error)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (0, "data-0"),
        (1, "data-0"),
        (1, "stowax.chunks.1"),
        (0, "stowax.manifest"),
        (0, "stowax.json"),
    ],
)
def test_disk_error(launch, tmp_path, where, name):
    """A file that one process cannot write ends the save in all, naming both."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_on_full_disk, path, where, name)

    for index, ((kind, message), left) in enumerate(results):
        assert kind is (OSError if index == where else PeerFailedError)
        assert "No space left" in message
        assert name in message
        assert index == where or f"process {where}: OSError" in message
        assert left == []
    _assert_all_saved(path)


def _stay_away(index, path, absent):
    if index == absent:
        return None
    options = stowax.options.AsyncOptions(timeout_secs=2)
    with stowax.Context(asynchronous=options):
        began = time.monotonic()
        error = _error(stowax.save, path, {"a": np.ones(3)})
        return error, time.monotonic() - began, os.listdir(path.parent)


@pytest.mark.parametrize("absent", [0, 1])
def test_process_that_never_comes(launch, tmp_path, absent):
    """Who waits in vain is told for whom by the deadline, and nothing is left."""
    results = launch(2, _stay_away, tmp_path / "checkpoint", absent)

    (kind, message), waited_secs, left = results[1 - absent]
    assert kind is DeadlineError
    assert message.startswith(f"process {absent} is missing: waited 2 s")
    # The service looks at its clock once a second; a busy machine is slower still.
    assert waited_secs < 2 + 8
    assert left == []
    assert os.listdir(tmp_path) == []


def _save_on_stuck_disk(index, path, where):
    store = StuckDisk("data-0") if index == where else None
    context = stowax.Context(
        file=stowax.options.FileOptions(store=store),
        asynchronous=stowax.options.AsyncOptions(timeout_secs=2),
    )
    with context:
        error = _error(stowax.save, path, trees.state())
    return _then_save(path, error)


@pytest.mark.parametrize("where", [0, 1])
def test_process_that_takes_too_long(launch, tmp_path, where):
    """The deadline holds for the work of every process; the next save works."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_on_stuck_disk, path, where)

    for index, ((kind, message), left) in enumerate(results):
        assert kind is DeadlineError
        if index == where:
            assert message.startswith(f"the save to {path} took longer than 2 s")
        else:
            # By the time that the others give up it may have said so, or not.
            assert f"process {where}" in message or "all processes came" in message
        assert left == []
    _assert_all_saved(path)


def _save_different(index, path, difference):
    mesh = trees.global_mesh()
    array = trees.on_devices(np.arange(8), NamedSharding(mesh, P("process")))
    tree = {"a": array, "b": np.ones(2)}
    match difference:
        case "names":
            tree[f"c{index}"] = 1
        case "shapes" if index:
            tree["a"] = trees.on_devices(np.arange(4), NamedSharding(mesh, P()))
        case "copies":
            own = Mesh(np.array(jax.local_devices()), ("own",))
            tree["a"] = jax.device_put(np.arange(8), NamedSharding(own, P("own")))
        case "items" if index:
            checkpointables = {"state": tree, "more": {"x": 1}}
            save = stowax.save_checkpointables
            return _then_save(path, _error(save, path, checkpointables))
    return _then_save(path, _error(stowax.save, path, tree))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ("names", "trees of processes 0 and 1 differ"),
        ("shapes", "trees of processes 0 and 1 differ"),
        ("copies", "leaf 'a' were written 2 times, by the processes [0, 1]"),
        ("items", "process 1 saved the items"),
    ],
)
def test_processes_that_disagree(launch, tmp_path, difference, said):
    """What the processes do not see alike is refused instead of saved in pieces."""
    path = tmp_path / "checkpoint"

    results = launch(2, _save_different, path, difference)

    for (kind, message), left in results:
        assert kind is ProcessesError
        assert said in message
        assert left == []
    _assert_all_saved(path)


def _fail_to_overwrite(index, path):
    stowax.save(path, trees.state())
    file = stowax.options.FileOptions(store=FullDisk("data-0") if index else None)
    with stowax.Context(file=file):
        return _error(stowax.save, path, {"b": np.ones(3)} | trees.state(), overwrite=1)


def test_failed_overwrite_keeps_the_old(launch, tmp_path):
    """When one process cannot write the new checkpoint, the old one stays whole."""
    path = tmp_path / "checkpoint"

    results = launch(2, _fail_to_overwrite, path)

    assert [kind for kind, _ in results] == [PeerFailedError, OSError]
    _assert_all_saved(path)


def _fail_in_background(index, path):
    file = stowax.options.FileOptions(store=FullDisk("data-0") if index else None)
    with stowax.Context(file=file):
        response = stowax.save_async(path, trees.state())
    # Nobody asks process 0; its next save says so, and process 1 is told.
    if index:
        with pytest.raises(OSError, match="No space"):
            response.result()
    else:
        default_runtime().finish()
    return _then_save(path, _error(stowax.save, path, trees.state()))


def test_unseen_failure(launch, tmp_path):
    """A failure that one process has not looked at fails the next save of all."""
    path = tmp_path / "checkpoint"

    results = launch(2, _fail_in_background, path)

    for index, ((kind, message), left) in enumerate(results):
        assert issubclass(kind, StowaxError)
        assert "an earlier save to" in message
        assert index == 0 or "process 0: BackgroundSaveError" in message
        assert left == []
    _assert_all_saved(path)
