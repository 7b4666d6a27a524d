"""Saves an update of a session: a part of what will be one checkpoint.

Updates may overlap, but take effect in the order of their calls: each is held against
what is there and against those before it, and appears after these.
"""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from stowax._commit import begin, commit
from stowax._composite import RootFacts, finish_items, seal_root
from stowax._formats._orbax_json import PYTREE_TYPESTR
from stowax._handlers._choose import typestr_of
from stowax._handlers._registry import STATE_NAME
from stowax._keypath import flatten
from stowax._leaves._registry import Leaves
from stowax._loop import on_worker
from stowax._operation import Operation
from stowax._plan._unite import Layer, lay_on, unite
from stowax._save_composite import choose, stage_items, typestrs
from stowax._session import (
    KnownUpdates,
    SavedItem,
    Session,
    check_session,
    end_session,
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
from stowax._session_records import (
    UpdateFacts,
    draft_of_update,
    guard_files,
    identity_of_draft,
    update_path,
)
from stowax._settings import Settings, check_supported
from stowax._staged_save import Begun, Staged, StagedSave, stage_save
from stowax._stores._base import Store, already_published, join, walk
from stowax.errors import (
    InvalidLayoutError,
    PartialSaveReplacementError,
    SaveError,
    UnsupportedOptionError,
)


def stage_update(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    replaces: bool,
    is_named: bool,
    metadata: Mapping[str, Any],
    borrow: bool,
    in_background: bool,
) -> StagedSave:
    """Makes a draft of an update and stages it; what remains is to commit it.

    Args:
        path: The final path of the session.
        checkpointables: By name.
        settings: Those of the operation.
        replaces: Whether what is there may be replaced.
        is_named: Whether the caller has said what the checkpointables are called.
        metadata: The user's own.
        borrow: Whether the caller leaves host arrays alone until the end.
        in_background: Whether the caller goes on meanwhile.
    """
    check_supported(settings)

    def stage(begun: Begun) -> Staged:
        update = _Update(
            begun,
            checkpointables,
            replaces=replaces,
            is_named=is_named,
            metadata=metadata,
        )
        return update.stage(borrow=borrow)

    return stage_save(
        path,
        stage,
        settings,
        overwrite=False,
        in_background=in_background,
        is_update=True,
    )


class _Update:
    """One update, from its call to its end."""

    def __init__(
        self,
        begun: Begun,
        checkpointables: Mapping[str, Any],
        *,
        replaces: bool,
        is_named: bool,
        metadata: Mapping[str, Any],
    ) -> None:
        self._location, self._settings, self._runtime, self._failure = begun
        self._checkpointables = checkpointables
        self._replaces = replaces
        self._is_named = is_named
        self._metadata = metadata
        self._key = calls_key(self._settings, self._location)
        self._call = SessionCall()
        known = self._runtime.sessions.find(self._key)
        if known is None:
            known = KnownUpdates()
            self._runtime.sessions.add(self._key, known)
        self._known: KnownUpdates = known
        self._earlier: tuple[SessionCall, ...] = ()

    def stage(self, *, borrow: bool) -> Staged:
        """Does the first phase of every handler."""
        runtime = self._runtime
        started_nsecs = runtime.now_nsecs()
        chosen, failure = choose(
            self._location, self._checkpointables, self._settings, runtime
        )
        if failure is None:
            try:
                self._call.layers = self._layers(chosen)
            except Exception as error:  # noqa: BLE001 the other processes have to hear
                failure = error
        self._earlier = runtime.session_calls.begin(self._key, self._call)
        try:
            operation = runtime.run(
                begin(
                    self._location,
                    self._settings,
                    runtime,
                    borrow=borrow,
                    failure=failure,
                    prepare=self._prepare,
                    what="the partial save to",
                )
            )
            operation.update = identity_of_draft(operation.directory)

            async def finish(work: Mapping[str, Awaitable[None]]) -> None:
                try:
                    await self._finish(operation, work, chosen, started_nsecs)
                finally:
                    self._end()

            staged = stage_items(operation, self._checkpointables, chosen, finish)
        except BaseException:  # An interrupt too; raised again.
            self._end()
            raise

        def let_go() -> None:
            try:
                staged.let_go()
            finally:
                self._end()

        return Staged(staged.commit, let_go)

    def _end(self) -> None:
        end_call(self._runtime, self._key, self._call)

    def _layers(self, chosen: Mapping[str, Any]) -> dict[str, Layer | None]:
        leaves = Leaves(self._settings.leaf_handlers)
        layers: dict[str, Layer | None] = {}
        for name, handler in chosen.items():
            layers[name] = None
            if typestr_of(handler) == PYTREE_TYPESTR:
                tree = flatten(self._checkpointables[name], leaves.takes_value)
                texts = [i for i, leaf in enumerate(tree.leaves) if _is_text(leaf)]
                layers[name] = Layer(
                    root=tree.root, texts=frozenset(texts), replaces=self._replaces
                )
        return layers

    async def _prepare(self, operation: Operation) -> str:
        """In the primary: looks at the session, and says where the draft is to be."""
        call, store = self._call, operation.store
        await others_ended([each for each in self._earlier if each.is_end])
        under_way = [each for each in self._earlier if not each.ended.done()]
        base = next((each.base for each in under_way if each.base is not None), None)

        async def look() -> Session:
            return await open_session(
                store,
                self._location,
                verify=self._settings.verify,
                may_begin=self._replaces or base is not None,
                known=self._known,
            )

        session = await look()
        if session.is_over:
            await end_session(store, session)
            session = await look()
        check_session(session)
        self._check_names(session)
        await self._check(operation, session, under_way)
        call.base = session.base
        nsecs = [each.nsecs for each in (*session.updates, *under_way)]
        call.nsecs = max([self._runtime.now_nsecs(), *[n + 1 for n in nsecs]])
        call.identity = uuid.uuid4().hex
        return draft_of_update(self._location, call.identity)

    def _check_names(self, session: Session) -> None:
        """Refuses to guess which tree of a checkpoint is meant."""
        published = session.published
        if self._is_named or published is None or session.base is None:
            return
        if not any(STATE_NAME in saved.items for saved in session.saved):
            raise InvalidLayoutError(
                f"{self._location} has no checkpointable {STATE_NAME!r}; it has "
                f"{sorted(published.items)}. Say which one is meant with "
                "`partial.save_checkpointables(path, {name: ...}, replace=True)`"
            )

    async def _check(
        self, operation: Operation, session: Session, under_way: Sequence[SessionCall]
    ) -> None:
        """Holds it against what is there, and against what earlier calls save."""
        known = {update.identity for update in session.updates}
        problems: list[str] = []
        for name, given in self._call.layers.items():
            below: list[Layer | None] = []
            for owner in session.saved:
                if name not in owner.items:
                    continue
                item = await open_saved_item(
                    operation.store,
                    owner,
                    name,
                    verify=self._settings.verify,
                    known=self._known,
                )
                if given is not None and item.tree is not None:
                    self._check_tree(item)
                layer = layer_of(item) if unites(item) else None
                below = lay_on(below, layer, unites=_is_tree)
            for call in under_way:
                if name in call.layers and call.identity not in known:
                    below = lay_on(below, call.layers[name], unites=_is_tree)
            problems += await on_worker(self._problems, name, below, given)
        if problems:
            raise PartialSaveReplacementError(
                f"the session at {session.path} has already what is to be saved:\n"
                + "\n".join(problems)
                + "\nTo replace it, use `replace=True`. Nothing was written."
            )

    def _problems(
        self, name: str, below: Sequence[Layer | None], given: Layer | None
    ) -> list[str]:
        trees = [layer for layer in below if layer is not None]
        if given is not None and len(trees) == len(below):
            tree, clashes = unite([*trees, given])
            if not clashes:
                use_ocdbt = self._settings.saving.use_ocdbt
                check_united([*trees, given], tree, use_ocdbt=use_ocdbt)
            return [
                f"  leaf {given!r} of {name!r}"
                + (f", because of {stored!r}" if stored != given else "")
                for stored, given in clashes
            ]
        if below and not self._replaces:
            return [f"  the checkpointable {name!r}, which is replaced as a whole"]
        return []

    def _check_tree(self, item: SavedItem) -> None:
        """Refuses a tree that no other one can be united with."""
        check_form_is_known(item)
        if not item.is_alone:
            raise InvalidLayoutError(
                f"{item.directory} holds more than a tree: {', '.join(item.others)}. "
                "It is an object that saved itself, or the work of a handler, and can "
                "be replaced by another such; but no tree can be added to it. Nothing "
                "was written"
            )
        saving = self._settings.saving
        lines: list[str] = []
        if item.use_ocdbt != saving.use_ocdbt:
            lines.append(f"  use_ocdbt is {saving.use_ocdbt}, found {item.use_ocdbt}")
        if (item.zarr_version == 3) != saving.use_zarr3:
            stored = item.zarr_version == 3
            lines.append(f"  use_zarr3 is {saving.use_zarr3}, found {stored}")
        if lines:
            raise UnsupportedOptionError(
                f"{item.directory} is stored in another way than "
                "`Context.array.saving` asks for; in a session it has to be the same:\n"
                + "\n".join(lines)
            )

    async def _finish(
        self,
        operation: Operation,
        work: Mapping[str, Awaitable[None]],
        chosen: Mapping[str, Any],
        started_nsecs: int,
    ) -> None:
        call = self._call
        operation.phase = "waiting for earlier partial saves to the same path"
        await others_ended(self._earlier)
        operation.start_clock()
        path = update_path(self._location, call.nsecs, call.identity)
        facts = RootFacts(
            custom_metadata=self._metadata,
            update=UpdateFacts(replaces=self._replaces, base=call.base),
        )

        async def seal(told: Sequence[bytes]) -> None:
            await seal_root(
                operation,
                path,
                typestrs(chosen),
                facts,
                told,
                started_nsecs=started_nsecs,
            )
            await self._look_again(operation)

        await commit(
            operation,
            path,
            finish=lambda: finish_items(operation, work),
            seal=seal,
            replace=False,
        )
        if operation.report is not None:
            operation.report.succeeded()

    async def _look_again(self, operation: Operation) -> None:
        """In the primary, before it is published: whether it still belongs there.

        Another program may have finalized the session meanwhile, and taken the draft
        away with it.
        """
        store, draft = operation.store, operation.directory
        found = {path for path, _ in await walk(store, draft)}
        for directory, (_, covered) in operation.manifests.items():
            if not found.issuperset(join(directory, name) for name in covered):
                raise SaveError(
                    f"files of {draft} are gone: somebody has finalized or deleted the "
                    "session; nothing was saved"
                )
        session = await open_session(
            store,
            self._location,
            verify=self._settings.verify,
            may_begin=self._replaces,
            known=self._known,
        )
        check_session(session)
        if session.base != self._call.base:
            # It counted on an earlier call to begin from a checkpoint, and that failed.
            raise already_published(self._location)
        if self._replaces or session.base is not None:
            await self._guard(store)

    async def _guard(self, store: Store) -> None:
        for path, data in guard_files(self._location).items():
            # Somebody else may write it at the same time.
            with contextlib.suppress(FileExistsError):
                await store.write(path, [data], size_bytes=len(data))
            above = posixpath.dirname(path)
            await store.sync([path, above, posixpath.dirname(above)])


def _is_tree(layer: Layer | None) -> bool:
    return layer is not None


def _is_text(leaf: Any) -> bool:
    """Whether a leaf is stored as a text: a string, or a number beyond 64 bits."""
    is_number = isinstance(leaf, int) and not isinstance(leaf, bool)
    return isinstance(leaf, str) or (is_number and leaf.bit_length() > 63)
