"""A save between its two phases: the values are safe, and nothing is published.

The first phase runs on the caller's thread, the second one in the background or while
the caller waits.  What is saved, and in which form, is the matter of whoever stages.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import posixpath
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from stowax._environment import runtime_of, store_of
from stowax._formats._orbax_json import PARTIAL_MARK, UNFINISHED_MARK
from stowax._operation import reported
from stowax._operation_path import absolute
from stowax._option_values import check_flags
from stowax._report import Report
from stowax._response import Response, respond
from stowax._runtime import Runtime
from stowax._save_names import check_directory
from stowax._settings import Settings
from stowax._tasks import noting
from stowax.errors import InvalidNameError, SaveInProgressError


class Staged(NamedTuple):
    """What is left to do of a save."""

    commit: Callable[[], Coroutine[Any, Any, None]]
    """All of it."""
    let_go: Callable[[], None]
    """Ends what was staged, instead."""


class Begun(NamedTuple):
    """A save that is about to be staged."""

    location: str
    """The final path."""
    settings: Settings
    runtime: Runtime
    failure: Exception | None
    """Why this process cannot take part; to be raised when the others know."""


class StagedSave:
    """A save whose values have been taken or borrowed, to be committed once.

    Args:
        runtime: Where it runs.
        staged: What is left to do.
        what: The save in words, as in "save to /runs/a/7".
        reservation: What keeps others from saving to the same path.
        report: Hears how it ends.
    """

    def __init__(
        self,
        runtime: Runtime,
        staged: Staged,
        what: str,
        reservation: object,
        report: Report,
    ) -> None:
        self._runtime = runtime
        self._report = report
        self._commit, self._let_go = staged
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

    def start(self) -> Response[None]:
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
    stage: Callable[[Begun], Staged],
    settings: Settings,
    *,
    overwrite: bool,
    in_background: bool,
    failure: Exception | None = None,
    is_update: bool = False,
) -> StagedSave:
    """Does the first phase of a save; what remains is to commit it.

    Args:
        path: The final path.
        stage: Makes a draft and stages everything.
        settings: Those of the operation.
        overwrite: Whether what is at the path is replaced.
        in_background: Whether the caller goes on meanwhile.
        failure: Why this process cannot take part; raised when the others know.
        is_update: Whether it is one of several saves to a session, which may overlap.
    """
    check_flags(overwrite=overwrite)
    runtime = runtime_of(settings)
    location = absolute(path)
    for mark in (UNFINISHED_MARK, PARTIAL_MARK):
        if mark in posixpath.basename(location):
            raise InvalidNameError(
                f"{location}: a name with {mark!r} marks an unfinished checkpoint; "
                "choose another"
            )
    if store_of(settings, location).has_directories:
        check_directory(location, is_update=is_update)
    reservation = object() if is_update else reservation_of(settings, location)
    reported_path = f"{location}{PARTIAL_MARK}" if is_update else location
    settings, report = reported(
        "save", reported_path, settings, in_background=in_background
    )
    is_reserved = runtime.reserve(reservation)
    try:
        if not is_reserved and failure is None:
            failure = in_progress(location)
        staged = stage(Begun(location, settings, runtime, failure))
    except BaseException as error:  # An interrupt too; raised again.
        if is_reserved:
            runtime.free(reservation)
        report.failed(error)
        report.wait()
        raise
    report.staged()
    return StagedSave(runtime, staged, f"save to {location}", reservation, report)


def reservation_of(settings: Settings, location: str) -> object:
    """What whoever changes what is at a path takes from others of this process."""
    return id(settings.store), location


def in_progress(location: str) -> SaveInProgressError:
    """The error for who comes second."""
    return SaveInProgressError(
        f"a save to {location} is under way in this process, and has not been waited "
        "for; call `result()` on what `save_async` returned before saving there again"
    )
