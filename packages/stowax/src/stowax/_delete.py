"""Taking checkpoints away: out of sight at once, then file by file.

A checkpoint is first renamed to the name of a draft, which no reader takes for a
checkpoint, and the new name is made durable; only then are its files deleted.  So a
crash on the way leaves either all of it, or leftovers that are nobody's checkpoint.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import posixpath
import uuid
from typing import Any

from stowax._context import current_settings
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_json import INDICATOR, ROOT_DOCUMENT, UNFINISHED_MARK
from stowax._formats._stowax import ROOT_SEAL
from stowax._operation import Operation, in_place
from stowax._operation_path import absolute
from stowax._option_values import check_flags
from stowax._response import AsyncResponse, respond
from stowax._runtime import Runtime
from stowax._settings import check_supported
from stowax._stores._base import Store, join, resolve
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    UnsupportedOptionError,
)


def delete(
    path: Any, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> bool:
    """Deletes a checkpoint.

    It disappears at once and as a whole: a reader that comes later, or after a crash,
    finds all of it or nothing. A reader that is under way may fail. In a run of several
    processes all of them call it. For the steps of a training run, use
    `training.Checkpointer.delete`.

    Args:
        path: The checkpoint. A damaged one can be deleted, anything else cannot.
        checkpointable_name: Deleting one checkpointable of several comes in a later
            release; must be None.
        missing_ok: Whether it is fine when nothing is at the path.

    Returns:
        Whether there was something to delete.

    Raises:
        CheckpointNotFoundError: Nothing is at the path.
        InvalidLayoutError: It is no checkpoint, or only a part of one.
        UnsupportedOptionError: `checkpointable_name` is not None.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 1})
        >>> stowax.delete(path)
        True
        >>> stowax.delete(path, missing_ok=True)
        False
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
    refuse_name(checkpointable_name)
    check_flags(missing_ok=missing_ok)
    runtime, future = start_delete(path, missing_ok=missing_ok, is_step=False)
    return respond(runtime, future, what=f"deletion of {absolute(path)}")


def refuse_name(checkpointable_name: str | None) -> None:
    """Refuses what is not built yet, before anything is deleted."""
    if checkpointable_name is not None:
        raise UnsupportedOptionError(
            f"checkpointable_name={checkpointable_name!r}: deleting one checkpointable "
            "of several comes in a later release; leave it out to delete the whole "
            "checkpoint"
        )


def start_delete(
    path: Any, *, missing_ok: bool, is_step: bool
) -> tuple[Runtime, concurrent.futures.Future[bool]]:
    """Looks at the path, then deletes in the background.

    Args:
        path: The checkpoint.
        missing_ok: Whether it is fine when nothing is there.
        is_step: Whether its name alone makes it a checkpoint, however damaged.
    """
    settings = current_settings()
    check_supported(settings, saving=False)
    location = absolute(path)
    operation = in_place(location, settings, verb="deletion")
    runtime = operation.runtime
    is_there = runtime.run(_look(operation, is_step=is_step))
    if not is_there and not missing_ok:
        raise CheckpointNotFoundError(
            f"nothing is at {location}; if that is fine, use `missing_ok=True`"
        )
    return runtime, runtime.submit(_remove_together(operation, is_there=is_there))


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


async def _look(operation: Operation, *, is_step: bool) -> bool:
    """Whether there is something to delete, as the primary process sees it."""
    operation.start_clock()
    operation.phase = "looking at what is there"

    async def look() -> bytes:
        return b"there" if await _is_there(operation, is_step=is_step) else b""

    primary = operation.processes.is_primary
    answers = await operation.agree(
        "look", await operation.attempt(look()) if primary else b""
    )
    return bool(answers[operation.processes.primary])


async def _is_there(operation: Operation, *, is_step: bool) -> bool:
    store, path = operation.store, operation.directory
    if await store.stat(await resolve(store, path)) is None:
        return False
    if is_step:
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
    return True


async def _remove_together(operation: Operation, *, is_there: bool) -> bool:
    # Given up on the way, it leaves all of it, or leftovers that are no checkpoint.
    operation.phase = "removing it"

    async def take_away() -> bytes:
        await remove(operation.store, operation.directory)
        return b""

    primary = is_there and operation.processes.is_primary
    await operation.agree(
        "removed", await operation.attempt(take_away()) if primary else b""
    )
    return is_there
