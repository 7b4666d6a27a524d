"""One save or load under way: what all parts of it share.

The store, the runtime, the settings, what was begun and must end with it, and the names
under which its processes meet.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import pathlib
import posixpath
import tempfile
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from stowax import errors
from stowax._budget import Scratch
from stowax._deadline import Timed, too_late, wait_for_guests, within
from stowax._environment import report_of, runtime_of, store_of
from stowax._events import Verb
from stowax._formats._stowax import PART_PREFIX, PROCESS_PREFIX, record_names
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._processes import Processes
from stowax._report import Report
from stowax._runtime import Runtime
from stowax._settings import Settings
from stowax._stores._base import Store
from stowax._tasks import tell
from stowax.errors import (
    DeadlineError,
    HandlerError,
    PeerFailedError,
    ProcessesError,
    SaveError,
    StowaxError,
)

T = TypeVar("T")


_ENGINE_PREFIXES = (PROCESS_PREFIX, PART_PREFIX)

_OK, _FAILED = b"\0", b"\1"

_PASSES_ON: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar(
    "stowax_passes_on", default=False
)
"""Whether a load here makes values of what it has read; see `Operation.passing`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPart:
    """What this process has written of an item that has no documents yet."""

    table: bytes
    """Where its chunks lie: what the other processes have to know."""
    files: frozenset[str]
    """What was written, relative to the item's directory; durable."""
    complete: Callable[[Sequence[bytes]], Coroutine[Any, Any, None]]
    """Writes documents and manifest, given the tables of all processes by index."""


