"""What a `Checkpointer` remembers of its directory: the complete steps, and who reads.

A save in the background ends on a thread of its own, so the list is guarded. Whoever
looks gets a copy, which does not change any more.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import final

from stowax.training._steps import CheckpointMetadata

Found = CheckpointMetadata[None]


@final
class StepList:
    """The complete steps by number; nothing is known of them before `replace`."""

    def __init__(self) -> None:
        # Guards what is below.
        self._lock = threading.Lock()
        self._found: dict[int, Found] | None = None
        self._readers: collections.Counter[int] = collections.Counter()

    def replace(self, found: Iterable[Found]) -> None:
        """Forgets what was known."""
        with self._lock:
            self._found = {each.step: each for each in found}

    def copy(self) -> dict[int, Found] | None:
        """All steps in ascending order; None if nothing is known yet."""
        with self._lock:
            return None if self._found is None else dict(self._found)

    def put_on(self, found: Found) -> None:
        """Adds a step, or replaces what was known of it."""
        with self._lock:
            if self._found is not None:
                added = {**self._found, found.step: found}
                self._found = {step: added[step] for step in sorted(added)}

    def take_off(self, steps: Collection[int]) -> None:
        """Forgets steps."""
        with self._lock:
            self._take_off(steps)

    def take_unread(self, unwanted: Sequence[Found]) -> list[Found]:
        """Forgets those steps that nobody is reading, and says which."""
        with self._lock:
            taken = [each for each in unwanted if not self._readers[each.step]]
            self._take_off([each.step for each in taken])
            return taken

    def hold(self, step: int | None) -> Found | None:
        """Registers a reader of a step, or of the newest; None if it is not there."""
        with self._lock:
            found = self._found or {}
            number = max(found, default=None) if step is None else step
            if number not in found:
                return None
            self._readers[number] += 1
            return found[number]

    def release(self, step: int) -> None:
        """Takes back one `hold`."""
        with self._lock:
            self._readers[step] -= 1

    def _take_off(self, steps: Collection[int]) -> None:
        if self._found is not None:
            self._found = {n: each for n, each in self._found.items() if n not in steps}
