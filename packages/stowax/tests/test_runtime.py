"""The background loop, its workers, guests, and the end of the interpreter."""

import asyncio
import contextlib
import contextvars
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from stowax._loop import on_worker
from stowax._processes import OneProcess
from stowax._runtime import Runtime, default_runtime, drive
from stowax.errors import RunningLoopError
from stowax.testing import SimulatedCluster

pytestmark = pytest.mark.filterwarnings("error")

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def runtime():
    """A runtime of the test's own."""
    runtime = Runtime()
    yield runtime
    runtime.close()


async def name_of_thread():
    """Says where a coroutine runs."""
    return threading.current_thread().name


async def turn_often():
    """Lets the loop turn, so that whoever does not wait is through by then."""
    for _ in range(1000):
        await asyncio.sleep(0)


async def raises(error):
    """Fails."""
    raise error


# --- the background loop


def test_run_is_on_the_loop(runtime):
    """`run` returns what the coroutine returns, which runs on the background loop."""
    assert runtime.run(name_of_thread()) == "stowax-loop"


def test_run_raises_what_was_raised(runtime):
    """`run` raises the coroutine's error itself."""
    error = OSError("disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        runtime.run(raises(error))

    assert caught.value is error


def test_run_inside_a_running_loop(runtime):
    """A blocking call works in a notebook, whose thread runs a loop of its own."""

    async def cell():
        return runtime.run(name_of_thread())

    assert asyncio.run(cell()) == "stowax-loop"


def test_run_on_its_own_loop(runtime):
    """A blocking call made on the loop that has to serve it raises, and never hangs."""

    async def block():
        runtime.run(name_of_thread())

    with pytest.raises(RunningLoopError):
        runtime.run(block())


def test_run_in_a_guest_driven_on_the_loop(runtime):
    """Lifting the mark of the running loop does not hide whose thread it is."""

    async def guest():
        runtime.run(name_of_thread())

    async def block():
        drive(guest())

    with pytest.raises(RunningLoopError):
        runtime.run(block())


def test_drive_on_its_own_loop(runtime):
    """What waits on the calling thread is refused there too, before it begins."""

    async def block():
        runtime.drive(name_of_thread())

    with pytest.raises(RunningLoopError, match="_async"):
        runtime.run(block())
    assert runtime.drive(name_of_thread()) == threading.current_thread().name


def test_interrupt_cancels(runtime):
    """Ctrl-C while waiting cancels the operation, and is raised when that has ended."""
    ends = []

    async def operation():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await turn_often()
            ends.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        runtime.run(operation())

    assert ends == ["cancelled"]


class InterruptedRuntime(Runtime):
    """Is interrupted as it hands a call to the loop, before or after that."""

    def __init__(self, when):
        super().__init__()
        self.when = when

    def _begin(self, call):
        if self.when == "after":
            super()._begin(call)
        raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["run", "submit"])
def test_interrupt_before_it_waits(way, when):
    """Whatever moment an interrupt comes at, nothing of the operation goes on."""
    runtime = InterruptedRuntime(when)
    ends = []

    async def operation():
        ends.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await turn_often()
            ends.append("cleaned up")

    def interrupted():
        with pytest.raises(KeyboardInterrupt):
            getattr(runtime, way)(operation())
        if way == "submit":
            runtime.finish()
        ends.append("over")

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)

    gc.collect()  # What was never awaited would be told of.
    begun = ["begun", "cleaned up"] if when == "after" else []
    assert ends == [*begun, "over"]
    runtime.close()


def test_loop_survives_exit(runtime):
    """SystemExit in one operation is that operation's error; the others go on."""
    with pytest.raises(SystemExit):
        runtime.run(raises(SystemExit(3)))

    assert runtime.run(name_of_thread()) == "stowax-loop"


def test_error_keeps_nothing_alive(runtime):
    """What an operation held is free as soon as its error has been handled."""

    class State:
        pass

    async def operation(state):
        raise OSError

    def save():
        state = State()
        with pytest.raises(OSError):
            runtime.run(operation(state))
        return weakref.ref(state)

    gc.disable()
    try:
        state = save()
        # The loop's thread lets go of its last task when it takes up the next one.
        runtime.run(turn_often())
        assert state() is None
    finally:
        gc.enable()


