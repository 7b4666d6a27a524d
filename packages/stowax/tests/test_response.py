"""What `save_async` hands back, and what becomes of failures."""

import concurrent.futures
import logging
import subprocess
import sys
import textwrap
import threading

import pytest

from stowax._response import raise_unseen, respond
from stowax._runtime import Runtime
from stowax.errors import BackgroundSaveError, DeadlineError, RunningLoopError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def runtime():
    """A runtime of the test's own."""
    runtime = Runtime()
    yield runtime
    runtime.close()


@pytest.fixture
def future():
    """An operation whose outcome the test decides."""
    return concurrent.futures.Future()


@pytest.fixture
def response(runtime, future):
    """What the caller of that operation holds."""
    return respond(runtime, future, what="save to /runs/7")


def test_result_of_success(response, future):
    """`result` returns what the operation returned, as often as it is asked."""
    future.set_result(7)

    assert [response.result(), response.result(timeout=0)] == [7, 7]


def test_result_of_failure(response, future):
    """`result` raises the error of the operation, which says what it belongs to."""
    error = OSError("disk full")
    future.set_exception(error)

    with pytest.raises(OSError, match="disk full") as caught:
        response.result()

    assert caught.value is error
    assert error.__notes__ == ["in the save to /runs/7"]


def test_missed_timeout_loses_nothing(response, future):
    """After a timeout the operation goes on, and its result can be had later."""
    with pytest.raises(DeadlineError, match="save to /runs/7 is not done after 0 s"):
        response.result(timeout=0)
    future.set_result(7)

    assert response.result() == 7


def test_failure_just_after_a_missed_timeout(runtime, response, future, monkeypatch):
    """Who gave up waiting has not seen the failure that came a moment later."""
    wait = concurrent.futures.wait

    def wait_and_fail(futures, timeout):
        ended = wait(futures, timeout)
        future.set_exception(OSError("disk full"))
        return ended

    monkeypatch.setattr(concurrent.futures, "wait", wait_and_fail)
    with pytest.raises(DeadlineError):
        response.result(timeout=0)

    with pytest.raises(BackgroundSaveError, match="disk full"):
        raise_unseen(runtime)


def test_timeout_of_the_operation_is_a_failure(response, future):
    """A TimeoutError of the operation itself is its outcome, not a missed timeout."""
    future.set_exception(TimeoutError("peer"))

    with pytest.raises(TimeoutError, match="peer"):
        response.result(timeout=1)


def test_cancelled_operation(response, future):
    """A cancelled operation is a failed one."""
    future.cancel()

    with pytest.raises(concurrent.futures.CancelledError):
        response.result()


def test_unseen_failure_is_raised_later(runtime, response, future):
    """A failure that nobody asked for is raised by the next save, once."""
    error = OSError("disk full")
    future.set_exception(error)

    with pytest.raises(
        BackgroundSaveError, match=r"save to /runs/7.*disk full"
    ) as caught:
        raise_unseen(runtime)

    assert caught.value.__cause__ is error
    raise_unseen(runtime)


def test_oldest_failure_comes_first(runtime):
    """Several unseen failures are raised in their order, none is lost."""
    for what in ["first", "second"]:
        future = concurrent.futures.Future()
        respond(runtime, future, what=what)
        future.set_exception(OSError(what))

    for what in ["first", "second"]:
        with pytest.raises(BackgroundSaveError, match=what):
            raise_unseen(runtime)


def test_seen_failure_is_over(runtime, response, future):
    """A failure that `result` has raised is not raised again by the next save."""
    future.set_exception(OSError("disk full"))

    with pytest.raises(OSError, match="disk full"):
        response.result()

    raise_unseen(runtime)


def test_failure_after_a_missed_timeout_is_unseen(runtime, response, future):
    """Who stopped waiting has not seen the failure that came after."""
    with pytest.raises(DeadlineError):
        response.result(timeout=0)
    future.set_exception(OSError("disk full"))

    with pytest.raises(BackgroundSaveError, match="disk full"):
        raise_unseen(runtime)


def test_failure_while_somebody_waits_is_seen(runtime):
    """Whatever the order of asking and failing, a failure that was raised is over."""
    seen = []

    def ask(response):
        try:
            response.result()
        except OSError as error:
            seen.append(error)

    for _ in range(200):
        future = concurrent.futures.Future()
        response = respond(runtime, future, what="save")
        asker = threading.Thread(target=ask, args=[response])
        asker.start()
        future.set_exception(OSError())
        asker.join()

    assert len(seen) == 200
    assert runtime.unseen_failures.all() == ()


def test_unseen_failure_is_logged(response, future, caplog):
    """A failure in the background is in the log when it happens."""
    future.set_exception(OSError("disk full"))

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("stowax", logging.ERROR)
    assert record.getMessage() == "background save to /runs/7 failed"


def test_callback_gets_the_result(response, future):
    """`on_complete` calls back with the result, also when it is there already."""
    results = []

    response.on_complete(results.append)
    future.set_result(7)
    response.on_complete(results.append)

    assert results == [7, 7]


def test_no_callback_after_a_failure(response, future):
    """`on_complete` does not call back when the operation has failed."""
    results = []

    response.on_complete(results.append)
    future.set_exception(OSError())

    assert results == []


def test_result_is_refused_on_the_loop(runtime, future, response):
    """Where the operation would have to go on, nobody can wait for it."""

    async def block():
        response.result()

    with pytest.raises(RunningLoopError, match="on_complete"):
        runtime.run(block())
    future.set_result(7)

    async def ask():
        return response.result()

    assert runtime.run(ask()) == 7


def test_repr_says_how_it_stands(response, future):
    """A response shows what it stands for, and how far that is."""
    before = repr(response)
    future.set_result(None)

    assert before == "<Response: save to /runs/7, in progress>"
    assert repr(response) == "<Response: save to /runs/7, done>"


def _run(script):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )


_FAILING_SAVE = """
    import atexit
    from stowax._response import respond
    from stowax._runtime import default_runtime

    atexit.register(print, "handlers still run")

    async def save():
        raise OSError("disk full")

    runtime = default_runtime()
    response = respond(runtime, runtime.submit(save()), what="save to /runs/7")
"""


def test_unseen_failure_ends_the_process_with_an_error():
    """A program whose save failed unnoticed does not end as if all were well."""
    ended = _run(_FAILING_SAVE)

    assert ended.returncode == 1
    report = ended.stderr.splitlines()[-1]
    assert report.startswith("stowax: the background save to /runs/7 failed")
    assert report.endswith("OSError: disk full")
    assert "handlers still run" in ended.stdout


def test_seen_failure_leaves_the_status_alone():
    """A program that has dealt with the failure ends as it likes."""
    ended = _run(
        _FAILING_SAVE
        + """
    try:
        response.result()
    except OSError:
        print("dealt with")
    """
    )

    assert ended.returncode == 0
    assert "dealt with" in ended.stdout
    assert "nobody had asked" not in ended.stderr
