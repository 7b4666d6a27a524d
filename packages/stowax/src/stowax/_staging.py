"""Values on the host, between the caller who may change them and the files.

They are staged batch by batch, a batch being a run of units that share no array; a unit
is what is written as a whole, a data file as a rule. As long as all of them fit the
budget there is one batch. If not, each is written, and its memory given back, while the
caller's thread stages the next. What is staged can be written without anything else
being staged, so nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stowax._budget import Budget
from stowax._plan._write import PartWrite

_BATCHES_PER_BUDGET = 4
"""While one is written, others are staged, and the last one waits for its sync."""


class _Batch(NamedTuple):
    parts: range
    """By position in the plan."""
    size_bytes: int
    """What it takes of the budget."""
    staged: concurrent.futures.Future[None]
    units: set[int]
    """Those that are not written yet."""


class Staging:
    """The parts of one item, on their way.

    The caller's thread awaits `stage_first` before anything is written, and
    `stage_rest` after the writing has begun. `close` ends it, whatever happened.

    Args:
        parts: What there is to write, in order.
        needs: The parts of every unit, by position; none before those of the unit that
            comes before it.
        fetch: Brings parts to the host.
        sizes_bytes: What every part takes of the budget; 0 if it is memory that is
            there anyway.
        budget: Counts it.
        limit_bytes: What all saves together may take.
    """

    def __init__(
        self,
        parts: Sequence[PartWrite],
        needs: Sequence[range],
        fetch: Callable[[Sequence[PartWrite]], Sequence[np.ndarray]],
        sizes_bytes: Sequence[int],
        budget: Budget,
        limit_bytes: int,
    ) -> None:
        self.parts: list[np.ndarray | None] = [None] * len(parts)
        """Host memory of every part, by position, as long as it is needed."""
        self._wanted = parts
        self._fetch = fetch
        self._budget = budget
        self.limit_bytes = limit_bytes
        """What all saves together may take."""
        self._batches = _batches(needs, sizes_bytes, limit_bytes)
        self._batch_of_unit = {unit: b for b in self._batches for unit in b.units}
        self._lock = threading.Lock()
        self._taken_bytes = 0
        self._is_closed = False

    async def stage_first(self) -> None:
        """Stages the first batch; which is, as a rule, all there is.

        Raises:
            Exception: It could not be brought to the host; nothing stays taken.
        """
        for batch in self._batches[:1]:
            try:
                await self._stage(batch)
            except BaseException:  # An interrupt, or the deadline, too; raised again.
                self.close()
                raise

    async def stage_rest(self) -> None:
        """Stages all others, each as soon as the budget has room for it.

        A failure is for whoever writes, who is told by `staged`.
        """
        for batch in self._batches[1:]:
            try:
                await self._stage(batch)
            except BaseException as error:  # It is for whoever writes.
                self._fail(error)
                if isinstance(error, Exception):
                    return
                raise  # An interrupt, or the deadline.

    async def staged(self, unit: int) -> None:
        """Waits until all parts of a unit are here.

        Args:
            unit: Its position.

        Raises:
            Exception: Why they never will be.
        """
        future = self._batch_of_unit[unit].staged
        if not future.done():
            # Shielded: others wait for the same.
            await asyncio.shield(asyncio.wrap_future(future))
        future.result()

    def written(self, unit: int) -> None:
        """Lets go of what nobody needs any more."""
        batch = self._batch_of_unit[unit]
        batch.units.discard(unit)
        if not batch.units:
            for part in batch.parts:
                self.parts[part] = None
            self._give(batch.size_bytes)

    def close(self) -> None:
        """Lets go of everything; from now on nothing is staged any more."""
        with self._lock:
            self._is_closed = True
            rest_bytes, self._taken_bytes = self._taken_bytes, 0
        self.parts[:] = [None] * len(self.parts)
        if rest_bytes:
            self._budget.give(rest_bytes)

    async def _stage(self, batch: _Batch) -> None:
        size_bytes = batch.size_bytes
        if size_bytes:
            await self._budget.wait_for(size_bytes, limit_bytes=self.limit_bytes)
        with self._lock:
            is_over = self._is_closed
            self._taken_bytes += 0 if is_over else size_bytes
        if is_over:
            self._budget.give(size_bytes)
            return
        wanted = self._wanted[batch.parts.start : batch.parts.stop]
        for part, array in zip(batch.parts, self._fetch(wanted), strict=True):
            self.parts[part] = array
        batch.staged.set_result(None)

    def _give(self, size_bytes: int) -> None:
        with self._lock:
            size_bytes = min(size_bytes, self._taken_bytes)
            self._taken_bytes -= size_bytes
        if size_bytes:
            self._budget.give(size_bytes)

    def _fail(self, error: BaseException) -> None:
        told = error
        if not isinstance(error, Exception):
            told = concurrent.futures.CancelledError()
        for batch in self._batches:
            if not batch.staged.done():
                batch.staged.set_exception(told)


def batch_limit_bytes(limit_bytes: int) -> int:
    """How much the parts of a unit may take, so that several batches fit a budget.

    A power of two: what a budget is made of changes from save to save, and the layout
    should not.
    """
    return 1 << max(0, (limit_bytes // _BATCHES_PER_BUDGET).bit_length() - 1)


def _batches(
    needs: Sequence[range], sizes_bytes: Sequence[int], limit_bytes: int
) -> list[_Batch]:
    if not needs:
        return []
    runs = _apart(needs)
    if sum(sizes_bytes) <= limit_bytes:
        runs = [range(len(needs))]
    found: list[_Batch] = []
    for run in runs:
        parts = range(needs[run.start].start, needs[run.stop - 1].stop)
        size_bytes = sum(sizes_bytes[part] for part in parts)
        found.append(_Batch(parts, size_bytes, concurrent.futures.Future(), set(run)))
    return found


def _apart(needs: Sequence[range]) -> list[range]:
    """Runs of units, by position, of which no two need the same part."""
    found: list[range] = []
    stop = 0
    for position, need in enumerate(needs):
        if not found or need.start >= stop:
            found.append(range(position, position + 1))
        else:
            found[-1] = range(found[-1].start, position + 1)
        stop = need.stop
    return found
