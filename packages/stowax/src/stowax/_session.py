"""A session as it is on disk: its updates, and what they lie on.

What the directories and files are, says `_session_records`.
"""

from __future__ import annotations

import logging
import posixpath
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stowax._codecs._item_manifest import (
    digest,
)
from stowax._codecs._json import as_object, parse
from stowax._codecs._zarr import ZarrVersion
from stowax._database_index import DATABASE
from stowax._formats import _orbax_item
from stowax._formats._base import ITEM_DOCUMENT, TreeItem
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_json import (
    ARRAYS_DIRECTORY,
    COMMIT_DOCUMENT,
    INDICATOR,
    ROOT_DOCUMENT,
    SHARDING_DOCUMENT,
    STRINGS_DOCUMENT,
    UNFINISHED_MARK,
    RootDocument,
    decode_root,
)
from stowax._formats._stowax import (
    PROCESS_PREFIX,
    ROOT_SEAL,
    Seal,
    check_digest,
    decode_seal,
    open_tree_item,
    record_names,
)
from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._session_records import (
    FINALIZED,
    UpdateFacts,
    decode_update,
    finalized_as,
    is_of_session,
    parse_update,
    session_of,
    update_record,
)
from stowax._stores._base import Store, join, read_bytes, walk
from stowax.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    SaveError,
)

_logger = logging.getLogger("stowax")

