"""Who hears of events, each on a thread of its own.

A listener is code of others: it may be slow, wait for something, or fail.  So nobody
who has something to tell calls it: events wait in line for it, in the order in which
they were told, and of the progress of one operation only the last one waits.  Its
thread lives while there is something to hear, and a moment longer.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable
from typing import Self

from stowax._events import ENDS, Event

_LOGGER = logging.getLogger("stowax")

PATIENCE_SECS = 1.0
"""How long the end of an operation waits until a listener has heard of it."""

_CLOSING_SECS = 5.0
"""How long the end of a subscription waits for the same."""

_LINGER_SECS = 1.0

Listener = Callable[[Event], object]
"""Called on a thread of its own, with one event after the other.

It may take its time: operations go on meanwhile, and it hears of their progress less
often. What it raises is logged, and ends its part in that operation; nothing else comes
of it."""


class Subscription:
    """A listener, as long as it hears of operations that begin; a context manager.

    Args:
        listener: Is called.
        leaves: Whether it hears of every leaf.
    """

    def __init__(self, listener: Listener, *, leaves: bool) -> None:
        self.listener = listener
        self.leaves = leaves
        # Guards what follows.
        self._arrived = threading.Condition()
        self._line: collections.deque[Event | concurrent.futures.Future[None]] = (
            collections.deque()
        )
        self._thread: threading.Thread | None = None
        # Only its thread touches it: operations of which it hears no more.
        self._left: set[int] = set()

    def close(self) -> None:
        """Hears of no operation that begins later; again, does nothing.

        Returns when it has heard what was told so far, or after five seconds.
        """
        global _subscriptions
        with _lock:
            _subscriptions = tuple(s for s in _subscriptions if s is not self)
        concurrent.futures.wait([self.mark()], _CLOSING_SECS)

    def post(self, event: Event) -> None:
        """Lets it hear of an event, later."""
        with self._arrived:
            last = self._line[-1] if self._line else None
            if isinstance(last, Event) and _replaces(event, last):
                self._line[-1] = event
            else:
                self._put(event)

    def mark(self) -> concurrent.futures.Future[None]:
        """Done when it has heard everything that was posted before."""
        heard: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._arrived:
            if threading.current_thread() is self._thread:
                heard.set_result(None)  # It would wait for itself.
            else:
                self._put(heard)
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _put(self, what: Event | concurrent.futures.Future[None]) -> None:
        self._line.append(what)
        self._arrived.notify()
        if self._thread is None:
            name = "stowax-listener"
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # The interpreter ends; what is told now is the end.
                self._thread = None
                while self._line:
                    self._hear(self._line.popleft())

    def _serve(self) -> None:
        while True:
            with self._arrived:
                if not self._line:
                    self._arrived.wait(_LINGER_SECS)
                if not self._line:
                    self._thread = None
                    return
                what = self._line.popleft()
            self._hear(what)
            del what  # An error that it holds is the caller's.

    def _hear(self, what: Event | concurrent.futures.Future[None]) -> None:
        if not isinstance(what, Event):
            what.set_result(None)
            return
        if what.id in self._left:
            if what.kind in ENDS:
                self._left.remove(what.id)
            return
        try:
            self.listener(what)
        except BaseException:  # It is code of others, and this thread has work to do.
            self._left.add(what.id)
            _LOGGER.exception(
                "a listener failed, and hears no more of the %s of %s",
                *(what.operation, what.path),
            )


def _replaces(event: Event, last: Event) -> bool:
    """Whether who has not heard of the one need not, after the other."""
    return event.kind == last.kind == "progress" and event.id == last.id


def subscribe(listener: Listener, *, leaves: bool = False) -> Subscription:
    """Has a function called with every event of the operations that begin from now on.

    Args:
        listener: See `Listener`.
        leaves: Whether it hears of every leaf, too. That costs some 15 microseconds
            for each of them.

    Returns:
        What ends it: `close()`, or the end of a `with` block.

    Example:
        >>> import stowax
        >>> from stowax import events
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> kinds = []
        >>> with events.subscribe(lambda event: kinds.append(event.kind)):
        ...     stowax.save(path, {"step": 7})
        >>> kinds[0], kinds[-1]
        ('started', 'published')
    """
    global _subscriptions
    subscription = Subscription(listener, leaves=leaves)
    with _lock:
        _subscriptions = (*_subscriptions, subscription)
    return subscription


def subscribed() -> tuple[Subscription, ...]:
    """All that hear of an operation that begins now."""
    return _subscriptions


# Guards the change of what follows, which is replaced and never changed.
_lock = threading.Lock()
_subscriptions: tuple[Subscription, ...] = ()


def _forget_after_fork() -> None:
    # The child has neither their threads nor, perhaps, locks that anybody gives back.
    global _lock, _subscriptions
    _lock = threading.Lock()
    _subscriptions = ()


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forget_after_fork)
