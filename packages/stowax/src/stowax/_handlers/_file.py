"""What handlers of one small file have in common: it is written, and found again."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from stowax._formats._orbax_json import COMMIT_DOCUMENT
from stowax._formats._stowax import read_document
from stowax._operation import EngineTask, Operation
from stowax._stores._base import join
from stowax.errors import InvalidLayoutError, InvalidNameError

T = TypeVar("T")


def check_file_name(name: str) -> str:
    """Refuses what is no name of a file in the item's own directory.

    Raises:
        InvalidNameError: Says what was given.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise InvalidNameError(f"filename={name!r} is no plain file name")
    return name


def begin(
    operation: Operation, work: Coroutine[Any, Any, T], *, is_alone: bool
) -> EngineTask[T]:
    """Begins the work of a handler.

    Args:
        operation: Takes it on.
        work: What there is to do.
        is_alone: Whether the handler is used alone: nobody else minds the deadline.
    """

    async def in_time() -> T:
        is_save = operation.verb == "write"
        operation.phase = "writing its file" if is_save else "reading its file"
        operation.start_clock()
        return await operation.in_time(work)

    return operation.submit(in_time() if is_alone else work)


async def write_file(
    operation: Operation, location: str, name: str, data: bytes
) -> None:
    """Writes a file of an item; the primary process does it for all."""
    if operation.processes.is_primary:
        path = join(location, name)
        await operation.store.write(path, [data], size_bytes=len(data))
        await operation.store.sync([path, location])


async def read_file(
    operation: Operation,
    location: str,
    names: Sequence[str],
    *,
    or_alone: bool = True,
) -> tuple[str, bytes]:
    """Reads the file of an item, verified.

    Args:
        operation: Under way.
        location: The item's directory.
        names: What it may be called, in the order in which they are tried.
        or_alone: Whether a file that is alone in the directory is taken under any name.

    Returns:
        Its path, and what it holds.

    Raises:
        InvalidLayoutError: There is no such file; says what is there.
    """
    recorded = operation.digests
    for name in names:
        path = join(location, name)
        if path in recorded or await operation.store.stat(path) is not None:
            return await _read(operation, path)
    entries = await operation.store.list(location)
    others = [e for e in entries if e.name != COMMIT_DOCUMENT]
    if or_alone and len(others) == 1 and not others[0].is_directory:
        return await _read(operation, join(location, others[0].name))
    found = ", ".join(entry.name for entry in entries) or "nothing"
    raise InvalidLayoutError(
        f"{location} holds none of the files {', '.join(dict.fromkeys(names))}, but "
        f"{found}; if it has another name, say so with `filename=...`"
    )


async def _read(operation: Operation, path: str) -> tuple[str, bytes]:
    expected: Any = operation.digests.get(path)
    verify = operation.settings.verify
    return path, await read_document(operation.store, path, expected, verify)
