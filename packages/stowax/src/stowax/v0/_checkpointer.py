"""The checkpointer of the older API: saves and restores by a handler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from stowax._composite import RootFacts
from stowax._custom_metadata import json_object
from stowax._deadline import drive_in_time
from stowax._formats._orbax_item import read_root
from stowax._opened import again_if_replaced
from stowax._operation import reported
from stowax._operation_path import absolute
from stowax._option_values import check_flags
from stowax._save_composite import stage_composite
from stowax._settings import Settings, check_supported
from stowax._staged_save import StagedSave
from stowax._tasks import noting
from stowax.errors import InvalidArgumentError
from stowax.v0._abstract_checkpointer import AbstractCheckpointer
from stowax.v0._checkpoint_args import (
    CheckpointArgs,
    check_verb,
    get_registered_args_cls,
    has_registered_args,
)
from stowax.v0._composite import Composite
from stowax.v0._composite_handler import CompositeCheckpointHandler
from stowax.v0._guest import begin_restore, saver_of, tell
from stowax.v0._legacy import with_arguments
from stowax.v0._metadata_store import RootWriter, read_root_by
from stowax.v0._opened import open_item, open_items
from stowax.v0._own import check_kind
from stowax.v0._settings import settings_of
from stowax.v0._step_metadata import StepMetadata, step_metadata
from stowax.v0._words import in_its_words
from stowax.v0.options import AtomicityOptions, FileOptions, MultiprocessingOptions

_MULTIPROCESSING = MultiprocessingOptions()
_FILE = FileOptions()


class Checkpointer(AbstractCheckpointer):
    """Saves and restores by a handler, all or nothing.

    A save returns when the checkpoint is complete and durable; whatever goes wrong,
    what was at the path before is untouched. In a run of several processes all of them
    call it.

    Args:
        handler: One of this library, or of your own.
        multiprocessing_options: Which processes take part.
        file_options: How directories are made.
        atomicity_options: How a checkpoint becomes visible.
        checkpoint_metadata_store: Writes and reads what stands at the root of a
            checkpoint; None: as usual.
        temporary_path_class: None, or `ocp.path.atomicity.AtomicRenameTemporaryPath`.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, {"w": np.ones(2)}, force=True)
        ...     checkpointer.restore(path)
        {'w': array([1., 1.])}
    """

    def __init__(
        self,
        handler: Any,
        *,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
        file_options: FileOptions = _FILE,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
    ) -> None:
        # Programs look at `_handler`.
        self._handler = (
            handler if has_registered_args(handler) else with_arguments(handler)
        )
        self._multiprocessing_options = multiprocessing_options
        self._file_options = file_options
        self._atomicity_options = atomicity_options
        self._temporary_path_class = temporary_path_class
        self._metadata_store = checkpoint_metadata_store
        if self._blocks and not _is_blocking(checkpoint_metadata_store):
            raise InvalidArgumentError(
                "`checkpoint_metadata_store` does not write before it returns, and a "
                "Checkpointer returns when all is written; give one that does, "
                "`metadata_store(enable_write=True, blocking_write=True)`"
            )

    _blocks = True
    """Whether saves return when all is written."""

    @property
    def handler(self) -> Any:
        """The handler; one without arguments of its own, in one that has some."""
        return self._handler

    @in_its_words()
    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        save_context: Any = None,
        **kwargs: Any,
    ) -> None:
        """Saves an item to a path.

        Args:
            directory: Where. Missing parents are made.
            *args: Arguments of the handler, an object of the class that is registered
                for its saves, or what makes one.
            force: Whether to replace what is at the path. The old checkpoint stays
                whole until the new one takes its place.
            custom_metadata: JSON values to keep with the checkpoint, a dict.
            save_context: Ignored; measures of Orbax.
            **kwargs: Arguments of the handler by name; `args=` is the object.

        Raises:
            CheckpointExistsError: Something is at the path, and `force` is false or it
                is no checkpoint.
            Exception: What the handler raises.
        """
        del save_context
        self._stage(
            directory,
            args,
            kwargs,
            force=force,
            custom_metadata=custom_metadata,
            in_background=False,
        ).finish()

    @in_its_words()
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores the item of a path.

        Args:
            directory: A checkpoint, or the directory of an item in one.
            *args: Arguments of the handler; see `save`.
            **kwargs: The same by name.

        Raises:
            CheckpointNotFoundError: Nothing is at the path, or no such item.
            InvalidLayoutError: What is there is unfinished, or no checkpoint.
            Exception: What the handler raises.
        """
        given = construct_checkpoint_args(self._handler, False, *args, **kwargs)
        location, handler = absolute(directory), self._handler
        if isinstance(handler, CompositeCheckpointHandler):
            _check_composite(given)

        async def restore(settings: Settings) -> Any:
            if isinstance(handler, CompositeCheckpointHandler):
                opened = await open_items(location, settings)
                async with opened.operation.ending():
                    return await (await handler.begin_restore_of(opened, given))
            operation = await open_item(location, settings)
            async with operation.ending():
                begun = begin_restore(handler, operation, operation.directory, given)
                return await (await begun)

        settings = self._settings()
        check_supported(settings, saving=False)
        settings, report = reported("load", location, settings, in_background=False)

        async def work() -> Any:
            return await again_if_replaced(
                location, settings, lambda: restore(settings)
            )

        with report.telling():
            return drive_in_time(work, settings, f"restore from {location}")

    @in_its_words()
    def metadata(self, directory: Any) -> StepMetadata:
        """What is known of a checkpoint without restoring it.

        Of an item that the handler does not find there, or cannot describe, nothing
        is known.

        Args:
            directory: The checkpoint.

        Raises:
            CheckpointNotFoundError: Nothing is at the path.
            CorruptCheckpointError: What is there is damaged.
        """
        location, handler = absolute(directory), self._handler
        store = self._metadata_store

        async def read(settings: Settings, *, asks: bool = True) -> StepMetadata:
            if isinstance(handler, CompositeCheckpointHandler):
                opened = await open_items(location, settings)
                if store is not None:
                    opened = replace(opened, root=read_root_by(store, opened.path))
                return await handler.describe(opened)
            operation = await open_item(location, settings)
            async with operation.ending():
                path = operation.directory
                if store is None:
                    root = await operation.submit(read_root(operation.store, path))
                else:
                    root = read_root_by(store, path)
                found = step_metadata(root)
                if asks:
                    with noting(f"while asking for the metadata of {path}"):
                        found.item_metadata = await tell(handler, operation, path)
                return found

        settings = self._settings()
        check_supported(settings, saving=False)

        async def work() -> StepMetadata:
            try:
                return await again_if_replaced(
                    location, settings, lambda: read(settings)
                )
            except FileNotFoundError:
                # The handler finds nothing of its kind; or there is nothing at all,
                # which is raised again.
                return await again_if_replaced(
                    location, settings, lambda: read(settings, asks=False)
                )

        return drive_in_time(work, settings, f"look at {location}")

    def close(self) -> None:
        """Closes the handler."""
        for each in (self._handler, self._metadata_store):
            if (close := getattr(each, "close", None)) is not None:
                close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _settings(self) -> Settings:
        return settings_of(
            multiprocessing=self._multiprocessing_options,
            file=self._file_options,
            atomicity=self._atomicity_options,
            temporary_path_class=self._temporary_path_class,
        )

    def _stage(
        self,
        directory: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        force: bool,
        custom_metadata: Any,
        in_background: bool,
    ) -> StagedSave:
        """Takes the values; what remains is to commit."""
        check_flags(force=force)
        metadata = json_object("custom_metadata", custom_metadata) or {}
        settings, failure = self._settings(), None
        checkpointables: Mapping[str, Any] = {}
        savers: dict[str, Any] = {}
        handler = self._handler
        is_composite = isinstance(handler, CompositeCheckpointHandler)
        try:
            given: Any = construct_checkpoint_args(handler, True, *args, **kwargs)
            if isinstance(handler, CompositeCheckpointHandler):
                _check_composite(given)
                # Handlers of guests may leave work to futures; it is waited for.
                savers = handler.savers(given, in_background=True)
                checkpointables = {name: given[name] for name in savers}
                if not checkpointables:
                    raise InvalidArgumentError(
                        "there is no item to save; give `ocp.args.Composite(name=...)`"
                    )
            else:
                savers = {"": saver_of(handler, in_background=in_background)}
                checkpointables = {"": given}
        except Exception as error:  # noqa: BLE001 the others are about to wait for us
            failure = error
        return stage_composite(
            directory,
            checkpointables,
            settings,
            overwrite=force,
            facts=RootFacts(
                custom_metadata=metadata,
                is_step=is_composite,
                is_direct=not is_composite,
                write_root=self._metadata_store and RootWriter(self._metadata_store),
            ),
            borrow=not in_background,
            in_background=in_background,
            handlers=savers,
            failure=failure,
        )


def construct_checkpoint_args(
    handler: Any, for_save: bool, *args: Any, **kwargs: Any
) -> CheckpointArgs:
    """What a call was given, as the arguments of a handler.

    Args:
        handler: The handler.
        for_save: Whether they are those of a save.
        *args: Of the call.
        **kwargs: Of the call.
    """
    for each in (*args, *kwargs.values()):
        if isinstance(each, CheckpointArgs):
            check_verb(each, for_save=for_save)
            check_kind(handler, each, for_save=for_save)
            return each
    cls = get_registered_args_cls(handler)[0 if for_save else 1]
    return cls(*args, **kwargs)


def _check_composite(given: Any) -> None:
    """Refuses the arguments of one item where those of several are needed."""
    if not isinstance(given, Composite):
        raise InvalidArgumentError(
            f"a CompositeCheckpointHandler is given {type(given).__qualname__}; name "
            "the item, `ocp.args.Composite(name=...)`"
        )


def _is_blocking(store: Any) -> bool:
    ask = getattr(store, "is_blocking_writer", None)
    return ask is None or bool(ask())
