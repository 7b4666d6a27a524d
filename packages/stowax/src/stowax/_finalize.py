"""A session made into a checkpoint: united, published, and the session removed.

The checkpoint is made beside its final path, of the same files under second names, and
published as any other. So a crash leaves the session as it was, or a whole checkpoint
and a session of which is known that it has become this checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stowax._commit import begin, commit, conclude, draft_of
from stowax._composite import ItemSums, RootFacts, write_item_commit, write_root
from stowax._context import current_settings
from stowax._database_source import DatabaseSource
from stowax._environment import runtime_of
from stowax._formats._base import TreeItem
from stowax._formats._orbax_json import (
    COMMIT_DOCUMENT,
    INDICATOR,
    ROOT_DOCUMENT,
)
from stowax._formats._stowax import MANIFEST
from stowax._item_united import ArrayForm, ItemSource, check_file, write_united
from stowax._manifest import Digest
from stowax._operation import Operation, reported
from stowax._operation_path import absolute
from stowax._plan._unite import lay_on, unite
from stowax._response import raise_unseen
from stowax._runtime import Runtime
from stowax._session import (
    Saved,
    SavedItem,
    Session,
    check_session,
    end_session,
    no_session,
    open_saved_item,
    open_session,
)
from stowax._session_calls import SessionCall, calls_key, end_call, others_ended
from stowax._session_items import (
    check_form_is_known,
    check_united,
    layer_of,
    unites,
)
from stowax._session_records import FINALIZED, encode_finalized, final_of
from stowax._settings import Settings, check_supported
from stowax._staged_save import in_progress, reservation_of
from stowax._stores._base import Store, join, read_bytes, walk
from stowax._tasks import noting
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    SaveError,
    UnsupportedOptionError,
)


def finalize(path: Any) -> None:
    """Makes of a session one checkpoint, at the path that its saves were given.

    Waits for those that are under way in this process. Until this returns, the session
    is there; afterwards the checkpoint is complete and durable, and loads like any
    other. What was at the path, if the session began from it, stays whole until the
    new one takes its place. Safe to repeat after a failure or a crash. In a run of
    several processes all of them call it.

    Args:
        path: The path of the checkpoint, or that of the session itself.

    Raises:
        CheckpointExistsError: Something is at the path, and the session did not begin
            from it.
        CheckpointNotFoundError: There is no session.
        SaveError: What the session began from is not there any more.
        BackgroundSaveError: A partial save failed, and nobody had asked for it.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.partial.save(path, {"layer_1": {"w": 1.5}})
        >>> stowax.partial.save(path, {"layer_2": {"w": 2.5}})
        >>> stowax.partial.finalize(path)
        >>> stowax.load(path)
        {'layer_1': {'w': 1.5}, 'layer_2': {'w': 2.5}}
    """
    settings = current_settings()
    check_supported(settings)
    location = final_of(absolute(path))
    runtime = runtime_of(settings)
    settings, report = reported("save", location, settings, in_background=False)
    try:
        operation = _in_turn(location, settings, runtime)
        # No longer in turn: the callback may save to a session of the same path.
        runtime.run(conclude(operation, location))
    except BaseException as error:  # An interrupt too; raised again.
        report.failed(error)
        raise
    finally:
        report.wait()


def _in_turn(location: str, settings: Settings, runtime: Runtime) -> Operation:
    """Finalizes a session after all saves that are under way."""
    key, call = calls_key(settings, location), SessionCall(is_end=True)
    earlier = runtime.session_calls.begin(key, call)
    reservation = reservation_of(settings, location)
    is_reserved = False
    try:
        runtime.run(others_ended(earlier))
        failure: Exception | None = None
        try:
            raise_unseen(runtime)
            is_reserved = runtime.reserve(reservation)
            if not is_reserved:
                raise in_progress(location)
        except Exception as error:  # noqa: BLE001 the other processes have to hear
            failure = error
        with noting(f"in the finalization of {location}"):
            return runtime.run(_finalize(location, settings, runtime, failure))
    finally:
        if is_reserved:
            runtime.free(reservation)
        end_call(runtime, key, call)


async def _finalize(
    location: str, settings: Settings, runtime: Runtime, failure: Exception | None
) -> Operation:
    found: list[Session] = []

    async def prepare(operation: Operation) -> str:
        session = await open_session(operation.store, location, verify=settings.verify)
        if session.is_over:
            await end_session(operation.store, session)
            return ""
        if session.updates or session.is_taken:
            check_session(session)
        if not session.updates:
            raise no_session(location)
        found.append(session)
        return draft_of(location)

    operation = await begin(
        location,
        settings,
        runtime,
        borrow=True,
        failure=failure,
        prepare=prepare,
        what="the finalization of",
    )
    if not operation.directory:
        return operation

    async def finish() -> bytes:
        return b""

    async def seal(_: Sequence[bytes]) -> None:
        await _Assembly(operation, found[0]).write()

    await commit(
        operation,
        location,
        finish=finish,
        seal=seal,
        replace=bool(found) and found[0].base is not None,
    )
    if operation.processes.is_primary:
        ended = frozenset(update.identity for update in found[0].updates)
        await end_session(operation.store, replace(found[0], over=ended))
    return operation


@dataclass(slots=True)
class _Assembly:
    """The checkpoint that a session becomes, written into the draft."""

    operation: Operation
    session: Session
    guests: dict[str, Digest] = field(default_factory=dict[str, Digest])
    manifests: dict[str, Digest] = field(default_factory=dict[str, Digest])
    """Of items that are taken over as they are; all by path below the root."""
    is_sealed: bool = True
    """Whether checksums vouch for all of it: nothing of it is Orbax's."""

    async def write(self) -> None:
        """Writes all of it, durably but for the names in its directories."""
        operation, session = self.operation, self.session
        store, base = operation.store, session.published
        self.is_sealed = all(owner.seal is not None for owner in session.saved)
        if base is not None and base.seal is not None and not self.is_sealed:
            raise InvalidLayoutError(
                f"the session at {session.path} has updates of Orbax on a checkpoint "
                "of ours, which Orbax does not know of; delete these updates"
            )
        is_step = False
        if base is not None:
            is_step = await store.stat(join(base.path, INDICATOR)) is None
        typestrs: dict[str, str] = {}
        metadata: dict[str, Any] = {}
        owners: dict[str, list[Saved]] = {}
        for owner in session.saved:
            metadata = _merged(metadata, owner.facts.custom_metadata)
            for name in owner.items:
                owners.setdefault(name, []).append(owner)
                if name in owner.facts.typestrs:
                    typestrs[name] = owner.facts.typestrs[name]
        for name, saved in owners.items():
            operation.phase = f"uniting {name}"
            if base is not None and saved == [base]:
                await self._take_over(base, name)
                continue
            await self._write_item(name, saved)
            if is_step:
                path = f"{name}/{COMMIT_DOCUMENT}"
                self.guests[path] = await write_item_commit(
                    operation, name, session.final
                )
        root = await write_root(
            operation,
            session.final,
            typestrs,
            RootFacts(custom_metadata=metadata, is_step=is_step),
            started_nsecs=session.saved[0].facts.init_timestamp_nsecs,
            sums=self._sums() if self.is_sealed else None,
        )
        if base is not None and await _root_of(store, base.path) != base.root:
            raise SaveError(
                f"{base.path} was replaced while the session that began from it was "
                "finalized; nothing was changed"
            )
        await self._note(root)

    def _sums(self) -> ItemSums:
        made = {
            f"{directory[len(self.operation.directory) + 1 :]}/{MANIFEST}": manifest
            for directory, (manifest, _) in self.operation.manifests.items()
        }
        return ItemSums(manifests={**self.manifests, **made}, guests=self.guests)

    async def _note(self, root: bytes) -> None:
        """Notes in the session what it becomes, for who finds both after a crash."""
        store, record = self.operation.store, join(self.session.path, FINALIZED)
        updates = [update.identity for update in self.session.updates]
        data = encode_finalized(root, updates)
        await store.delete(record)
        await store.write(record, [data], size_bytes=len(data))
        await store.sync([record, self.session.path])

    async def _take_over(self, base: Saved, name: str) -> None:
        """An item of the checkpoint below that nothing was saved on."""
        await self._link_all(base, name)
        if base.seal is not None:
            head = f"{name}/"
            self.manifests |= {
                path: recorded
                for path, recorded in base.seal.manifests.items()
                if path.startswith(head)
            }

    async def _write_item(self, name: str, saved: Sequence[Saved]) -> None:
        operation = self.operation
        verify = operation.settings.verify
        items: list[SavedItem] = []
        for owner in saved:
            item = await open_saved_item(operation.store, owner, name, verify=verify)
            above = lay_on(items, item, unites=unites)
            if items and len(above) == 1 and not owner.replaces:
                raise InvalidLayoutError(
                    f"{item.directory} and {items[-1].directory} cannot be united: "
                    f"beside a tree there are {[*items[-1].others, *item.others]}. "
                    "Delete the update that is not wanted"
                )
            items = above
        top = items[-1]
        if top.tree is None:
            await self._link_all(top.owner, name)
            return
        await self._write_tree(name, items)
        if not top.is_alone:
            for below in top.others:
                await self._link_below(top, below)

    async def _write_tree(self, name: str, items: Sequence[SavedItem]) -> None:
        forms = {
            ArrayForm(use_ocdbt=item.use_ocdbt, zarr_version=item.zarr_version)
            for item in items
        }
        if len(forms) > 1:
            raise UnsupportedOptionError(
                f"the session at {self.session.path} has the arrays of {name!r} in "
                f"different forms, which no item can have: {forms}"
            )
        layers = [layer for layer in map(layer_of, items) if layer is not None]
        tree, clashes = unite(layers)
        if clashes:
            shown = ", ".join(repr(clash.given) for clash in clashes)
            updates = "\n".join(f"  {item.owner.path}" for item in items)
            raise InvalidLayoutError(
                f"the session has {shown} of {name!r} twice, saved by two programs at "
                f"the same time. Delete one of these updates:\n{updates}"
            )
        check_united(layers, tree, use_ocdbt=items[0].use_ocdbt)
        await write_united(
            self.operation,
            join(self.operation.directory, name),
            [_source(item) for item in items],
            tree,
            forms.pop(),
            is_sealed=self.is_sealed,
        )

    async def _link_below(self, item: SavedItem, below: str) -> None:
        """A file, or directory, of an item that is beside its tree."""
        store, path = self.operation.store, join(item.directory, below)
        entry = await store.stat(path)
        recorded = item.owner.digests_below(item.name)
        if entry is None or not entry.is_directory:
            await self._link_file(item.owner, item.name, below, recorded)
            return
        for found, each in await walk(store, path):
            if not each.is_directory:
                below = found[len(item.directory) + 1 :]
                await self._link_file(item.owner, item.name, below, recorded)

    async def _link_all(self, owner: Saved, name: str) -> None:
        """All that is in the directory of an item, and all that is recorded of it."""
        store, directory = self.operation.store, owner.items[name]
        target = join(self.operation.directory, name)
        await store.make_directory(target, like=directory)
        recorded = owner.digests_below(name)
        left = dict(recorded)
        for path, entry in await walk(store, directory):
            below = path[len(directory) + 1 :]
            left.pop(below, None)
            if entry.is_directory:
                await store.make_directory(join(target, below), like=path)
            else:
                await self._link_file(owner, name, below, recorded)
        for below in left:  # Which are not there.
            await self._link_file(owner, name, below, recorded)

    async def _link_file(
        self, owner: Saved, name: str, below: str, recorded: Mapping[str, Digest]
    ) -> None:
        source = join(owner.items[name], below)
        size_bytes = recorded[below].size_bytes if below in recorded else None
        await check_file(self.operation.store, source, size_bytes)
        target = join(self.operation.directory, f"{name}/{below}")
        await self.operation.store.link(source, target)
        if below in recorded:
            self.guests[f"{name}/{below}"] = recorded[below]


def _tree_of(item: SavedItem) -> TreeItem:
    assert item.tree is not None  # What has none is linked as it is.
    return item.tree


def _source(item: SavedItem) -> ItemSource:
    """What a tree is united from.

    Raises:
        InvalidLayoutError: Orbax wrote it in a form that is not read here.
    """
    check_form_is_known(item)
    tree = _tree_of(item)
    entries = None
    if item.owner.seal is None:
        if not isinstance(tree.source, DatabaseSource):
            raise InvalidLayoutError(
                f"{item.directory} is a database of a kind that is not read here; "
                "finish the session with Orbax"
            )
        entries = tree.source.entries
    return ItemSource(directory=item.directory, manifest=tree.manifest, entries=entries)


def _merged(below: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of both; what is said later counts."""
    merged = dict(below)
    for key, value in top.items():
        known = merged.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = _merged(known, value)
        merged[key] = value
    return merged


async def _root_of(store: Store, path: str) -> bytes:
    try:
        return await read_bytes(store, join(path, ROOT_DOCUMENT))
    except (FileNotFoundError, CorruptCheckpointError):
        return b""
