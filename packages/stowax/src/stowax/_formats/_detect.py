"""Which format a directory is in, judged by what is on disk.

Where our own records are damaged, nothing else is tried: falling back to documents
without checksums would turn a detected error into a silent one.  Only with
`verify=False` are the documents of Orbax the second source.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from stowax._formats import _orbax_item, _safetensors
from stowax._formats._base import ITEM_DOCUMENT, Format, OpenCheckpoint, TreeItem
from stowax._formats._orbax import OrbaxV1Format
from stowax._formats._orbax_json import PARTIAL_MARK, UNFINISHED_MARK
from stowax._formats._orbax_v0 import OrbaxV0Format
from stowax._formats._safetensors import (
    SUFFIX,
    SafetensorsFormat,
    is_whole_directory,
)
from stowax._formats._stowax import MANIFEST, ROOT_SEAL, StowaxFormat, open_tree_item
from stowax._manifest import Digest
from stowax._stores._base import Store, join, resolve
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    NotADirectoryLayoutError,
)

_CHECKPOINTS: tuple[Format, ...] = (StowaxFormat(), OrbaxV1Format(), OrbaxV0Format())
_SAFETENSORS = SafetensorsFormat()


async def open_checkpoint(store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
    """Opens the checkpoint at a path, whoever wrote it.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        InvalidLayoutError: It is no checkpoint, or an incomplete one.
        CorruptCheckpointError: It is damaged.
    """
    asked, path = path, await resolve(store, path)
    entry = await store.stat(path)
    if entry is None:
        raise CheckpointNotFoundError(
            f"nothing is at {path}{await _drafts_beside(store, path)}"
        )
    # By the name that was asked for: what is resolved may be a draft, and whole.
    _refuse_unfinished(asked)
    if not entry.is_directory and not asked.endswith(SUFFIX):
        raise NotADirectoryLayoutError(
            f"{path} is a file; a checkpoint is a directory, or a {SUFFIX} file"
        )
    formats = (*_CHECKPOINTS, _SAFETENSORS) if entry.is_directory else (_SAFETENSORS,)
    for known in formats:
        if not await known.recognises(store, path):
            continue
        try:
            checkpoint = await known.open(store, path, verify=verify)
        except CorruptCheckpointError:
            if verify or not known.is_sealed:
                raise
            continue
        if verify and not known.is_sealed:
            await _refuse_unsealed(store, checkpoint)
        return checkpoint
    names = [child.name for child in await store.list(path)]
    shown = ", ".join(names[:8]) or "nothing"
    raise InvalidLayoutError(f"{path} is no checkpoint; it holds: {shown}")


async def is_checkpoint(store: Store, path: str) -> bool:
    """Whether an existing path is a checkpoint, however damaged, or an empty directory.

    So it tells what a save may replace from what has nothing to do with checkpoints. A
    directory of safetensors files is one as long as it has what a save of ours writes,
    and nothing else.
    """
    entry = await store.stat(path)
    if entry is None:
        return False
    if not entry.is_directory:
        return path.endswith(SUFFIX)
    children = await store.list(path)
    if not children or is_whole_directory(children):
        return True
    for known in _CHECKPOINTS:
        if await known.recognises(store, path):
            return True
    return False


async def open_tree(
    store: Store,
    path: str,
    digests: Mapping[str, Digest],
    *,
    verify: bool,
    rich_types: bool = False,
    fills_missing: bool = False,
) -> TreeItem:
    """Opens the tree item in a directory, whoever wrote it.

    Args:
        store: Where it lies.
        path: The item's directory.
        digests: What the seal of the checkpoint says of files, by full path.
        verify: Whether checksums are compared.
        rich_types: Whether Orbax's records of tuples and NamedTuples are used; our own
            are in any case.
        fills_missing: Whether chunks that Orbax left out are zeros; we leave none out.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        InvalidLayoutError: The directory holds no tree item.
        CorruptCheckpointError: A document is damaged.
    """
    manifest = join(path, MANIFEST)
    if manifest in digests or await store.stat(manifest) is not None:
        try:
            expected = digests.get(manifest)
            return await open_tree_item(store, path, expected, verify=verify)
        except CorruptCheckpointError:
            if verify:
                raise
    entry = await store.stat(path)
    if entry is None:
        raise CheckpointNotFoundError(f"nothing is at {path}")
    if not entry.is_directory:
        return await _safetensors.open_tree(store, path)
    names = [child.name for child in await store.list(path)]
    if ITEM_DOCUMENT not in names and any(name.endswith(SUFFIX) for name in names):
        return await _safetensors.open_tree(store, path)
    return await _orbax_item.open_tree(
        store,
        path,
        verify=verify,
        rich_types=rich_types,
        fills_missing=fills_missing,
    )


def _refuse_unfinished(path: str) -> None:
    """Refuses directories that their names show to be unfinished saves."""
    name = posixpath.basename(path)
    if UNFINISHED_MARK in name:
        raise InvalidLayoutError(
            f"{path} is an unfinished save: its name contains {UNFINISHED_MARK!r}. "
            "Whoever wrote it was interrupted, or is still at work; load another "
            "checkpoint."
        )
    if PARTIAL_MARK in name:
        raise InvalidLayoutError(
            f"{path} belongs to a session of partial saves that is not finished. "
            "Finish it with `partial.finalize`, or load another checkpoint."
        )


async def _refuse_unsealed(store: Store, checkpoint: OpenCheckpoint) -> None:
    for directory in checkpoint.items.values():
        if await store.stat(join(directory, MANIFEST)) is not None:
            raise CorruptCheckpointError(
                f"{join(checkpoint.path, ROOT_SEAL)} is missing, but {directory} has a "
                "manifest. To load what is there without comparing checksums, use "
                "`Context(integrity=IntegrityOptions(verify=False))`."
            )


async def _drafts_beside(store: Store, path: str) -> str:
    """A word about unfinished saves, which explain most missing checkpoints."""
    parent, name = posixpath.split(path)
    above = await store.stat(parent)
    if above is None or not above.is_directory:
        return f"; there is no directory {parent} either"
    found = [e.name for e in await store.list(parent) if e.name.startswith(f"{name}.")]
    return f"; unfinished saves beside it: {', '.join(found)}" if found else ""
