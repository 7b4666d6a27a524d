"""Listeners hear everything in order, on their own threads, and hold nobody up."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import stowax as ocp
from stowax import _listeners, _report, events
from stowax._events import Event
from stowax.testing import MemoryStore


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits long for a listener that hangs."""
    monkeypatch.setattr(_report, "PATIENCE_SECS", 0.01)
    monkeypatch.setattr(_listeners, "_CLOSING_SECS", 0.01)


class Heard:
    """A listener that hangs, if so asked, until it is let go."""

    def __init__(self, *, hangs=False):
        self.go_on = threading.Event()
        if not hangs:
            self.go_on.set()
        self.kinds = []
        self.has_loaded = threading.Event()

    def __call__(self, event):
        if event.kind != "progress":
            self.kinds.append(event.kind)
        self.go_on.wait()
        if event.kind == "loaded":
            self.has_loaded.set()


def event(kind, number=1, **facts):
    """Something that happened to a save."""
    return Event(
        kind=kind,
        operation="save",
        id=number,
        path="/c",
        in_background=False,
        process_index=0,
        time_nsecs=0,
        elapsed_secs=0,
        **facts,
    )


def test_a_listener_that_hangs(tmp_path, impatient):
    """Saves and loads go on, and others hear of them; it hears the rest when it can."""
    hanging, other = Heard(hangs=True), Heard()
    with events.subscribe(hanging), events.subscribe(other):
        ocp.save(tmp_path / "c", {"w": np.ones(1000)})
        assert ocp.load(tmp_path / "c")["w"].sum() == 1000
        assert other.has_loaded.wait(60)
        assert hanging.kinds == ["started"]

        hanging.go_on.set()
        assert hanging.has_loaded.wait(60)
    assert other.kinds == ["started", "staged", "published", "started", "loaded"]
    assert hanging.kinds == other.kinds


def test_the_thread_of_a_listener(tmp_path):
    """It is none that anybody else works on, and always the same."""
    threads = []
    with events.subscribe(lambda _: threads.append(threading.current_thread())):
        ocp.save(tmp_path / "c", {"w": 1})

    assert len(set(threads)) == 1
    assert threads[0].name == "stowax-listener"
    assert threads[0] is not threading.current_thread()


def test_a_listener_that_loads(tmp_path):
    """It may use the library itself, and hears of that, too."""
    loaded, kinds = [], []

    def load(event):
        kinds.append((event.operation, event.kind))
        if event.kind == "published":
            loaded.append(ocp.load(event.path))

    with events.subscribe(load):
        ocp.save(tmp_path / "c", {"step": 7})

    assert loaded == [{"step": 7}]
    assert kinds[-1] == ("load", "loaded")


def test_a_listener_that_ends_itself(tmp_path, monkeypatch):
    """Closed by the listener, a subscription does not wait for itself."""
    monkeypatch.setattr(_listeners, "_CLOSING_SECS", 60)
    kinds, closed = [], threading.Event()

    def once(event):
        kinds.append(event.kind)
        if event.kind == "published":
            subscription.close()
            closed.set()

    subscription = events.subscribe(once)
    ocp.save(tmp_path / "c", {"step": 7})
    assert closed.wait(10)
    ocp.save(tmp_path / "d", {"step": 7})

    assert kinds.count("started") == 1
    assert kinds[-1] == "published"


OPERATIONS = {
    "save": lambda path: ocp.save(path, {"step": 7}),
    "save_async": lambda path: ocp.save_async(path, {"step": 7}).result(),
    "refused save": lambda path: ocp.save(path, {"w": object()}),
    "failed save": lambda path: failing_save(path),
    "load": lambda path: ocp.load(path.parent / "there"),
    "load_async": lambda path: ocp.load_async(path.parent / "there").result(),
    "failed load": lambda path: ocp.load(path),
}