@dataclass(slots=True, kw_only=True)
class Operation:
    """What the parts of one save or load share."""

    id: str
    """The same in all processes; of several, never used twice."""
    what: str
    """In words, as in "the save to /runs/a/7"."""
    directory: str
    """Root of the checkpoint as long as the operation runs: of a save the draft."""
    store: Store
    runtime: Runtime
    processes: Processes
    settings: Settings
    verb: str = "save"
    """What it does; see `in_place`."""
    update: str = ""
    """Of a save to a session, the id of the update; see `_session`."""
    borrow: bool = False
    """Whether the caller leaves values alone until the operation ends."""
    phase: str = "beginning"
    """What it is doing, for messages."""
    deadline: float | None = None
    """When it is given up, on the clock of the loop; None: its clock has not started,
    and every wait has the whole time."""
    parts: dict[str, ItemPart] = field(default_factory=dict)
    """By item directory, what this process has written."""
    manifests: dict[str, tuple[Digest, frozenset[str]]] = field(default_factory=dict)
    """Item directories written so far: digest of the manifest, files that it covers."""
    digests: Mapping[str, Digest] = field(default_factory=dict)
    """On load: digests of files that no item manifest covers, by full path."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    """What has taken its first step and has not ended; only the engine's loop touches
    it. What was submitted and comes too late finds `is_stopped`."""
    guests: dict[asyncio.Future[Any], concurrent.futures.Future[Any]] = field(
        default_factory=dict["asyncio.Future[Any]", "concurrent.futures.Future[Any]"]
    )
    """What guests do and have not ended; only the engine's loop touches it."""
    is_stopped: bool = False
    """Whether nothing may begin any more; only the engine's loop changes it."""
    scratch: tempfile.TemporaryDirectory[str] | None = None
    """Where guests write when the store is no directory."""
    scratch_lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards the making of it: guests come from threads of their own."""

    @property
    def report(self) -> Report | None:
        """Hears what this process does of it; None: a part of no save or load."""
        return report_of(self.settings)

    @property
    def reading(self) -> Scratch:
        """For memory that a load needs beside its result while it reads."""
        memory = self.settings.memory
        limit_bytes = memory.reading_bytes - memory.passing_bytes
        return Scratch(self.runtime.reading_budget, limit_bytes)

    @contextlib.asynccontextmanager
    async def passing(self, size_bytes: int) -> AsyncGenerator[None]:
        """Holds memory for what has been read and is made into something else.

        Of a budget of its own: who holds some of it needs `reading` to go on. A load
        that is begun where another makes its values (by a handler of leaves) takes
        none: the other waits for it.
        """
        if not size_bytes or _PASSES_ON.get():
            yield
            return
        limit_bytes = self.settings.memory.passing_bytes
        budget = self.runtime.passing_budget
        async with budget.hold(size_bytes, limit_bytes=limit_bytes):
            token = _PASSES_ON.set(True)
            try:
                yield
            finally:
                _PASSES_ON.reset(token)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> EngineTask[T]:
        """Starts work of our own on the engine's loop."""
        begun: list[asyncio.Task[Any]] = []

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            if self.is_stopped:
                coroutine.close()
                raise self._over()
            begun.append(task)
            self.tasks.add(task)
            try:
                return await coroutine
            finally:
                self.tasks.discard(task)

        try:
            return EngineTask(self.runtime.submit(tracked()), begun)
        except BaseException:  # An interrupt too; raised again.
            coroutine.close()
            raise

    async def finished(self, task: EngineTask[T]) -> T:
        """Waits for work of ours, on any loop; given up, until nothing of it runs."""
        try:
            return await task
        except BaseException:  # A cancellation above all; raised again.
            with contextlib.suppress(RuntimeError):  # The runtime is closed.
                ended = self.runtime.submit(task.end())
                await asyncio.shield(asyncio.wrap_future(ended))
            raise

    @contextlib.asynccontextmanager
    async def ending(self) -> AsyncGenerator[None]:
        """Sees to it, on any loop, that nothing of it runs when the body is left."""
        try:
            yield
        finally:
            # Only after a failure is there anything that still does.
            await asyncio.wrap_future(self.runtime.submit(self.stop()))

    async def run_guest(self, awaitable: Awaitable[None]) -> None:
        """Runs the second phase of a guest; called on the engine's loop."""
        future = self.runtime.start_guest(awaitable)
        guest = asyncio.wrap_future(future)
        self.guests[guest] = future
        guest.add_done_callback(self._leave)
        # Who stops to wait for a guest does not stop the guest.
        await asyncio.shield(guest)

    def _leave(self, guest: asyncio.Future[Any]) -> None:
        self.guests.pop(guest)
        # Whoever was to be told may have stopped to wait; asyncio would complain of it.
        if not guest.cancelled():
            guest.exception()

    async def stop(self) -> None:
        """Ends everything; afterwards nothing of it touches the store.

        Guests cannot be ended. Those that wait for us are told, and all have a short
        time to come to their end; then nobody waits for them, not even the end of the
        program.
        """
        self.is_stopped = True
        while tasks := set(self.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self.guests:
            await wait_for_guests(self.guests)
        for future in list(self.guests.values()):
            self.runtime.leave_guest(future, self._over())

    def _over(self) -> StowaxError:
        if self.verb in ("save", "write"):
            return SaveError(
                f"{self.what} is over; nothing can be added to it any more"
            )
        # Only a handler that goes on with what it was lent can come too late.
        return HandlerError(f"{self.what} is over; start another")

    def start_clock(self) -> None:
        """From now on all work and all waits together have the time that is allowed."""
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + self.settings.timeout_secs

    def stop_clock(self) -> None:
        """From now on work takes the time that it takes, and a wait has it all again.

        For what must not be given up halfway.
        """
        self.deadline = None

    async def in_time(self, work: Awaitable[T]) -> T:
        """Does work before the deadline; on any loop, all of which have one clock.

        Raises:
            DeadlineError: It took longer.
        """
        return await within(asyncio.timeout_at(self.deadline), work, self.late)

    def late(self) -> DeadlineError:
        """The error for an operation that took too long."""
        return too_late(Timed(self.what, self.phase), self.settings)

    async def attempt(self, work: Awaitable[bytes]) -> bytes | Exception:
        """Does work in time, and makes of a failure a value that others can be told.

        Returns:
            What came of it, or why nothing did: `DeadlineError` if it took too long.
        """
        try:
            return await self.in_time(work)
        except Exception as error:  # noqa: BLE001 the others must hear of it
            return error

    async def agree(self, point: str, outcome: bytes | Exception) -> tuple[bytes, ...]:
        """Meets the other processes; everybody learns what everybody brings.

        Args:
            point: Where in the operation; used once.
            outcome: What this process brings, or why it cannot go on.

        Raises:
            Exception: The outcome of this process, if it is an error.
            StowaxError: Names the other processes that failed, and why; of the class
                that they raised if that is one of ours, else `PeerFailedError`.
            DeadlineError: Names the processes that did not come.
        """
        if isinstance(outcome, Exception):
            # The others need to know; that they may be gone too changes nothing here.
            with contextlib.suppress(ProcessesError):
                await self._gather(point, _encode(outcome))
            raise outcome
        brought = await self._gather(point, _encode(outcome))
        self._raise_failures(dict(enumerate(brought)))
        return tuple(message[1:] for message in brought)

    async def announce(self, point: str, outcome: bytes | Exception) -> None:
        """Lets the primary tell how its work ended; only the others wait.

        Args:
            point: Where in the operation; used once.
            outcome: In the primary, what came of its work; elsewhere ignored.

        Raises:
            Exception: As `agree` does.
        """
        if self.processes.is_primary and isinstance(outcome, Exception):
            with contextlib.suppress(ProcessesError):
                await self._broadcast(point, _encode(outcome))
            raise outcome
        told = await self._broadcast(point, _encode(outcome))
        self._raise_failures({self.processes.primary: told})

    async def _gather(self, point: str, message: bytes) -> tuple[bytes, ...]:
        return await self.processes.gather(
            f"{self.id}/{point}", message, timeout_secs=self.remaining_secs()
        )

    async def _broadcast(self, point: str, message: bytes) -> bytes:
        return await self.processes.broadcast(
            f"{self.id}/{point}", message, timeout_secs=self.remaining_secs()
        )

    def remaining_secs(self) -> float:
        """The time that is left for what comes next."""
        if self.deadline is None:
            return self.settings.timeout_secs
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def _raise_failures(self, messages: Mapping[int, bytes]) -> None:
        failures = {
            index: message[1:].decode(errors="replace")
            for index, message in messages.items()
            if message[:1] == _FAILED
        }
        if not failures:
            return
        names = {text.partition(":")[0] for text in failures.values()}
        name = names.pop() if len(names) == 1 else ""
        kind = getattr(errors, name) if name in errors.__all__ else PeerFailedError
        lines = [f"  process {index}: {text}" for index, text in failures.items()]
        raise kind("\n".join([f"{self.what} failed:", *lines]))

    def directory_of(self, name: str) -> str:
        """The directory of a checkpointable; of the name "", the root itself."""
        return posixpath.join(self.directory, name).rstrip("/")

    def local_directory(self, path: str) -> pathlib.Path:
        """A real directory for guests; of a store without any, one of scratch."""
        local = self.store.local_path(path)
        if local is not None:
            return local
        with self.scratch_lock:
            if self.scratch is None:
                if self.is_stopped:
                    raise self._over()
                self.scratch = tempfile.TemporaryDirectory(
                    prefix="stowax-", ignore_cleanup_errors=True
                )
        relative = posixpath.relpath(path, self.directory)
        return pathlib.Path(self.scratch.name, relative)

    async def forget_scratch(self) -> None:
        """Deletes what guests have written outside the store; again, does nothing."""
        if self.scratch is not None:
            await on_worker(self.scratch.cleanup)

    def covers(self, path: str) -> bool:
        """Whether the engine, here or elsewhere, wrote a file, and its manifest knows.

        As long as an item has no manifest, the files of other processes in it are told
        by their names.
        """
        for directory, part in self.parts.items():
            if not path.startswith(f"{directory}/"):
                continue
            name = path[len(directory) + 1 :]
            if directory in self.manifests:
                manifest = record_names(self.update).manifest
                is_covered = name == manifest or name in self.manifests[directory][1]
            else:
                is_covered = name in part.files or name.startswith(_ENGINE_PREFIXES)
            if is_covered:
                return True
        return False


def _encode(outcome: bytes | Exception) -> bytes:
    if isinstance(outcome, Exception):
        return _FAILED + tell(outcome).encode()
    return _OK + outcome


class EngineTask(Generic[T]):
    """Work that runs on the engine's loop and can be awaited on any other.

    Args:
        future: Its outcome.
        begun: The task on the loop, from its first step on.
    """

    def __init__(
        self,
        future: concurrent.futures.Future[T],
        begun: Sequence[asyncio.Task[Any]] = (),
    ) -> None:
        self.future = future
        self._begun = begun

    async def end(self) -> None:
        """Ends it, on the engine's loop, and returns when nothing of it runs."""
        self.future.cancel()
        for task in self._begun:
            task.cancel()
            await asyncio.wait([task])

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self.future).__await__()


