"""Calls that change a session, as the others of this process see them.

They may overlap, but take effect in their order: each knows those before it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stowax._manifest import Digest
from stowax._plan._unite import Layer
from stowax._runtime import Runtime
from stowax._session_records import session_of
from stowax._settings import Settings
from stowax._staged_save import reservation_of


@dataclass(eq=False, slots=True, kw_only=True)
class SessionCall:
    """A save to a session, or its finalization."""

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