def failing_save(path):
    """Fails after it was staged."""

    class FullStore(MemoryStore):
        async def write(self, path, pieces, *, size_bytes=None):
            raise OSError(28, "No space left on device", path)

    with ocp.Context(file=ocp.options.FileOptions(store=FullStore())):
        ocp.save(path, {"step": 7})


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_end_of_an_operation_waits(tmp_path, monkeypatch, name):
    """When a call returns, or raises, its listeners have heard how it ended."""
    monkeypatch.setattr(_report, "PATIENCE_SECS", 60)
    ocp.save(tmp_path / "there", {"step": 7})
    kinds, never = [], threading.Event()

    def listen(event):
        never.wait(0.02)
        kinds.append(event.kind)

    with events.subscribe(listen):
        with contextlib.suppress(ocp.errors.StowaxError, OSError):
            OPERATIONS[name](tmp_path / "c")
        heard = [*kinds]

    assert heard[-1] in ("published", "loaded", "failed")
    assert heard == kinds


def test_the_end_waits_until_all_is_heard():
    """A `with` block is left when its listener has heard what was told inside."""
    heard = []
    slow = threading.Event()

    def listen(event):
        slow.wait(0.01)
        heard.append(event.done_bytes)

    with events.subscribe(listen) as subscription:
        for number in range(20):
            subscription.post(event("leaf", done_bytes=number))

    assert heard == list(range(20))


def test_progress_waits_in_one_place():
    """Of an operation under way only the last progress waits for a slow listener."""
    heard, go_on, begun = [], threading.Event(), threading.Event()

    def listen(event):
        begun.set()
        go_on.wait()
        heard.append((event.kind, event.id, event.done_bytes))

    with events.subscribe(listen) as subscription:
        subscription.post(event("started"))
        begun.wait()
        for number in range(1000):
            subscription.post(event("progress", done_bytes=number))
        subscription.post(event("progress", 2, done_bytes=5))
        subscription.post(event("progress", done_bytes=1000))
        subscription.post(event("published", done_bytes=1000))
        go_on.set()

    assert heard == [
        ("started", 1, 0),
        ("progress", 1, 999),
        ("progress", 2, 5),
        ("progress", 1, 1000),
        ("published", 1, 1000),
    ]


def test_threads_end_with_what_there_is_to_hear(monkeypatch):
    """Nothing is left of a subscription that was never closed, and it still hears."""
    monkeypatch.setattr(_listeners, "_LINGER_SECS", 0.01)
    threads = []
    subscription = events.subscribe(
        lambda _: threads.append(threading.current_thread())
    )

    for kind in ("started", "published"):
        subscription.post(event(kind))
        subscription.mark().result(60)
        threads[-1].join(60)

    subscription.close()
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)


def test_subscriptions_of_many_threads(tmp_path):
    """Whoever subscribes, on whichever thread, hears of operations of all threads."""
    kinds = {number: [] for number in range(8)}
    found = {}

    def subscribe(number):
        found[number] = events.subscribe(lambda e: kinds[number].append(e.kind))

    threads = [threading.Thread(target=subscribe, args=[n]) for n in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saving = threading.Thread(target=ocp.save, args=[tmp_path / "c", {"w": 1}])
    saving.start()
    saving.join()
    for subscription in found.values():
        subscription.close()
    ocp.save(tmp_path / "d", {"w": 1})

    expected = ["started", "staged", "published"]
    for heard in kinds.values():
        assert [kind for kind in heard if kind != "progress"] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_listeners():
    """What it saves is not told to those of its parent, and needs none of its locks."""
    code = """
    import os, sys, tempfile, threading, warnings
    warnings.simplefilter("ignore")
    import stowax

    def listen(event):
        print(os.getpid() == parent, event.kind, flush=True)

    parent = os.getpid()
    stowax.events.subscribe(listen)
    directory = tempfile.mkdtemp()
    stowax.save(f"{directory}/parent", {"step": 1})
    stowax._listeners._lock.acquire()
    child = os.fork()
    if child == 0:
        stowax.save(f"{directory}/child", {"step": 1})
        with stowax.events.subscribe(lambda event: None):
            pass
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print("status", status)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "status 0"
    assert all(line.startswith("True") for line in ended.stdout.splitlines()[:-1])


def test_events_at_the_end_of_the_program(tmp_path):
    """A save that is finished when the interpreter ends is told to its end."""
    code = f"""
    import atexit, stowax

    def listen(event):
        print(event.kind, flush=True)

    stowax.events.subscribe(listen)
    stowax.save_async({str(tmp_path / "c")!r}, {{"step": 1}})
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [line for line in ended.stdout.split() if line != "progress"]
    assert lines == ["started", "staged", "published"]
