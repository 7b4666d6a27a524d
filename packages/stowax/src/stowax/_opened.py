"""A checkpoint opened for reading: who wrote it, its items, and what they are.

Everything that reads shares this: loads, metadata, dry runs and the load of one leaf.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from etils import epath

from stowax._deadline import entering
from stowax._digest import digest_file, read_pieces
from stowax._environment import lending, report_of
from stowax._formats._base import ItemKind, OpenCheckpoint
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_json import (
    PYTREE_TYPESTR,
    V0_PYTREE_TYPESTRS,
    item_kind,
)
from stowax._formats._stowax import MANIFEST, ROOT_SEAL, check_digest
from stowax._handlers._registry import STATE_NAME
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._operation import Operation, in_place
from stowax._settings import Settings
from stowax._stores._base import join, read_bytes, resolve, walk
from stowax.errors import (
    CheckpointableNotFoundError,
    CorruptCheckpointError,
    DeletionInProgressError,
    InvalidLayoutError,
    InvalidNameError,
)

T = TypeVar("T")

_TREE_TYPESTRS = frozenset({PYTREE_TYPESTR, *V0_PYTREE_TYPESTRS})

AUTO = "AUTO"
"""Stands for "the tree of this checkpoint" where a checkpointable is named."""

_ATTEMPT_COUNT = 10
"""How often a load begins anew because the checkpoint was replaced under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueCheckpointable:
    """A checkpointable that nothing here can load, and all that is known of it.

    `load_checkpointables` gives it for what it was not asked for by name, and
    `checkpointables_metadata` where nobody can tell more. Given as what to load, it
    stands for whatever is stored, as None does; if nothing can load that, it comes
    back.

    Example:
        >>> import stowax
        >>> class Tokenizer:
        ...     async def save(self, directory):
        ...         async def write():
        ...             path = await directory.await_creation()
        ...             (path / "words.txt").write_text("a b")
        ...
        ...         return write()
        ...
        ...     async def load(self, directory): ...
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"words": Tokenizer()})
        >>> stowax.load_checkpointables(path)["words"].files
        ('words.txt',)
    """

    path: str
    typestr: str | None
    """What saved it, as far as recorded."""
    files: tuple[str, ...]


async def unless_replaced(
    location: str,
    settings: Settings,
    read: Callable[[OpenCheckpoint, Operation], Coroutine[Any, Any, T]],
) -> T:
    """Opens a checkpoint and reads it; again, if it has been replaced meanwhile.

    Raises:
        Exception: Whatever went wrong in a checkpoint that stayed where it was.
    """

    async def attempt() -> T:
        return await read(*await open_for_reading(location, settings))

    return await again_if_replaced(location, settings, attempt)


async def again_if_replaced(
    location: str, settings: Settings, attempt: Callable[[], Coroutine[Any, Any, T]]
) -> T:
    """Reads in a checkpoint; again, if it has been replaced meanwhile.

    Files are found by their paths, so a load that overlaps with `overwrite=True` may
    meet files of both checkpoints. Checksums tell, and so does the seal, which no two
    checkpoints have in common.

    Raises:
        Exception: Whatever went wrong in a checkpoint that stayed where it was.
    """
    report = report_of(settings)
    for _ in range(_ATTEMPT_COUNT):
        entering("opening it")
        if report is not None:
            report.begin_again()
        before = await _seal(location, settings)
        try:
            result = await attempt()
        except (CorruptCheckpointError, InvalidLayoutError, OSError):
            if await _seal(location, settings) == before:
                raise
            continue
        if settings.verify or await _seal(location, settings) == before:
            return result
    raise CorruptCheckpointError(
        f"{location} was replaced {_ATTEMPT_COUNT} times while it was being read; "
        "do it when nobody is saving to the same path"
    )


async def _seal(location: str, settings: Settings) -> bytes | None:
    """What identifies the checkpoint that is at a path now; None if nothing does."""
    operation = in_place(location, settings)
    store = operation.store

    async def read() -> bytes | None:
        try:
            return await read_bytes(
                store, join(await resolve(store, location), ROOT_SEAL)
            )
        except (CorruptCheckpointError, OSError):
            return None

    return await operation.submit(read())


async def open_for_reading(
    location: str, settings: Settings
) -> tuple[OpenCheckpoint, Operation]:
    """Opens a checkpoint, and the operation that its handlers take part in."""
    operation = in_place(location, settings)
    checkpoint = await operation.submit(
        open_checkpoint(operation.store, location, verify=settings.verify)
    )
    operation.directory = checkpoint.path
    operation.digests = checkpoint.guest_files
    return checkpoint, operation


