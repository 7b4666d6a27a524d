"""One operation, as listeners hear of it: told in order, counted where bytes move.

The operation carries its report, and whoever does a part of the work tells it what
happened: the engine, of bytes of arrays; a store that is watched, of bytes of files.
Nobody listening, neither does, and only `jax.monitoring` is told, some three times.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import TYPE_CHECKING, Any, Literal, cast

from stowax._budget import Ledger
from stowax._events import Event, Verb
from stowax._listeners import PATIENCE_SECS, subscribed
from stowax._monitoring import tell_jax
from stowax._processes import Processes
from stowax._stores._base import Pieces, Store, byte_view

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LOGGER = logging.getLogger("stowax")

_STEP_COUNT = 200
"""Of one operation no more than so many events tell of progress."""

_ENDS: dict[Verb, Literal["published", "loaded", "verified"]] = {
    "save": "published",
    "load": "loaded",
    "verify": "verified",
}

_SERIAL = itertools.count()


class Report:
    """What is told of one operation; methods may be called from any thread.

    Args:
        operation: What it is.
        path: Of the checkpoint.
        in_background: Whether the caller goes on meanwhile.
        processes: Which one this is.
        now_nsecs: The time, since the epoch.
        ledger: Of the memory that it shares with others of its kind.
        limit_bytes: What they may take of it; None: that is not known yet.
    """

    def __init__(
        self,
        operation: Verb,
        path: str,
        *,
        in_background: bool,
        processes: Processes,
        now_nsecs: Callable[[], int],
        ledger: Ledger,
        limit_bytes: int | None = None,
    ) -> None:
        self._operation: Verb = operation
        self._path = path
        self._in_background = in_background
        self._process_index = processes.index
        self._is_primary = processes.is_primary
        self._now_nsecs = now_nsecs
        self._ledger = ledger
        self._gauge = ledger.gauge()
        self._limit_bytes = limit_bytes
        self._id = next(_SERIAL)
        self._started_secs = time.monotonic()
        self._subscriptions = subscribed()
        self.is_watched = bool(self._subscriptions)
        """Whether anybody hears more than how it begins and ends."""
        self.names_leaves = any(s.leaves for s in self._subscriptions)
        """Whether anybody wants to hear of every leaf."""
        # Guards the order of events and all that follows. What listens to JAX may look
        # at the operation, and so come back on the same thread.
        self._lock = threading.RLock()
        self._does_jax_hear = True
        self._marks: list[concurrent.futures.Future[None]] = []
        self._done_bytes = self._told_bytes = self._total_bytes = 0
        self._file_bytes = 0
        self._is_over = False
        self._tell("started")

    def watch(self, store: Store) -> Store:
        """The store that the operation is to use, so that its bytes are counted."""
        return cast("Store", _Watched(store, self)) if self.is_watched else store

    def staged(self) -> None:
        """All values are safe."""
        self._tell("staged")

    def expect(self, size_bytes: int) -> None:
        """So many more bytes of arrays will be moved."""
        with self._lock:
            self._total_bytes += size_bytes

    def may_take(self, limit_bytes: int) -> None:
        """So much memory all operations of the kind may take together."""
        self._limit_bytes = limit_bytes

    def begin_again(self) -> None:
        """What was expected, and has not been moved, is not expected any more."""
        with self._lock:
            self._total_bytes = self._done_bytes

    def moved(self, size_bytes: int) -> None:
        """Bytes of arrays have been written or read."""
        with self._lock:
            self._done_bytes = done_bytes = self._done_bytes + size_bytes
            step_bytes = max(1, self._total_bytes // _STEP_COUNT)
            is_end = done_bytes == self._total_bytes > self._told_bytes
            if is_end or done_bytes - self._told_bytes >= step_bytes:
                self._told_bytes = done_bytes
                self._tell("progress")

    def wrote(self, size_bytes: int) -> None:
        """The store has taken bytes of a file."""
        self._count(size_bytes if self._operation == "save" else 0)

    def read(self, size_bytes: int) -> None:
        """The store has brought bytes of a file."""
        self._count(0 if self._operation == "save" else size_bytes)

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            self._file_bytes += size_bytes

    def leaf(self, name: str, size_bytes: int) -> None:
        """One leaf is done."""
        if self.names_leaves:
            self._tell("leaf", leaf=name, size_bytes=size_bytes)

    def succeeded(self) -> None:
        """It is done, and nothing comes after."""
        self._end(_ENDS[self._operation])

    def failed(self, error: BaseException) -> None:
        """It is over, for this reason."""
        self._end("failed", error)

    @contextlib.contextmanager
    def telling(self) -> Generator[None]:
        """Tells how the body ends, and waits a moment until that was heard."""
        with self.telling_of_failure():
            yield
        self.succeeded()
        self.wait()

    @contextlib.contextmanager
    def telling_of_failure(self) -> Generator[None]:
        """The same if it fails."""
        try:
            yield
        except BaseException as error:  # Whatever ends it; raised again.
            self.failed(error)
            self.wait()
            raise

    def given_up(self, outcome: concurrent.futures.Future[Any]) -> None:
        """Nobody waits any more for who would have told; if it has not, this is why."""
        error: BaseException | None = concurrent.futures.CancelledError()
        if not outcome.cancelled():
            error = outcome.exception()
        if error is not None:
            self.failed(error)

    def wait(self) -> None:
        """Waits a moment, after the end, until all listeners have heard of it.

        Not after an interrupt.
        """
        concurrent.futures.wait(self._marks, PATIENCE_SECS)

    async def wait_on_loop(self) -> None:
        """The same, on any loop."""
        if self._marks:
            marks = [asyncio.wrap_future(mark) for mark in self._marks]
            await asyncio.wait(marks, timeout=PATIENCE_SECS)

    def _end(
        self,
        kind: Literal["published", "loaded", "verified", "failed"],
        error: BaseException | None = None,
    ) -> None:
        with self._lock:
            if self._is_over:
                return
            self._tell(kind, error=error)
            self._is_over = True
            if error is None or isinstance(error, Exception):
                self._marks = [each.mark() for each in self._subscriptions]

    def _tell(
        self,
        kind: Any,
        *,
        leaf: str | None = None,
        size_bytes: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        with self._lock:
            if self._is_over:
                return
            event = Event(
                kind=kind,
                operation=self._operation,
                id=self._id,
                path=self._path,
                in_background=self._in_background,
                process_index=self._process_index,
                time_nsecs=self._now_nsecs(),
                elapsed_secs=time.monotonic() - self._started_secs,
                done_bytes=self._done_bytes if size_bytes is None else size_bytes,
                total_bytes=self._total_bytes,
                file_bytes=self._file_bytes,
                memory_bytes=self._ledger.taken_bytes,
                peak_memory_bytes=self._gauge.peak_bytes,
                memory_limit_bytes=self._limit_bytes,
                leaf=leaf,
                error=error,
            )
            for subscription in self._subscriptions:
                if kind != "leaf" or subscription.leaves:
                    subscription.post(event)
            if self._does_jax_hear:
                try:
                    tell_jax(event, is_primary=self._is_primary)
                except Exception:  # What listens there is code of others.
                    self._does_jax_hear = False
                    _LOGGER.exception(
                        "what listens to jax.monitoring failed, and hears no more of "
                        "the %s of %s",
                        *(self._operation, self._path),
                    )


class Tally:
    """What is still to come of the leaves of one item; who is done is told.

    Args:
        report: Is told of them.
        parts: Leaves, by position, and the bytes of each that are to come, in parts.
        name_of: The name of the leaf at a position.
    """

    def __init__(
        self,
        report: Report,
        parts: Iterable[tuple[int, int]],
        name_of: Callable[[int], str],
    ) -> None:
        self._report = report
        self._name_of = name_of
        # Guards the rest, which several threads take from.
        self._lock = threading.Lock()
        self._sizes_bytes: dict[int, int] = {}
        for leaf, size_bytes in parts:
            if size_bytes:
                self._sizes_bytes[leaf] = self._sizes_bytes.get(leaf, 0) + size_bytes
        self._rest_bytes = self._sizes_bytes.copy()

    def arrived(self, parts: Iterable[tuple[int, int]]) -> int:
        """Takes off what has come, in parts as above; returns how much that was."""
        sum_bytes = 0
        done: list[int] = []
        rest = self._rest_bytes
        with self._lock:
            for leaf, size_bytes in parts:
                sum_bytes += size_bytes
                rest[leaf] = rest_bytes = rest[leaf] - size_bytes
                if not rest_bytes:
                    done.append(leaf)
            for leaf in done:
                del rest[leaf]
        for leaf in done:
            self._report.leaf(self._name_of(leaf), self._sizes_bytes[leaf])
        return sum_bytes

    def told(self, parts: Iterable[tuple[int, int]]) -> None:
        """The same, and tells the report how much that was."""
        self._report.moved(self.arrived(parts))

    def finish(self) -> None:
        """The same of all that nobody has told of: zeros that nobody has stored."""
        self.told([*self._rest_bytes.items()])


class _Watched:
    """A store whose bytes are counted; all else is the store's own."""

    def __init__(self, store: Store, report: Report) -> None:
        self._store = store
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(
        self, path: str, pieces: Pieces, *, size_bytes: int | None = None
    ) -> None:
        is_awaited = isinstance(pieces, AsyncIterable)
        counted = self._counting(pieces) if is_awaited else self._counted(pieces)
        await self._store.write(path, counted, size_bytes=size_bytes)

    async def read_into(self, path: str, offset_bytes: int, buffer: Buffer) -> None:
        await self._store.read_into(path, offset_bytes, buffer)
        self._report.read(byte_view(buffer).nbytes)

    def _counted(self, pieces: Iterable[Buffer]) -> Iterator[Buffer]:
        for piece in pieces:
            size_bytes = byte_view(piece).nbytes
            yield piece
            # Who asks for the next piece has done with this one.
            self._report.wrote(size_bytes)

    async def _counting(self, pieces: AsyncIterable[Buffer]) -> AsyncIterator[Buffer]:
        async for piece in pieces:
            size_bytes = byte_view(piece).nbytes
            yield piece
            self._report.wrote(size_bytes)