_TREE_NAMES = frozenset(
    {
        *(ITEM_DOCUMENT, SHARDING_DOCUMENT, STRINGS_DOCUMENT, ARRAYS_DIRECTORY),
        *(DATABASE, "d", COMMIT_DOCUMENT),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What an update, or the checkpoint below all of them, holds."""

    path: str
    items: Mapping[str, str]
    """Name of every item → its directory."""
    facts: RootDocument
    seal: Seal | None
    """None: Orbax wrote it."""
    identity: str = ""
    """Of an update; stands in the names of its records."""
    nsecs: int = 0
    replaces: bool = False
    base: Digest | None = None
    """See `UpdateFacts`."""
    root: bytes = b""
    """Of a checkpoint, the document at its root, which no other one has."""

    def digests_below(self, name: str) -> dict[str, Digest]:
        """What is recorded of the files of an item that no manifest of its covers."""
        if self.seal is None:
            return {}
        recorded = {**self.seal.documents, **self.seal.guests}
        head = f"{name}/"
        return {k[len(head) :]: d for k, d in recorded.items() if k.startswith(head)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedItem:
    """One item of an update, or of the checkpoint below."""

    owner: Saved
    name: str
    directory: str
    tree: TreeItem | None = None
    """None: it holds no tree."""
    is_alone: bool = False
    """Whether a tree is all that it holds, so that it can be united with others."""
    use_ocdbt: bool = True
    """Whether the arrays of the tree lie in databases, and not each in a directory."""
    zarr_version: ZarrVersion = 3
    others: tuple[str, ...] = ()
    """Files beside the tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as it is on disk."""

    final: str
    updates: tuple[Saved, ...] = ()
    """In order."""
    base: Digest | None = None
    """What it began from, by its root document; None: from nothing."""
    published: Saved | None = None
    """What is at the final path, as far as the session may have to do with it."""
    is_taken: bool = False
    """Whether anything is at the final path."""
    over: frozenset[str] = frozenset()
    """Ids of updates that have become what is there: only their end is missing."""

    @property
    def path(self) -> str:
        """Its directory."""
        return session_of(self.final)

    @property
    def is_over(self) -> bool:
        """Whether it has become what is at the final path."""
        return bool(self.over)

    @property
    def saved(self) -> tuple[Saved, ...]:
        """All that it holds, what it began from below the updates."""
        base = () if self.base is None or self.published is None else (self.published,)
        return (*base, *self.updates)


@dataclass(frozen=True, slots=True)
class KnownUpdates:
    """What was read of the updates of a session, which do not change."""

    saved: dict[str, Saved] = field(default_factory=dict[str, Saved])
    """By path."""
    items: dict[str, SavedItem] = field(default_factory=dict[str, SavedItem])
    """By directory."""


async def open_session(
    store: Store,
    final: str,
    *,
    verify: bool,
    may_begin: bool = False,
    known: KnownUpdates | None = None,
) -> Session:
    """What is there of a session, and of the checkpoint at its final path.

    Args:
        store: Where it is.
        final: The final path.
        verify: Whether checksums are compared.
        may_begin: Whether a session without updates begins from what is published.
        known: What was read before, and gets what is read.

    Raises:
        CorruptCheckpointError: A record is damaged.
        InvalidLayoutError: No session can begin from what is at the final path.
    """
    session = session_of(final)
    updates: list[Saved] = []
    record = b""
    if await store.stat(session) is not None:
        entries = await store.list(session)
        strange = [
            entry.name
            for entry in entries
            if entry.is_directory and not is_of_session(entry.name)
        ]
        if strange:
            raise InvalidLayoutError(
                f"{session} holds {', '.join(strange)}: Orbax has begun to finalize "
                "this session and was interrupted, or is still at work. What it leaves "
                "cannot be told apart any more; load another checkpoint"
            )
        for entry in entries:
            path = join(session, entry.name)
            if entry.name == FINALIZED:
                record = await read_bytes(store, path)
            found = parse_update(entry.name) if entry.is_directory else None
            if found is not None:
                update = None if known is None else known.saved.get(path)
                if update is None:
                    update = await _open_update(store, path, *found)
                if known is not None:
                    known.saved[path] = update
                updates.append(update)
    updates.sort(key=lambda update: (update.nsecs, update.identity))
    base = next((u.base for u in updates if u.base is not None), None)
    await store.complete_replacement(final)
    is_taken = await store.stat(final) is not None
    published, over = None, frozenset[str]()
    begins = may_begin and not updates
    if is_taken and (base is not None or record or begins):
        published = await _open_published(store, final, verify=verify)
        over = finalized_as(record, published.root)
        if begins:
            base = digest(published.root)
    return Session(
        final=final,
        updates=tuple(updates),
        base=base,
        published=published,
        is_taken=is_taken,
        over=over,
    )


def check_session(session: Session) -> None:
    """Refuses a session that cannot go on, because of what is at its final path.

    Raises:
        CheckpointExistsError: Something is there, and the session did not begin from
            it.
        SaveError: What it began from is not there any more.
    """
    final, published = session.final, session.published
    if session.base is None:
        if session.is_taken:
            hint = "change what is there with `partial.save(..., replace=True)`"
            if session.updates:
                hint = f"move it away; the session at {session.path} is untouched"
            raise CheckpointExistsError(
                f"{final} exists already. Choose another path, or {hint}"
            )
    elif published is None or digest(published.root) != session.base:
        raise SaveError(
            f"the session at {session.path} began from a checkpoint at {final} that is "
            "not there any more: it was replaced or deleted. To begin anew, delete the "
            "directory of the session"
        )


async def _open_update(store: Store, path: str, nsecs: int, identity: str) -> Saved:
    names = {entry.name for entry in await store.list(path)}
    root = b""
    if ROOT_DOCUMENT in names:
        root = await read_bytes(store, join(path, ROOT_DOCUMENT))
    facts, sealed = UpdateFacts(replaces=False, base=None), None
    if update_record(identity) in names:
        record = join(path, update_record(identity))
        try:
            data = await read_bytes(store, record)
            facts, sealed = await on_worker(decode_update, data)
            check_digest(
                join(path, ROOT_DOCUMENT),
                digest(root) if root else None,
                sealed.documents[ROOT_DOCUMENT],
            )
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(f"{record}: {error}") from error
    elif INDICATOR not in names or await _has_records(store, path):
        raise CorruptCheckpointError(
            f"{path} has neither a record of Stowax nor one of Orbax; this update of "
            "the session is damaged. Delete it to go on without it"
        )
    if not root:
        raise CorruptCheckpointError(
            f"{join(path, ROOT_DOCUMENT)} is missing; this update of the session is "
            "damaged. Delete it to go on without it"
        )
    said = decode_root(root, path=path)
    items = {name: join(path, name) for name in said.typestrs}
    for directory in items.values():
        if await store.stat(directory) is None:
            raise CorruptCheckpointError(
                f"{directory} is missing; this update of the session is damaged"
            )
    return Saved(
        path=path,
        items=items,
        facts=said,
        seal=sealed,
        identity=identity,
        nsecs=nsecs,
        replaces=facts.replaces,
        base=facts.base,
    )


async def _has_records(store: Store, path: str) -> bool:
    """Whether an item in a directory has records of ours."""
    manifest = record_names().manifest
    return any(
        posixpath.basename(found).startswith(manifest)
        for found, _ in await walk(store, path)
    )


async def end_session(store: Store, session: Session) -> None:
    """Removes the updates that have become a checkpoint, and what is left of a session.

    It is taken out of sight first, so that none of it is found for a part. What others
    have saved to it meanwhile is put back: it is theirs to decide about.
    """
    doomed = f"{session.path}{UNFINISHED_MARK}-delete-{uuid.uuid4().hex}"
    try:
        await store.publish(session.path, doomed, replace=False)
    except FileNotFoundError:
        return  # Somebody else did.
    parent = posixpath.dirname(session.path)
    await store.sync([parent])
    entries = await store.list(doomed)
    left: list[str] = []
    for entry in entries:
        update = parse_update(entry.name) if entry.is_directory else None
        if update is not None and update[1] not in session.over:
            left.append(entry.name)
    if not left:
        await store.delete(doomed)
        return
    for entry in entries:
        if entry.name not in left:
            await store.delete(join(doomed, entry.name))
    await store.publish(doomed, session.path, replace=False)
    await store.sync([parent])
    _logger.warning(
        "%s was saved to while it was finalized; these updates are not in the "
        "checkpoint, and are still there: %s",
        session.path,
        ", ".join(left),
    )


async def _open_published(store: Store, final: str, *, verify: bool) -> Saved:
    checkpoint = await open_checkpoint(store, final, verify=verify)
    if "" in checkpoint.items or await store.stat(join(final, ROOT_DOCUMENT)) is None:
        raise InvalidLayoutError(
            f"{final} holds no checkpointables by name, or is of an older kind; load "
            "it, and save it to another path with `save`"
        )
    if checkpoint.deleting is not None:
        raise InvalidLayoutError(
            f"{final}: Orbax has begun to delete {checkpoint.deleting!r} and has not "
            f"finished; do so with `delete({final!r}, checkpointable_name="
            f"{checkpoint.deleting!r})`"
        )
    sealed = None
    if await store.stat(join(final, ROOT_SEAL)) is not None:
        sealed = decode_seal(await read_bytes(store, join(final, ROOT_SEAL)))
    root = await read_bytes(store, join(final, ROOT_DOCUMENT))
    items = dict(checkpoint.items)
    if checkpoint.metrics is not None:
        items["metrics"] = join(final, "metrics")
    return Saved(
        path=final,
        items=items,
        facts=decode_root(root, path=final),
        seal=sealed,
        root=root,
    )


async def open_saved_item(
    store: Store,
    owner: Saved,
    name: str,
    *,
    verify: bool,
    known: KnownUpdates | None = None,
) -> SavedItem:
    """Opens an item of an update, or of the checkpoint below.

    Args:
        store: Where it is.
        owner: What it belongs to.
        name: Of the item.
        verify: Whether checksums are compared.
        known: See `open_session`.

    Raises:
        CorruptCheckpointError: It is damaged.
        InvalidLayoutError: It is of a form of Orbax that is not read here.
    """
    directory = owner.items[name]
    found = None if known is None else known.items.get(directory)
    if found is None:
        found = await _open_item(store, owner, name, verify=verify)
    if known is not None and owner.identity:
        known.items[directory] = found
    return found


async def _open_item(
    store: Store, owner: Saved, name: str, *, verify: bool
) -> SavedItem:
    directory = owner.items[name]
    item = SavedItem(owner=owner, name=name, directory=directory)
    names = {entry.name for entry in await store.list(directory)}
    if ITEM_DOCUMENT not in names:
        return item
    where = f"{directory}/{ITEM_DOCUMENT}"
    document = as_object(parse(await read_bytes(store, where), where), where)
    use_ocdbt = document.get("use_ocdbt")
    if use_ocdbt is None:
        use_ocdbt = DATABASE in names
    item = replace(
        item,
        use_ocdbt=bool(use_ocdbt),
        zarr_version=3 if document.get("use_zarr3") else 2,
    )
    if owner.seal is None:
        tree = await _orbax_item.open_tree(
            store, directory, verify=verify, is_merged=not owner.identity
        )
        # Without a database, arrays are directories of any name.
        others = [name for name in sorted(names) if not is_of_tree(name)]
        is_alone = not use_ocdbt or not others
        return replace(item, tree=tree, is_alone=is_alone, others=tuple(others))
    manifest = record_names(owner.identity).manifest
    expected = owner.seal.manifests.get(f"{name}/{manifest}")
    if expected is None:  # A guest wrote it, by other means.
        return item
    tree = await open_tree_item(
        store, directory, expected, verify=verify, manifest_name=manifest
    )
    others = sorted(owner.digests_below(name).keys() - {COMMIT_DOCUMENT})
    return replace(item, tree=tree, is_alone=not others, others=tuple(others))


def is_of_tree(name: str) -> bool:
    """Whether a file, or directory, belongs to every tree that Orbax writes."""
    return name in _TREE_NAMES or name.startswith(PROCESS_PREFIX)


def no_session(final: str) -> CheckpointNotFoundError:
    """The error for a session that nobody has begun."""
    return CheckpointNotFoundError(
        f"there is no session at {session_of(final)}: save something to it first, with "
        f"`partial.save({final!r}, ...)`"
    )
