"""The handler of objects that save and load themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from stowax._formats._orbax_json import STATEFUL_TYPESTR
from stowax._handlers._base import NeedsTarget, check_awaitable
from stowax._handlers._choose import saves_itself
from stowax._tasks import drop
from stowax.errors import HandlerError


class StatefulCheckpointableHandler(NeedsTarget):
    """Hands the directory to the object; a guest, because the object is."""

    typestr = STATEFUL_TYPESTR

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Calls `checkpointable.save(directory)`."""
        return await _begin(checkpointable, "save", directory)

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """Calls `load(directory)` of the object given as target; returns the object."""
        if abstract_checkpointable is None:
            raise HandlerError(
                f"{directory} was written by an object that saves itself; to load it, "
                "give such an object in `abstract_checkpointables`"
            )
        rest = await _begin(abstract_checkpointable, "load", directory)
        return _Loading(rest, abstract_checkpointable)

    async def metadata(self, directory: Any) -> Any:
        """Cannot be told: only the object knows.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"only the object that wrote {directory} knows")

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it has `save` and `load`."""
        return saves_itself(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it has `save` and `load`."""
        return saves_itself(abstract_checkpointable)


class _Loading:
    """The rest of a load in place, which ends with the object.

    No coroutine around the one of the object: whoever drops it has to reach that one.
    """

    def __init__(self, rest: Awaitable[Any], checkpointable: Any) -> None:
        self._rest = rest
        self._checkpointable = checkpointable

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self._rest.__await__()
        return self._checkpointable

    def close(self) -> None:
        """Drops it unawaited."""
        drop(self._rest)


async def _begin(checkpointable: Any, verb: str, directory: Any) -> Awaitable[Any]:
    """First phase of an object's own method."""
    first = getattr(checkpointable, verb)(directory)
    rest = await check_awaitable(first, checkpointable, verb, phase=1)
    return check_awaitable(rest, checkpointable, verb)
