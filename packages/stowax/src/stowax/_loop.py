"""A loop with workers of its own: where blocking functions run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Workers(concurrent.futures.Executor):
    """A fixed number of daemon threads, for functions that block.

    `concurrent.futures.ThreadPoolExecutor` refuses work once the interpreter is ending,
    which is when operations in flight are finished. Threads that could not be started
    before that are done without: then `submit` itself does the work.
    """

    def __init__(self, name: str, thread_count: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Guards the start of threads and the end of submissions.
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._names = [f"{name}-{number}" for number in range(thread_count)]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the threads; `submit` does it otherwise."""
        with self._lock:
            self._start()

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 it belongs to the waiter
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("the workers have been shut down")
            with contextlib.suppress(RuntimeError):  # The interpreter is ending.
                self._start()
            has_threads = bool(self._threads)
            if has_threads:
                self._jobs.put(job)
        if not has_threads:
            job()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._is_shut_down = True
            threads, self._threads = self._threads, []
            for _ in threads:
                self._jobs.put(None)
        if wait:
            for thread in threads:
                thread.join()

    def _start(self) -> None:
        while len(self._threads) < len(self._names):
            name = self._names[len(self._threads)]
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            # Else the arguments would live until the next job comes.
            del job


class Loop(asyncio.SelectorEventLoop):
    """A loop with workers of its own as its default executor."""

    # `set_default_executor` takes nothing but a ThreadPoolExecutor.

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers

    def serve(self) -> None:
        """Runs until stopped."""
        while True:
            try:
                return self.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # Raised by a task, which keeps it for whoever waits for the task;
                # asyncio lets it through as well. The other tasks must go on.
                continue

    def run_in_executor(
        self,
        executor: concurrent.futures.Executor | None,
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        return super().run_in_executor(executor or self.workers, func, *args)

    def close(self) -> None:
        # First the workers: what they finish is announced to the loop.
        self.workers.shutdown()
        super().close()


def workers() -> concurrent.futures.Executor:
    """The workers of the running loop, for what one of them hands to the others.

    A worker must not wait for work that none has begun: all may be waiting. On a loop
    that is not of this module `submit` itself does the work.
    """
    loop = asyncio.get_running_loop()
    return loop.workers if isinstance(loop, Loop) else Workers("none", thread_count=0)


async def on_worker(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking function on the workers of the running loop.

    The function is not running any more when this returns or raises, cancelled or not:
    what it reads or writes may be reused or deleted then. Cancelled before it has
    begun, it does not begin.
    """
    begun = threading.Lock()  # Whoever gets it decides: run it, or drop it.
    context = contextvars.copy_context()

    def call() -> Any:
        if not begun.acquire(blocking=False):
            return None
        return context.run(function, *args, **kwargs)

    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # Nobody asks any more how it ended; asyncio would complain of that.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if not begun.acquire(blocking=False):
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
        raise


async def until_ended(function: Callable[[], T]) -> T:
    """The same, however often it is cancelled meanwhile: for what tidies up."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    return future.result()
