"""Where operations run: one background loop, one pool of workers, a clock, and peers.

A `Runtime` holds everything that an operation would otherwise have to ask of the
machine. The default one serves a whole process; `stowax.testing` makes others, so that
several processes fit into one test.

Three kinds of code run here, and never in each other's place:

* the engine: coroutines on the background loop, which never block it;
* blocking calls (files, copies): on the workers, through `on_worker`;
* guests, that is handlers written by users: they may block, so they never run on the
  engine's loop. Their first phase runs on the thread of the caller (`drive`), their
  second on a thread that exists only as long as they do (`Runtime.start_guest`).

Python 3.12 and later start no thread once the interpreter is ending, which is when
operations in flight are finished. So the loop, the workers and a spare thread for
guests are started together, before there is any operation.

The end of the interpreter has two phases. Handlers of `atexit` run last in, first out:
`Runtime._at_exit` is registered when a runtime starts, so it waits for the operations
in flight before older handlers (the one that disconnects `jax.distributed`, for one)
take away what they need. `_report_unseen_at_exit` is registered on import, so it comes
late, when the program's own handlers have run.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stowax._budget import Budget
from stowax._calls import Calls
from stowax._loop import Loop, Workers
from stowax._memory import spare_memory_bytes
from stowax._processes import Processes, default_processes
from stowax._recent import Recent
from stowax._tasks import drop
from stowax.errors import RunningLoopError

T = TypeVar("T")


class Runtime:
    """A background loop, a pool of workers, a clock and the processes of the run.

    Threads start at first use and end with `close`. All methods may be called from any
    thread.

    Args:
      processes: The processes of the run; None asks `jax.distributed` each time.
      worker_count: Threads for blocking calls.
      clock_nsecs: Nanoseconds since the epoch.
      spare_memory_bytes: How much memory the process may still take.
    """

    def __init__(
        self,
        *,
        processes: Processes | None = None,
        worker_count: int = 4,
        clock_nsecs: Callable[[], int] = time.time_ns,
        spare_memory_bytes: Callable[[], int] = spare_memory_bytes,
    ) -> None:
        self.unseen_failures = UnseenFailures()
        self.staging_budget = Budget()
        """Memory of values on their way to files, of all saves together."""
        self.reading_budget = Budget()
        """Memory beside the results, of all loads together, while they read."""
        self.passing_budget = Budget(self.reading_budget.ledger)
        """What they have read and make into something else; noted with the former."""
        self.layouts: Recent[Any] = Recent(4)
        """How the last few structures that were saved are laid out; see `_item_layout`.
        """
        self.session_calls: Calls[Any] = Calls()
        """Saves to sessions of partial saves, by session; see `_session_calls`."""
        self.sessions: Recent[Any] = Recent(2)
        """What was read of the last few of them; see `_session`."""
        self._processes = processes
        self._worker_count = worker_count
        self._clock_nsecs = clock_nsecs
        self._spare_memory_bytes = spare_memory_bytes
        # Guards what is below.
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._guests: dict[
            concurrent.futures.Future[Any], tuple[threading.Thread, threading.Event]
        ] = {}
        # For guests that come when no thread can be started; they take turns.
        self._spare = Workers("stowax-spare", thread_count=1)
        self._is_closed = False
        self._serials: dict[str, int] = {}
        self._reserved: set[object] = set()
        self._pid = 0

    @property
    def processes(self) -> Processes:
        """The processes of the run, as they are now."""
        return default_processes() if self._processes is None else self._processes

    def now_nsecs(self) -> int:
        """Returns the time in nanoseconds since the epoch."""
        return self._clock_nsecs()

    def spare_memory_bytes(self) -> int:
        """Returns how much memory the process may still take."""
        return self._spare_memory_bytes()

    def serial(self, key: str) -> int:
        """Counts the calls with a key, from 0.

        Processes that do the same things in the same order come to the same names. One
        process alone has nobody to meet: it keeps no count, and the answer is 0.
        """
        if self.processes.count == 1:
            return 0
        with self._lock:
            count = self._serials.get(key, 0)
            self._serials[key] = count + 1
            return count

    def reserve(self, key: object) -> bool:
        """Takes a key until `free`; False if somebody has it."""
        with self._lock:
            is_free = key not in self._reserved
            self._reserved.add(key)
            return is_free

    def free(self, key: object) -> None:
        """Gives back a key that `reserve` took."""
        with self._lock:
            self._reserved.discard(key)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the background loop and waits for it.

        The calling thread may be running a loop of its own, which stands still
        meanwhile. An interrupt (Ctrl-C) cancels the coroutine. When this returns or
        raises, nothing of it runs any more: it has ended, or never begins. Only a
        second interrupt, while it is coming to its end, is not waited with.

        Raises:
          RunningLoopError: See `check_can_wait`.
        """
        # In hand before anything begins, so that an interrupt always finds it.
        call = _Call(coroutine)
        try:
            self.check_can_wait()
            self._begin(call)
            return call.future.result()
        except BaseException:  # An interrupt comes from outside; raised again.
            call.give_up()
            call.ended.wait()
            raise
        finally:
            # The error holds this frame, which must not hold the error: such a cycle
            # would keep the caller's arrays until the next garbage collection.
            del call

    def drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the calling thread, as `drive` does.

        Raises:
          RunningLoopError: See `check_can_wait`.
        """
        self._check_can_wait_for(coroutine)
        return drive(coroutine)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine on the background loop; in flight until it is done.

        If this raises, the coroutine is cancelled, or never begins.
        """
        call = _Call(coroutine)
        try:
            self._begin(call)
        except BaseException:  # An interrupt too; raised again.
            call.give_up()
            raise
        return call.future

    def start_guest(self, awaitable: Awaitable[T]) -> concurrent.futures.Future[T]:
        """Runs the second phase of a guest on a loop and a thread of its own.

        It is in flight until it is done, or `leave_guest` gives it up. If this raises
        before it has begun, it never begins.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        ended = threading.Event()
        begun = threading.Lock()  # Whoever gets it decides: serve it, or drop it.
        context = contextvars.copy_context()

        def serve() -> None:
            if not begun.acquire(blocking=False):
                return
            # Who was given up is not listened to any more.
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                try:
                    result = context.run(_run_on_fresh_loop, awaitable)
                except BaseException as error:  # noqa: BLE001 it belongs to the waiter
                    future.set_exception(error)
                else:
                    future.set_result(result)
            ended.set()
            with self._lock:
                self._guests.pop(future, None)

        thread = threading.Thread(target=serve, name="stowax-guest", daemon=True)
        try:
            self._started_loop()
            with self._lock:
                self._guests[future] = thread, ended
            try:
                thread.start()
            except RuntimeError:  # The interpreter ends, or the system has no more.
                self._spare.submit(serve)
        except BaseException:  # An interrupt too; raised again.
            if begun.acquire(blocking=False):
                with self._lock:
                    self._guests.pop(future, None)
                future.set_exception(concurrent.futures.CancelledError())
                drop(awaitable)
            raise
        return future

    def leave_guest(
        self, future: concurrent.futures.Future[Any], error: Exception
    ) -> None:
        """Gives up a guest: whoever waits for it gets the error, and nobody else waits.

        It cannot be ended, so its thread goes on; not beyond the end of the program.
        """
        with self._lock:
            self._guests.pop(future, None)
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            future.set_exception(error)

    def finish(self) -> None:
        """Waits until nothing is in flight.

        Raises:
          RunningLoopError: See `check_can_wait`.
        """
        self.check_can_wait()
        loop = self._loop
        while loop is not None:
            with self._lock:
                guests = dict(self._guests)
            asyncio.run_coroutine_threadsafe(_others_done(), loop).result()
            for future, (thread, ended) in guests.items():
                concurrent.futures.wait([future])
                if future in self._guests:
                    ended.wait()
                if ended.is_set() and thread.is_alive():  # Else it was given up.
                    thread.join()
            # A guest may have started an operation, and an operation a guest.
            if not guests and not self._guests:
                return

    def close(self) -> None:
        """Finishes what is in flight and ends all threads; the second time, nothing.

        Raises:
          RunningLoopError: See `check_can_wait`.
        """
        self.finish()
        with self._lock:
            self._is_closed = True
        self.finish()  # What another thread began just before.
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
        if loop is None or thread is None:
            return
        atexit.unregister(self._at_exit)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._spare.shutdown()

    def check_can_wait(self) -> None:
        """Refuses a call that would wait for this runtime, and in vain.

        Raises:
          RunningLoopError: The caller is on the background loop, which would wait for
            itself; or in a child that was forked from the process of the runtime,
            where its threads do not exist.
        """
        self._check_process()
        # By thread, not by running loop: `drive` lifts the mark of the latter.
        if threading.current_thread() is self._thread:
            raise RunningLoopError(
                "this call waits for the loop it is made on: use the `_async` form, or"
                " make it from another thread (callbacks of `on_complete` run here)"
            )

    def _begin(self, call: _Call[Any]) -> None:
        """Has the loop begin a call."""
        loop = self._started_loop()
        # Under the lock: `close` stops no loop between this question and the call.
        with self._lock:
            self._check_open()
            # Known to the call before it can begin: see `give_up`.
            call.loop = loop
            loop.call_soon_threadsafe(call.begin)

    def _check_can_wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self.check_can_wait()
        except RunningLoopError:
            coroutine.close()
            raise

    def _check_process(self) -> None:
        # Without the lock, which another thread may have held during the fork.
        if self._pid not in (0, os.getpid()):
            raise RunningLoopError(
                f"this runtime belongs to process {self._pid}, and its threads were not"
                " forked with it: in the child, make a Checkpointer or a Context of"
                " its own, or start processes with the 'spawn' method"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the runtime is closed")

    def _started_loop(self) -> Loop:
        self._check_process()
        with self._lock:
            self._check_open()
            if self._loop is None:
                workers = Workers("stowax-worker", self._worker_count)
                workers.start()
                self._spare.start()
                loop = Loop(workers)
                thread = threading.Thread(
                    target=loop.serve, name="stowax-loop", daemon=True
                )
                thread.start()
                self._pid = os.getpid()
                atexit.register(self._at_exit)
                # Last: an interrupt must not leave behind a loop that nobody serves.
                self._thread = thread
                self._loop = loop
            return self._loop

    def _at_exit(self) -> None:
        # In a forked child there are no threads that could finish anything.
        if os.getpid() == self._pid:
            self.finish()


def drive(awaitable: Awaitable[T]) -> T:
    """Runs the first phase of a guest on the calling thread, on a fresh loop.

    Works on a thread that already runs a loop (a notebook), which asyncio refuses: the
    mark that says so is lifted meanwhile. The outer loop stands still until the guest
    returns, as it does for any blocking call.
    """
    with outside_loop():
        return _run_on_fresh_loop(awaitable)


@contextlib.contextmanager
def outside_loop() -> Generator[None]:
    """Lets code on this thread run a loop of its own, as if none were running here."""
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)


def default_runtime() -> Runtime:
    """Returns the runtime of this process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Runtime()
        return _default


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Failure:
    """A background operation that failed."""

    what: str
    """The operation, as in "save to /runs/a/7"."""

    error: BaseException
    told: str
    """The error in words."""


