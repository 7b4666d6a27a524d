"""The harness itself: failures are shown, and nothing is left running."""

import os
import threading

import pytest

from multihost._launcher import ProcessDiedError


def _pid(index):
    return os.getpid()


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_is_left_running(launch):
    """Every process has ended when the results are there."""
    pids = launch(2, _pid)

    assert not any(map(_is_running, pids))


def _fail(index):
    print("about to fail", index)
    if index == 1:
        raise ValueError("no good")


def test_error_comes_back(launch):
    """An error keeps its type, its traceback and the output of its process."""
    with pytest.raises(ExceptionGroup, match="1 of 2 processes failed") as caught:
        launch(2, _fail)

    (error,) = caught.value.exceptions
    notes = "\n".join(error.__notes__)
    assert type(error) is ValueError
    assert "in _fail" in notes
    assert "about to fail 1" in notes


def _die(index):
    if index == 1:
        os._exit(7)


def test_death_is_reported(launch):
    """A process that is gone is named with its exit code."""
    with pytest.raises(ExceptionGroup) as caught:
        launch(2, _die)

    (error,) = caught.value.exceptions
    assert type(error) is ProcessDiedError
    assert str(error) == "ended with exit code 7"
    assert error.__notes__[0].startswith("in process 1")


def _hang(index):
    if index == 1:
        threading.Event().wait()


def test_hang_is_ended(launch):
    """A process that hangs is ended at the deadline and shows where it was."""
    with pytest.raises(ExceptionGroup) as caught:
        launch(2, _hang, timeout_secs=3)

    (error,) = caught.value.exceptions
    assert str(error) == "did not finish in time"
    assert "in _hang" in error.__notes__[1]
