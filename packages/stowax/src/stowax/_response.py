"""What a call that returns early hands back.

A failure in the background is kept until somebody has seen it: by `result()`, else by
the next save, which raises it before it begins, else by the exit status of the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from stowax._runtime import Failure, Runtime
from stowax._tasks import tell
from stowax.errors import BackgroundSaveError, DeadlineError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_logger = logging.getLogger("stowax")


class AsyncResponse(Protocol[T_co]):
    """The outcome of an operation that goes on in the background.

    Example:
      >>> import asyncio, stowax
      >>> path = getfixture("tmp_path") / "checkpoint"
      >>> response = stowax.save_async(path, {"step": 3})
      >>> response.result()
      >>> async def main():
      ...     return await stowax.load_async(path)
      >>> asyncio.run(main())
      {'step': 3}
    """

    def result(self, timeout: float | None = None) -> T_co:
        """Waits for the operation and returns its result, or raises its error.

        Args:
          timeout: How long to wait, in seconds; None waits as long as it takes.

        Raises:
          DeadlineError: When the operation is not done in time. It goes on, and
            `result` may be called again.
          RunningLoopError: When it is not done, and called where the operation would
            have to go on: in a callback of `on_complete`.
        """
        ...

    def __await__(self) -> Generator[Any, None, T_co]:
        """Waits in a running loop, as in a cell of a notebook, without blocking it.

        Who stops waiting, by a time-out or cancelled, does not stop the operation.
        """
        ...

    def on_complete(self, callback: Callable[[T_co], None]) -> None:
        """Calls back with the result once the operation has succeeded.

        The callback runs on the thread that completes the operation (on the caller's,
        when it is complete already), and must not block. It is not called after a
        failure.
        """
        ...


class Response(Generic[T]):
    """An `AsyncResponse` over a future; made by `respond`."""

    def __init__(
        self, runtime: Runtime, future: concurrent.futures.Future[T], what: str
    ) -> None:
        self._what = what
        self._runtime = runtime
        self._unseen = runtime.unseen_failures
        # Resolved after a failure has been put on record, so that whoever learns of
        # the failure finds it there to take off again.
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        # Guards the three below, which callers and the background loop change.
        self._lock = threading.Lock()
        self._asker_count = 0
        self._failure: Failure | None = None
        self._is_seen = False
        future.add_done_callback(self._complete)

    def result(self, timeout: float | None = None) -> T:
        if not self._outcome.done():
            self._runtime.check_can_wait()
        with self._asking():
            done, _ = concurrent.futures.wait([self._outcome], timeout)
            if done:
                self._see()
        if not done:
            raise DeadlineError(
                f"the {self._what} is not done after {timeout:g} s; it goes on, and"
                " `result()` may be called again"
            )
        try:
            return self._outcome.result()
        finally:
            # The error holds this frame, which must not hold the error (Runtime.run).
            del self

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    def is_done(self) -> bool:
        """Whether it has ended, well or not; asking sees nothing of a failure."""
        return self._outcome.done()

    def on_complete(self, callback: Callable[[T], None]) -> None:
        def call_back(outcome: concurrent.futures.Future[T]) -> None:
            if outcome.exception() is None:
                callback(outcome.result())

        self._outcome.add_done_callback(call_back)

    def __repr__(self) -> str:
        if not self._outcome.done():
            state = "in progress"
        else:
            state = "failed" if self._outcome.exception() else "done"
        return f"<{type(self).__name__}: {self._what}, {state}>"

    async def _wait(self) -> T:
        loop = asyncio.get_running_loop()
        # Not `asyncio.wrap_future`, which would hand a cancellation on.
        arrived = asyncio.Event()

        def arrive(_: concurrent.futures.Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # Its loop may be closed by now.
                loop.call_soon_threadsafe(arrived.set)

        with self._asking():
            self._outcome.add_done_callback(arrive)
            await arrived.wait()
            self._see()
        try:
            return self._outcome.result()
        finally:
            del self  # As in `result`.

    @contextlib.contextmanager
    def _asking(self) -> Generator[None]:
        """While somebody waits, a failure is not on record: it may be seen at once."""
        with self._lock:
            self._asker_count += 1
        try:
            yield
        finally:
            with self._lock:
                self._asker_count -= 1
            self._record()

    def _complete(self, future: concurrent.futures.Future[T]) -> None:
        error = (
            concurrent.futures.CancelledError()
            if future.cancelled()
            else future.exception()
        )
        if error is None:
            self._outcome.set_result(future.result())
            return
        failure = Failure(what=self._what, error=error, told=tell(error))
        error.add_note(f"in the {self._what}")
        with self._lock:
            self._failure = failure
        self._record()
        self._outcome.set_exception(error)

    def _see(self) -> None:
        with self._lock:
            self._is_seen = True
            if self._failure is not None:
                self._unseen.discard(self._failure)

    def _record(self) -> None:
        """Puts a failure on record, unless it was seen or somebody waits for it."""
        with self._lock:
            failure = self._failure
            if failure is None or self._is_seen or self._asker_count:
                return
            self._unseen.add(failure)
        _logger.error("background %s failed", failure.what, exc_info=failure.error)


def respond(
    runtime: Runtime, future: concurrent.futures.Future[T], *, what: str
) -> Response[T]:
    """Wraps the future of a background operation.

    Args:
      runtime: Keeps the failure until somebody has seen it.
      future: The operation.
      what: The operation in words, as in "save to /runs/a/7".
    """
    return Response(runtime, future, what)


def raise_unseen(runtime: Runtime) -> None:
    """Raises the oldest failure that nobody has asked for, which is seen then.

    Raises:
      BackgroundSaveError: From the original error.
    """
    failure = runtime.unseen_failures.pop_oldest()
    if failure is not None:
        raise BackgroundSaveError(
            f"an earlier {failure.what} failed in the background, and nobody had asked"
            f" for its result: {failure.told}. This save has not begun; call"
            " `result()` on what `save_async` returns"
        ) from failure.error
