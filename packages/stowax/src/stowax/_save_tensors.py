"""Saves a tree of arrays as safetensors: one file, or a directory of them.

The format knows tensors by name and texts, and nothing else: no containers, no numbers
of Python, no checksums.  Whatever would be lost is refused before anything is touched.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stowax._caller import warn_narrowed
from stowax._codecs._safetensors import DTYPES, METADATA, encode_header
from stowax._codecs._zarr import dtype_name
from stowax._commit import abandon, begin, commit, conclude
from stowax._formats._safetensors import INDEX_SUFFIX, SUFFIX
from stowax._handlers._registry import STATE_NAME
from stowax._keypath import at_leaf, check_names, shown_name
from stowax._leaves._base import Description
from stowax._leaves._refusal import check_all
from stowax._leaves._registry import Leaves
from stowax._operation import EngineTask, Operation
from stowax._plan._storage import narrowed, plan_storage
from stowax._plan._tensor_files import (
    TensorPlan,
    TensorSpec,
    file_names,
    plan_tensors,
)
from stowax._report import Tally
from stowax._response import raise_unseen
from stowax._runtime import drive
from stowax._settings import Settings, check_supported
from stowax._staged_save import Begun, Staged, StagedSave, stage_save
from stowax._staging import Staging
from stowax._stores._base import join
from stowax._tensor_write import TensorWriter
from stowax._tree_values import TreeValues, encode_tree
from stowax.errors import (
    InvalidMetadataError,
    ProcessesError,
    TreeError,
    UnsupportedLeafError,
    UnsupportedOptionError,
)

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
    settings = replace(settings, writes_safetensors=False)
    check_supported(settings)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """All that is decided before a value is looked at."""

    values: TreeValues
    plan: TensorPlan
    names: tuple[str, ...]
    """Of the files; one that is the checkpoint itself has none."""
    headers: tuple[bytes, ...]
    narrowed: tuple[str, ...]
    """Leaves that lose range or kind in the dtype that they are written in."""


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
            state = _only_state(checkpointables)
            layout = _lay_out(begun, state, metadata, is_file=is_file)
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
        work.staging.close()
        runtime.run(work.give_up(error))
        raise

    async def finish() -> None:
        try:
            await work.lent()
            await commit(
                operation,
                location,
                finish=work.finish,
                seal=work.seal,
                replace=overwrite,
            )
        finally:
            await work.forget_loans()
        await conclude(operation, location)

    def let_go() -> None:
        work.staging.close()
        runtime.run(work.give_up(asyncio.CancelledError()))

    return Staged(finish, let_go)


class _Work:
    """The save of one layout, from staging to the seal.

    Args:
        operation: Under way.
        layout: What is written.
        is_file: Whether it is a single file.
    """

    def __init__(self, operation: Operation, layout: _Layout, *, is_file: bool) -> None:
        self._operation = operation
        self._layout = layout
        plan, values, settings = layout.plan, layout.values, operation.settings
        runtime = operation.runtime
        limit_bytes = settings.memory.staging_limit_bytes(
            runtime.spare_memory_bytes(), runtime.staging_budget.taken_bytes
        )
        fetch = functools.partial(
            values.fetch, borrow=operation.borrow, pin=settings.saving.pins_transfers
        )
        self.staging = Staging(
            plan.parts,
            plan.needs,
            fetch,
            values.sizes_bytes(plan.parts, borrow=operation.borrow),
            runtime.staging_budget,
            limit_bytes,
        )
        draft = operation.directory
        self._paths = [draft if is_file else join(draft, name) for name in layout.names]
        # No longer than a draft, whose length has been checked.
        self._loans = draft[: -len(_LOANS)] + _LOANS
        self._lending: EngineTask[None] | None = None
        self._writing: EngineTask[None] | None = None
        specs = [tensor.spec for file in plan.files for tensor in file.tensors]
        if (report := operation.report) is not None:
            report.expect(sum(spec.size_bytes for spec in specs))
            report.may_take(limit_bytes)
        tally = None
        if report is not None and report.names_leaves:
            paths = values.flat.paths
            sizes = [(spec.leaf, spec.size_bytes) for spec in specs]
            tally = Tally(report, sizes, lambda leaf: shown_name(paths[leaf]))
        self._writer = TensorWriter(
            store=operation.store,
            plan=plan,
            process_index=operation.processes.index,
            source=self.staging,
            loans=self._loans,
            moved=(lambda _: None) if report is None else report.moved,
            tally=tally,
        )

    async def stage(self) -> None:
        """First phase, on the caller's thread; the writing begins meanwhile."""
        operation = self._operation
        operation.phase = "staging"
        warn_narrowed("Context.array.saving", self._layout.narrowed)
        await operation.in_time(self.staging.stage_first())
        self._lending = operation.submit(self._lend_together())
        self._writing = operation.submit(self._write(self._lending))
        self._writing.future.add_done_callback(lambda _: self.staging.close())
        await operation.in_time(self.staging.stage_rest())
        if operation.remaining_secs() <= 0:
            # What blocks this thread cannot be stopped; but it is late.
            raise operation.late()

    async def give_up(self, error: BaseException) -> None:
        """Ends what has begun; the others hear of it, unless there is no time."""
        await self._operation.stop()
        try:
            if self._lending is None and isinstance(error, Exception):
                await self._operation.agree("lent", error)
        finally:
            await self.forget_loans()
            await abandon(self._operation)

    async def lent(self) -> None:
        """Waits until all processes have lent what they do; fails in all alike."""
        assert self._lending is not None  # It was staged.
        try:
            await asyncio.wrap_future(self._lending.future)
        except BaseException:  # A cancellation too; raised again.
            await abandon(self._operation)
            raise

    async def finish(self) -> bytes:
        """Waits until everything of this process is written, durably."""
        self._operation.phase = "writing"
        assert self._writing is not None  # It was staged.
        await asyncio.wrap_future(self._writing.future)
        return b""

    async def seal(self, told: Sequence[bytes]) -> None:
        """Writes the index of several files."""
        del told
        operation, plan = self._operation, self._layout.plan
        if len(plan.files) == 1:
            return
        names = self._layout.values.flat.names
        index = {
            "metadata": {
                "total_size": sum(s.size_bytes for f in plan.files for s in f.specs)
            },
            "weight_map": {
                names[spec.leaf]: name
                for name, file in zip(self._layout.names, plan.files, strict=True)
                for spec in file.specs
            },
        }
        data = json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"
        path = join(operation.directory, f"model{INDEX_SUFFIX}")
        await operation.store.write(path, [data], size_bytes=len(data))
        await operation.store.sync([path])

    async def forget_loans(self) -> None:
        """Deletes what processes have lent each other; again, does nothing.

        What cannot be deleted does no harm, and bears the name of a draft.
        """
        if not self._layout.plan.has_loans or not self._operation.processes.is_primary:
            return
        try:
            await self._operation.store.delete(self._loans)
        except Exception as error:  # noqa: BLE001 the save is over, well or not
            _logger.warning("could not remove %s: %s", self._loans, error)

    async def _lend_together(self) -> None:
        async def lend() -> bytes:
            await self._writer.lend()
            return _structure(self._layout)

        operation = self._operation
        told = await operation.agree("lent", await operation.attempt(lend()))
        _check_alike(told)

    async def _write(self, lending: EngineTask[None]) -> None:
        await lending
        await self._writer.write(self._paths, self._layout.headers)


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


