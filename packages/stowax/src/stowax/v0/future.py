"""What an `AsyncCheckpointHandler` returns: what is waited for.

Anything with a `result()` will do, a `concurrent.futures.Future` above all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from stowax._public import claim as _claim

__all__ = [
    "ChainedFuture",
    "CommitFutureAwaitingContractedSignals",
    "Future",
    "NoopFuture",
]


class Future(Protocol):
    """Work that is under way."""

    def result(self, timeout: float | None = None) -> Any:
        """Waits for it; raises what it failed with."""
        ...


class NoopFuture:
    """Work that is done.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.future.NoopFuture().result() is None
        True
    """

    def result(self, timeout: float | None = None) -> Any:
        """Nothing."""
        del timeout

    def cancel(self) -> None:
        """Does nothing: it is done."""


class ChainedFuture:
    """Several as one, and what is done when all are.

    Args:
        futures: They are waited for in this order.
        cb: Called when all have succeeded.

    Example:
        >>> from stowax import v0 as ocp
        >>> both = [ocp.future.NoopFuture(), ocp.future.NoopFuture()]
        >>> ocp.future.ChainedFuture(both, lambda: print("done")).result()
        done
    """

    def __init__(self, futures: Sequence[Future], cb: Callable[[], None]) -> None:
        self._futures = tuple(futures)
        self._call_back = cb

    def result(self, timeout: float | None = None) -> Any:
        """Waits for each, at most so long; then calls back."""
        for future in self._futures:
            future.result(timeout)
        self._call_back()


class CommitFutureAwaitingContractedSignals:
    """A coroutine that runs on a thread of its own, from now on.

    Args:
        coro: The coroutine.
        name: Name of the thread.
        send_signals: Ignored: the directory of a handler is there before it is called.
        timeout_secs: Ignored: the deadline of the save counts.
        operation_id: Ignored, as the signals.

    Example:
        >>> from stowax import v0 as ocp
        >>> async def work():
        ...     return 7
        >>> ocp.future.CommitFutureAwaitingContractedSignals(work()).result()
        7
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        send_signals: Sequence[Any] | None = None,
        timeout_secs: int | None = None,
        operation_id: str | None = None,
    ) -> None:
        del send_signals, timeout_secs, operation_id
        self._outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                self._outcome.set_result(asyncio.run(coro))
            except BaseException as error:  # noqa: BLE001 it belongs to the waiter
                self._outcome.set_exception(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def result(self, timeout: float | None = None) -> Any:
        """Waits for it; raises what it failed with."""
        return self._outcome.result(timeout)


_claim(globals())
