"""When to save: one question for each step of a training loop.

A policy sees the step in question, the steps that are there or on their way, and what
else may matter. It decides nothing about steps at or below the newest one: those are
not saved unless the caller insists.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from stowax.errors import UnsupportedOptionError
from stowax.options import MultiprocessingOptions
from stowax.training._steps import CheckpointMetadata

__all__ = [
    "AnySavePolicy",
    "ContinuousCheckpointingPolicy",
    "DecisionContext",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "PreemptionCheckpointingPolicy",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionContext:
    """What a decision may depend on beside the steps."""

    is_saving_in_progress: bool
    """Whether a save is still under way in the background."""

    reached_preemption: bool
    """Whether this run is about to be stopped from outside."""

    multiprocessing_options: MultiprocessingOptions
    """Those of the Checkpointer's Context."""


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides whether a step is saved.

    In a run of several processes the primary one decides for all of them, so a policy
    may look at the clock.

    Example:
        >>> from stowax import training
        >>> class Doubling:
        ...     def should_save(self, step, previous_steps, *, context):
        ...         return (
        ...             not previous_steps or step.step >= 2 * previous_steps[-1].step
        ...         )
        >>> root = getfixture("tmp_path")
        >>> with training.Checkpointer(root, save_decision_policy=Doubling()) as steps:
        ...     for step in range(1, 11):
        ...         saved = steps.save(step, {"w": 1.0})
        ...     [found.step for found in steps.checkpoints]
        [1, 2, 4, 8]
    """

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether to save.

        Args:
            step: The step in question; its time is now, its metrics are not known yet.
            previous_steps: All steps that are saved or being saved, by number.
            context: What else may matter.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class FixedIntervalPolicy:
    """Saves the steps that are multiples of a number."""

    interval: int
    """In steps, at least 1."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UnsupportedOptionError(
                f"interval must be at least 1, found {self.interval}"
            )

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether the step is a multiple of the interval."""
        return step.step % self.interval == 0


@final
@dataclass(frozen=True, slots=True)
class SpecificStepsPolicy:
    """Saves the steps that are listed."""

    steps: Container[int]
    """Their numbers."""

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether the step is listed."""
        return step.step in self.steps


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousCheckpointingPolicy:
    """Saves as often as possible, but never waits for another save to end."""

    minimum_interval_secs: float | None = None
    """Least time since the previous step was saved, in seconds; None for no limit."""

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether nothing is being saved and the last save is long enough ago."""
        if context.is_saving_in_progress:
            return False
        if not previous_steps or self.minimum_interval_secs is None:
            return True
        interval = dt.timedelta(seconds=self.minimum_interval_secs)
        return step.time - previous_steps[-1].time >= interval


@final
@dataclass(frozen=True, slots=True)
class PreemptionCheckpointingPolicy:
    """Saves when this run is about to be stopped from outside.

    With `jax.distributed`, JAX hears of it (SIGTERM) and finds one step for all
    processes; it has to be asked at every step. Without, nobody listens yet.
    """

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether preemption was reached."""
        return context.reached_preemption


@final
@dataclass(frozen=True, slots=True)
class InitialSavePolicy:
    """Saves the first step of a run that has no checkpoint yet."""

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether there are no steps."""
        return not previous_steps


@final
@dataclass(frozen=True, slots=True)
class AnySavePolicy:
    """Saves when one of several policies does."""

    policies: Sequence[SaveDecisionPolicy]
    """Asked in order until one says yes."""

    def should_save(
        self,
        step: CheckpointMetadata[Any],
        previous_steps: Sequence[CheckpointMetadata[Any]],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether one of the policies saves."""
        return any(
            policy.should_save(step, previous_steps, context=context)
            for policy in self.policies
        )
