"""The story of a save: settings, handlers, staging, and a commit in the background."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import posixpath
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from stowax._commit import abandon, begin, commit
from stowax._composite import RootFacts, finish_items, seal_root
from stowax._context import current_settings
from stowax._environment import runtime_of, store_of
from stowax._formats._orbax_json import (
    PARTIAL_MARK,
    UNFINISHED_MARK,
)
from stowax._handlers._base import check_awaitable
from stowax._handlers._choose import typestr_of
from stowax._handlers._registry import Handlers
from stowax._operation import EngineTask, Operation, reported
from stowax._operation_path import OperationPath, absolute
from stowax._option_values import check_flags
from stowax._report import Report
from stowax._response import AsyncResponse, raise_unseen, respond
from stowax._runtime import Runtime, drive
from stowax._save_names import check_directory, check_name
from stowax._settings import Settings, check_supported
from stowax._tasks import drop, noting
from stowax.errors import InvalidNameError, SaveInProgressError

_logger = logging.getLogger("stowax")


class StagedSave:
    """A save whose values have been taken or borrowed, to be committed once.

    Args:
        runtime: Where it runs.
        commit: All that is left to do.
        let_go: Ends what was staged, instead of `commit`.
        what: The save in words, as in "save to /runs/a/7".
        reservation: What keeps others from saving to the same path.
        report: Hears how it ends.
    """

    def __init__(
        self,
        runtime: Runtime,
        commit: Callable[[], Coroutine[Any, Any, None]],
        let_go: Callable[[], None],
        what: str,
        reservation: object,
        report: Report,
    ) -> None:
        self._runtime = runtime
        self._report = report
        self._commit = commit
        self._let_go = let_go
        self._what = what
        self._reservation = reservation
        self._future: concurrent.futures.Future[None] | None = None
        self._begun = threading.Lock()  # Whoever gets it decides: commit, or let go.
        self._ended = threading.Event()

    def finish(self) -> None:
        """Commits; who is interrupted has ended it, and may change the values."""
        try:
            with noting(f"in the {self._what}"):
                self._runtime.run(self._work())
        except BaseException:  # An interrupt above all; raised again.
            self._end()
            raise
        finally:
            # The error holds this frame, which must not hold the error (Runtime.run).
            del self

    def start(self) -> AsyncResponse[None]:
        """Commits in the background."""
        try:
            self._future = self._runtime.submit(self._work())
        except BaseException:  # An interrupt too; raised again.
            self._end()
            raise
        return respond(self._runtime, self._future, what=self._what)

    def cancel(self) -> None:
        """Ends what was started, and returns when nothing of it runs any more."""
        if self._future is not None:
            self._future.cancel()
            self._end()

    def _end(self) -> None:
        """Returns when it is over, of a commit that ends, or that never began."""
        if self._begun.acquire(blocking=False):
            try:
                # Where the runtime is closed the draft stays, which does no harm.
                with contextlib.suppress(RuntimeError):
                    self._let_go()
            finally:
                self._report.failed(asyncio.CancelledError())
                self._set_ended()
        self._ended.wait()

    async def _work(self) -> None:
        # Also a task that is cancelled at once comes here first, and so ends.
        if not self._begun.acquire(blocking=False):
            return
        try:
            await self._commit_and_tell()
        finally:
            self._set_ended()

    async def _commit_and_tell(self) -> None:
        try:
            await self._commit()
        except BaseException as error:  # Whatever ends it; raised again.
            self._report.failed(error)
            await self._report.wait_on_loop()
            raise
        await self._report.wait_on_loop()

    def _set_ended(self) -> None:
        # They hold the values, for whoever keeps this object.
        del self._commit, self._let_go
        self._runtime.free(self._reservation)
        self._ended.set()


def stage_save(
    path: Any,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool,
    facts: RootFacts,
    borrow: bool,
    in_background: bool,
    failure: Exception | None = None,
) -> StagedSave:
    """Makes a draft and stages everything; what remains is to commit it.

    Args:
        path: The final path.
        checkpointables: By name.
        overwrite: Whether what is at the path is replaced.
        facts: What stands at the root.
        borrow: Whether the caller leaves host arrays alone until the end.
        in_background: Whether the caller goes on meanwhile.
        failure: Why this process cannot take part; raised when the others know.
    """
    check_flags(overwrite=overwrite)
    settings = current_settings()
    check_supported(settings)
    runtime = runtime_of(settings)
    location = absolute(path)
    for mark in (UNFINISHED_MARK, PARTIAL_MARK):
        if mark in posixpath.basename(location):
            raise InvalidNameError(
                f"{location}: a name with {mark!r} marks an unfinished checkpoint; "
                "choose another"
            )
    if store_of(settings, location).has_directories:
        check_directory(location)
    reservation = (id(settings.store), location)
    settings, report = reported("save", location, settings, in_background=in_background)
    is_reserved = runtime.reserve(reservation)
    try:
        if not is_reserved and failure is None:
            failure = SaveInProgressError(
                f"a save to {location} is under way in this process, and has not been "
                "waited for; call `result()` on what `save_async` returned before "
                "saving there again"
            )
        finish, let_go = _stage_all(
            location,
            checkpointables,
            settings,
            runtime,
            overwrite=overwrite,
            facts=facts,
            borrow=borrow,
            failure=failure,
        )
    except BaseException as error:  # An interrupt too; raised again.
        if is_reserved:
            runtime.free(reservation)
        report.failed(error)
        report.wait()
        raise
    report.staged()
    return StagedSave(
        runtime, finish, let_go, f"save to {location}", reservation, report
    )


def _stage_all(
    location: str,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    runtime: Runtime,
    *,
    overwrite: bool,
    facts: RootFacts,
    borrow: bool,
    failure: Exception | None,
) -> tuple[Callable[[], Coroutine[Any, Any, None]], Callable[[], None]]:
    """Makes a draft and stages everything; see `stage_save`.

    Returns:
        All that is left to do, and what ends it all instead.
    """
    started_nsecs = runtime.now_nsecs()
    chosen: dict[str, Any] = {}
    if failure is None:
        chosen, failure = _choose(location, checkpointables, settings, runtime)
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

    async def finish() -> None:
        await commit(
            operation,
            location,
            finish=lambda: finish_items(operation, work),
            seal=lambda told: seal_root(
                operation,
                location,
                {name: typestr_of(handler) for name, handler in chosen.items()},
                facts,
                told,
                started_nsecs=started_nsecs,
            ),
            replace=overwrite,
        )
        if operation.report is not None:
            operation.report.succeeded()
        if settings.post_finalization_callback is not None:
            await _call_back(operation, location, settings.post_finalization_callback)

    return finish, let_go


def _choose(
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
        directory = OperationPath(operation, posixpath.join(operation.directory, name))
        first = handler.save(directory, checkpointable)
        check_awaitable(first, handler, "save", phase=1)
        rest = await operation.in_time(first)
        work[name] = check_awaitable(rest, handler, "save")
        if operation.remaining_secs() <= 0:
            # What blocks this thread cannot be stopped; but it is late.
            raise operation.late()

    for name, checkpointable in checkpointables.items():
        operation.phase = f"staging {name}"
        try:
            with noting(
                f"in {operation.what}, while staging the checkpointable {name!r}"
            ):
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


async def _call_back(
    operation: Operation, location: str, callback: Callable[[], None]
) -> None:
    """Tells the user; what comes of it cannot undo the save.

    The callback is a guest: it may block, and load what was saved.
    """

    async def call() -> None:
        callback()

    operation.phase = "calling `post_finalization_callback`"
    operation.start_clock()
    try:
        await operation.in_time(operation.run_guest(call()))
    except Exception:  # User code may raise anything.
        _logger.exception(
            "%s is saved, but `post_finalization_callback` failed", location
        )
        await operation.stop()
