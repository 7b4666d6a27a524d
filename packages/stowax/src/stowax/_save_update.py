"""Saves an update of a session: a part of what will be one checkpoint.

Updates may overlap, but take effect in the order of their calls: each is held against
what is there and against those before it, and appears after these.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import posixpath
import uuid
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stowax._array_directories import check_array_names
from stowax._commit import begin, commit
from stowax._composite import RootFacts, finish_items, seal_root
from stowax._delete import remove
from stowax._formats._orbax_json import PYTREE_TYPESTR
from stowax._formats._orbax_strings import check_string_names
from stowax._handlers._choose import typestr_of
from stowax._keypath import check_names, flatten, leaf_name, walk
from stowax._leaves._registry import Leaves
from stowax._manifest import Digest
from stowax._operation import Operation
from stowax._plan._unite import Layer, lay_on, unite
from stowax._runtime import Runtime
from stowax._save_composite import choose, stage_items, typestrs
from stowax._session import (
    SavedItem,
    Session,
    check_session,
    open_saved_item,
    open_session,
)
from stowax._session_records import (
    UpdateFacts,
    draft_of_update,
    guard_files,
    identity_of_draft,
    session_of,
    update_path,
)
from stowax._settings import Settings, check_supported
from stowax._staged_save import Begun, Staged, StagedSave, reservation_of, stage_save
from stowax.errors import (
    InvalidLayoutError,
    PartialSaveReplacementError,
    UnsupportedOptionError,
)


@dataclass(eq=False, slots=True, kw_only=True)
class SessionCall:
    """A call that changes a session, as the calls after it see it."""

    layers: Mapping[str, Layer | None] = field(default_factory=dict)
    """What it saves by name; None: an item that is no tree, or not only one."""
    is_end: bool = False
    """Whether it is the finalization."""
    ended: concurrent.futures.Future[None] = field(
        default_factory=concurrent.futures.Future[None]
    )
    """Done when the call has ended, however it did."""
    identity: str = ""
    nsecs: int = 0
    base: Digest | None = None
    """Of the update, in the primary process, once they are known."""


def calls_key(settings: Settings, location: str) -> object:
    """Under which the calls of a session find each other; see `Runtime`."""
    return reservation_of(settings, session_of(location))


def end_call(runtime: Runtime, key: object, call: SessionCall) -> None:
    """Tells those who wait for a call that it is over; again, does nothing."""
    runtime.session_calls.end(key, call)
    if not call.ended.done():
        call.ended.set_result(None)


async def others_ended(calls: Sequence[SessionCall]) -> None:
    """Waits until earlier calls have ended, however they did."""
    await asyncio.gather(*[asyncio.wrap_future(call.ended) for call in calls])


def stage_update(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    replaces: bool,
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
        metadata: The user's own.
        borrow: Whether the caller leaves host arrays alone until the end.
        in_background: Whether the caller goes on meanwhile.
    """
    check_supported(settings)

    def stage(begun: Begun) -> Staged:
        update = _Update(begun, checkpointables, replaces=replaces, metadata=metadata)
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
        metadata: Mapping[str, Any],
    ) -> None:
        self._location, self._settings, self._runtime, self._failure = begun
        self._checkpointables = checkpointables
        self._replaces = replaces
        self._metadata = metadata
        self._key = calls_key(self._settings, self._location)
        self._call = SessionCall()
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
                layers[name] = Layer(root=tree.root, replaces=self._replaces)
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
            )

        session = await look()
        if session.is_over:
            await remove(store, session.path)
            session = await look()
        check_session(session)
        await self._check(operation, session, under_way)
        call.base = session.base
        nsecs = [each.nsecs for each in (*session.updates, *under_way)]
        call.nsecs = max([self._runtime.now_nsecs(), *[n + 1 for n in nsecs]])
        call.identity = uuid.uuid4().hex
        if self._replaces or call.base is not None:
            for path, data in guard_files(self._location).items():
                if await store.stat(path) is None:
                    await store.write(path, [data], size_bytes=len(data))
                    above = posixpath.dirname(path)
                    await store.sync([path, above, posixpath.dirname(above)])
        return draft_of_update(self._location, call.identity)

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
                    operation.store, owner, name, verify=self._settings.verify
                )
                if given is not None and item.tree is not None:
                    self._check_tree(item)
                below = lay_on(below, layer_of(item), unites=_is_tree)
            for call in under_way:
                if name in call.layers and call.identity not in known:
                    below = lay_on(below, call.layers[name], unites=_is_tree)
            problems += self._problems(name, below, given)
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
                check_names(tree.root)
                names = [leaf_name(p) for p, n in walk(tree.root) if n.kind == "leaf"]
                check_string_names(names)
                if not self._settings.saving.use_ocdbt:
                    check_array_names(names)
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
                f"{item.directory} holds more than a tree: it is an object that saved "
                "itself, or the work of a handler. It can be replaced by another such, "
                "but no tree can be added to it; nothing was written"
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

        def seal(told: Sequence[bytes]) -> Coroutine[Any, Any, None]:
            return seal_root(
                operation,
                path,
                typestrs(chosen),
                facts,
                told,
                started_nsecs=started_nsecs,
            )

        await commit(
            operation,
            path,
            finish=lambda: finish_items(operation, work),
            seal=seal,
            replace=False,
        )
        if operation.report is not None:
            operation.report.succeeded()


def layer_of(item: SavedItem) -> Layer | None:
    """The tree of an item, if it can be united with others."""
    if item.tree is None or not item.is_alone:
        return None
    return Layer(
        root=item.tree.manifest.root,
        replaces=item.owner.replaces,
        is_plain=item.owner.seal is None,
    )


def check_form_is_known(item: SavedItem) -> None:
    """Refuses trees of Orbax that cannot be united with others here.

    Raises:
        InvalidLayoutError: Its arrays lie in a directory each, or in a database of
            another kind.
    """
    if item.owner.seal is None and not item.use_ocdbt:
        raise InvalidLayoutError(
            f"{item.directory} was written by Orbax without OCDBT, and cannot be "
            "united with anything here; finish the session with Orbax"
        )


def _is_tree(layer: Layer | None) -> bool:
    return layer is not None
