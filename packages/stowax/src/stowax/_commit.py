"""From a draft to a published checkpoint.

    begun ──▶ written ──▶ sealed ──▶ synced ──▶ published
      └──────────┴──────────┴──────────┴──▶ abandoned

Everything up to *synced* happens inside the draft, which no reader takes for a
checkpoint: a directory, or a file where the checkpoint is one.  A failure anywhere
abandons it and leaves what was there before untouched.  The step to *published* is one
call of the store, made by the primary process after all processes have said that their
part is written and durable.  It is not given up halfway: the deadline is that of
everything before.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence

from stowax._environment import store_of
from stowax._formats._detect import is_checkpoint
from stowax._formats._orbax_json import UNFINISHED_MARK
from stowax._operation import Operation, operation_id
from stowax._runtime import Runtime
from stowax._settings import Settings
from stowax._stores._base import Store, already_published, walk
from stowax._tasks import noting
from stowax.errors import CheckpointExistsError, UnsupportedOptionError

_logger = logging.getLogger("stowax")


def draft_of(path: str) -> str:
    """A place for a draft of a checkpoint, beside it; a new one for every attempt."""
    return f"{path}{UNFINISHED_MARK}-{uuid.uuid4().hex}"


async def begin(
    path: str,
    settings: Settings,
    runtime: Runtime,
    *,
    overwrite: bool = False,
    borrow: bool,
    is_file: bool = False,
    failure: Exception | None = None,
    prepare: Callable[[Operation], Awaitable[str]] | None = None,
    what: str = "the save to",
) -> Operation:
    """Agrees on a draft for `path` and makes it.

    Args:
        path: The final path.
        settings: Those of the operation.
        runtime: Where it runs.
        overwrite: Whether what is at the path may be replaced.
        borrow: Whether the caller leaves values alone until the operation ends.
        is_file: Whether the checkpoint is a file, of which nothing is made yet.
        failure: Why this process cannot take part, if it cannot.
        prepare: In the primary, looks at what is there and says where the draft is to
            be, or "" if there is nothing to do; None: beside the path, if that is free
            or may be overwritten.
        what: What is done to the path, in words.

    Raises:
        CheckpointExistsError: Something is at the path and may not be replaced, be it
            that the caller does not want it or that it is no checkpoint.
        Exception: The failure.
    """
    store, processes = store_of(settings, path), runtime.processes
    operation = Operation(
        id=operation_id("save", path, runtime, settings),
        what=f"{what} {path}",
        directory="",
        store=store,
        runtime=runtime,
        processes=processes,
        settings=settings,
        borrow=borrow,
    )
    operation.start_clock()

    async def make_draft() -> bytes:
        operation.phase = "making the draft"
        if prepare is None:
            operation.directory = await _beside(store, path, overwrite=overwrite)
        else:
            operation.directory = await prepare(operation)
        if is_file or not operation.directory:
            return operation.directory.encode()
        mode = settings.permission_mode
        if mode is not None and not store.has_directories:
            raise UnsupportedOptionError(
                f"Context.file.path_permission_mode is {mode:#o}, but in "
                f"{store.description} directories have no permission bits; leave it at "
                "None"
            )
        await store.make_directory(operation.directory, mode=mode)
        return operation.directory.encode()

    outcome: bytes | Exception = b"" if failure is None else failure
    try:
        if failure is None and processes.is_primary:
            outcome = await operation.attempt(make_draft())
        drafts = await operation.agree("begin", outcome)
    except BaseException:  # Also a cancellation must leave no draft; raised again.
        await abandon(operation)
        raise
    operation.directory = drafts[processes.primary].decode()
    return operation


async def _beside(store: Store, path: str, *, overwrite: bool) -> str:
    """Where to make a draft, if the path is free or may be overwritten."""
    await store.complete_replacement(path)
    if await store.stat(path) is not None:
        if not overwrite:
            raise already_published(path)
        if not await is_checkpoint(store, path):
            raise CheckpointExistsError(
                f"{path} is no checkpoint, so it is not replaced; choose another "
                "path, or move away what is there"
            )
    return draft_of(path)


async def commit(
    operation: Operation,
    path: str,
    *,
    finish: Callable[[], Awaitable[bytes]],
    seal: Callable[[Sequence[bytes]], Awaitable[None]],
    replace: bool,
) -> None:
    """Has everything written, sealed and synced, and publishes it.

    Args:
        operation: Under way since `begin`.
        path: The final path.
        finish: Writes what this process has to write, durably; what it returns is told
            to the primary.
        seal: In the primary, given what every process told, by index: writes what
            makes the draft whole, durably but for the names in its directories.
        replace: Whether what is at the path is replaced.

    Raises:
        DeadlineError: It took longer than the Context allows.
        Exception: Whatever a handler raised; what was at the path is untouched.
    """

    async def make_whole() -> bytes:
        with _entering(operation, "writing the documents"):
            await seal(told)
        with _entering(operation, "syncing the directories"):
            await _sync_directories(operation)
        return b""

    async def publish() -> bytes:
        with _entering(operation, "publishing"):
            await operation.store.publish(operation.directory, path, replace=replace)
            await operation.store.sync([posixpath.dirname(path)])
        return b""

    async def in_primary(point: str, work: Callable[[], Awaitable[bytes]]) -> None:
        primary = operation.processes.is_primary
        await operation.announce(
            point, await operation.attempt(work()) if primary else b""
        )

    try:
        written = await operation.attempt(finish())
        told = await operation.agree("written", written)
        await in_primary("sealed", make_whole)
        operation.stop_clock()
        await in_primary("published", publish)
    except BaseException:  # Also a cancellation must leave no draft; raised again.
        await abandon(operation)
        raise
    finally:
        await operation.forget_scratch()


async def conclude(operation: Operation, path: str) -> None:
    """Tells those who listen that it is published, and then the user's callback.

    The callback is a guest: it may block, and load what was saved. What comes of it
    cannot undo the save.
    """
    if operation.report is not None:
        operation.report.succeeded()
    callback = operation.settings.post_finalization_callback
    if callback is None:
        return

    async def call() -> None:
        callback()

    operation.phase = "calling `post_finalization_callback`"
    operation.start_clock()
    try:
        await operation.in_time(operation.run_guest(call()))
    except Exception:  # User code may raise anything.
        _logger.exception("%s is saved, but `post_finalization_callback` failed", path)
        await operation.stop()


async def abandon(operation: Operation) -> None:
    """Removes the draft; failing that, leaves it, which does no harm."""
    await operation.stop()
    await operation.forget_scratch()
    if not operation.processes.is_primary or not operation.directory:
        return
    try:
        await operation.store.delete(operation.directory)
    except Exception as error:  # noqa: BLE001 the first failure is the one to report
        _logger.warning("could not remove the draft %s: %s", operation.directory, error)


@contextlib.contextmanager
def _entering(operation: Operation, phase: str) -> Generator[None]:
    """A phase of the commit; a failure in it says so."""
    operation.phase = phase
    with noting(f"while {phase}"):
        yield


async def _sync_directories(operation: Operation) -> None:
    store, draft = operation.store, operation.directory
    entry = await store.stat(draft)
    if entry is None or entry.is_directory:
        directories = [p for p, entry in await walk(store, draft) if entry.is_directory]
        await store.sync([*directories, draft])