def reported(
    operation: Verb,
    location: str,
    settings: Settings,
    *,
    in_background: bool,
) -> tuple[Settings, Report]:
    """Begins to tell listeners of an operation, which has the settings that come back.

    Args:
        operation: What it is.
        location: The path of the checkpoint.
        settings: Those of its Context.
        in_background: Whether the caller goes on meanwhile.
    """
    runtime, memory = runtime_of(settings), settings.memory
    is_save = operation == "save"
    report = Report(
        operation,
        location,
        in_background=in_background,
        processes=runtime.processes,
        now_nsecs=runtime.now_nsecs,
        ledger=(runtime.staging_budget if is_save else runtime.reading_budget).ledger,
        limit_bytes=memory.staging_bytes if is_save else memory.reading_bytes,
    )
    return replace(settings, report=report), report


def operation_id(verb: str, path: str, runtime: Runtime, settings: Settings) -> str:
    """A name that all processes of several come to, and no other operation has.

    It counts the operations on one path, which every process starts in the same order;
    what happens on other paths cannot set the processes apart.
    """
    key = f"{settings.barrier_prefix}stowax/{verb}/{path}"
    return f"{key}/{runtime.serial(key)}"


def in_place(path: str, settings: Settings, *, verb: str = "load") -> Operation:
    """An operation on a directory as it is: a load, or a handler used alone.

    Args:
        path: The directory.
        settings: Those of the operation.
        verb: Sets apart what all processes do together (`write`) from what each may do
            alone.
    """
    runtime = runtime_of(settings)
    return Operation(
        id=operation_id(verb, path, runtime, settings),
        what=f"the {verb} of {path}",
        directory=path,
        store=store_of(settings, path),
        runtime=runtime,
        processes=runtime.processes,
        settings=settings,
        verb=verb,
    )