def test_context_travels(runtime):
    """Everything an operation starts sees the context variables of its caller."""

    async def read():
        return variable.get()

    async def read_on_worker():
        return await on_worker(variable.get)

    variable.set("set")

    assert runtime.run(read()) == "set"
    assert runtime.run(read_on_worker()) == "set"
    assert runtime.start_guest(read()).result() == "set"
    assert drive(read()) == "set"


def test_clock_and_processes_can_be_given():
    """A test decides what time it is and who the processes are."""
    processes = OneProcess()
    runtime = Runtime(processes=processes, clock_nsecs=lambda: 7)

    assert (runtime.now_nsecs(), runtime.processes) == (7, processes)


def test_one_default_runtime():
    """All operations of a process share one runtime."""
    assert default_runtime() is default_runtime()


# --- finishing and closing


def test_finish_waits_for_operations(runtime):
    """`finish` returns when every operation has ended, failed ones too."""
    ends = []

    async def operation(name):
        await turn_often()
        ends.append(name)
        raise OSError(name)

    futures = [runtime.submit(operation(name)) for name in "ab"]
    runtime.finish()

    assert ends == ["a", "b"]
    assert all(isinstance(future.exception(), OSError) for future in futures)


def test_finish_waits_for_what_guests_start(runtime):
    """A guest is in flight, and so is the operation that it leaves behind."""
    ends = []

    async def operation():
        await turn_often()
        ends.append("operation")

    async def guest():
        await turn_often()
        runtime.submit(operation())
        ends.append("guest")

    runtime.start_guest(guest())
    runtime.finish()

    assert sorted(ends) == ["guest", "operation"]


def test_finish_waits_for_cancelled_operations(runtime):
    """An operation that is cleaning up after its cancellation is still in flight."""
    begun = threading.Event()
    ends = []

    async def operation():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turn_often()
            ends.append("clean")

    future = runtime.submit(operation())
    begun.wait()
    future.cancel()
    runtime.finish()

    assert ends == ["clean"]


def test_close_ends_all_threads():
    """A closed runtime leaves no thread behind."""
    before = set(threading.enumerate())
    runtime = Runtime(worker_count=3)

    async def guest():
        await asyncio.to_thread(threading.get_ident)

    runtime.start_guest(guest())
    drive(guest())
    while_open = {thread.name for thread in set(threading.enumerate()) - before}
    runtime.close()

    assert {"stowax-loop", "stowax-worker-0", "stowax-worker-2"} <= while_open
    assert set(threading.enumerate()) == before


