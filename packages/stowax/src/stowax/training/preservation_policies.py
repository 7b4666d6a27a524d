"""What to keep: asked after each save, about all steps there are.

A policy answers for each step, in order, whether it stays. Whatever it says, a
`Checkpointer` keeps the newest step, and steps that are being loaded.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

from stowax.errors import UnsupportedOptionError
from stowax.training._steps import CheckpointMetadata

__all__ = [
    "AnyPreservationPolicy",
    "BestN",
    "CustomSteps",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "LatestDuration",
    "LatestN",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
]

Checkpoints = Sequence[CheckpointMetadata[Any]]


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreservationContext:
    """What a decision may depend on beside the steps."""

    now: dt.datetime = field(default_factory=_now)
    """The time of the decision, with a time zone."""


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which steps stay.

    In a run of several processes the primary one decides for all of them.
    """

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> Sequence[bool]:
        """One answer per step.

        Args:
            checkpoints: All steps, by number.
            context: What else may matter.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class PreserveAll:
    """Keeps every step."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to all."""
        return [True] * len(checkpoints)


@final
@dataclass(frozen=True, slots=True)
class LatestN:
    """Keeps the steps with the highest numbers."""

    n: int | None = None
    """How many; None for all."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the last `n`."""
        return _last(range(len(checkpoints)), self.n, len(checkpoints))


@final
@dataclass(frozen=True, slots=True)
class LatestDuration:
    """Keeps the steps from the first one on that is young enough."""

    duration: dt.timedelta
    """The age up to which a step is young enough."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the first young step and all after it."""
        answers: list[bool] = []
        for checkpoint in checkpoints:
            is_young = context.now - checkpoint.time <= self.duration
            answers.append(is_young or any(answers[-1:]))
        return answers


@final
@dataclass(frozen=True, slots=True)
class EveryNSeconds:
    """Keeps steps that lie a time apart, beginning with the first."""

    interval_secs: float
    """Least time between two steps that are kept, in seconds."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the first step, and to each that comes late enough after a yes."""
        interval = dt.timedelta(seconds=self.interval_secs)
        return _apart(checkpoints, lambda kept, step: step.time - kept.time >= interval)


@final
@dataclass(frozen=True, slots=True)
class EveryNSteps:
    """Keeps steps at regular numbers."""

    interval_steps: int
    """At least 1."""

    exact_interval: bool = True
    """Whether only multiples of the interval count. Otherwise the first step is kept,
    and each that is at least the interval after one that is kept."""

    max_to_keep: int | None = None
    """Of those, how many at most, the last ones; None for all."""

    def __post_init__(self) -> None:
        _check_interval(self.interval_steps)

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the steps on the interval, at most the last `max_to_keep`."""
        if self.exact_interval:
            answers = [c.step % self.interval_steps == 0 for c in checkpoints]
        else:
            answers = _apart(
                checkpoints,
                lambda kept, step: step.step - kept.step >= self.interval_steps,
            )
        chosen = [i for i, answer in enumerate(answers) if answer]
        return _last(chosen, self.max_to_keep, len(checkpoints))


@final
@dataclass(frozen=True, slots=True)
class EveryNStepsClosest:
    """Keeps, for each multiple of a number, the step that is closest to it.

    Of two that are equally close the later one; and the last step in any case.
    """

    interval_steps: int
    """At least 1."""

    max_to_keep: int | None = None
    """Of those, how many at most, the last ones; None for all."""

    def __post_init__(self) -> None:
        _check_interval(self.interval_steps)

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the closest ones, at most the last `max_to_keep`."""
        closest: dict[int, tuple[int, int]] = {}
        for index, checkpoint in enumerate(checkpoints):
            multiple = round(checkpoint.step / self.interval_steps)
            distance = abs(checkpoint.step - multiple * self.interval_steps)
            if multiple not in closest or distance <= closest[multiple][0]:
                closest[multiple] = distance, index
        chosen = {index for _, index in closest.values()}
        if checkpoints:
            chosen.add(len(checkpoints) - 1)
        return _last(sorted(chosen), self.max_to_keep, len(checkpoints))


@final
@dataclass(frozen=True, slots=True)
class CustomSteps:
    """Keeps the steps that are listed."""

    steps: Sequence[int]
    """Their numbers."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to those listed."""
        listed = frozenset(self.steps)
        return [checkpoint.step in listed for checkpoint in checkpoints]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BestN:
    """Keeps the steps with the best metrics."""

    get_metric_fn: Callable[[Any], float]
    """From the metrics of a step to the number that ranks it: the higher the better."""

    reverse: bool = False
    """Whether lower is better."""

    n: int | None = None
    """How many; None for all."""

    keep_checkpoints_without_metrics: bool = True
    """Whether steps without metrics stay, in addition to the best."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the best `n`; of equally good ones, to the later."""
        if self.n is None or len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        if self.n == 0:
            return [False] * len(checkpoints)
        ranked = sorted(
            (i for i, c in enumerate(checkpoints) if c.metrics is not None),
            key=lambda i: self.get_metric_fn(checkpoints[i].metrics),
            reverse=self.reverse,
        )
        answers = _last(ranked, self.n, len(checkpoints))
        return [
            answer or (c.metrics is None and self.keep_checkpoints_without_metrics)
            for answer, c in zip(answers, checkpoints, strict=True)
        ]


@final
@dataclass(frozen=True, slots=True)
class AnyPreservationPolicy:
    """Keeps what one of several policies keeps."""

    policies: Sequence[PreservationPolicy]
    """All of them are asked."""

    def should_preserve(
        self, checkpoints: Checkpoints, *, context: PreservationContext
    ) -> list[bool]:
        """Yes to the steps that a policy says yes to."""
        answers = [False] * len(checkpoints)
        for policy in self.policies:
            said = policy.should_preserve(checkpoints, context=context)
            answers = [a or bool(b) for a, b in zip(answers, said, strict=True)]
        return answers


def _last(chosen: Sequence[int], limit: int | None, count: int) -> list[bool]:
    """Answers for `count` steps: yes at the last `limit` of the chosen positions."""
    first = 0 if limit is None else max(0, len(chosen) - limit)
    kept = frozenset(chosen[first:])
    return [index in kept for index in range(count)]


def _apart(
    checkpoints: Checkpoints,
    is_apart: Callable[[CheckpointMetadata[Any], CheckpointMetadata[Any]], bool],
) -> list[bool]:
    """Yes to the first step, and to each that is far enough from the last yes."""
    answers: list[bool] = []
    kept: CheckpointMetadata[Any] | None = None
    for checkpoint in checkpoints:
        answers.append(kept is None or is_apart(kept, checkpoint))
        if answers[-1]:
            kept = checkpoint
    return answers


def _check_interval(interval_steps: int) -> None:
    if interval_steps < 1:
        raise UnsupportedOptionError(
            f"interval_steps must be at least 1, found {interval_steps}"
        )
