"""What is under way, by key, in the order in which it began.

For calls that may overlap, but whose effects must not: each knows those before it, and
waits for them before it does what all can see.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Calls(Generic[T]):
    """Calls by key; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, list[T]] = {}

    def begin(self, key: Hashable, call: T) -> tuple[T, ...]:
        """Puts a call behind those that are under way, and returns these."""
        with self._lock:
            calls = self._under_way.setdefault(key, [])
            earlier = tuple(calls)
            calls.append(call)
            return earlier

    def end(self, key: Hashable, call: T) -> None:
        """Takes a call out; fine when it is not there any more."""
        with self._lock:
            calls = self._under_way.get(key, [])
            if call in calls:
                calls.remove(call)
            if not calls:
                self._under_way.pop(key, None)
