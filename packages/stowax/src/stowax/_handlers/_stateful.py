"""The handler of objects that save and load themselves."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from stowax._formats._orbax_json import STATEFUL_TYPESTR
from stowax._handlers._base import StatefulCheckpointable
from stowax.errors import HandlerError


class StatefulCheckpointableHandler:
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

        async def finish() -> Any:
            await rest
            return abstract_checkpointable

        return finish()

    async def metadata(self, directory: Any) -> None:
        """Only the object knows."""
        del directory

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it has `save` and `load`."""
        return _is_stateful(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it has `save` and `load`."""
        return _is_stateful(abstract_checkpointable)


def _is_stateful(value: Any) -> bool:
    return isinstance(value, StatefulCheckpointable) and not isinstance(value, type)


def _checked(rest: Any, checkpointable: Any, verb: str) -> Awaitable[Any]:
    if not isinstance(rest, Awaitable):
        raise HandlerError(
            f"{type(checkpointable).__qualname__}.{verb} must return an awaitable that "
            f"does the rest of the work, found {rest!r}"
        )
    return rest