async def item_kinds(
    operation: Operation, checkpoint: OpenCheckpoint
) -> dict[str, ItemKind]:
    """What the files of every item are.

    Where a seal names the files, what lies there now is not asked: a file that is
    missing, or one that nobody sealed, must not make an item another one.
    """
    kinds: dict[str, ItemKind] = {}
    sealed, verify = checkpoint.guest_files, operation.settings.verify
    for name, directory in checkpoint.items.items():
        if name in checkpoint.kinds:
            kinds[name] = checkpoint.kinds[name]
            continue
        above = f"{directory}/"
        names = [file[len(above) :] for file in sealed if file.startswith(above)]
        if MANIFEST in names:
            kinds[name] = "tree"
            continue
        if not sealed or not (names or verify):
            entries = await operation.submit(operation.store.list(directory))
            names = [entry.name for entry in entries if not entry.is_directory]
        kinds[name] = item_kind(names)
        is_recorded = checkpoint.typestrs.get(name) in _TREE_TYPESTRS
        if kinds[name] == "opaque" and is_recorded:
            kinds[name] = "tree"  # Whose documents are missing: whoever opens it tells.
    return kinds


def check_tree_name(name: Any) -> None:
    """Refuses what cannot name a tree.

    Raises:
        InvalidNameError: It is no string.
    """
    if name is not None and not isinstance(name, str):
        raise InvalidNameError(
            f"`checkpointable_name` is {name!r:.80}; give a string, or None if the "
            "path is the directory of a tree"
        )


def tree_name(
    checkpoint: OpenCheckpoint, kinds: Mapping[str, ItemKind], name: str
) -> str:
    """The name of the tree that a caller means.

    Raises:
        CheckpointableNotFoundError: There is no tree of that name, or none at all.
        InvalidLayoutError: `AUTO`, and several trees could be meant.
    """
    trees = [n for n, kind in kinds.items() if kind == "tree"]
    if name != AUTO:
        if name in checkpoint.items:
            return name
        if list(checkpoint.items) == [""] and name == STATE_NAME:
            return ""
        raise not_found(checkpoint, name)
    for preferred in (STATE_NAME, ""):
        if preferred in trees:
            return preferred
    if len(trees) == 1:
        return trees[0]
    if not trees:
        raise CheckpointableNotFoundError(
            f"{checkpoint.path} holds no tree, only {sorted(checkpoint.items)}; load "
            "them with `load_checkpointables`"
        )
    raise InvalidLayoutError(
        f"{checkpoint.path} holds several trees, {sorted(trees)}; say which one with "
        "`checkpointable_name=...`"
    )


async def describe(
    operation: Operation, directory: str, typestr: str | None
) -> OpaqueCheckpointable:
    """What can be said of an item that nothing here can load."""
    entries = await operation.submit(operation.store.list(directory))
    files = tuple(entry.name for entry in entries)
    return OpaqueCheckpointable(path=directory, typestr=typestr, files=files)


@contextlib.asynccontextmanager
async def guest_directory(
    operation: Operation, directory: str
) -> AsyncGenerator[epath.Path]:
    """Where a guest finds the files of its item, verified, with plain file calls."""
    await operation.submit(_verify_guest_files(operation, directory))
    if operation.store.has_directories:
        yield operation.settings.path_class(directory)
        return
    with tempfile.TemporaryDirectory(prefix="stowax-") as scratch, lending(scratch):
        await operation.submit(_export(operation, directory, scratch))
        yield operation.settings.path_class(scratch)


async def _verify_guest_files(operation: Operation, directory: str) -> None:
    """Compares the files that a guest will read with their digests."""
    if not operation.settings.verify:
        return
    for path, digest in operation.digests.items():
        if path.startswith(f"{directory}/"):
            await _verify_guest_file(operation, path, digest)


async def _verify_guest_file(operation: Operation, path: str, expected: Digest) -> None:
    try:
        found = await digest_file(operation.store, path)
    except FileNotFoundError:
        found = None
    check_digest(path, found, expected)


async def _export(operation: Operation, directory: str, scratch: str) -> None:
    """Copies an item out of a store that is no directory, for guests to read."""
    for path, entry in await walk(operation.store, directory):
        local = epath.Path(scratch) / path[len(directory) + 1 :]
        if entry.is_directory:
            local.mkdir(parents=True, exist_ok=True)
            continue
        with await on_worker(open, local, "xb") as file:
            async for piece in read_pieces(operation.store, path):
                await on_worker(file.write, piece)


def not_found(checkpoint: OpenCheckpoint, name: str) -> CheckpointableNotFoundError:
    """The error for a name that no item of a checkpoint has."""
    if name == checkpoint.deleting:
        return DeletionInProgressError(
            f"{checkpoint.path}: Orbax has begun to delete {name!r}, and has not "
            f"finished. `delete(path, checkpointable_name={name!r})` finishes it"
        )
    return CheckpointableNotFoundError(
        f"{checkpoint.path} holds no checkpointable {name!r}; it holds "
        f"{sorted(checkpoint.items)}"
    )
