"""What the handlers of this library have in common.

They work in two phases on stores, as those of `stowax.handlers` do: `begin_save` ends
when the caller may change the item, and gives the rest of the work.  In a checkpointer
they take part in its operation; called alone, on a plain path, they do all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from stowax._context import current_settings
from stowax._deadline import drive_in_time
from stowax._handlers._tree import finish_alone
from stowax._operation import EngineTask
from stowax._operation_path import OperationPath
from stowax._runtime import drive
from stowax.errors import (
    CheckpointNotFoundError,
    InvalidArgumentError,
    InvalidLayoutError,
)
from stowax.v0._checkpoint_args import get_registered_args_cls
from stowax.v0._handler import DeferredPathAsyncCheckpointHandler
from stowax.v0._words import in_its_words

_PACKAGE = __name__.partition(".")[0]


class OwnHandler(DeferredPathAsyncCheckpointHandler):
    """A handler of this library; see the module."""

    _TYPESTR: ClassVar[str] = ""
    """What Orbax calls it. A class that a user derives has a name of its own."""

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """Takes what it needs of the item; returns the rest of the work."""
        raise NotImplementedError  # Every final class has its own.

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """Begins to restore; returns the rest of the work."""
        raise NotImplementedError  # Every final class has its own.

    async def tell(self, directory: OperationPath) -> Any:
        """What the item looks like; None if that cannot be told."""
        del directory

    @in_its_words()
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes an item into a directory as it is, without a draft."""
        given = _arguments(self, 0, args, kwargs)

        async def work() -> None:
            await (await self._begin_alone(directory, given))

        drive(work())

    async def async_save(
        self, directory: Any, *args: Any, **kwargs: Any
    ) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        with in_its_words():
            given = _arguments(self, 0, args, kwargs)
            return [(await self._begin_alone(directory, given)).future]

    @in_its_words()
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads the item of a directory."""
        given = _arguments(self, 1, args, kwargs)
        settings = current_settings()

        async def work() -> Any:
            where = await OperationPath.of(directory, settings)
            async with where.operation.ending():
                return await (await self.begin_restore(where, given))

        return drive_in_time(work, settings, f"restore from {directory}")

    @in_its_words()
    def metadata(self, directory: Any) -> Any | None:
        """What the item of a directory looks like."""
        settings = current_settings()

        async def work() -> Any:
            where = await OperationPath.of(directory, settings)
            async with where.operation.ending():
                return await self.tell(where)

        return drive_in_time(work, settings, f"look at {directory}")

    def finalize(self, directory: Any) -> None:
        """Does nothing: an item is whole when it is written."""

    def has_to_finalize(self) -> bool:
        """Whether `finalize` does anything."""
        return False

    def close(self) -> None:
        """Does nothing: there is nothing to let go."""

    @classmethod
    def typestr(cls) -> str:
        """The name under which checkpoints record it."""
        return vars(cls).get("_TYPESTR") or super().typestr()

    async def _begin_alone(self, directory: Any, args: Any) -> EngineTask[None]:
        where = await OperationPath.of(directory, current_settings(), verb="write")
        operation, location = where.operation, where.location
        try:
            rest = await self.begin_save(where, args)
        except Exception as error:  # Any failure: the others are about to wait for us.
            await operation.submit(operation.agree("written", error))
            raise

        async def write() -> None:
            await rest

        return operation.submit(finish_alone(operation, location, write))


def takes_part(handler: Any, *names: str) -> bool:
    """Whether a handler takes part in operations by methods that are all ours.

    One of a user that overrides any of these is a guest.

    Args:
        handler: An instance.
        names: Of its methods.
    """
    if not isinstance(handler, OwnHandler):
        return False
    return all(_is_ours(type(handler), name) for name in names)


def check_kind(handler: Any, args: Any, *, for_save: bool) -> None:
    """Refuses arguments that say nothing of what a handler of ours asks.

    Those of another handler are taken as long as they do, as in Orbax.

    Args:
        handler: Any; what guests ask is their own affair.
        args: An object of arguments.
        for_save: Whether they are those of a save.

    Raises:
        InvalidArgumentError: Names the class that is needed.
    """
    names = ("save", "begin_save") if for_save else ("restore", "begin_restore")
    if not takes_part(handler, *names):
        return
    ours = _our_class(handler)
    expected = get_registered_args_cls(ours)[0 if for_save else 1]
    said = {*dir(type(args)), *vars(args)}
    missing = [each.name for each in fields(expected) if each.name not in said]
    if missing:
        raise InvalidArgumentError(
            f"{type(handler).__qualname__} is given {type(args).__qualname__}, which "
            f"has no {', '.join(missing)}; give "
            f"`ocp.args.{expected.__qualname__.removesuffix('Args')}`"
        )


async def or_not_found(rest: Awaitable[Any]) -> Any:
    """Work of a restore, which has the error of this API where nothing is found."""
    try:
        return await rest
    except InvalidLayoutError as error:
        raise CheckpointNotFoundError(str(error)) from error


def _is_ours(cls: type, name: str) -> bool:
    owner = next(each for each in cls.__mro__ if name in vars(each))
    return _is_of_package(owner)


def _arguments(
    handler: OwnHandler, which: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What one of our methods was given, in the class of arguments that is ours.

    One that a user derives may have been registered with others.
    """
    given = kwargs.pop("args", None)
    if given is not None:
        check_kind(handler, given, for_save=which == 0)
        return given
    return get_registered_args_cls(_our_class(handler))[which](*args, **kwargs)


def _our_class(handler: OwnHandler) -> type:
    return next(cls for cls in type(handler).__mro__ if _is_of_package(cls))


def _is_of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _PACKAGE
