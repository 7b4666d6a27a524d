"""The steps of a training loop: save some, keep some, resume from the newest.

This is the face; `stowax.training._run` tells the story.  One save or deletion is under
way at a time.  A failure is raised by the response, else by the next save, by `wait` or
by `close`, whichever comes first.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, final

from etils import epath

from stowax._composite import RootFacts
from stowax._context import Context, current_context
from stowax._custom_metadata import json_object
from stowax._handlers._registry import STATE_NAME
from stowax._inspect import checkpointables_metadata, metadata
from stowax._load import load, load_checkpointables
from stowax._metadata import CheckpointMetadata as AnyMetadata
from stowax._opened import AUTO
from stowax._option_values import check_flags
from stowax._response import AsyncResponse
from stowax.errors import UnsupportedOptionError
from stowax.training._pending import Pending
from stowax.training._run import Run
from stowax.training._steps import CheckpointMetadata, RootMetadata, check_step
from stowax.training.preservation_policies import PreservationPolicy, PreserveAll
from stowax.training.save_decision_policies import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
)

P = ParamSpec("P")
T = TypeVar("T")


def _renamed(alias: str, method: Callable[P, T]) -> Callable[P, T]:
    """The method under the name that it used to have."""

    @functools.wraps(method)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
        name = method.__name__
        message = f"Checkpointer.{alias} is now called Checkpointer.{name}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return method(*args, **kwargs)

    renamed.__name__ = alias
    renamed.__qualname__ = f"Checkpointer.{alias}"
    return renamed


@final
class Checkpointer:
    """Saves and loads the steps of one training run, in one directory.

    In a run of several processes all of them make the same calls, in the same order.
    Calls come from one thread at a time.

    Args:
        directory: Where the steps are. Made if it is missing.
        context: Options for all operations; None takes those that are active now.
        save_decision_policy: Which steps are saved. By default the first one of a run,
            then as many as can be saved without waiting for each other, and when the
            run is preempted.
        preservation_policy: Which steps stay, asked after each save; by default all.
            The newest step, and one that this process is loading, stay in any case.
        step_name_format: Must be None: steps are named by their plain numbers.
        custom_metadata: A dict of JSON values to keep for the whole run. Once there,
            it is not changed any more.
        cleanup_tmp_directories: Whether to delete what writers that died have left.
            Nobody else may be writing to the directory then.
        lightweight_initialize: Whether to read what is there only when it is needed;
            of no effect in a run of several processes.
        logger: Must be None: what happens is logged on the logger "stowax".

    Raises:
        UnsupportedOptionError: An argument that is not built yet.

    Example:
        >>> from stowax import training
        >>> every_ten = training.save_decision_policies.FixedIntervalPolicy(10)
        >>> latest_two = training.preservation_policies.LatestN(2)
        >>> with training.Checkpointer(
        ...     getfixture("tmp_path") / "run",
        ...     save_decision_policy=every_ten,
        ...     preservation_policy=latest_two,
        ... ) as checkpointer:
        ...     for step in range(41):
        ...         response = checkpointer.save_async(step, {"w": 0.5 * step})
        >>> [checkpoint.step for checkpoint in checkpointer.checkpoints]
        [30, 40]
        >>> checkpointer.load()
        {'w': 20.0}
    """

    def __init__(
        self,
        directory: Any,
        *,
        context: Context | None = None,
        save_decision_policy: SaveDecisionPolicy | None = None,
        preservation_policy: PreservationPolicy | None = None,
        step_name_format: None = None,
        custom_metadata: Mapping[str, Any] | None = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        logger: None = None,
    ) -> None:
        check_flags(
            cleanup_tmp_directories=cleanup_tmp_directories,
            lightweight_initialize=lightweight_initialize,
        )
        for name, value in (("step_name_format", step_name_format), ("logger", logger)):
            if value is not None:
                raise UnsupportedOptionError(f"{name} must be None in this version")
        default_policies = (
            InitialSavePolicy(),
            ContinuousCheckpointingPolicy(),
            PreemptionCheckpointingPolicy(),
        )
        self._run = Run(
            directory,
            Context(current_context() if context is None else context),
            save_decision_policy or AnySavePolicy(default_policies),
            preservation_policy or PreserveAll(),
        )
        self._run.open(
            json_object("custom_metadata", custom_metadata),
            cleans_up=cleanup_tmp_directories,
        )
        if not lightweight_initialize or self._run.runtime.processes.count > 1:
            self._run.reload()

    @property
    def directory(self) -> epath.Path:
        """Where the steps are."""
        return epath.Path(self._run.directory)

    @property
    def checkpoints(self) -> list[CheckpointMetadata[None]]:
        """The complete steps, by number.

        Remembered from one call to the next: what others do to the directory is seen
        after `reload`. A directory that is named like a step, but is no complete
        checkpoint, is passed over with a warning.
        """
        return list(self._run.known().values())

    @property
    def latest(self) -> CheckpointMetadata[None] | None:
        """The complete step with the highest number; None if there is none."""
        checkpoints = self.checkpoints
        return checkpoints[-1] if checkpoints else None

    def should_save(self, step: int) -> bool:
        """Whether `save` would save the step, or raise what went wrong before it.

        Not at or below the newest step; otherwise the policy decides. In a run of
        several processes the primary one decides for all.
        """
        return self._run.decide(check_step(step), is_replaced=False)

    def save(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE_NAME,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves a state as a step, if the policy says so.

        Args:
            step: The number of the step.
            state: See `stowax.save`.
            checkpointable_name: What `load` finds it under.
            force: Whether to save whatever the policy says.
            overwrite: Whether to replace the step if it is there. The old one stays
                whole until the new one takes its place.
            metrics: Numbers about the step, in a dict, for policies and readers.
            custom_metadata: JSON values to keep with the step, a dict.

        Returns:
            Whether the step was saved.

        Raises:
            StepAlreadyExistsError: The step is there, and `overwrite` is false.
            BackgroundSaveError: An earlier save failed, and nobody had asked for it.
            Exception: See `stowax.save`.
        """
        pending = self._start_save(
            step,
            {checkpointable_name: state},
            borrow=True,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )
        return pending is not None and pending.finish()

    def save_async(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE_NAME,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[bool] | None:
        """Saves a state as a step in the background; see `save`.

        Waits for the previous save, if that is still under way and the policy wants
        the step nevertheless. Returns once the caller may change the state.

        Returns:
            None if the policy does not want the step. Otherwise its `result()` is True
            once the step is published, and what need not be kept is deleted.
        """
        return self.save_checkpointables_async(
            step,
            {checkpointable_name: state},
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )

    def save_checkpointables(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves several named checkpointables as a step.

        See `save`, and `stowax.save_checkpointables` for what can be saved.
        """
        pending = self._start_save(
            step,
            checkpointables,
            borrow=True,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )
        return pending is not None and pending.finish()

    def save_checkpointables_async(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[bool] | None:
        """Saves several named checkpointables in the background; see `save_async`."""
        return self._start_save(
            step,
            checkpointables,
            borrow=not self._run.settings.deepcopy_host_arrays,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )

    def load(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = AUTO,
    ) -> Any:
        """Loads the state of a step.

        Args:
            step: Which one; None for the newest.
            abstract_state: See `stowax.load`.
            checkpointable_name: Which tree; by default "state", or the only one.

        Raises:
            StepNotFoundError: There is no such step, or none at all.
            Exception: See `stowax.load`.
        """
        with self._run.reading(step) as found:
            return load(
                found.path, abstract_state, checkpointable_name=checkpointable_name
            )

    def load_async(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = AUTO,
    ) -> AsyncResponse[Any]:
        """Loads the state of a step in the background; see `stowax.load_async`."""
        return self._run.read_later(
            step,
            lambda path: load(
                path, abstract_state, checkpointable_name=checkpointable_name
            ),
        )

    def load_checkpointables(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_checkpointables: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Loads several named checkpointables of a step.

        See `load`, and `stowax.load_checkpointables` for what can be given.
        """
        with self._run.reading(step) as found:
            return load_checkpointables(found.path, abstract_checkpointables)

    def load_checkpointables_async(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_checkpointables: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[dict[str, Any]]:
        """Loads several named checkpointables of a step in the background."""
        return self._run.read_later(
            step, lambda path: load_checkpointables(path, abstract_checkpointables)
        )

    def metadata(
        self, step: int | CheckpointMetadata[Any] | None = None
    ) -> CheckpointMetadata[Any]:
        """What the tree of a step looks like; see `stowax.metadata`."""
        with self._run.reading(step) as found:
            return _of_step(found, metadata(found.path))

    def checkpointables_metadata(
        self, step: int | CheckpointMetadata[Any] | None = None
    ) -> CheckpointMetadata[dict[str, Any]]:
        """What all checkpointables of a step look like."""
        with self._run.reading(step) as found:
            return _of_step(found, checkpointables_metadata(found.path))

    def root_metadata(self) -> RootMetadata:
        """What was said about the whole run."""
        said = self._run.root_metadata()
        return RootMetadata(directory=self.directory, custom_metadata=said)

    def delete(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> bool:
        """Deletes a step, or one checkpointable of it, whatever policies say.

        Waits for the save that is under way. See `stowax.delete`.

        Returns:
            Whether there was something to delete.

        Raises:
            StepNotFoundError: There is no such step, and `missing_ok` is false.
            NothingToDeleteError: The step has no such checkpointable.
        """
        return self.delete_async(
            step, checkpointable_name=checkpointable_name, missing_ok=missing_ok
        ).result()

    def delete_async(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> AsyncResponse[bool]:
        """Deletes a step in the background; it leaves `checkpoints` at once."""
        check_flags(missing_ok=missing_ok)
        return self._run.start_delete(
            check_step(step), checkpointable_name, missing_ok=missing_ok
        )

    def cancel(self, step: int | CheckpointMetadata[Any] | None = None) -> None:
        """Not built yet: a save that has begun goes on to its end.

        Raises:
            UnsupportedOptionError: Always.
        """
        raise UnsupportedOptionError(
            "`cancel` comes in a later release; use `wait`, then `delete`"
        )

    def reload(self) -> None:
        """Reads the directory again, after what is under way."""
        self._run.reload()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is under way in the background."""
        return self._run.saving is not None

    def wait(self) -> None:
        """Waits for the save or deletion that is under way.

        Raises:
            Exception: Why it failed, unless that has been raised before.
        """
        self._run.wait()

    def close(self) -> None:
        """Does the same as `wait`: there is nothing else to give back."""
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as failure:  # Whatever a save raised; it is never dropped.
            if error is None:
                raise
            # What ended the loop comes first; the failed save is not lost either.
            error.add_note(f"and: {type(failure).__name__}: {failure}")

    save_pytree = _renamed("save_pytree", save)
    save_pytree_async = _renamed("save_pytree_async", save_async)
    load_pytree = _renamed("load_pytree", load)
    load_pytree_async = _renamed("load_pytree_async", load_async)
    pytree_metadata = _renamed("pytree_metadata", metadata)

    def _start_save(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        *,
        borrow: bool,
        force: bool,
        overwrite: bool,
        metrics: Mapping[str, Any] | None,
        custom_metadata: Mapping[str, Any] | None,
    ) -> Pending | None:
        check_flags(force=force, overwrite=overwrite)
        said = json_object("custom_metadata", custom_metadata)
        return self._run.start_save(
            check_step(step),
            checkpointables,
            force=force,
            overwrite=overwrite,
            facts=RootFacts(
                custom_metadata=said or {},
                metrics=json_object("metrics", metrics),
                is_step=True,
            ),
            borrow=borrow,
        )


def _of_step(
    found: CheckpointMetadata[None], described: AnyMetadata[Any]
) -> CheckpointMetadata[Any]:
    """Facts about a checkpoint, together with those about the step that it is."""
    return CheckpointMetadata(
        found.step,
        described.path,
        metadata=described.metadata,
        init_timestamp_nsecs=described.init_timestamp_nsecs,
        commit_timestamp_nsecs=described.commit_timestamp_nsecs,
        custom_metadata=described.custom_metadata,
        metrics=found.metrics,
        container_types=described.container_types,
    )
