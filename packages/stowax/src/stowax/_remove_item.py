"""One checkpointable taken out of a checkpoint: the others in a new one, at its place.

The new one is made beside the old one, of the same files under second names, and takes
its place in one step.  So a crash leaves either all of it, or all but the one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from stowax._commit import draft_of
from stowax._formats._base import OpenCheckpoint
from stowax._formats._orbax_json import (
    DELETION_DOCUMENT,
    ROOT_DOCUMENT,
    without_handler,
)
from stowax._formats._stowax import ROOT_SEAL, without_item
from stowax._stores._base import Store, join, read_bytes, walk
from stowax.errors import (
    DeletionRecoveryError,
    InvalidLayoutError,
    NothingToDeleteError,
    SaveError,
)


def check_removable(checkpoint: OpenCheckpoint, name: str) -> None:
    """Refuses what cannot be taken out.

    Raises:
        NothingToDeleteError: There is none of that name.
        DeletionRecoveryError: Orbax has begun to delete another one.
        InvalidLayoutError: It is the only one.
    """
    if checkpoint.deleting not in (None, name):
        raise DeletionRecoveryError(
            f"{checkpoint.path}: Orbax has begun to delete {checkpoint.deleting!r} and "
            f"has not finished; delete that one before {name!r}"
        )
    if name not in checkpoint.items and name != checkpoint.deleting:
        raise NothingToDeleteError(
            f"{checkpoint.path} holds no checkpointable {name!r}; it holds "
            f"{sorted(checkpoint.items)}. If that is fine, use `missing_ok=True`"
        )
    if not checkpoint.items.keys() - {name}:
        raise InvalidLayoutError(
            f"{checkpoint.path} holds nothing but {name!r}; delete the whole "
            "checkpoint, without `checkpointable_name`"
        )


async def remove_item(store: Store, path: str, name: str) -> None:
    """Replaces a checkpoint by one without an item.

    Args:
        store: Where it is.
        path: The checkpoint.
        name: The item; see `check_removable`.
    """
    await store.complete_replacement(path)
    draft = draft_of(path)
    try:
        before = await _root(store, path)
        try:
            await _link_others(store, path, draft, name, before)
        finally:  # Files that are missing are a sign of it, too.
            if await _root(store, path) != before:
                raise SaveError(
                    f"{path} was replaced while {name!r} was taken out of it; nothing "
                    "was changed. Look at what is there now, and try again"
                )
        await store.publish(draft, path, replace=True)
    except BaseException:  # A cancellation too; raised again.
        await store.delete(draft)
        raise
    await store.sync([posixpath.dirname(path)])


async def _link_others(
    store: Store, path: str, draft: str, name: str, root: Mapping[str, bytes]
) -> None:
    await store.make_directory(draft, like=path)
    directories = [draft]
    documents = _without(root, name)
    left_out = {*documents, DELETION_DOCUMENT}
    for source, entry in await walk(store, path):
        relative = source[len(path) + 1 :]
        if relative.split("/")[0] == name or relative in left_out:
            continue
        target = join(draft, relative)
        if entry.is_directory:
            await store.make_directory(target, like=source)
            directories.append(target)
        else:
            await store.link(source, target)
    for document, data in documents.items():
        await store.write(join(draft, document), [data], size_bytes=len(data))
    written = [join(draft, document) for document in documents]
    await store.sync([*written, *directories])


async def _root(store: Store, path: str) -> dict[str, bytes]:
    """What stands at the root; no two checkpoints have it in common."""
    found: dict[str, bytes] = {}
    for document in (ROOT_DOCUMENT, ROOT_SEAL):
        if await store.stat(join(path, document)) is not None:
            found[document] = await read_bytes(store, join(path, document))
    return found


def _without(root: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The same, said without an item."""
    found = dict(root)
    if ROOT_DOCUMENT in found:
        found[ROOT_DOCUMENT] = without_handler(found[ROOT_DOCUMENT], name)
    if ROOT_SEAL in found:
        document = found.get(ROOT_DOCUMENT, b"")
        found[ROOT_SEAL] = without_item(found[ROOT_SEAL], name, document)
    return found
