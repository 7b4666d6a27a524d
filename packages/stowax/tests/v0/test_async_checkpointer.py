"""An `AsyncCheckpointer` returns early, and loses no failure."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from stowax import v0
from stowax.errors import CheckpointExistsError, DeadlineError, InvalidArgumentError


class SlowHandler(v0.AsyncCheckpointHandler):
    """Writes a text when it may, and fails if it is told to."""

    def __init__(self, error=None):
        self.may_go_on = threading.Event()
        self.error = error

    def save(self, directory, item):
        raise AssertionError("a checkpointer that goes on calls `async_save`")

    async def async_save(self, directory, item):
        def write():
            self.may_go_on.wait()
            if self.error is not None:
                raise self.error
            (directory / "text").write_text(item)

        return [v0.future.CommitFutureAwaitingContractedSignals(_run(write))]

    def restore(self, directory):
        return (directory / "text").read_text()


async def _run(function):
    function()


def test_values_are_taken(tmp_path):
    """What is changed after the call is saved as it was before."""
    state = {"w": np.ones(3), "v": jnp.ones(3)}

    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", state)
        state["w"][:] = 0
        state["v"].delete()
        restored = checkpointer.restore(tmp_path / "c")

    assert restored["w"].tolist() == restored["v"].tolist() == [1, 1, 1]


def test_returns_early(tmp_path):
    """A save is under way until it is waited for; nothing is there before."""
    handler = SlowHandler()

    with v0.AsyncCheckpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", "text")
        checkpointer.check_for_errors()
        is_there = (tmp_path / "c").exists()
        handler.may_go_on.set()
        checkpointer.wait_until_finished()

        assert not is_there
        assert checkpointer.restore(tmp_path / "c") == "text"


def test_one_at_a_time(tmp_path):
    """The next save waits for the one before."""
    handler = SlowHandler()
    handler.may_go_on.set()

    with v0.AsyncCheckpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "a", "one")
        checkpointer.save(tmp_path / "b", "two")

        assert (tmp_path / "a" / "text").read_text() == "one"


@pytest.mark.parametrize("way", ["wait", "save", "restore", "close"])
def test_failure_in_the_background(tmp_path, way):
    """It is raised by whatever comes next, once, and leaves nothing behind."""
    handler = SlowHandler(OSError("disk on fire"))
    handler.may_go_on.set()
    checkpointer = v0.AsyncCheckpointer(handler)
    checkpointer.save(tmp_path / "c", "text")

    calls = {
        "wait": checkpointer.wait_until_finished,
        "save": lambda: checkpointer.save(tmp_path / "d", "text"),
        "restore": lambda: checkpointer.restore(tmp_path / "c"),
        "close": checkpointer.close,
    }
    with pytest.raises(OSError, match="fire"):
        calls[way]()

    checkpointer.wait_until_finished()
    checkpointer.check_for_errors()
    checkpointer.close()
    assert list(tmp_path.iterdir()) == []


def test_asked_for_errors(tmp_path):
    """`check_for_errors` does not wait, and raises what has happened."""
    handler = SlowHandler(OSError("disk on fire"))
    checkpointer = v0.AsyncCheckpointer(handler)
    checkpointer.save(tmp_path / "c", "text")
    checkpointer.check_for_errors()

    handler.may_go_on.set()
    ended = threading.Event()
    checkpointer._under_way[1]._outcome.add_done_callback(lambda _: ended.set())
    ended.wait()

    with pytest.raises(OSError, match="fire"):
        checkpointer.check_for_errors()
    checkpointer.close()


def test_cancel(tmp_path):
    """A save that is cancelled leaves nothing, and is no failure."""
    with v0.AsyncCheckpointer(v0.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": np.ones(1 << 20)})
        checkpointer.cancel()
        checkpointer.cancel()

    assert {path.name for path in tmp_path.iterdir()} <= {"c"}


def test_something_is_there(tmp_path):
    """That is found before the call returns."""
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        with pytest.raises(CheckpointExistsError, match="`force=True`"):
            checkpointer.save(tmp_path / "c", {"x": 2})
        checkpointer.save(tmp_path / "c", {"x": 3}, force=True)

        assert checkpointer.restore(tmp_path / "c") == {"x": 3}


def test_two_checkpointers_and_one_path(tmp_path):
    """While one saves there, the other is told to wait for it."""
    handler = SlowHandler()
    first, second = v0.AsyncCheckpointer(handler), v0.StandardCheckpointer()
    first.save(tmp_path / "c", "text")

    with pytest.raises(CheckpointExistsError, match="`wait_until_finished"):
        second.save(tmp_path / "c", {"x": 1}, force=True)

    handler.may_go_on.set()
    first.close()
    second.close()


def test_told_when_it_is_there(tmp_path):
    """The callback of the options finds the checkpoint published."""
    found = []
    options = v0.options.AsyncOptions(
        post_finalization_callback=lambda: found.append((tmp_path / "c").exists())
    )
    with v0.StandardCheckpointer(async_options=options) as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})

    assert found == [True]


def test_what_the_callback_raises(tmp_path, caplog):
    """A callback that fails fails no save; it is logged."""

    def fail():
        raise RuntimeError("no messages today")

    options = v0.options.AsyncOptions(post_finalization_callback=fail)
    with v0.StandardCheckpointer(async_options=options) as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        checkpointer.wait_until_finished()

        assert checkpointer.restore(tmp_path / "c") == {"x": 1}
    assert "no messages today" in caplog.text


def test_deadline(tmp_path):
    """A save that takes too long is given up."""
    handler = SlowHandler()
    checkpointer = v0.AsyncCheckpointer(handler, timeout_secs=1)
    checkpointer.save(tmp_path / "c", "text")
    try:
        with pytest.raises(DeadlineError, match="while writing the item;"):
            checkpointer.wait_until_finished()
    finally:
        handler.may_go_on.set()
    checkpointer.close()


def test_no_deadline():
    """A deadline has to be one."""
    with pytest.raises(InvalidArgumentError, match="deadline"):
        v0.AsyncCheckpointer(v0.JsonCheckpointHandler(), timeout_secs=-1)
