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
from collections.abc import Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from etils import epath

from stowax._context import Settings
from stowax._manifest import Digest
from stowax._processes import Processes
from stowax._runtime import Runtime, default_runtime
from stowax._stores._base import Store
from stowax._stores._open import open_store
from stowax.errors import InvalidNameError, PeerFailedError, ProcessesError

T = TypeVar("T")

DRAFT_MARK = ".orbax-checkpoint-tmp"
"""Orbax takes every name that contains this for an unfinished checkpoint."""

_OK, _FAILED = b"\0", b"\1"

_LENT: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar(
    "stowax_lent_directory", default=None
)
"""The local directory that the guest running now reads a copy of its item from."""


@dataclass(slots=True, kw_only=True)
class Operation:
    """What the parts of one save or load share."""

    id: str
    """The same in all processes, and never used twice."""
    directory: str
    """Root of the checkpoint as long as the operation runs: of a save the draft."""
    store: Store
    runtime: Runtime
    processes: Processes
    settings: Settings
    borrow: bool = False
    """Whether the caller leaves values alone until the operation ends."""
    manifests: dict[str, tuple[Digest, frozenset[str]]] = field(default_factory=dict)
    """Item directories written so far: digest of the manifest, files that it covers."""
    digests: Mapping[str, Digest] = field(default_factory=dict)
    """On load: digests of files that no item manifest covers, by full path."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    """What was submitted and has not ended; only the engine's loop touches it."""
    scratch: tempfile.TemporaryDirectory[str] | None = None
    """Where guests write when the store is no directory."""

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> EngineTask[T]:
        """Starts work of our own on the engine's loop."""

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.add(task)
            try:
                return await coroutine
            finally:
                self.tasks.discard(task)

        return EngineTask(self.runtime.submit(tracked()))

    async def stop(self) -> None:
        """Ends what was submitted; afterwards nothing of it touches the store."""
        while tasks := set(self.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def agree(self, point: str, outcome: bytes | Exception) -> tuple[bytes, ...]:
        """Meets the other processes; everybody learns what everybody brings.

        Args:
            point: Where in the operation; used once.
            outcome: What this process brings, or why it cannot go on.

        Raises:
            Exception: The outcome of this process, if it is an error.
            PeerFailedError: Names the other processes that failed, and why.
            DeadlineError: Names the processes that did not come.
        """
        if self.processes.count == 1:
            if isinstance(outcome, Exception):
                raise outcome
            return (outcome,)
        if isinstance(outcome, Exception):
            text = f"{type(outcome).__name__}: {outcome}"
            # The others need to know; that they may be gone too changes nothing here.
            with contextlib.suppress(ProcessesError):
                await self._gather(point, _FAILED + text.encode())
            raise outcome
        brought = await self._gather(point, _OK + outcome)
        failures = [
            f"  process {i}: {m[1:].decode(errors='replace')}"
            for i, m in enumerate(brought)
            if m[:1] == _FAILED
        ]
        if failures:
            raise PeerFailedError(
                f"{self.directory}: other processes failed, so nothing was published:\n"
                + "\n".join(failures)
            )
        return tuple(message[1:] for message in brought)

    async def _gather(self, point: str, message: bytes) -> tuple[bytes, ...]:
        return await self.processes.gather(
            f"{self.id}/{point}", message, timeout_secs=self.settings.timeout_secs
        )

    def local_directory(self, path: str) -> pathlib.Path:
        """A real directory for guests; of a store without any, one of scratch."""
        local = self.store.local_path(path)
        if local is not None:
            return local
        if self.scratch is None:
            self.scratch = tempfile.TemporaryDirectory(prefix="stowax-")
        relative = posixpath.relpath(path, self.directory)
        return pathlib.Path(self.scratch.name, relative)


class EngineTask(Generic[T]):
    """Work that runs on the engine's loop and can be awaited on any other."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self.future = future

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self.future).__await__()


class OperationPath:
    """A directory of a running operation: the `PathAwaitingCreation` of handlers."""

    def __init__(self, operation: Operation, location: str) -> None:
        self.operation = operation
        self.location = location

    @property
    def path(self) -> epath.Path:
        """Where plain file calls find it."""
        return epath.Path(self.operation.local_directory(self.location))

    def __truediv__(self, other: str) -> OperationPath:
        return OperationPath(self.operation, posixpath.join(self.location, other))

    async def await_creation(self) -> epath.Path:
        """Makes the directory, and returns it."""
        store = self.operation.store
        await self.operation.submit(store.make_directory(self.location))
        if not store.has_directories:
            os.makedirs(self.operation.local_directory(self.location), exist_ok=True)
        return self.path

    def __repr__(self) -> str:
        return f"OperationPath({self.location!r})"


def absolute(path: Any) -> str:
    """The path as stores know it: absolute, normalised, with forward slashes.

    Raises:
        InvalidNameError: It is no path.
    """
    text = os.fspath(path)
    if isinstance(text, bytes) or not text or "\0" in text:
        raise InvalidNameError(f"{path!r} is no path of a checkpoint")
    if "://" not in text:
        text = pathlib.Path(os.path.abspath(text)).as_posix()
    return text.rstrip("/")


@contextlib.contextmanager
def lending(directory: str) -> Generator[None]:
    """Lets a handler inside a guest read the guest's copy, whatever the store is."""
    token = _LENT.set(directory)
    try:
        yield
    finally:
        _LENT.reset(token)


def store_of(settings: Settings, path: str) -> Store:
    """The store that the Context chose, else the path's own."""
    lent = _LENT.get()
    is_lent = lent is not None and (path == lent or path.startswith(f"{lent}/"))
    if settings.store is not None and not is_lent:
        return cast("Store", settings.store)
    return open_store(path)


def runtime_of(settings: Settings) -> Runtime:
    """The runtime that the Context chose, else that of this process."""
    if settings.runtime is not None:
        return cast("Runtime", settings.runtime)
    return default_runtime()


def operation_id(verb: str, path: str, runtime: Runtime, settings: Settings) -> str:
    """A name that all processes come to by themselves, and no other operation has.

    It counts the operations on one path, which every process starts in the same order;
    what happens on other paths cannot set the processes apart.
    """
    key = f"{settings.barrier_prefix}stowax/{verb}/{path}"
    return f"{key}/{runtime.serial(key)}"


def in_place(path: str, settings: Settings, *, borrow: bool = False) -> Operation:
    """An operation for a handler that is used alone, on a directory as it is."""
    runtime = runtime_of(settings)
    return Operation(
        id=operation_id("alone", path, runtime, settings),
        directory=path,
        store=store_of(settings, path),
        runtime=runtime,
        processes=runtime.processes,
        settings=settings,
        borrow=borrow,
    )
