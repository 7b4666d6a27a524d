"""What is known of a checkpoint of the older API without restoring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from etils import epath

from stowax._formats._orbax_json import ROOT_DOCUMENT, RootDocument, decode_root
from stowax.errors import CheckpointNotFoundError


@dataclass
class SaveStepStatistics:
    """How a save went, where a `CheckpointManager` of Orbax has recorded it.

    Example:
        >>> from stowax.v0.metadata import StepMetadata
        >>> StepMetadata().performance_metrics.event_type
        'save'
    """

    step: int | None = None
    event_type: str | None = "save"
    directory: str | None = None
    reached_preemption: bool | None = False
    preemption_received_at: float | None = None
    synchronous: bool | None = False
    wait_for_prev_start_time: float | None = None
    wait_for_prev_duration_secs: float | None = None
    time_between_consecutive_saves_sec: float | None = None
    checkpointer_blocking_start_time: float | None = None
    checkpointer_blocking_duration_secs: float | None = None
    get_old_steps_start_time: float | None = None
    get_old_steps_duration_secs: float | None = None
    checkpoint_manager_blocking_start_time: float | None = None
    checkpoint_manager_blocking_duration_secs: float | None = None


@dataclass
class StepMetadata:
    """What is known of a checkpoint.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7}, custom_metadata={"run": "a"})
        ...     checkpointer.metadata(path).custom_metadata
        {'run': 'a'}
    """

    item_handlers: dict[str, str | None] | str | None = None
    """Type string of the handler, of a composite one by the name of the item."""

    item_metadata: Any | None = None
    """What the handler says of the item, of a composite one by its name."""

    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    """Metrics that a `CheckpointManager` of Orbax has recorded here."""

    performance_metrics: SaveStepStatistics = field(default_factory=SaveStepStatistics)
    """How the save went."""

    init_timestamp_nsecs: int | None = None
    """When the save began, in ns since the epoch."""

    commit_timestamp_nsecs: int | None = None
    """When it was complete, in ns since the epoch."""

    custom_metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the user gave to `save`."""


def get_step_metadata(path: Any) -> StepMetadata:
    """What is known of a checkpoint without its items.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointNotFoundError: Nothing is told there.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, {"depth": 3}, custom_metadata={"run": "a"})
        >>> ocp.metadata.get_step_metadata(path).custom_metadata
        {'run': 'a'}
    """
    document = epath.Path(path) / ROOT_DOCUMENT
    if not document.exists():
        raise CheckpointNotFoundError(f"there is no {document}")
    return step_metadata(decode_root(document.read_bytes(), path=str(path)))


def step_metadata(root: RootDocument) -> StepMetadata:
    """The same without the items."""
    handlers: Any = dict(root.typestrs) or None
    if root.is_direct:
        handlers = root.typestrs.get("")
    return StepMetadata(
        item_handlers=handlers,
        metrics=dict(root.metrics),
        performance_metrics=_statistics(root.performance_metrics),
        init_timestamp_nsecs=root.init_timestamp_nsecs,
        commit_timestamp_nsecs=root.commit_timestamp_nsecs,
        custom_metadata=dict(root.custom_metadata),
    )


def _statistics(recorded: Mapping[str, Any]) -> SaveStepStatistics:
    known = {each.name for each in fields(SaveStepStatistics)}
    return SaveStepStatistics(**{k: v for k, v in recorded.items() if k in known})
