"""Saves a tree of arrays as safetensors: one file, or a directory of them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from stowax._caller import warn_narrowed
from stowax._codecs._safetensors import encode_index
from stowax._commit import abandon, begin, commit, conclude
from stowax._formats._safetensors import INDEX_SUFFIX, SUFFIX
from stowax._handlers._registry import STATE_NAME
from stowax._keypath import shown_name
from stowax._leaves._registry import Leaves
from stowax._operation import EngineTask, Operation
from stowax._plan._tensor_files import STEM
from stowax._plan._write import PartWrite
from stowax._report import Tally
from stowax._response import raise_unseen
from stowax._runtime import drive
from stowax._settings import Settings, check_supported
from stowax._staged_save import Begun, Staged, StagedSave, stage_save
from stowax._staging import Staging
from stowax._stores._base import join
from stowax._tensor_layout import TensorLayout, check_alike, lay_out
from stowax._tensor_write import TensorWriter
from stowax._tree_values import encode_tree
from stowax.errors import UnsupportedOptionError

_logger = logging.getLogger("stowax")

_LOANS = ".loans"


def stage_tensors(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    overwrite: bool,
    metadata: Mapping[str, Any],
    borrow: bool,
    in_background: bool,
) -> StagedSave:
    """Makes a draft and stages everything; what remains is to commit it.

    Args:
        path: The final path; one that ends in `.safetensors` becomes a file.
        checkpointables: The state, under the name that `save` gives it.
        settings: Those of the operation.
        overwrite: Whether what is at the path is replaced.
        metadata: Texts to keep with it.
        borrow: Whether the caller leaves host arrays alone until the end.
        in_background: Whether the caller goes on meanwhile.
    """
    check_supported(settings, as_safetensors=True)

    def stage(begun: Begun) -> Staged:
        return _stage(
            begun,
            checkpointables,
            overwrite=overwrite,
            metadata=metadata,
            borrow=borrow,
        )

    return stage_save(
        path, stage, settings, overwrite=overwrite, in_background=in_background
    )


def _stage(
    begun: Begun,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool,
    metadata: Mapping[str, Any],
    borrow: bool,
) -> Staged:
    location, settings, runtime, failure = begun
    is_file = location.endswith(SUFFIX)
    layout = None
    if failure is None:
        try:
            raise_unseen(runtime)
            layout = _lay_out(begun, checkpointables, metadata, is_file=is_file)
        except Exception as error:  # noqa: BLE001 options of users may raise anything
            failure = error
    beginning = begin(
        location,
        settings,
        runtime,
        overwrite=overwrite,
        borrow=borrow,
        is_file=is_file,
        failure=failure,
    )
    operation = runtime.run(beginning)
    assert layout is not None  # Else the failure has been raised.
    work = _Work(operation, layout, is_file=is_file)
    try:
        drive(work.stage())
    except BaseException as error:  # An interrupt too; raised again.
        runtime.run(work.give_up(error))
        raise

    async def finish() -> None:
        await work.commit(location, replace=overwrite)
        await conclude(operation, location)

    def let_go() -> None:
        runtime.run(work.give_up(asyncio.CancelledError()))

    return Staged(finish, let_go)


def _lay_out(
    begun: Begun,
    checkpointables: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    is_file: bool,
) -> TensorLayout:
    location, settings, runtime, _ = begun
    if is_file and settings.permission_mode is not None:
        raise UnsupportedOptionError(
            f"Context.file.path_permission_mode is {settings.permission_mode:#o}, but "
            f"{location} will be a file; leave it at None"
        )
    leaves = Leaves(settings.leaf_handlers)
    state = _only_state(checkpointables)
    return lay_out(
        encode_tree(state, leaves, runtime.processes),
        settings.saving,
        metadata,
        file_limit_bytes=None if is_file else settings.safetensors_file_bytes,
    )


class _Work:
    """The save of one layout, from staging to the seal.

    What is lent is staged and written first, and its memory given back, before any is
    taken for what has to wait for the loans of others: so no two saves wait for each
    other's memory across processes.

    Args:
        operation: Under way.
        layout: What is written.
        is_file: Whether it is a single file.
    """

    def __init__(self, operation: Operation, layout: TensorLayout, *, is_file: bool):
        self._operation = operation
        self._layout = layout
        draft = operation.directory
        self._paths = [draft if is_file else join(draft, name) for name in layout.names]
        # No longer than a draft, whose length has been checked.
        self._loans = draft[: -len(_LOANS)] + _LOANS
        self._stagings: list[Staging] = []
        self._lending: EngineTask[None] | None = None
        self._writing: EngineTask[None] | None = None

    async def stage(self) -> None:
        """First phase, on the caller's thread; the writing begins meanwhile."""
        operation, plan = self._operation, self._layout.plan
        operation.phase = "staging"
        warn_narrowed("Context.array.saving", self._layout.narrowed)
        writer = self._writer()
        lent = self._staging(
            [loan.part for loan in plan.loans],
            [range(unit, unit + 1) for unit in range(len(plan.loans))],
        )
        await operation.in_time(lent.stage_first())
        self._lending = operation.submit(self._lend(writer, lent))
        self._lending.future.add_done_callback(lambda _: lent.close())
        await operation.in_time(lent.stage_rest())
        if plan.has_loans:
            await operation.in_time(self._lending)
        own = self._staging(plan.parts, plan.needs)
        await operation.in_time(own.stage_first())
        self._writing = operation.submit(self._write(writer, own, self._lending))
        self._writing.future.add_done_callback(lambda _: own.close())
        await operation.in_time(own.stage_rest())
        if operation.remaining_secs() <= 0:
            # What blocks this thread cannot be stopped; but it is late.
            raise operation.late()

    async def give_up(self, error: BaseException) -> None:
        """Ends what has begun; the others hear of it, unless there is no time."""
        try:
            if isinstance(error, Exception):
                await self._tell(error)
        finally:
            await self._abandon()

    async def commit(self, path: str, *, replace: bool) -> None:
        """Second phase: all of it published, or nothing left of it."""
        assert self._lending is not None  # It was staged.
        try:
            # If that fails it does in all processes, and there is nothing to agree on.
            await asyncio.wrap_future(self._lending.future)
            await commit(
                self._operation,
                path,
                finish=self._finish,
                seal=self._seal,
                replace=replace,
            )
        except BaseException:  # A cancellation too; raised again.
            await self._abandon()
            raise

    def _writer(self) -> TensorWriter:
        layout, report = self._layout, self._operation.report
        moved, tally = _unheard, None
        if report is not None:
            files = layout.plan.files
            sizes = [(t.spec.leaf, t.spec.size_bytes) for f in files for t in f.tensors]
            report.expect(sum(size_bytes for _, size_bytes in sizes))
            moved = report.moved
            if report.names_leaves:
                paths = layout.values.flat.paths
                tally = Tally(report, sizes, lambda leaf: shown_name(paths[leaf]))
        return TensorWriter(
            store=self._operation.store,
            plan=layout.plan,
            process_index=self._operation.processes.index,
            loans=self._loans,
            moved=moved,
            tally=tally,
        )

    def _staging(self, parts: Sequence[PartWrite], needs: Sequence[range]) -> Staging:
        operation, values = self._operation, self._layout.values
        runtime, settings = operation.runtime, operation.settings
        budget, borrow = runtime.staging_budget, operation.borrow
        limit_bytes = settings.memory.staging_limit_bytes(
            runtime.spare_memory_bytes(), budget.taken_bytes
        )
        if operation.report is not None:
            operation.report.may_take(limit_bytes)
        fetch = functools.partial(
            values.fetch, borrow=borrow, pin=settings.saving.pins_transfers
        )
        sizes_bytes = values.sizes_bytes(parts, borrow=borrow)
        staging = Staging(parts, needs, fetch, sizes_bytes, budget, limit_bytes)
        self._stagings.append(staging)
        return staging

    async def _lend(self, writer: TensorWriter, source: Staging) -> None:
        """Lends what this process does; ends when all have, and fails in all alike."""

        async def lend() -> bytes:
            mode = operation.settings.permission_mode
            if self._layout.plan.loans and mode is not None:
                await operation.store.make_directory(self._loans, mode=mode)
            await writer.lend(source)
            return self._layout.structure

        operation = self._operation
        told = await operation.agree("lent", await operation.attempt(lend()))
        check_alike(told)

    async def _write(
        self, writer: TensorWriter, source: Staging, lending: EngineTask[None]
    ) -> None:
        await lending
        await writer.write(source, self._paths, self._layout.headers)

    async def _finish(self) -> bytes:
        self._operation.phase = "writing"
        assert self._writing is not None  # It was staged.
        await asyncio.wrap_future(self._writing.future)
        return b""

    async def _seal(self, told: Sequence[bytes]) -> None:
        """Writes the index of several files; what was lent is not needed any more."""
        del told
        await self._forget_loans()
        operation, files = self._operation, self._layout.plan.files
        if len(files) == 1:
            return
        names = self._layout.values.flat.names
        data = encode_index(
            {
                names[spec.leaf]: name
                for name, file in zip(self._layout.names, files, strict=True)
                for spec in file.specs
            },
            size_bytes=sum(spec.size_bytes for file in files for spec in file.specs),
        )
        path = join(operation.directory, f"{STEM}{INDEX_SUFFIX}")
        await operation.store.write(path, [data], size_bytes=len(data))
        await operation.store.sync([path])

    async def _tell(self, error: Exception) -> None:
        """Lets the others hear why this process goes no further; raises it."""
        if self._lending is None:
            await self._operation.agree("lent", error)
        elif self._writing is None:
            # If that fails, the others know already.
            await asyncio.wrap_future(self._lending.future)
            await self._operation.agree("written", error)

    async def _abandon(self) -> None:
        for staging in self._stagings:
            staging.close()
        await abandon(self._operation)
        await self._forget_loans()

    async def _forget_loans(self) -> None:
        """Deletes what processes have lent each other; again, does nothing.

        What cannot be deleted does no harm, and bears the name of a draft.
        """
        processes = self._operation.processes
        if processes.count == 1 or not processes.is_primary:
            return
        try:
            await self._operation.store.delete(self._loans)
        except Exception as error:  # noqa: BLE001 nothing depends on it
            _logger.warning("could not remove %s: %s", self._loans, error)


def _unheard(size_bytes: int) -> None:
    """Hears how many bytes have moved, where nobody wants to know."""


def _only_state(checkpointables: Mapping[str, Any]) -> Any:
    found = f"{checkpointables!r:.80}"
    if isinstance(checkpointables, Mapping):
        if set(checkpointables) == {STATE_NAME}:
            return checkpointables[STATE_NAME]
        found = ", ".join(map(repr, checkpointables)) or "none"
    raise UnsupportedOptionError(
        "a safetensors checkpoint is one tree, and has no checkpointables with names; "
        f"found {found}. Call `save(path, state)` without `checkpointable_name`, or "
        "leave Context.checkpoint_layout at ORBAX"
    )
