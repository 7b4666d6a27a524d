"""A checkpoint of named checkpointables: their work awaited, the root sealed.

What handlers of users, the guests, have written is made durable here, and summed, so
that the seal at the root covers every file of the checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import posixpath
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any

from stowax._codecs._item_manifest import digest
from stowax._digest import PIECE_BYTES, digest_file
from stowax._formats._base import ITEM_DOCUMENT
from stowax._formats._orbax_json import (
    COMMIT_DOCUMENT,
    INDICATOR,
    JSON_DOCUMENTS,
    JSON_TYPESTR,
    METRICS_TYPESTR,
    PYTREE_TYPESTR,
    ROOT_DOCUMENT,
    STATEFUL_TYPESTR,
    encode_root,
)
from stowax._formats._stowax import ROOT_SEAL, encode_seal, record_names
from stowax._handlers._base import FinalizingHandler
from stowax._item_write import complete_items, told_parts
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._operation import EngineTask, Operation
from stowax._operation_path import OperationPath
from stowax._session_records import UpdateFacts, encode_update, update_record
from stowax._stores._base import join, read_bytes, walk
from stowax._tasks import drop, finish_all, noting
from stowax.errors import HandlerError, SaveError

RootWriter = Callable[[Any, dict[str, Any]], Awaitable[None]]
"""Given the directory of the draft and a document: writes `_CHECKPOINT_METADATA`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFacts:
    """What stands at the root of a checkpoint beside its items."""

    custom_metadata: Mapping[str, Any]
    metrics: Any = None
    is_step: bool = False
    """A step of a training run, or what the older API saves, which Orbax arranges a
    little differently: without the indicator of its v1 layout, and with a commit file
    in every item."""
    update: UpdateFacts | None = None
    """Of an update of a session, which has a record instead of a seal."""
    is_direct: bool = False
    """There is one checkpointable, of the name "", whose files lie at the root, as the
    older API saves it."""
    write_root: RootWriter | None = None
    """A guest that writes the metadata at the root; None: nobody but us."""


def what(name: str) -> str:
    """A checkpointable in messages; one that is alone at the root has no name."""
    return f"the checkpointable {name!r}" if name else "the item"


async def finish_items(
    operation: Operation, work: Mapping[str, Awaitable[None]]
) -> bytes:
    """Waits for every item; then makes durable what guests of this process wrote.

    Args:
        operation: Under way.
        work: The second phase of every checkpointable of this process.

    Returns:
        What the primary has to know to complete the items.
    """
    waiting, unfinished = dict(work), dict.fromkeys(work)

    async def finish(name: str) -> None:
        with noting(f"while writing {what(name)}"):
            await _finish_one(operation, name, waiting.pop(name))
        del unfinished[name]
        if unfinished:
            operation.phase = _writing(unfinished)

    if unfinished:
        operation.phase = _writing(unfinished)
    try:
        await finish_all(finish(name) for name in work)
    finally:
        # Given up before they began.
        for awaitable in waiting.values():
            drop(awaitable)
    return told_parts(operation)


def _writing(names: Iterable[str]) -> str:
    return f"writing {', '.join(name or 'the item' for name in names)}"


async def _finish_one(
    operation: Operation, name: str, awaitable: Awaitable[None]
) -> None:
    directory = operation.directory_of(name)
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


async def finalize_items(operation: Operation, handlers: Mapping[str, Any]) -> None:
    """Lets guests finish what all processes have written; in the primary only.

    Args:
        operation: Under way; every process has written its part.
        handlers: That of every checkpointable.

    Raises:
        HandlerError: A guest has something to finish, and the store is no directory.
    """
    for name, handler in sorted(handlers.items()):
        if not isinstance(handler, FinalizingHandler) or not handler.has_to_finalize():
            continue
        directory = operation.directory_of(name)
        if not operation.store.has_directories:
            raise HandlerError(
                f"the handler of {what(name)} has a `finalize`, which needs the files "
                "of all processes in a directory; "
                f"{operation.store.description} has none"
            )
        operation.phase = f"finalizing {name or 'the item'}"
        with noting(f"while finalizing {what(name)}"):
            local = OperationPath(operation, directory).path
            await operation.run_guest(handler.finalize_item(local))
        await _sync_guest_files(operation, directory)


