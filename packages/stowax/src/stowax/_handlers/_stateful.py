"""The handler of objects that save and load themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from stowax._formats._orbax_json import STATEFUL_TYPESTR
from stowax._handlers._base import NeedsTarget
from stowax._handlers._choose import saves_itself
from stowax._tasks import drop
from stowax.errors import HandlerError


class StatefulCheckpointableHandler(NeedsTarget):
    """Hands the directory to the object; a guest, because the object is."""

    typestr = STATEFUL_TYPESTR

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Calls `checkpointable.save(directory)`."""
        return _checked(await checkpointable.save(directory), checkpointable, "save")

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """Calls `load(directory)` of the object given as target; returns the object."""
        if abstract_checkpointable is None:
            raise HandlerError(
                f"{directory} was written by an object that saves itself; to load it, "
                "give such an object in `abstract_checkpointables`"
            )
        loading = await abstract_checkpointable.load(directory)
        rest = _checked(loading, abstract_checkpointable, "load")

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


def _checked(rest: Any, checkpointable: Any, verb: str) -> Awaitable[Any]:
    if not isinstance(rest, Awaitable):
        raise HandlerError(
            f"{type(checkpointable).__qualname__}.{verb} must return an awaitable that "
            f"does the rest of the work, found {rest!r}"
        )
    return rest
