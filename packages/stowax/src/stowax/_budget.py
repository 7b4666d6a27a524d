"""Memory that operations take for a while, counted, so that they wait for each other.

A budget is a ledger of bytes. Who needs some waits until they fit, in order of arrival;
who needs more than there will ever be gets them when nobody else has any, so that a
budget never makes work impossible. Nothing is allocated here.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import NamedTuple


class Scratch(NamedTuple):
    """A budget, as one operation may use it."""

    budget: Budget
    limit_bytes: int
    """What all operations together may take."""

    def hold(self, size_bytes: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Takes bytes for as long as the body runs."""
        return self.budget.hold(size_bytes, limit_bytes=self.limit_bytes)


class Gauge:
    """The most that was taken at one time, since somebody looks."""

    def __init__(self, taken_bytes: int) -> None:
        self.peak_bytes = taken_bytes


class Ledger:
    """What is taken now of one or several budgets; it decides nothing.

    Methods may be called from any thread.
    """

    def __init__(self) -> None:
        # Guards what is below.
        self._lock = threading.Lock()
        self._taken_bytes = 0
        self._gauges: weakref.WeakSet[Gauge] = weakref.WeakSet()

    @property
    def taken_bytes(self) -> int:
        """What is taken now."""
        return self._taken_bytes

    def add(self, size_bytes: int) -> None:
        """Notes what is taken, or given back if negative."""
        with self._lock:
            self._taken_bytes += size_bytes
            for gauge in self._gauges:
                gauge.peak_bytes = max(gauge.peak_bytes, self._taken_bytes)

    def gauge(self) -> Gauge:
        """Watches from now on what is taken, as long as somebody holds it."""
        with self._lock:
            gauge = Gauge(self._taken_bytes)
            self._gauges.add(gauge)
        return gauge


class _Waiter(NamedTuple):
    size_bytes: int
    limit_bytes: int
    granted: concurrent.futures.Future[None]


class Budget:
    """Bytes that are taken now; shared by all operations of a runtime.

    Methods may be called from any thread.

    Args:
        ledger: Where it is noted, with what others take; None: one of its own.

    Example:
        >>> budget = Budget()
        >>> first = budget.take(60, limit_bytes=100)
        >>> second = budget.take(60, limit_bytes=100)
        >>> first.done(), second.done()
        (True, False)
        >>> budget.give(60)
        >>> second.done()
        True
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = Ledger() if ledger is None else ledger
        # Guards what is below.
        self._lock = threading.Lock()
        self._taken_bytes = 0
        self._peak_bytes = 0
        self._waiting: collections.deque[_Waiter] = collections.deque()

    @property
    def taken_bytes(self) -> int:
        """What is taken now."""
        return self._taken_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that was ever taken at one time."""
        return self._peak_bytes

    def take(
        self, size_bytes: int, *, limit_bytes: int
    ) -> concurrent.futures.Future[None]:
        """Takes bytes as soon as all that is taken stays within the limit.

        Args:
            size_bytes: How many.
            limit_bytes: What all operations together may have, as the one that asks
                has it in its settings.

        Returns:
            Done when they are taken, and are to be given back.
        """
        granted: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            self._waiting.append(_Waiter(size_bytes, limit_bytes, granted))
        self._grant()
        return granted

    def give(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        with self._lock:
            self._taken_bytes -= size_bytes
            self.ledger.add(-size_bytes)
        self._grant()

    async def wait_for(self, size_bytes: int, *, limit_bytes: int) -> None:
        """Takes bytes, which are to be given back; on any loop. See `take`."""
        granted = self.take(size_bytes, limit_bytes=limit_bytes)
        if granted.done():
            return
        try:
            # Shielded: whether it was granted meanwhile is for `_withdraw` to say.
            await asyncio.shield(asyncio.wrap_future(granted))
        except asyncio.CancelledError:
            self._withdraw(granted, size_bytes)
            raise

    @contextlib.asynccontextmanager
    async def hold(self, size_bytes: int, *, limit_bytes: int) -> AsyncGenerator[None]:
        """Takes bytes for as long as the body runs."""
        await self.wait_for(size_bytes, limit_bytes=limit_bytes)
        try:
            yield
        finally:
            self.give(size_bytes)

    def _withdraw(
        self, granted: concurrent.futures.Future[None], size_bytes: int
    ) -> None:
        """Ends a `take` that nobody waits for any more, granted or not."""
        if granted.cancel():
            self._grant()
        else:
            self.give(size_bytes)

    def _grant(self) -> None:
        ready: list[concurrent.futures.Future[None]] = []
        with self._lock:
            while self._waiting:
                size_bytes, limit_bytes, granted = self._waiting[0]
                taken_bytes = self._taken_bytes
                does_fit = not taken_bytes or taken_bytes + size_bytes <= limit_bytes
                if not does_fit and not granted.cancelled():
                    break
                self._waiting.popleft()
                if granted.set_running_or_notify_cancel():
                    self._taken_bytes += size_bytes
                    self._peak_bytes = max(self._peak_bytes, self._taken_bytes)
                    self.ledger.add(size_bytes)
                    ready.append(granted)
        for granted in ready:  # Without the lock: whoever is told may ask for more.
            granted.set_result(None)