async def seal_root(
    operation: Operation,
    path: str,
    typestrs: Mapping[str, str],
    facts: RootFacts,
    told: Sequence[bytes],
    *,
    started_nsecs: int,
) -> None:
    """Completes all items, and writes what stands at the root; in the primary only.

    Args:
        operation: Under way.
        path: The final path.
        typestrs: What to record for checkpointables whose files do not tell.
        facts: What stands at the root.
        told: What every process tells of its items, by index; see `finish_items`.
        started_nsecs: When the save began.
    """
    await complete_items(operation, told)
    draft, manifest = operation.directory, record_names(operation.update).manifest
    if facts.metrics is not None:
        typestrs = {**typestrs, "metrics": METRICS_TYPESTR}
        data = json.dumps(facts.metrics).encode()
        await _write(operation, "metrics/metrics", data)
    names = sorted(typestrs)
    if facts.is_step:
        for name in names:
            await write_item_commit(operation, name, path)
    recorded = {
        name: await _recorded(operation, name, typestrs[name]) for name in names
    }
    await write_root(
        operation,
        path,
        recorded,
        facts,
        started_nsecs=started_nsecs,
        sums=ItemSums(
            manifests={
                posixpath.relpath(join(directory, manifest), draft): sum_
                for directory, (sum_, _) in operation.manifests.items()
            },
            guests=await _sum_guest_files(operation),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSums:
    """Digests of the files in items, by path below the root."""

    manifests: Mapping[str, Digest]
    guests: Mapping[str, Digest]


async def write_root(
    operation: Operation,
    path: str,
    typestrs: Mapping[str, str],
    facts: RootFacts,
    *,
    started_nsecs: int | None,
    sums: ItemSums | None,
) -> bytes:
    """Writes what stands at the root, durably.

    Args:
        operation: Under way.
        path: The final path.
        typestrs: What to record of every item.
        facts: What else stands there.
        started_nsecs: When the save began.
        sums: What the seal vouches for beside; None: there is no seal.

    Returns:
        The document of Orbax among it.
    """
    root = encode_root(
        typestrs=typestrs[""] if facts.is_direct else typestrs,
        init_timestamp_nsecs=started_nsecs,
        commit_timestamp_nsecs=operation.runtime.now_nsecs(),
        custom_metadata=facts.custom_metadata,
    )
    documents = {ROOT_DOCUMENT: root, COMMIT_DOCUMENT: _commit_text(path)}
    if not facts.is_step and not facts.is_direct:
        documents[INDICATOR] = b""
    written: dict[str, bytes] = {}
    if facts.write_root is not None:
        written = await _written_by(operation, facts.write_root, root)
        documents |= written
    if sums is not None:
        digests = {name: digest(data) for name, data in documents.items()}
        if facts.update is None:
            documents[ROOT_SEAL] = encode_seal(
                layout="direct" if facts.is_direct else "composite",
                documents=digests,
                manifests=sums.manifests,
                guests=sums.guests,
            )
        else:
            documents[update_record(operation.update)] = encode_update(
                facts.update,
                documents=digests,
                manifests=sums.manifests,
                guests=sums.guests,
            )
    for name, data in documents.items():
        if name not in written:
            await _write(operation, name, data)
    return documents[ROOT_DOCUMENT]


async def _written_by(
    operation: Operation, write: RootWriter, root: bytes
) -> dict[str, bytes]:
    """Has a guest write the metadata at the root; empty if it did not."""
    draft, store = operation.directory, operation.store
    local = OperationPath(operation, draft).path
    await operation.run_guest(write(local, json.loads(root)))
    path = join(draft, ROOT_DOCUMENT)
    if await store.stat(path) is None:
        return {}
    await store.sync([path])
    return {ROOT_DOCUMENT: await read_bytes(store, path)}


async def write_item_commit(operation: Operation, name: str, path: str) -> Digest:
    """Writes the commit file that every item of a step has."""
    text = _commit_text(path)
    await _write(operation, f"{name}/{COMMIT_DOCUMENT}", text)
    return digest(text)


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
    entries = await operation.store.list(operation.directory_of(name))
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
