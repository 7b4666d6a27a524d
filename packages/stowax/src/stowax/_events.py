"""Events, and who hears of them; see `stowax.events`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    kind: Literal[
        "started", "staged", "progress", "leaf", "published", "loaded", "failed"
    ]
    operation: Literal["save", "load"]
    id: int
    """Tells the operations of a process apart, also two on the same path."""
    path: str
    """Of the checkpoint, absolute."""
    in_background: bool
    """Whether the caller went on meanwhile: `save_async`, `load_async`."""
    elapsed_secs: float
    """Since the operation started."""
    done_bytes: int = 0
    """Of arrays, before compression, written or read so far by this process."""
    total_bytes: int = 0
    """What there will be, as far as known: of a save when it is staged."""
    file_bytes: int = 0
    """Of files, documents included, that were written or read so far.

    Neither what is mapped into memory, nor what TensorStore reads of checkpoints that
    are not known here.
    """
    memory_bytes: int = 0
    """What all saves, or loads, of this process now take of their memory budget."""
    peak_memory_bytes: int = 0
    """The most that they took at one time since the process began."""
    leaf: str | None = None
    """Of a `leaf` event the name, as errors name it; `done_bytes` are its own."""
    error: BaseException | None = None
    """Why it failed."""


Listener = Callable[[Event], object]
"""Called on a thread of the library, of which there are few: it should be quick, and
must not wait for the operation that it hears of.  What it raises is logged, and ends
its part in that operation; nothing else comes of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """A listener, as long as it hears of operations that begin; a context manager."""

    listener: Listener
    leaves: bool
    """Whether it hears of every leaf."""

    def close(self) -> None:
        """Hears of no operation that begins later; again, does nothing."""
        global _subscriptions
        with _lock:
            _subscriptions = tuple(s for s in _subscriptions if s is not self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def subscribe(listener: Listener, *, leaves: bool = False) -> Subscription:
    """Has a function called with every event of the operations that begin from now on.

    Args:
        listener: See `Listener`.
        leaves: Whether it hears of every leaf, too. That costs some microseconds for
            each of them.

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
    subscription = Subscription(listener, leaves)
    with _lock:
        _subscriptions = (*_subscriptions, subscription)
    return subscription


def subscribed() -> tuple[Subscription, ...]:
    """All that hear of an operation that begins now."""
    return _subscriptions


# Guards the change of what follows, which is replaced and never changed.
_lock = threading.Lock()
_subscriptions: tuple[Subscription, ...] = ()