class UnseenFailures:
    """Failures that nobody has asked for yet, oldest first."""

    def __init__(self) -> None:
        # Guards the list, which the background loop and callers change.
        self._lock = threading.Lock()
        self._failures: list[Failure] = []

    def add(self, failure: Failure) -> None:
        with self._lock:
            self._failures.append(failure)

    def discard(self, failure: Failure) -> None:
        with self._lock:
            if failure in self._failures:
                self._failures.remove(failure)

    def pop_oldest(self) -> Failure | None:
        with self._lock:
            return self._failures.pop(0) if self._failures else None

    def all(self) -> tuple[Failure, ...]:
        with self._lock:
            return tuple(self._failures)


class _Call(Generic[T]):
    """A coroutine that begins at most once, on the loop, and ends for a future.

    Args:
      coroutine: What runs.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        """The outcome; cancels the coroutine."""
        self.loop: Loop | None = None
        """Where it begins; None: it cannot have been asked to."""
        self.ended = threading.Event()
        """Nothing of the coroutine runs, now or later."""
        self._coroutine = coroutine
        self._begun = threading.Lock()  # Whoever gets it decides: begin it, or close.

    def begin(self) -> None:
        """Begins, unless that was done before; called on the loop."""
        loop = self.loop
        if loop is None or not self._begun.acquire(blocking=False):
            return
        task = loop.create_task(self._coroutine)
        task.add_done_callback(self._end)
        # Comes after the first step of the task, so that what ends it is its own code.
        self.future.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel))

    def give_up(self) -> None:
        """Cancels the coroutine, or sees to it that it never begins.

        What the loop may have been asked to begin, it does begin, and cancels: an
        interrupt hides whether it was asked.
        """
        if self.ended.is_set():
            return
        self.future.cancel()
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # It is closed.
                self.loop.call_soon_threadsafe(self.begin)
                return
        if self._begun.acquire(blocking=False):
            self._coroutine.close()
            self.ended.set()

    def _end(self, task: asyncio.Task[T]) -> None:
        self.ended.set()
        if task.cancelled():
            self.future.cancel()
        if not self.future.set_running_or_notify_cancel():
            return
        if error := task.exception():
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


def _run_on_fresh_loop(awaitable: Awaitable[T]) -> T:
    results: list[T] = []

    async def guest() -> None:
        # Not returned: while it handles signals, `Runner` formats the task, twice, and
        # with it the result, which may be a tree of large arrays.
        results.append(await awaitable)

    # Workers of its own: a guest that blocks them must not block the engine.
    def loop() -> Loop:
        return Loop(Workers("stowax-guest-worker", thread_count=4))

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(guest())
    return results[0]


async def _others_done() -> None:
    """Returns once no other task is left on the loop."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


_default: Runtime | None = None
_default_lock = threading.Lock()


def _forget_default_after_fork() -> None:
    # The child has the objects but not the threads, and perhaps a lock that was held.
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()


def _report_unseen_at_exit() -> None:
    """Makes the process fail when a background save has failed and nobody noticed."""
    if _default is None:
        return
    # A handler that ran after the first phase may have started something.
    _default.finish()
    failures = _default.unseen_failures.all()
    if not failures:
        return
    for failure in failures:
        print(
            f"stowax: the background {failure.what} failed, and nobody had asked for"
            f" its result: {failure.told}",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing gentler sets a status here: the interpreter has settled on one already,
    # and swallows what handlers raise. The handlers that this skips are those of
    # modules imported before stowax; in a run of several processes that spares the
    # wait of `jax.distributed` for peers, which would end in an abort.
    os._exit(1)


atexit.register(_report_unseen_at_exit)
if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forget_default_after_fork)
