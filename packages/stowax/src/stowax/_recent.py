"""The last few results of a computation that is worth keeping."""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Finds a result again by a key that is equal; keeps the newest ones.

    Keys are compared one by one and never hashed: a large one that is about to differ
    does so early, and one that is equal has to be compared anyway.

    Args:
        size: How many are kept.

    Example:
        >>> recent = Recent[str](2)
        >>> recent.add((1, 2), "a")
        >>> recent.find((1, 2)), recent.find((1, 3))
        ('a', None)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._pairs: tuple[tuple[Any, V], ...] = ()

    def find(self, key: Any) -> V | None:
        """The result that was added with an equal key; None if there is none."""
        for known, value in self._pairs:
            try:
                if known == key:
                    return value
            except RecursionError:
                continue  # Deeper than can be compared: it is computed again.
        return None

    def add(self, key: Any, value: V) -> None:
        """Keeps a result, in place of the oldest one."""
        with self._lock:
            self._pairs = ((key, value), *self._pairs[: self._size - 1])
