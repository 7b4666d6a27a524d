"""One save or load under way, and the directories that carry it to handlers.

The `Operation` is what all parts of a save or load share: the store, the runtime, the
settings, and the names under which its processes meet.  A directory given to a handler
carries it, so that a `PyTreeHandler()` used inside another handler takes part in the
running operation; given a plain path, a handler makes an operation of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import pathlib
import posixpath
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar, cast

from etils import epath

from stowax import errors
from stowax._budget import Scratch
from stowax._context import Settings
from stowax._events import Verb
from stowax._formats._stowax import MANIFEST, PART_PREFIX, PROCESS_PREFIX
from stowax._manifest import Digest
from stowax._processes import Processes
from stowax._report import Report
from stowax._runtime import Runtime, default_runtime, on_worker
from stowax._stores._base import Store
from stowax._stores._open import open_store
from stowax._tasks import noting, tell
from stowax.errors import (
    DeadlineError,
    HandlerError,
    InvalidNameError,
    PeerFailedError,
    ProcessesError,
    SaveError,
    StowaxError,
)

T = TypeVar("T")

GUEST_GRACE_SECS = 5.0
"""How long a guest may go on after its operation was given up, before the directory
that it may be writing to is deleted."""

_ENGINE_PREFIXES = (PROCESS_PREFIX, PART_PREFIX)

_OK, _FAILED = b"\0", b"\1"

_LENT: Final[contextvars.ContextVar[tuple[str, ...]]] = contextvars.ContextVar(
    "stowax_lent_directories", default=()
)
"""The local directories that guests of this load read copies of their items from."""


@dataclass(slots=True)
class Timed:
    """Work that has a deadline, in words."""

    what: str
    """As in "the load of /runs/a/7"."""
    phase: str = "beginning"
    """What it is doing, or was when its time was over."""
    deadline: float | None = None
    """When it is given up, on the clock of the loop; None: it has not begun."""


_TIMED: Final[contextvars.ContextVar[Timed | None]] = contextvars.ContextVar(
    "stowax_timed", default=None
)
"""What `in_time` does here."""


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
    """The same in all processes, and never used twice."""
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
    """What was submitted and has not ended; only the engine's loop touches it."""
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
        """For memory that a load needs beside its result."""
        limit_bytes = self.settings.memory.reading_bytes
        return Scratch(self.runtime.reading_budget, limit_bytes)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> EngineTask[T]:
        """Starts work of our own on the engine's loop."""

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            if self.is_stopped:
                coroutine.close()
                raise self._over()
            self.tasks.add(task)
            try:
                return await coroutine
            finally:
                self.tasks.discard(task)

        return EngineTask(self.runtime.submit(tracked()))

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
            await asyncio.wait(self.guests, timeout=GUEST_GRACE_SECS)
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
        return await _within(asyncio.timeout_at(self.deadline), work, self.late)

    def late(self) -> DeadlineError:
        """The error for an operation that took too long."""
        return _too_late(Timed(self.what, self.phase), self.settings)

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
                is_covered = name == MANIFEST or name in self.manifests[directory][1]
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
    """Work that runs on the engine's loop and can be awaited on any other."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self.future = future

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self.future).__await__()


class OperationPath:
    """A directory of a running operation: the `PathAwaitingCreation` of handlers.

    Args:
        operation: What it carries.
        location: Where it is, as the store knows it.
        base: The directory that is made for whoever awaits it; None: this one.
    """

    def __init__(
        self, operation: Operation, location: str, base: str | None = None
    ) -> None:
        self.operation = operation
        self.location = location
        self._base = location if base is None else base

    @classmethod
    async def of(
        cls, directory: Any, settings: Settings, *, verb: str = "load"
    ) -> OperationPath:
        """A handler's directory, with the operation that it carries or one of its own.

        Args:
            directory: An `OperationPath`, a plain path, or a `PathAwaitingCreation`.
            settings: Those of an operation of its own.
            verb: See `in_place`.
        """
        if isinstance(directory, OperationPath):
            return directory
        if not isinstance(directory, str | os.PathLike):
            directory = await directory.await_creation()
        location = absolute(directory)
        return cls(in_place(location, settings, verb=verb), location)

    @property
    def path(self) -> epath.Path:
        """Where plain file calls find it."""
        local = self.operation.local_directory(self.location)
        return self.operation.settings.path_class(os.fspath(local))

    def __truediv__(self, other: str | os.PathLike[str]) -> OperationPath:
        below = pathlib.PurePath(other)
        if below.is_absolute() or ".." in below.parts:
            raise InvalidNameError(
                f"{os.fspath(other)!r} leads out of {self.location}, where a handler "
                "has to stay; join a plain relative path"
            )
        location = posixpath.normpath(posixpath.join(self.location, below.as_posix()))
        return OperationPath(self.operation, location, self._base)

    async def await_creation(self) -> epath.Path:
        """Makes the directory of the checkpointable, and returns the path."""
        store = self.operation.store
        await self.operation.submit(store.make_directory(self._base))
        if not store.has_directories:
            os.makedirs(self.operation.local_directory(self._base), exist_ok=True)
        return self.path

    def __repr__(self) -> str:
        return f"OperationPath({self.location!r})"


def absolute(path: Any) -> str:
    """The path as stores know it: absolute, normalised, with forward slashes.

    A leading `~` is the home directory, as in a shell; `./~` is a directory of that
    name.

    Raises:
        InvalidNameError: It is no path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidNameError(
            f"the path is {path!r}; a checkpoint has a str that is not empty, or a "
            "path object, as its path"
        )
    if "://" not in text:
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            raise InvalidNameError(
                f"{text}: nobody here has that home directory; a directory whose name "
                f"begins with '~' is './{text}'"
            )
        text = pathlib.Path(os.path.abspath(expanded)).as_posix()
    location = text.rstrip("/")
    if not location:
        raise InvalidNameError("the root directory is no path of a checkpoint")
    return location


