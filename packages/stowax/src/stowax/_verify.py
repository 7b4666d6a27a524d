"""Every byte of a checkpoint compared with what was saved, without loading it."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from stowax._codecs._json import parse
from stowax._context import current_settings
from stowax._damage import VerifyReport
from stowax._deadline import drive_in_time, entering
from stowax._formats._base import ITEM_DOCUMENT, OpenCheckpoint
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_json import OUR_KEY
from stowax._formats._stowax import MANIFEST, ROOT_SEAL, Seal, decode_seal
from stowax._item_verify import Comparison
from stowax._load_leaf import find_leaf
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._opened import AUTO, again_if_replaced, item_kinds, not_found, tree_name
from stowax._operation import Operation, in_place, reported
from stowax._operation_path import absolute
from stowax._settings import check_supported
from stowax._stores._base import Store, join, read_bytes, resolve
from stowax.errors import (
    CorruptCheckpointError,
    DamageError,
    InvalidNameError,
    LeafNotFoundError,
    NoChecksumsError,
)

_METRICS = "metrics"
"""A directory that belongs to the root: metrics of a step."""


def verify(
    path: Any,
    *,
    checkpointables: str | Collection[str] | None = None,
    leaves: str | Collection[str] | None = None,
) -> VerifyReport:
    """Compares every byte of a checkpoint with what was saved; raises if one differs.

    No array is made and nothing is put on devices: whatever the size of the
    checkpoint, it takes a few buffers of 4 MiB. `IntegrityOptions` do not matter.
    Each process that calls it checks the whole by itself; one is enough.

    Not only what a load reads is compared, but also what Orbax and TensorStore read of
    it, what handlers wrote, and the bytes between chunks.

    Args:
        path: A checkpoint of this library, or the directory of a tree in one.
        checkpointables: A name, or several; None: all, and then also files are looked
            for that no record names.
        leaves: A leaf, or several, as messages and `load_leaf` name them: only their
            bytes, and the records that say where they are. Of the tree that `load`
            would load, or that `checkpointables` names.

    Returns:
        What was compared. That it returns means that all of it is as it was saved.

    Raises:
        DamageError: Something is not; its `report` has every damaged place.
        NoChecksumsError: It was not saved by this library, so that nobody can tell.
        CheckpointNotFoundError: Nothing is at the path.
        InvalidLayoutError: It is no checkpoint, or an incomplete one.
        CheckpointableNotFoundError: It holds no checkpointable of that name.
        LeafNotFoundError: The tree has no such leaf.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.
        RunningLoopError: Called in a callback of `on_complete`, where it could not go
            on.

    Example:
        >>> import pathlib, numpy as np, stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": np.ones(3), "b": np.zeros(2)})
        >>> stowax.verify(path).leaf_count
        2
        >>> index = pathlib.Path(path / "state/d/index")
        >>> _ = index.write_bytes(b"?" + index.read_bytes()[1:])
        >>> stowax.verify(path)
        Traceback (most recent call last):
        ...
        stowax.errors.DamageError: ...checkpoint: 1 damaged place in 13 files ...
          state/d/index: does not match its checksum
        ...
        >>> stowax.verify(path, leaves="w").leaf_count
        1
    """
    location, settings = absolute(path), current_settings()
    check_supported(settings, saving=False)
    asked = _Asked(
        checkpointables=_names(checkpointables, "checkpointables"),
        leaves=_names(leaves, "leaves"),
    )
    named = asked.checkpointables
    if asked.leaves is not None and named is not None and len(named) > 1:
        raise InvalidNameError(
            f"leaves are those of one tree, but `checkpointables` names {named}; call "
            "`verify` for each of them"
        )

    settings, told = reported("verify", location, settings, in_background=False)

    async def attempt() -> VerifyReport:
        operation = in_place(location, settings)
        opened = await operation.submit(_open(operation.store, location))
        entering("comparing it with its checksums")
        report = await operation.submit(_compare(operation, opened, asked))
        if report.damages:
            raise DamageError(
                f"{report.brief()}\nLoad an older checkpoint, or what is there with "
                "`Context(integrity=IntegrityOptions(verify=False))`.",
                report,
            )
        return report

    async def read() -> VerifyReport:
        return await again_if_replaced(location, settings, attempt)

    with told.telling():
        return drive_in_time(read, settings, f"verification of {location}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be verified; None: everything there."""

    checkpointables: tuple[str, ...] | None
    leaves: tuple[str, ...] | None

    def has_item(self, name: str) -> bool:
        """Whether a checkpointable is to be compared as a whole."""
        if self.leaves is not None:
            return False
        return self.checkpointables is None or name in self.checkpointables

    def has_file(self, name: str) -> bool:
        """The same of a file; what stands at the root always is."""
        item, is_below, _ = name.partition("/")
        return not is_below or item == _METRICS or self.has_item(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A checkpoint of ours, as far as it can be opened; names are relative to it."""

    path: str
    checkpoint: OpenCheckpoint | None
    """None if a load would be refused, because of what stands at the root."""
    problem: str
    """What it would be told."""
    has_seal: bool
    manifests: tuple[str, ...]
    """Those that are there."""
    promised: tuple[str, ...]
    """Those that are not, although documents of Orbax name them."""

    @property
    def is_tree(self) -> bool:
        """Whether it is the directory of a tree alone."""
        return not self.has_seal and MANIFEST in self.manifests


async def _open(store: Store, location: str) -> _Opened:
    """Opens a checkpoint of ours, even if its root is damaged.

    Raises:
        NoChecksumsError: It is somebody else's.
        Exception: See `verify`.
    """
    checkpoint = failure = None
    try:
        checkpoint = await open_checkpoint(store, location, verify=True)
    except CorruptCheckpointError as error:
        failure = error
    path = await resolve(store, location)
    below = [e.name for e in await store.list(path) if e.is_directory]
    directories = ["", *(f"{name}/" for name in below)]
    manifests: list[str] = []
    promised: list[str] = []
    for directory in directories:
        name = f"{directory}{MANIFEST}"
        if await store.stat(f"{path}/{name}") is not None:
            manifests.append(name)
        elif await _names_manifest(store, f"{path}/{directory}{ITEM_DOCUMENT}"):
            promised.append(name)
    has_seal = await store.stat(join(path, ROOT_SEAL)) is not None
    if not has_seal and not manifests and not promised:
        raise failure or NoChecksumsError(
            f"{path} was not saved by this library: there are no checksums to compare "
            "it with, and it may be whole or damaged. Load it and save it again to "
            "have some."
        )
    return _Opened(
        path=path,
        checkpoint=checkpoint,
        problem=str(failure or ""),
        has_seal=has_seal,
        manifests=tuple(manifests),
        promised=tuple(promised),
    )


async def _names_manifest(store: Store, document: str) -> bool:
    """Whether a `_METADATA` is one of ours."""
    try:
        data = await read_bytes(store, document)
        found = await on_worker(parse, data, document)
    except (CorruptCheckpointError, OSError):
        return False
    return isinstance(found, dict) and OUR_KEY in found


async def _compare(
    operation: Operation, opened: _Opened, asked: _Asked
) -> VerifyReport:
    """Compares what is asked for.

    Raises:
        CheckpointableNotFoundError: There is none of that name.
        LeafNotFoundError: The tree has no such leaf.
        OSError: Something cannot be read, for reasons that are not damage.
    """
    comparison = Comparison(
        operation.store, opened.path, operation.reading, operation.report
    )
    manifests: dict[str, Digest | None] = dict.fromkeys(opened.manifests)
    seal = None if opened.is_tree else await _read_seal(comparison)
    if seal is not None:
        manifests = {**seal.manifests}
        files = {**seal.documents, **seal.guests}
        await comparison.check_files(
            {name: files[name] for name in files if asked.has_file(name)}
        )
    _note_strangers(comparison, opened, seal)
    checkpoint, names = opened.checkpoint, _names_below(manifests)
    if checkpoint is not None:
        names = list(checkpoint.items)
        for name in asked.checkpointables or ():
            if name not in names:
                raise not_found(checkpoint, name)
        for name, directory in checkpoint.items.items():
            # Of one that has no files, nothing else can be missed.
            is_there = await operation.store.stat(directory) is not None
            if asked.has_item(name) and not is_there:
                comparison.note(name, "is missing")
    names = [name for name in names if asked.has_item(name)]
    for name, expected in manifests.items():
        directory = posixpath.dirname(name)
        if asked.has_item(directory.partition("/")[0]):
            await comparison.check_item(directory, expected)
    if asked.leaves is not None and checkpoint is not None:
        names = [await _tree_of(operation, checkpoint, asked)]
        expected = manifests.get(posixpath.join(names[0], MANIFEST))
        root = await comparison.read_manifest(names[0], expected)
        if root is not None:
            directory = checkpoint.items[names[0]]
            found = {find_leaf(root.leaves, leaf, directory) for leaf in asked.leaves}
            await comparison.check_leaves(names[0], root, found)
    if opened.problem and not comparison.damages:
        comparison.note(".", opened.problem)
    is_all = asked.checkpointables is None and asked.leaves is None
    return VerifyReport(
        path=opened.path,
        checkpointables=tuple(sorted(names)),
        leaf_count=comparison.leaf_count,
        file_count=len(comparison.compared),
        checked_bytes=comparison.checked_bytes,
        damages=comparison.in_order(),
        unvouched=await comparison.unvouched() if is_all else (),
    )


async def _read_seal(comparison: Comparison) -> Seal | None:
    """The seal, if it is whole."""
    lost = "what stands beside it, and files of handlers, were not compared"
    seal = await comparison.read_record(ROOT_SEAL, None, decode_seal, lost)
    if seal is None:
        comparison.blind.add("")
    return seal


def _note_strangers(comparison: Comparison, opened: _Opened, seal: Seal | None) -> None:
    """A manifest and what names it belong together, or nothing vouches for a tree."""
    if seal is None:
        for name in opened.promised:
            comparison.note(name, f"is missing, although {ITEM_DOCUMENT} names it")
        return
    known = _names_below(seal.digests)
    for name in opened.manifests:
        if posixpath.dirname(name) not in known:
            comparison.note(name, f"is not named by {ROOT_SEAL}")


def _names_below(files: Collection[str]) -> list[str]:
    """The directories at the root that files lie in; "" for the root itself."""
    return sorted({posixpath.dirname(file).partition("/")[0] for file in files})


async def _tree_of(
    operation: Operation, checkpoint: OpenCheckpoint, asked: _Asked
) -> str:
    """The name of the tree whose leaves are meant."""
    kinds = await item_kinds(operation, checkpoint)
    wanted = asked.checkpointables[0] if asked.checkpointables else AUTO
    name = tree_name(checkpoint, kinds, wanted)
    if kinds[name] != "tree":
        raise LeafNotFoundError(
            f"the checkpointable {name!r} of {checkpoint.path} is no tree, and has no "
            "leaves; leave `leaves` out to verify it"
        )
    return name


def _names(value: Any, argument: str) -> tuple[str, ...] | None:
    """The names that a caller gave, one or several.

    Raises:
        InvalidNameError: They are none.
    """
    if value is None:
        return None
    names: tuple[Any, ...] = (value,) if isinstance(value, str) else ()
    if not names and isinstance(value, Collection):
        names = tuple(cast("Collection[Any]", value))
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidNameError(
            f"`{argument}` is {value!r:.80}; give a name or several, or None for all"
        )
    return names
