"""Work that is given up when its time is over, and the words for what it was doing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from stowax._environment import runtime_of
from stowax._runtime import Runtime
from stowax._settings import Settings
from stowax._tasks import noting
from stowax.errors import DeadlineError

T = TypeVar("T")

GUEST_GRACE_SECS = 5.0
"""How long a guest may go on after its operation was given up, before the directory
that it may be writing to is deleted."""


@dataclass(slots=True)
class Timed:
    """Work that has a deadline, in words."""

    what: str
    """As in "the load of /runs/a/7"."""
    phase: str = "beginning"
    """What it is doing, or was when its time was over."""
    deadline: float | None = None
    """When it is given up, on the clock of the loop; None: it has not begun."""


_TIMED: Final[contextvars.ContextVar[Timed | None]] = contextvars.ContextVar(
    "stowax_timed", default=None
)
"""What `in_time` does here."""


async def in_time(
    work: Callable[[], Coroutine[Any, Any, T]], settings: Settings, timed: Timed
) -> T:
    """Does work within the deadline of the Context.

    Args:
        work: Begins it; says with `entering` what it is doing.
        settings: Have the deadline.
        timed: The work in words.

    Raises:
        DeadlineError: It took longer.
    """
    timed.deadline = asyncio.get_running_loop().time() + settings.timeout_secs
    limit = asyncio.timeout_at(timed.deadline)
    token = _TIMED.set(timed)
    try:
        return await within(limit, work(), lambda: too_late(timed, settings))
    finally:
        _TIMED.reset(token)


def entering(phase: str) -> None:
    """Says what the work under `in_time` does from now on, for its `DeadlineError`.

    What comes after the deadline is not what took too long: work that blocks is given
    up only afterwards.
    """
    timed = _TIMED.get()
    if timed is None or timed.deadline is None:
        return
    if asyncio.get_running_loop().time() < timed.deadline:
        timed.phase = phase


def drive_in_time(
    work: Callable[[], Coroutine[Any, Any, T]], settings: Settings, what: str
) -> T:
    """Does the same on the thread of the caller, and notes in errors what it was for.

    Raises:
        Exception: See `in_time`; and what `work` raises.
    """
    with noting(f"in the {what}"):
        return runtime_of(settings).drive(in_time(work, settings, Timed(f"the {what}")))


def guest_in_time(
    runtime: Runtime, work: Coroutine[Any, Any, T], settings: Settings, timed: Timed
) -> concurrent.futures.Future[T]:
    """Runs a guest that may block, and gives it up some time after the deadline.

    Args:
        runtime: Where.
        work: The guest, which minds the deadline unless it blocks; see `in_time`.
        settings: Have the deadline.
        timed: The work in words, as `in_time` has it.
    """
    future = runtime.start_guest(work)

    async def watch() -> None:
        guest = asyncio.wrap_future(future)
        guest.add_done_callback(lambda _: guest.cancelled() or guest.exception())
        limit_secs = settings.timeout_secs + GUEST_GRACE_SECS
        done, _ = await asyncio.wait([guest], timeout=limit_secs)
        if not done:
            runtime.leave_guest(future, too_late(timed, settings))

    runtime.submit(watch())
    return future


async def wait_for_guests(guests: Collection[asyncio.Future[Any]]) -> None:
    """Gives guests of an operation that is over a short time to come to their end."""
    await asyncio.wait(guests, timeout=GUEST_GRACE_SECS)


async def within(
    limit: asyncio.Timeout, work: Awaitable[T], late: Callable[[], DeadlineError]
) -> T:
    """Does work up to a limit, and raises what `late` makes beyond it."""
    try:
        async with limit:
            return await work
    except Exception as error:  # Guests may wrap a cancellation in errors of their own.
        if not limit.expired():
            raise
        raise late() from error


def too_late(timed: Timed, settings: Settings) -> DeadlineError:
    """The error for work that took too long."""
    return DeadlineError(
        f"{timed.what} took longer than {settings.timeout_secs:g} s and was given up "
        f"while {timed.phase}; allow more with `AsyncOptions(timeout_secs=...)`"
    )
