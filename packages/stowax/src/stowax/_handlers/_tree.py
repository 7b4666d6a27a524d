"""What handlers of trees have in common: how one is saved, and how one is loaded.

A handler says where, by which settings, and what is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from stowax._caller import in_mesh, warn_narrowed
from stowax._formats._base import TreeItem
from stowax._item_layout import Beside, stage_item
from stowax._item_plan import plan_load
from stowax._item_read import ItemLoad
from stowax._item_write import complete_items, told_parts, write_part
from stowax._leaves._registry import Leaves
from stowax._operation import EngineTask, Operation
from stowax._operation_path import OperationPath
from stowax._plan._storage import choose_codec
from stowax._settings import LoadSettings, SaveSettings
from stowax._stores._base import walk


async def begin_save(
    where: OperationPath,
    tree: Any,
    *,
    saving: Callable[[], SaveSettings],
    leaves: Leaves,
    is_alone: bool,
    beside: Beside | None = None,
    asked_by: str = "Context.array.saving",
) -> EngineTask[None]:
    """Takes the values of a tree; returns the rest of the work, which has begun.

    Args:
        where: The item's directory, with the operation that it takes part in.
        tree: The tree.
        saving: Says how arrays are written; what it raises, other processes hear of.
        leaves: The kinds of leaves that it may have.
        is_alone: Whether the handler is used alone, and nobody else completes the item.
        beside: What stands in its documents beside the tree, if that is the handler's
            to say.
        asked_by: Where dtypes are asked for, in words.

    Raises:
        TreeError: It cannot be saved; names every leaf in the way.
    """
    operation, location = where.operation, where.location
    try:
        how = saving()
        runtime = operation.runtime
        staged = stage_item(
            tree,
            operation.processes,
            borrow=operation.borrow,
            leaves=leaves,
            saving=how,
            codec=choose_codec(
                how.use_compression, is_remote=operation.store.is_remote
            ),
            budget=runtime.staging_budget,
            limit_bytes=operation.settings.memory.staging_limit_bytes(
                runtime.spare_memory_bytes(), runtime.staging_budget.taken_bytes
            ),
            known=runtime.layouts,
            is_update=bool(operation.update),
        )
        staged = replace(staged, beside=beside)
        if (report := operation.report) is not None:
            report.expect(staged.layout.plan.array_bytes)
            report.may_take(staged.staging.limit_bytes)
        # Before anything is staged: a filter of warnings may raise it.
        warn_narrowed(asked_by, staged.layout.narrowed)
        await staged.staging.stage_first()
    except Exception as error:  # Any failure: the others are about to wait for us.
        if is_alone:  # Inside another save, that one tells them.
            await operation.submit(operation.agree("written", error))
        raise
    write = functools.partial(write_part, staged, location, operation)
    if is_alone:
        write = functools.partial(finish_alone, operation, location, write)
    try:
        writing = operation.submit(write())
        writing.future.add_done_callback(lambda _: staged.staging.close())
    except BaseException:  # An interrupt too; raised again.
        staged.staging.close()
        raise
    await staged.staging.stage_rest()
    return writing


def begin_load(
    where: OperationPath,
    item: TreeItem,
    target: Any,
    *,
    has_target: bool,
    loading: LoadSettings,
    leaves: Leaves,
) -> Awaitable[Any]:
    """Matches the tree that is asked for with what is stored; returns the rest.

    Args:
        where: The item's directory, with the operation that it takes part in.
        item: The open item.
        target: The abstract state.
        has_target: Whether there is one; else all is loaded as it is stored.
        loading: How it is read.
        leaves: The kinds of leaves that are known.

    Raises:
        TreeMismatchError: Lists every leaf that does not fit.
    """
    operation = where.operation
    with in_mesh(loading.mesh):
        plan = plan_load(
            item,
            target,
            has_target=has_target,
            loading=loading,
            processes=operation.processes,
            leaves=leaves,
        )
        plan.check()
    warn_narrowed(where.location, plan.narrowed())
    load = ItemLoad(operation, item, plan, loading.mesh)
    load.begin()
    return load.finish()


async def finish_alone(
    operation: Operation, location: str, work: Callable[[], Awaitable[Any]]
) -> None:
    """Ends the save of a handler used alone, together with the other processes.

    Args:
        operation: That of the handler.
        location: Its directory.
        work: Begins what this process writes there.
    """

    async def write() -> bytes:
        await work()
        return told_parts(operation)

    async def complete() -> bytes:
        if operation.processes.is_primary:
            await complete_items(operation, told)
        found = await walk(operation.store, location)
        directories = [path for path, entry in found if entry.is_directory]
        await operation.store.sync([*directories, location])
        return b""

    operation.start_clock()
    told = await operation.agree("written", await operation.attempt(write()))
    await operation.agree("complete", await operation.attempt(complete()))
