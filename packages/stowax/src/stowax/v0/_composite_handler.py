"""The handler of several items, each by a handler of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stowax._context import current_settings
from stowax._deadline import drive_in_time
from stowax._handlers._base import FinalizingHandler
from stowax._operation import EngineTask
from stowax._operation_path import OperationPath
from stowax._tasks import drop, finish_all, noting
from stowax.errors import HandlerError, HandlerNotFoundError, InvalidArgumentError
from stowax.v0._checkpoint_args import (
    CheckpointArgs,
    check_verb,
    get_registered_args_cls,
    register_with_handler,
)
from stowax.v0._composite import Composite
from stowax.v0._guest import begin_restore, saver_of
from stowax.v0._handler_registry import (
    CheckpointHandlerRegistry,
)
from stowax.v0._handler_types import handler_type, typestr_of
from stowax.v0._item_handlers import ItemHandlers
from stowax.v0._opened import OpenItems, open_items
from stowax.v0._own import OwnHandler
from stowax.v0._step_metadata import StepMetadata
from stowax.v0.options import (
    AsyncOptions,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)


@dataclass
class CompositeOptions:
    """Options of a `CompositeCheckpointHandler`.

    Those of its checkpointer count; these are here for programs that set both.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.CompositeOptions().file_options is None
        True
    """

    multiprocessing_options: MultiprocessingOptions = field(
        default_factory=MultiprocessingOptions
    )
    temporary_path_class: Any = None
    file_options: FileOptions | None = None
    atomicity_options: AtomicityOptions | None = None
    async_options: AsyncOptions | None = None


_OPTIONS = CompositeOptions()


class CompositeCheckpointHandler(OwnHandler):
    """Saves and restores several items, each in a directory of its own.

    Which handler serves an item follows from its arguments at the first save or
    restore, and stays so, unless it was said before.

    Args:
        *item_names: The only items that there may be; their handlers follow from
            their arguments.
        composite_options: Those of the checkpointer count.
        handler_registry: Handlers for items and arguments; others follow from the
            arguments.
        **items_and_handlers: The only items that there may be, and their handlers.

    Raises:
        InvalidArgumentError: A registry is given, and items as well.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(
        ...         path,
        ...         ocp.args.Composite(
        ...             state=ocp.args.StandardSave({"w": np.ones(2)}),
        ...             config=ocp.args.JsonSave({"depth": 3}),
        ...         ),
        ...     )
        ...     restored = checkpointer.restore(path)
        >>> restored.config
        {'depth': 3}
    """

    def __init__(
        self,
        *item_names: str,
        composite_options: CompositeOptions = _OPTIONS,
        handler_registry: CheckpointHandlerRegistry | None = None,
        **items_and_handlers: Any,
    ) -> None:
        if handler_registry is not None and (item_names or items_and_handlers):
            raise InvalidArgumentError(
                "`handler_registry` is given, and items as well; put the items into "
                "the registry"
            )
        self._options = composite_options
        self._handlers = ItemHandlers(handler_registry, item_names, items_and_handlers)

    def savers(self, args: Mapping[str, Any], *, in_background: bool) -> dict[str, Any]:
        """Who saves each item.

        Args:
            args: The arguments of each.
            in_background: Whether handlers may leave work to futures.
        """
        for name, each in args.items():
            check_verb(each, for_save=True)
            if each is None:
                raise InvalidArgumentError(
                    f"the item {name!r} is given None; give what is to be saved, such "
                    "as `ocp.args.StandardSave(tree)`"
                )
        return {
            name: saver_of(
                self._handlers.of(name, args[name]), in_background=in_background
            )
            for name in sorted(args)
        }

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`; for one that is used alone, or as an item."""
        begun: list[Awaitable[None]] = []
        try:
            for name, saver in self.savers(args, in_background=True).items():
                # A place of its own, which is made for whoever awaits it.
                location = (directory / name).location
                place = OperationPath(directory.operation, location)
                with noting(f"while saving the item {name!r}"):
                    begun.append(await saver.save(place, args[name]))
        except BaseException:  # An interrupt too; raised again.
            for work in begun:
                drop(work)
            raise
        operation = directory.operation

        async def rest() -> None:
            await finish_all(
                [
                    work if isinstance(work, EngineTask) else operation.run_guest(work)
                    for work in begun
                ]
            )

        return operation.submit(rest())

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`; for one that is used alone, or as an item."""
        opened = await OpenItems.below(directory)
        return await self.begin_restore_of(opened, args)

    async def begin_restore_of(self, opened: OpenItems, args: Any) -> Awaitable[Any]:
        """The same of a checkpoint that is open."""
        asked = dict(args.items()) if args else self._all(opened)
        for each in asked.values():
            check_verb(each, for_save=False)
        begun: dict[str, Awaitable[Any]] = {}
        try:
            for name in sorted(asked):
                place = opened.directory_of(name)
                handler = self._handlers.of(name, asked[name])
                item_args = asked[name]
                if item_args is None:
                    item_args = _nothing_in_particular(name, handler)
                with noting(f"while restoring the item {name!r}"):
                    begun[name] = await begin_restore(
                        handler, opened.operation, place, item_args
                    )
        except BaseException:  # An interrupt too; raised again.
            for rest in begun.values():
                drop(rest)
            raise
        return _restored(begun)

    def metadata(self, directory: Any) -> StepMetadata:
        """What is known of a checkpoint and its items."""
        settings = current_settings()

        async def work() -> StepMetadata:
            return await self.describe(await open_items(directory, settings))

        return drive_in_time(work, settings, f"look at {directory}")

    async def describe(self, opened: OpenItems) -> StepMetadata:
        """The same of a checkpoint that is open."""
        known = self._handlers.known()
        found, recorded = opened.step_metadata(), opened.typestrs
        handlers: dict[str, str | None] = dict(recorded)
        told: dict[str, Any] = {}
        for name in opened.names:
            handler = known.get(name)
            if handler is None:
                handlers.setdefault(name, None)
                told[name] = None
                continue
            if handlers.get(name) is None:
                handlers[name] = typestr_of(handler)
            with noting(f"while asking for the metadata of {name!r}"):
                told[name] = await opened.tell(handler, name)
        found.item_handlers = handlers
        found.item_metadata = Composite(**told)
        return found

    def finalize(self, directory: Any) -> None:
        """Lets guests finish their items; in a checkpointer that is done already."""
        for name, handler in self._finalizing().items():
            if (directory / name).exists():
                handler.finalize(directory / name)

    def has_to_finalize(self) -> bool:
        """See `OwnHandler`."""
        return bool(self._finalizing())

    def close(self) -> None:
        """Closes the handlers of all items."""
        closed: list[Any] = []
        for handler in self._handlers.known().values():
            if any(handler is each for each in closed):
                continue
            closed.append(handler)
            if (close := getattr(handler, "close", None)) is not None:
                close()

    def save(self, directory: Any, args: Any) -> None:
        """Writes items below a directory as it is, without a draft."""
        super().save(directory, args=args)

    async def async_save(self, directory: Any, args: Any) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        return await super().async_save(directory, args=args)

    def restore(self, directory: Any, args: Any = None) -> Any:
        """Reads the items below a directory: those that are asked for, or all."""
        return super().restore(directory, args=args or CompositeArgs())

    def _finalizing(self) -> dict[str, Any]:
        """The handlers that have something to finish."""
        return {
            name: handler
            for name, handler in self._handlers.known().items()
            if isinstance(
                saver := saver_of(handler, in_background=True), FinalizingHandler
            )
            and saver.has_to_finalize()
        }

    def _all(self, opened: OpenItems) -> dict[str, Any]:
        """Arguments that ask for nothing in particular, for every item that is there.

        Raises:
            HandlerNotFoundError: Nobody knows the handler of an item.
            HandlerError: It has to be told what to restore.
        """
        known = self._handlers.known()
        asked: dict[str, Any] = {}
        for name in opened.names:
            handler = known.get(name) or handler_type(opened.typestrs.get(name))
            if handler is None:
                raise HandlerNotFoundError(
                    f"nothing here can restore the item {name!r}, which was saved by "
                    f"{opened.typestrs.get(name)!r}; give its arguments, or a "
                    "`handler_registry` with its handler"
                )
            asked[name] = _nothing_in_particular(name, handler)
        return asked


def _nothing_in_particular(name: str, handler: Any) -> CheckpointArgs:
    """Arguments for the restore of an item that say nothing.

    Raises:
        HandlerError: It has to be told what to restore.
    """
    cls = get_registered_args_cls(handler)[1]
    try:
        return cls()
    except TypeError as error:
        raise HandlerError(
            f"the item {name!r} has to be told what to restore ({error}); give a "
            f"{cls.__qualname__} for it"
        ) from error


@register_with_handler(CompositeCheckpointHandler, for_save=True, for_restore=True)
class CompositeArgs(Composite, CheckpointArgs):
    """The arguments of every item; and what is restored, by the same names.

    Example:
        >>> from stowax import v0 as ocp
        >>> args = ocp.args.Composite(config=ocp.args.JsonRestore())
        >>> "config" in args
        True
    """


async def _restored(begun: dict[str, Awaitable[Any]]) -> Any:
    restored: dict[str, Any] = {}
    try:
        for name in list(begun):
            with noting(f"while restoring the item {name!r}"):
                restored[name] = await begun.pop(name)
    finally:
        for rest in begun.values():
            drop(rest)
    return CompositeArgs(**restored)