def _lay_out(
    begun: Begun, state: Any, metadata: Mapping[str, Any], *, is_file: bool
) -> _Layout:
    location, settings, runtime, _ = begun
    if is_file and settings.permission_mode is not None:
        raise UnsupportedOptionError(
            f"Context.file.path_permission_mode is {settings.permission_mode:#o}, but "
            f"{location} will be a file; leave it at None"
        )
    _check_texts(metadata)
    leaves = Leaves(settings.leaf_handlers)
    values = encode_tree(state, leaves, runtime.processes)
    check_names(values.flat.root)
    described = values.describe()
    storages = plan_storage(values.flat, described, settings.saving)
    specs = _specs(
        values, described, [None if s is None else s.dtype for s in storages]
    )
    plan = plan_tensors(
        specs,
        process_index=runtime.processes.index,
        file_limit_bytes=None if is_file else settings.safetensors_file_bytes,
    )
    names = values.flat.names
    try:
        headers = tuple(
            encode_header(
                {names[s.leaf]: (dtype_name(s.dtype), s.shape) for s in file.specs},
                metadata,
            )
            for file in plan.files
        )
    except ValueError as error:
        raise TreeError(
            f"{location}: {error}. Save into a directory, with a smaller "
            "Context.safetensors.max_file_bytes, so that there are more files"
        ) from None
    return _Layout(
        values=values,
        plan=plan,
        names=tuple(file_names(len(plan.files))),
        headers=headers,
        narrowed=narrowed(names, storages),
    )


def _specs(
    values: TreeValues, described: Sequence[Description], dtypes: Sequence[Any]
) -> list[TensorSpec]:
    """What there is to write; refuses all that is no tensor at once."""
    errors: list[UnsupportedLeafError] = []
    specs: list[TensorSpec] = []
    for leaf, (name, encoded, description, dtype) in enumerate(
        zip(values.flat.names, values.leaves, described, dtypes, strict=True)
    ):
        reason = _reason(name, description, dtype)
        if encoded.custom is not None:
            reason = f"is a {encoded.custom.typestr}, which would not be known any more"
        if reason is not None:
            try:
                with at_leaf(name):
                    raise UnsupportedLeafError(reason)
            except UnsupportedLeafError as error:
                errors.append(error)
            continue
        parts = tuple((h.box, h.processes) for h in description.holdings)
        specs.append(TensorSpec(leaf, dtype, description.shape, parts))
    check_all(errors, "written")
    return specs


def _reason(name: str, description: Description, dtype: Any) -> str | None:
    """Why a leaf cannot be a tensor."""
    if description.prng_impl is not None:
        return "PRNG keys are no tensors; save `jax.random.key_data(key)`"
    if description.kind not in ("jax.Array", "np.ndarray"):
        return "safetensors files hold arrays alone; leave it out, or make it an array"
    if dtype_name(dtype) not in DTYPES:
        return (
            f"safetensors files have no {dtype_name(dtype)}; convert to one of "
            + ", ".join(DTYPES)
        )
    if name == METADATA:
        return "the name has another meaning in safetensors files; rename it"
    return None


def _check_texts(metadata: Mapping[str, Any]) -> None:
    others = [key for key, value in metadata.items() if not isinstance(value, str)]
    if others:
        raise InvalidMetadataError(
            "safetensors files keep texts only; custom_metadata has other values under "
            f"{', '.join(map(repr, others))}: give `json.dumps(value)`"
        )


def _structure(layout: _Layout) -> bytes:
    """A digest of what all processes have to see alike."""
    names = layout.values.flat.names
    specs = [(file.writer, file.specs) for file in layout.plan.files]
    return hashlib.sha256(repr((names, specs)).encode()).digest()


def _check_alike(told: Sequence[bytes]) -> None:
    for index, structure in enumerate(told):
        if structure != told[0]:
            raise ProcessesError(
                f"the trees of processes 0 and {index} differ in names, shapes, dtypes "
                "or shards; all processes have to save the same tree"
            )
