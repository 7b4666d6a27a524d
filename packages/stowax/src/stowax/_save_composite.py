"""Saves checkpointables, each by its handler, as one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from stowax._commit import abandon, begin, commit, conclude
from stowax._composite import (
    RootFacts,
    finalize_items,
    finish_items,
    seal_root,
    what,
)
from stowax._formats._base import RESERVED_NAMES
from stowax._handlers._base import check_awaitable
from stowax._handlers._choose import typestr_of
from stowax._handlers._registry import Handlers
from stowax._operation import EngineTask, Operation
from stowax._operation_path import OperationPath
from stowax._response import raise_unseen
from stowax._runtime import Runtime, drive
from stowax._save_names import check_name
from stowax._settings import Settings, check_supported
from stowax._staged_save import Begun, Staged, StagedSave, stage_save
from stowax._tasks import drop, noting
from stowax.errors import InvalidNameError

_logger = logging.getLogger("stowax")


def stage_composite(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    overwrite: bool,
    facts: RootFacts,
    borrow: bool,
    in_background: bool,
    handlers: Mapping[str, Any] | None = None,
    failure: Exception | None = None,
) -> StagedSave:
    """Makes a draft and stages everything; what remains is to commit it.

    Args:
        path: The final path.
        checkpointables: By name.
        settings: Those of the operation.
        overwrite: Whether what is at the path is replaced.
        facts: What stands at the root.
        borrow: Whether the caller leaves host arrays alone until the end.
        in_background: Whether the caller goes on meanwhile.
        handlers: Who saves which, by name; None: whoever the settings find.
        failure: Why this process cannot take part; raised when the others know.
    """
    check_supported(settings)

    def stage(begun: Begun) -> Staged:
        return _stage_all(
            begun,
            checkpointables,
            handlers,
            overwrite=overwrite,
            facts=facts,
            borrow=borrow,
        )

    return stage_save(
        path,
        stage,
        settings,
        overwrite=overwrite,
        in_background=in_background,
        failure=failure,
    )


def _stage_all(
    begun: Begun,
    checkpointables: Mapping[str, Any],
    handlers: Mapping[str, Any] | None,
    *,
    overwrite: bool,
    facts: RootFacts,
    borrow: bool,
) -> Staged:
    location, settings, runtime, failure = begun
    started_nsecs = runtime.now_nsecs()
    chosen: dict[str, Any] = {}
    if failure is None and handlers is None:
        chosen, failure = choose(location, checkpointables, settings, runtime)
    elif failure is None and handlers is not None:
        chosen, failure = _given(handlers, facts, runtime)
    operation = runtime.run(
        begin(
            location,
            settings,
            runtime,
            overwrite=overwrite,
            borrow=borrow,
            failure=failure,
        )
    )

    async def seal(told: Sequence[bytes]) -> None:
        await finalize_items(operation, chosen)
        await seal_root(
            operation,
            location,
            typestrs(chosen),
            facts,
            told,
            started_nsecs=started_nsecs,
        )

    async def finish(work: Mapping[str, Awaitable[None]]) -> None:
        await commit(
            operation,
            location,
            finish=lambda: finish_items(operation, work),
            seal=seal,
            replace=overwrite,
        )
        await conclude(operation, location)

    return stage_items(operation, checkpointables, chosen, finish)


def stage_items(
    operation: Operation,
    checkpointables: Mapping[str, Any],
    chosen: Mapping[str, Any],
    finish: Callable[[Mapping[str, Awaitable[None]]], Coroutine[Any, Any, None]],
) -> Staged:
    """Does the first phase of every handler, into the draft of an operation.

    Args:
        operation: Under way.
        checkpointables: By name.
        chosen: The handler of each.
        finish: Does what is left, given the second phases.
    """
    runtime = operation.runtime
    work: dict[str, Awaitable[None]] = {}

    def let_go() -> None:
        _drop(work)
        runtime.run(abandon(operation))

    try:
        failure = _stage(operation, checkpointables, chosen, work)
    except BaseException:  # An interrupt: there is no time to tell the others.
        let_go()
        raise
    if failure is not None:
        runtime.run(_give_up(operation, work, failure))
    return Staged(lambda: finish(work), let_go)


def typestrs(chosen: Mapping[str, Any]) -> dict[str, str]:
    """What to record of the handlers of checkpointables."""
    return {name: typestr_of(handler) for name, handler in chosen.items()}


def choose(
    location: str,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    runtime: Runtime,
) -> tuple[dict[str, Any], Exception | None]:
    """The handler of every checkpointable, or why this process cannot save them.

    Not raised here, because the other processes are about to wait for this one.
    """
    try:
        raise_unseen(runtime)
        if not isinstance(checkpointables, Mapping):
            raise InvalidNameError(
                f"`checkpointables` is {checkpointables!r:.80}; give a dict: what to "
                "save by the name of each checkpointable"
            )
        for name in checkpointables:
            check_name(name)
        handlers = Handlers(settings)
        chosen: dict[str, Any] = {}
        for name, checkpointable in checkpointables.items():
            note = f"in the save to {location}, while choosing who saves {name!r}"
            with noting(note):
                chosen[name] = handlers.for_saving(name, checkpointable)
        return chosen, None
    except Exception as error:  # noqa: BLE001 handlers may raise anything
        return {}, error


def _given(
    handlers: Mapping[str, Any], facts: RootFacts, runtime: Runtime
) -> tuple[dict[str, Any], Exception | None]:
    """The same, where the caller has chosen the handlers; some names are its own."""
    try:
        raise_unseen(runtime)
        if not facts.is_direct:
            for name in handlers:
                check_name(name, RESERVED_NAMES - {"metrics"})
        return dict(handlers), None
    except Exception as error:  # noqa: BLE001 the others must hear of it
        return {}, error


def _stage(
    operation: Operation,
    checkpointables: Mapping[str, Any],
    chosen: Mapping[str, Any],
    work: dict[str, Awaitable[None]],
) -> Exception | None:
    """First phase of every handler, on the caller's thread.

    What has begun is put into `work`. A failure is returned: the draft has to go, and
    others have to know.
    """

    async def stage(name: str, checkpointable: Any) -> None:
        handler = chosen[name]
        directory = OperationPath(operation, operation.directory_of(name))
        first = handler.save(directory, checkpointable)
        check_awaitable(first, handler, "save", phase=1)
        rest = await operation.in_time(first)
        work[name] = check_awaitable(rest, handler, "save")
        if operation.remaining_secs() <= 0:
            # What blocks this thread cannot be stopped; but it is late.
            raise operation.late()

    for name, checkpointable in checkpointables.items():
        operation.phase = f"staging {name or 'the item'}"
        try:
            with noting(f"in {operation.what}, while staging {what(name)}"):
                drive(stage(name, checkpointable))
        except Exception as error:  # noqa: BLE001 handlers may raise anything
            return error
    return None


def _drop(work: Mapping[str, Awaitable[None]]) -> None:
    """Ends second phases that nobody has begun to wait for."""
    for awaitable in work.values():
        if isinstance(awaitable, EngineTask):
            awaitable.future.cancel()
        else:
            drop(awaitable)


async def _give_up(
    operation: Operation, work: Mapping[str, Awaitable[None]], failure: Exception
) -> None:
    """Lets what has begun end, tells the other processes, and raises the failure."""
    _drop(work)
    await operation.stop()
    try:
        await operation.agree("written", failure)
    finally:
        await abandon(operation)