@contextlib.contextmanager
def lending(directory: str) -> Generator[None]:
    """Lets a handler inside a guest read the guest's copy, whatever the store is."""
    token = _LENT.set((*_LENT.get(), directory))
    try:
        yield
    finally:
        _LENT.reset(token)


def store_of(settings: Settings, path: str) -> Store:
    """The store that the Context chose, else the path's own."""
    is_lent = any(path == d or path.startswith(f"{d}/") for d in _LENT.get())
    if settings.store is not None and not is_lent:
        store = cast("Store", settings.store)
    else:
        store = open_store(path)
    report = report_of(settings)
    return store if report is None else report.watch(store)


def report_of(settings: Settings) -> Report | None:
    """Who is told what the operation does; None: nobody."""
    return cast("Report | None", settings.report)


def runtime_of(settings: Settings) -> Runtime:
    """The runtime that the Context chose, else that of this process."""
    if settings.runtime is not None:
        return cast("Runtime", settings.runtime)
    return default_runtime()


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
        budget=runtime.staging_budget if is_save else runtime.reading_budget,
        limit_bytes=memory.staging_bytes if is_save else memory.reading_bytes,
    )
    return replace(settings, report=report), report


def operation_id(verb: str, path: str, runtime: Runtime, settings: Settings) -> str:
    """A name that all processes come to by themselves, and no other operation has.

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


async def in_time(
    work: Callable[[], Coroutine[Any, Any, T]], settings: Settings, timed: Timed
) -> T:
    """Does work within the deadline of the Context.

    Args:
        work: Begins it; says with `entering` what it is doing.
        settings: Have the deadline.
        timed: The work in words.

    Raises:
        DeadlineError: It took longer.
    """
    timed.deadline = asyncio.get_running_loop().time() + settings.timeout_secs
    limit = asyncio.timeout_at(timed.deadline)
    token = _TIMED.set(timed)
    try:
        return await _within(limit, work(), lambda: _too_late(timed, settings))
    finally:
        _TIMED.reset(token)


def entering(phase: str) -> None:
    """Says what the work under `in_time` does from now on, for its `DeadlineError`.

    What comes after the deadline is not what took too long: work that blocks is given
    up only afterwards.
    """
    timed = _TIMED.get()
    if timed is None or timed.deadline is None:
        return
    if asyncio.get_running_loop().time() < timed.deadline:
        timed.phase = phase


def drive_in_time(
    work: Callable[[], Coroutine[Any, Any, T]], settings: Settings, what: str
) -> T:
    """Does the same on the thread of the caller, and notes in errors what it was for.

    Raises:
        Exception: See `in_time`; and what `work` raises.
    """
    with noting(f"in the {what}"):
        return runtime_of(settings).drive(in_time(work, settings, Timed(f"the {what}")))


def guest_in_time(
    runtime: Runtime, work: Coroutine[Any, Any, T], settings: Settings, timed: Timed
) -> concurrent.futures.Future[T]:
    """Runs a guest that may block, and gives it up some time after the deadline.

    Args:
        runtime: Where.
        work: The guest, which minds the deadline unless it blocks; see `in_time`.
        settings: Have the deadline.
        timed: The work in words, as `in_time` has it.
    """
    future = runtime.start_guest(work)

    async def watch() -> None:
        guest = asyncio.wrap_future(future)
        guest.add_done_callback(lambda _: guest.cancelled() or guest.exception())
        limit_secs = settings.timeout_secs + GUEST_GRACE_SECS
        done, _ = await asyncio.wait([guest], timeout=limit_secs)
        if not done:
            runtime.leave_guest(future, _too_late(timed, settings))

    runtime.submit(watch())
    return future


async def _within(
    limit: asyncio.Timeout, work: Awaitable[T], late: Callable[[], DeadlineError]
) -> T:
    try:
        async with limit:
            return await work
    except Exception as error:  # Guests may wrap a cancellation in errors of their own.
        if not limit.expired():
            raise
        raise late() from error


def _too_late(timed: Timed, settings: Settings) -> DeadlineError:
    return DeadlineError(
        f"{timed.what} took longer than {settings.timeout_secs:g} s and was given up "
        f"while {timed.phase}; allow more with `AsyncOptions(timeout_secs=...)`"
    )
