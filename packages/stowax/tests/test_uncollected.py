"""Collections are put off, and come back as they were."""

import gc
import threading

import pytest

from stowax._uncollected import uncollected


def test_nested():
    """Only the outermost brings collections back."""
    with uncollected():
        with uncollected():
            pass
        within = gc.isenabled()

    assert (within, gc.isenabled()) == (False, True)


def test_whoever_has_switched_it_off():
    """A program that does without collections goes on without."""
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_failures():
    """However the body ends, collections are back."""
    with pytest.raises(ValueError, match="no"), uncollected():
        raise ValueError("no")

    assert gc.isenabled()


def test_threads():
    """They come back when the last of several threads is done, whoever began."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with uncollected():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with uncollected():
        thread.start()
        inside.wait(60)
    between = gc.isenabled()
    leave.set()
    thread.join()

    assert (between, gc.isenabled()) == (False, True)
