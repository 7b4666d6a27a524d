"""Taking checkpoints away, or parts of them: out of sight at once, then file by file.

A checkpoint is first renamed to the name of a draft, which no reader takes for a
checkpoint, and the new name is made durable; only then are its files deleted.  So a
crash on the way leaves either all of it, or leftovers that are nobody's checkpoint.
One checkpointable goes as a whole, too: see `_remove_item`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import posixpath
import uuid
from typing import Any

from stowax._context import current_settings
from stowax._formats._detect import is_checkpoint, open_checkpoint
from stowax._formats._orbax_json import (
    INDICATOR,
    PARTIAL_MARK,
    ROOT_DOCUMENT,
    UNFINISHED_MARK,
)
from stowax._formats._stowax import ROOT_SEAL
from stowax._operation import Operation, in_place
from stowax._operation_path import absolute
from stowax._option_values import check_flags
from stowax._remove_item import check_removable, remove_item
from stowax._response import AsyncResponse, respond
from stowax._runtime import Runtime
from stowax._save_names import check_name
from stowax._session import end_session, open_session
from stowax._session_records import FINALIZED, is_of_session, session_of
from stowax._settings import check_supported
from stowax._staged_save import in_progress, reservation_of
from stowax._stores._base import Store, join, resolve
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    NothingToDeleteError,
    StowaxError,
)


def delete(
    path: Any, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> bool:
    """Deletes a checkpoint, or one checkpointable of it.

    It disappears at once and as a whole: a reader that comes later, or after a crash,
    finds all of it or nothing. The other checkpointables stay as they are, and are
    never out of sight. A reader that is under way may fail. In a run of several
    processes all of them call it. For the steps of a training run, use
    `training.Checkpointer.delete`.

    Args:
        path: The checkpoint, or the directory of a session of partial saves, to give
            it up. A damaged one can be deleted, anything else cannot.
        checkpointable_name: Which checkpointable goes; None: the whole checkpoint. One
            that Orbax has begun to delete is deleted to the end.
        missing_ok: Whether it is fine when there is nothing to delete.

    Returns:
        Whether there was something to delete.

    Raises:
        CheckpointNotFoundError: Nothing is at the path.
        NothingToDeleteError: It has no checkpointable of that name.
        InvalidLayoutError: It is no checkpoint, or only a part of one; or the
            checkpointable is the only one.
        DeletionRecoveryError: Orbax has begun to delete another checkpointable.
        InvalidNameError: No checkpointable can have that name.
        SaveInProgressError: A save to the path is under way.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 1})
        >>> stowax.delete(path)
        True
        >>> stowax.delete(path, missing_ok=True)
        False
        >>> stowax.save_checkpointables(path, {"model": {"w": 1}, "optimizer": {}})
        >>> stowax.delete(path, checkpointable_name="optimizer")
        True
        >>> stowax.load_checkpointables(path)
        {'model': {'w': 1}}
    """
    return delete_async(
        path, checkpointable_name=checkpointable_name, missing_ok=missing_ok
    ).result()


def delete_async(
    path: Any, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> AsyncResponse[bool]:
    """Deletes a checkpoint in the background; see `delete`.

    What is wrong with the path is raised by this call. A failure in the background is
    raised by `result()`, else by the next save.

    Args:
        path: See `delete`.
        checkpointable_name: See `delete`.
        missing_ok: See `delete`.
    """
    check_flags(missing_ok=missing_ok)
    runtime, future = start_delete(
        path, checkpointable_name, missing_ok=missing_ok, is_step=False
    )
    return respond(runtime, future, what=f"deletion of {absolute(path)}")


def start_delete(
    path: Any, name: str | None, *, missing_ok: bool, is_step: bool
) -> tuple[Runtime, concurrent.futures.Future[bool]]:
    """Looks at the path, then deletes in the background.

    Args:
        path: The checkpoint.
        name: Which checkpointable goes; None: all.
        missing_ok: Whether it is fine when nothing is there.
        is_step: Whether its name alone makes it a checkpoint, however damaged.
    """
    if name is not None:
        check_name(name)
    settings = current_settings()
    check_supported(settings, saving=False)
    location = absolute(path)
    operation = in_place(location, settings, verb="deletion")
    runtime, failure, reservation = operation.runtime, None, None
    if name is not None:
        # What is left takes the place of the whole: nobody may save there meanwhile.
        reservation = reservation_of(settings, location)
        if not runtime.reserve(reservation):
            failure, reservation = in_progress(location), None
    try:
        look = _look(operation, name, failure, missing_ok=missing_ok, is_step=is_step)
        is_there = runtime.run(look)
        if not is_there and not missing_ok:
            raise CheckpointNotFoundError(
                f"nothing is at {location}; if that is fine, use `missing_ok=True`"
            )
        removal = _remove_together(operation, name, is_there=is_there)
        future = runtime.submit(removal)
    except BaseException:  # An interrupt too; raised again.
        runtime.free(reservation)
        raise
    future.add_done_callback(lambda _: runtime.free(reservation))
    return runtime, future


async def remove(store: Store, path: str) -> bool:
    """Takes a checkpoint out of sight, durably, and deletes its files.

    Returns:
        Whether there was one.
    """
    await store.complete_replacement(path)
    doomed = f"{path}{UNFINISHED_MARK}-delete-{uuid.uuid4().hex}"
    try:
        await store.publish(path, doomed, replace=False)
    except FileNotFoundError:
        return False
    await store.sync([posixpath.dirname(path)])
    await store.delete(doomed)
    return True


async def _look(
    operation: Operation,
    name: str | None,
    failure: Exception | None,
    *,
    missing_ok: bool,
    is_step: bool,
) -> bool:
    """Whether there is something to delete, as the primary process sees it."""
    operation.start_clock()
    operation.phase = "looking at what is there"

    async def look() -> bytes:
        is_there = await _is_there(operation, is_step=is_step)
        if is_there and name is not None:
            is_there = await _holds(operation, name, missing_ok=missing_ok)
        return b"there" if is_there else b""

    outcome: bytes | Exception = b"" if failure is None else failure
    if failure is None and operation.processes.is_primary:
        outcome = await operation.attempt(look())
    answers = await operation.agree("look", outcome)
    return bool(answers[operation.processes.primary])


async def _is_there(operation: Operation, *, is_step: bool) -> bool:
    store, path = operation.store, operation.directory
    if await store.stat(await resolve(store, path)) is None:
        return False
    if is_step or await _is_session(store, path):
        return True
    # An item by itself may look like a checkpoint; what is above it tells.
    for document in (ROOT_SEAL, ROOT_DOCUMENT, INDICATOR):
        if await store.stat(join(posixpath.dirname(path), document)) is not None:
            raise InvalidLayoutError(
                f"{path} is a part of the checkpoint {posixpath.dirname(path)}; delete "
                "the whole checkpoint"
            )
    # Damage may be the very reason to delete it.
    with contextlib.suppress(CorruptCheckpointError):
        await open_checkpoint(store, path, verify=False)
    entry = await store.stat(path)
    is_directory = entry is not None and entry.is_directory
    if is_directory and not await is_checkpoint(store, path):
        raise InvalidLayoutError(
            f"{path} holds more than the safetensors files of one checkpoint; delete "
            "what you want to be rid of by other means"
        )
    return True


async def _is_session(store: Store, path: str) -> bool:
    """Whether it is a session of partial saves, which is given up so."""
    if not path.endswith(PARTIAL_MARK):
        return False
    entries = await store.list(path)
    return all(is_of_session(each.name) for each in entries if each.is_directory)


async def _end_session_of(store: Store, path: str) -> None:
    """Ends the session that has become a checkpoint, if a crash has left it.

    Without the checkpoint nobody would know, and it could be finalized again.
    """
    if await store.stat(join(session_of(path), FINALIZED)) is None:
        return
    with contextlib.suppress(StowaxError):  # Damage is no reason not to delete.
        session = await open_session(store, path, verify=False)
        if session.is_over:
            await end_session(store, session)


async def _holds(operation: Operation, name: str, *, missing_ok: bool) -> bool:
    """Whether the checkpoint has an item that can be removed."""
    checkpoint = await open_checkpoint(
        operation.store, operation.directory, verify=operation.settings.verify
    )
    try:
        check_removable(checkpoint, name)
    except NothingToDeleteError:
        if not missing_ok:
            raise
        return False
    return True


async def _remove_together(
    operation: Operation, name: str | None, *, is_there: bool
) -> bool:
    # Given up on the way, it leaves all of it, or leftovers that are no checkpoint.
    operation.phase = "removing it"

    async def take_away() -> bytes:
        if name is None:
            await _end_session_of(operation.store, operation.directory)
            await remove(operation.store, operation.directory)
        else:
            await remove_item(operation.store, operation.directory, name)
        return b""

    primary = is_there and operation.processes.is_primary
    await operation.agree(
        "removed", await operation.attempt(take_away()) if primary else b""
    )
    return is_there
