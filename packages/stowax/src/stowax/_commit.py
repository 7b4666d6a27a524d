"""From a draft to a published checkpoint.

    begun ──▶ written ──▶ sealed ──▶ synced ──▶ published
      └──────────┴──────────┴──────────┴──▶ abandoned

Everything up to *synced* happens inside the draft, a directory that no reader takes
for a checkpoint; a failure anywhere abandons it and leaves what was there before
untouched.  The step to *published* is one call of the store, made by the primary
process after all processes have said that their part is written and durable.  It is not
given up halfway: the deadline is that of everything before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pathlib
import posixpath
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from stowax._codecs._item_manifest import digest
from stowax._digest import PIECE_BYTES, digest_file
from stowax._environment import store_of
from stowax._formats._base import ITEM_DOCUMENT
from stowax._formats._detect import is_checkpoint
from stowax._formats._orbax_json import (
    COMMIT_DOCUMENT,
    INDICATOR,
    JSON_DOCUMENTS,
    JSON_TYPESTR,
    METRICS_TYPESTR,
    PYTREE_TYPESTR,
    ROOT_DOCUMENT,
    STATEFUL_TYPESTR,
    UNFINISHED_MARK,
    encode_root,
)
from stowax._formats._stowax import (
    MANIFEST,
    ROOT_SEAL,
    encode_seal,
)
from stowax._item_write import complete_items, told_parts
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._operation import EngineTask, Operation, operation_id
from stowax._runtime import Runtime
from stowax._settings import Settings
from stowax._stores._base import already_published, join, walk
from stowax._tasks import drop, finish_all, noting
from stowax.errors import CheckpointExistsError, SaveError, UnsupportedOptionError

_logger = logging.getLogger("stowax")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFacts:
    """What stands at the root of a checkpoint beside its items."""

    custom_metadata: Mapping[str, Any]
    metrics: Any = None
    is_step: bool = False
    """A step of a training run, which Orbax arranges a little differently: without
    the indicator of its v1 layout, and with a commit file in every item."""


def draft_of(path: str) -> str:
    """A place for a draft of a checkpoint, beside it; a new one for every attempt."""
    return f"{path}{UNFINISHED_MARK}-{uuid.uuid4().hex}"


async def begin(
    path: str,
    settings: Settings,
    runtime: Runtime,
    *,
    overwrite: bool,
    borrow: bool,
    failure: Exception | None = None,
) -> Operation:
    """Agrees on a draft for `path` and makes it.

    Args:
        path: The final path.
        settings: Those of the operation.
        runtime: Where it runs.
        overwrite: Whether what is at the path may be replaced.
        borrow: Whether the caller leaves values alone until the operation ends.
        failure: Why this process cannot take part, if it cannot.

    Raises:
        CheckpointExistsError: Something is at the path and may not be replaced, be it
            that the caller does not want it or that it is no checkpoint.
        Exception: The failure.
    """
    store, processes = store_of(settings, path), runtime.processes
    operation = Operation(
        id=operation_id("save", path, runtime, settings),
        what=f"the save to {path}",
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
        await store.complete_replacement(path)
        if await store.stat(path) is not None:
            if not overwrite:
                raise already_published(path)
            if not await is_checkpoint(store, path):
                raise CheckpointExistsError(
                    f"{path} is no checkpoint, so it is not replaced; choose another "
                    "path, or move away what is there"
                )
        operation.directory = draft_of(path)
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


async def commit(
    operation: Operation,
    path: str,
    work: Mapping[str, Awaitable[None]],
    typestrs: Mapping[str, str],
    facts: RootFacts,
    *,
    started_nsecs: int,
    replace: bool,
) -> None:
    """Waits for all items, seals, syncs and publishes.

    Args:
        operation: Under way since `begin`.
        path: The final path.
        work: The second phase of every checkpointable of this process.
        typestrs: What to record for checkpointables whose files do not tell.
        facts: What stands at the root.
        started_nsecs: When the save began.
        replace: Whether what is at the path is replaced.

    Raises:
        DeadlineError: It took longer than the Context allows.
        Exception: Whatever a handler raised; what was at the path is untouched.
    """

    async def seal() -> bytes:
        with _entering(operation, "writing the documents"):
            await complete_items(operation, told)
            await _seal(operation, path, typestrs, facts, started_nsecs=started_nsecs)
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
        written = await operation.attempt(_finish(operation, work))
        told = await operation.agree("written", written)
        await in_primary("sealed", seal)
        operation.stop_clock()
        await in_primary("published", publish)
    except BaseException:  # Also a cancellation must leave no draft; raised again.
        await abandon(operation)
        raise
    finally:
        await operation.forget_scratch()


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


async def _finish(operation: Operation, work: Mapping[str, Awaitable[None]]) -> bytes:
    """Waits for every item; then makes durable what guests of this process wrote.

    Returns:
        What the primary has to know to complete the items.
    """
    waiting, unfinished = dict(work), dict.fromkeys(work)

    async def finish(name: str) -> None:
        with noting(f"while writing the checkpointable {name!r}"):
            await _finish_one(operation, name, waiting.pop(name))
        del unfinished[name]
        if unfinished:
            operation.phase = f"writing {', '.join(unfinished)}"

    if unfinished:
        operation.phase = f"writing {', '.join(unfinished)}"
    try:
        await finish_all(finish(name) for name in work)
    finally:
        # Given up before they began.
        for awaitable in waiting.values():
            drop(awaitable)
    return told_parts(operation)


async def _finish_one(
    operation: Operation, name: str, awaitable: Awaitable[None]
) -> None:
    directory = join(operation.directory, name)
    if isinstance(awaitable, EngineTask):
        await asyncio.wrap_future(awaitable.future)
        await operation.store.make_directory(directory)
        return
    await operation.run_guest(awaitable)
    await operation.store.make_directory(directory)
    if operation.scratch is not None:
        await _adopt(operation, directory)
    await _sync_guest_files(operation, directory)


async def _adopt(operation: Operation, directory: str) -> None:
    """Copies into the store what a guest wrote into its scratch directory."""
    local = operation.local_directory(directory)
    for file in await on_worker(_files_below, local):
        path = join(directory, file.relative_to(local).as_posix())
        await operation.store.write(path, _pieces_of(file))


def _files_below(local: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(file for file in local.rglob("*") if not file.is_dir())
    for file in files:
        if not file.is_file():  # Opening a named pipe would wait for its other end.
            raise SaveError(f"{file} is no file, and cannot be saved")
    return files


def _pieces_of(file: pathlib.Path) -> Generator[bytes]:
    with file.open("rb", buffering=0) as source:
        while piece := source.read(PIECE_BYTES):
            yield piece


async def _sync_guest_files(operation: Operation, directory: str) -> None:
    """Makes durable what guests have written.

    Guests of other processes may still be at work in the same directory.  What one of
    them renames in the meantime is found under its new name; what it removes is not
    part of the item.
    """
    missing = None
    while True:
        try:
            return await operation.store.sync(
                [
                    path
                    for path, entry in await walk(operation.store, directory)
                    if not entry.is_directory and not operation.covers(path)
                ]
            )
        except FileNotFoundError as error:
            if error.filename == missing:  # Found again, and gone again: no race.
                raise
            missing = error.filename


async def _seal(
    operation: Operation,
    path: str,
    typestrs: Mapping[str, str],
    facts: RootFacts,
    *,
    started_nsecs: int,
) -> None:
    draft = operation.directory
    if facts.metrics is not None:
        typestrs = {**typestrs, "metrics": METRICS_TYPESTR}
        data = json.dumps(facts.metrics).encode()
        await _write(operation, "metrics/metrics", data)
    names = sorted(typestrs)
    if facts.is_step:
        for name in names:
            await _write(operation, f"{name}/{COMMIT_DOCUMENT}", _commit_text(path))
    recorded = {
        name: await _recorded(operation, name, typestrs[name]) for name in names
    }
    documents = {
        ROOT_DOCUMENT: encode_root(
            typestrs=recorded,
            init_timestamp_nsecs=started_nsecs,
            commit_timestamp_nsecs=operation.runtime.now_nsecs(),
            custom_metadata=facts.custom_metadata,
        ),
        COMMIT_DOCUMENT: _commit_text(path),
    }
    if not facts.is_step:
        documents[INDICATOR] = b""
    guests = await _sum_guest_files(operation)
    documents[ROOT_SEAL] = encode_seal(
        layout="composite",
        documents={name: digest(data) for name, data in documents.items()},
        manifests={
            posixpath.relpath(join(directory, MANIFEST), draft): sum_
            for directory, (sum_, _) in operation.manifests.items()
        },
        guests=guests,
    )
    for name, data in documents.items():
        await _write(operation, name, data)


async def _sync_directories(operation: Operation) -> None:
    store, draft = operation.store, operation.directory
    directories = [p for p, entry in await walk(store, draft) if entry.is_directory]
    await store.sync([*directories, draft])


async def _write(operation: Operation, name: str, data: bytes) -> None:
    path = join(operation.directory, name)
    await operation.store.write(path, [data], size_bytes=len(data))
    await operation.store.sync([path])


async def _recorded(operation: Operation, name: str, typestr: str) -> str:
    """What to record as the handler of an item.

    Of an object that saved itself it is what its files are, if they are known, so that
    the item is readable without the object.
    """
    if typestr != STATEFUL_TYPESTR:
        return typestr
    entries = await operation.store.list(join(operation.directory, name))
    files = {entry.name for entry in entries}
    if ITEM_DOCUMENT in files:
        return PYTREE_TYPESTR
    return JSON_TYPESTR if JSON_DOCUMENTS[0] in files else typestr


async def _sum_guest_files(operation: Operation) -> dict[str, Digest]:
    """Digests of all files in the draft that no manifest covers."""
    store, draft = operation.store, operation.directory
    digests: dict[str, Digest] = {}
    for path, entry in await walk(store, draft):
        if not entry.is_directory and not operation.covers(path):
            digests[posixpath.relpath(path, draft)] = await digest_file(store, path)
    return digests


def _commit_text(path: str) -> bytes:
    return f"The checkpoint {posixpath.basename(path)} is complete.\n".encode()