def test_close_lets_nobody_wait():
    """A call that races `close` from another thread ends, or is refused."""

    def call_until_refused(runtime):
        call = name_of_thread()
        with contextlib.suppress(RuntimeError):
            while runtime.run(call):
                call = name_of_thread()

    for _ in range(30):
        runtime = Runtime()
        callers = [
            threading.Thread(target=call_until_refused, args=[runtime], daemon=True)
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        runtime.run(name_of_thread())
        runtime.close()
        for caller in callers:
            caller.join(timeout=60)
        assert not any(caller.is_alive() for caller in callers)


def test_closed_runtime_refuses(runtime):
    """Closing twice is fine; an operation after that is refused."""
    runtime.close()
    runtime.close()

    with pytest.raises(RuntimeError, match="closed"):
        runtime.run(name_of_thread())


# --- workers


def test_worker_thread(runtime):
    """`on_worker` runs the function on the pool, with its arguments, and its error."""
    name = runtime.run(on_worker(lambda: threading.current_thread().name))

    assert name.startswith("stowax-worker-")
    assert runtime.run(on_worker(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        runtime.run(on_worker(divmod, 7, 0))


def test_workers_run_side_by_side():
    """As many functions block at once as there are workers."""
    runtime = Runtime(worker_count=3)
    together = threading.Barrier(3, timeout=30)

    async def operation():
        await asyncio.gather(*(on_worker(together.wait) for _ in range(3)))

    runtime.run(operation())
    runtime.close()


def test_cancelled_worker_call_is_waited_for(runtime):
    """A cancelled `on_worker` ends only after its function has ended."""
    begun, go_on = threading.Event(), threading.Event()
    ends = []

    def function():
        begun.set()
        go_on.wait()
        ends.append("function")

    async def operation():
        call = asyncio.create_task(on_worker(function))
        await on_worker(begun.wait)
        for _ in range(2):
            call.cancel()
            await turn_often()
            pending = not call.done()
        go_on.set()
        assert pending
        with pytest.raises(asyncio.CancelledError):
            await call
        ends.append("call")

    runtime.run(operation())

    assert ends == ["function", "call"]


def test_failure_of_a_cancelled_worker_call(runtime):
    """That a function failed whose call was cancelled is nobody's business."""
    begun, go_on = threading.Event(), threading.Event()
    complaints = []

    def function():
        begun.set()
        go_on.wait()
        raise ValueError("nobody asks")

    async def cancel_it():
        call = asyncio.create_task(on_worker(function))
        await on_worker(begun.wait)
        call.cancel()
        await turn_often()
        go_on.set()
        await asyncio.wait([call])
        return call.cancelled()

    async def operation():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: complaints.append(told))
        was_cancelled = await cancel_it()
        gc.collect()
        await turn_often()
        loop.set_exception_handler(None)
        return was_cancelled

    assert runtime.run(operation())
    assert complaints == []


def test_cancelled_worker_call_does_not_begin():
    """An `on_worker` that is cancelled in the queue never calls its function."""
    runtime = Runtime(worker_count=1)
    go_on = threading.Event()
    calls = []

    async def operation():
        first = asyncio.create_task(on_worker(go_on.wait))
        second = asyncio.create_task(on_worker(calls.append, "second"))
        await turn_often()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go_on.set()
        await first
        await on_worker(calls.append, "third")

    runtime.run(operation())
    runtime.close()

    assert calls == ["third"]


# --- guests


def test_guest_is_driven_on_the_calling_thread():
    """The first phase of a guest runs on the thread of its caller."""
    assert drive(name_of_thread()) == threading.current_thread().name


def test_guest_is_driven_inside_a_running_loop():
    """It does so in a notebook too, whose loop goes on as if nothing had been."""

    async def cell():
        loop = asyncio.get_running_loop()
        guest = drive(name_of_thread())
        await asyncio.sleep(0)
        return guest, asyncio.get_running_loop() is loop

    assert asyncio.run(cell()) == (threading.current_thread().name, True)


def test_failed_guest_leaves_the_loop_marked():
    """The mark of the running loop is back after a guest has failed."""

    async def cell():
        with pytest.raises(OSError, match="no"):
            drive(raises(OSError("no")))
        return asyncio.get_running_loop()

    asyncio.run(cell())


def test_guests_nest():
    """A guest may be driven inside another one."""

    async def outer():
        return drive(name_of_thread())

    assert drive(outer()) == threading.current_thread().name


def test_second_phase_has_its_own_thread(runtime):
    """The second phase runs beside the engine, and its thread ends with it."""
    future = runtime.start_guest(name_of_thread())

    assert future.result() == "stowax-guest"
    runtime.finish()
    assert "stowax-guest" not in {thread.name for thread in threading.enumerate()}


def test_guest_takes_any_awaitable(runtime):
    """What the first phase returns may be any awaitable, and may fail."""

    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        runtime.start_guest(Awaitable()).result()


def test_results_are_not_looked_at():
    """Nobody formats what a guest returns: it may be gigabytes, on a device."""
    looked_at = []

    class Private:
        def __repr__(self):
            looked_at.append(self)
            return ""

    result = Private()

    async def work():
        return result

    assert drive(work()) is result
    assert not looked_at


def test_guest_may_wait_for_the_engine(runtime):
    """A guest's blocking call is served, however many workers guests occupy."""

    def save():
        return runtime.run(on_worker(lambda: "saved"))

    async def guest():
        return await asyncio.gather(*(asyncio.to_thread(save) for _ in range(20)))

    assert runtime.start_guest(guest()).result() == ["saved"] * 20
    assert drive(guest()) == ["saved"] * 20


class WithoutLoop(Runtime):
    """Is interrupted as it looks for its loop."""

    def _started_loop(self):
        raise KeyboardInterrupt


def test_guest_that_cannot_be_started():
    """A guest that is refused, or not started for an interrupt, is not forgotten.

    It never begins, and nobody waits for it.
    """
    closed, interrupted = Runtime(), WithoutLoop()
    closed.close()

    with pytest.raises(RuntimeError, match="closed"):
        closed.start_guest(name_of_thread())
    with pytest.raises(KeyboardInterrupt):
        interrupted.start_guest(name_of_thread())

    gc.collect()  # What was never awaited would be told of.
    interrupted.finish()


def test_interrupt_while_a_guest_is_started(runtime, monkeypatch):
    """A guest whose thread an interrupt has kept from starting is not waited for."""
    runtime.run(name_of_thread())
    ends = []

    def interrupt(thread):
        raise KeyboardInterrupt

    def interrupted():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                runtime.start_guest(name_of_thread())
        runtime.finish()
        ends.append("over")

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)

    gc.collect()  # What was never awaited would be told of.
    assert ends == ["over"]


# --- the end of the interpreter


def _run(script):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_exit_finishes_what_is_in_flight():
    """What is in flight when the program ends is finished, before older handlers."""
    ended = _run(
        """
        import atexit, threading
        from stowax._runtime import (default_runtime)
        from stowax._loop import (on_worker)

        exiting = threading.Event()
        ends = []

        async def operation():
            await on_worker(exiting.wait)
            await on_worker(ends.append, "worker")
            ends.append("loop")

        async def guest():
            exiting.wait()
            ends.append("guest")

        atexit.register(lambda: print(sorted(ends)))
        default_runtime().submit(operation())
        default_runtime().start_guest(guest())
        # Runs before the handlers that are older, so nothing is done by then.
        atexit.register(exiting.set)
        """
    )

    assert ended.stdout == "['guest', 'loop', 'worker']\n"
    assert (ended.returncode, ended.stderr) == (0, "")


def test_exit_runs_guests_without_new_threads():
    """Guests that begin while no thread can be started run all the same, by turns."""
    ended = _run(
        """
        import asyncio, atexit, threading
        from stowax._runtime import (default_runtime)
        from stowax._loop import (on_worker)

        exiting = threading.Event()
        ends = []
        runtime = default_runtime()

        async def guest(number):
            ends.append((number, await asyncio.to_thread(lambda: number)))

        async def operation():
            await on_worker(exiting.wait)
            guests = [runtime.start_guest(guest(number)) for number in range(3)]
            await asyncio.gather(*map(asyncio.wrap_future, guests))

        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        def end():
            # Python 3.12 and later refuse of themselves.
            threading.Thread.start = refuse
            exiting.set()

        atexit.register(lambda: print(*ends))
        runtime.submit(operation())
        atexit.register(end)
        """
    )

    assert ended.stdout == "(0, 0) (1, 1) (2, 2)\n"
    assert (ended.returncode, ended.stderr) == (0, "")


def test_forked_child_has_its_own_runtime():
    """A forked child works, and does not wait for what its parent had in flight."""
    ended = _run(
        """
        import os, sys, threading
        from stowax._runtime import (Runtime, default_runtime)
        from stowax._loop import (on_worker)

        go_on = threading.Event()
        runtimes = [default_runtime(), Runtime()]
        for runtime in runtimes:
            runtime.submit(on_worker(go_on.wait))
        child = os.fork()
        if child == 0:
            default_runtime().run(on_worker(print, "child", flush=True))
            sys.exit()
        _, status = os.waitpid(child, 0)
        print("status", status)
        go_on.set()
        """
    )

    assert ended.stdout.split() == ["child", "status", "0"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_runtime_is_refused_in_a_forked_child():
    """A runtime that the child holds has no threads there: it raises, and never hangs.

    So it is for all that would wait: operations, guests, responses, the end.
    """
    ended = _run(
        """
        import asyncio, os, sys, threading
        from stowax._response import respond
        from stowax._runtime import (Runtime)
        from stowax._loop import (on_worker)
        from stowax.errors import RunningLoopError

        go_on = threading.Event()
        runtime = Runtime()
        response = respond(runtime, runtime.submit(on_worker(go_on.wait)), what="save")
        child = os.fork()
        if child == 0:
            for call in (
                lambda: runtime.run(asyncio.sleep(0)),
                lambda: runtime.submit(asyncio.sleep(0)),
                lambda: runtime.drive(asyncio.sleep(0)),
                response.result,
                runtime.close,
            ):
                try:
                    call()
                except RunningLoopError as error:
                    print("spawn" in str(error), flush=True)
            sys.exit()
        os.waitpid(child, 0)
        go_on.set()
        runtime.close()
        """
    )

    assert ended.stdout.split() == ["True"] * 5
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_process_counts_nothing(runtime):
    """Names are for meetings: a process that is alone keeps no record of its paths."""
    assert [runtime.serial(path) for path in "aab"] == [0, 0, 0]


def test_processes_come_to_the_same_names():
    """Of several processes, each counts the calls with a key."""
    with SimulatedCluster(2, devices=[None, None]) as cluster:
        for runtime in cluster.runtimes:
            assert [runtime.serial(path) for path in "aab"] == [0, 1, 0]
