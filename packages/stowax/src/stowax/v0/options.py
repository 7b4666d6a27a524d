"""Options of checkpointers and handlers of the older API."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "FileOptions",
    "MemoryLimitOptions",
    "MultiprocessingOptions",
]


@dataclass
class AsyncOptions:
    """How saves run in the background.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.AsyncCheckpointer(
        ...     ocp.StandardCheckpointHandler(),
        ...     async_options=ocp.options.AsyncOptions(timeout_secs=60),
        ... ).close()
    """

    timeout_secs: int = 1200
    """Deadline of a whole save."""

    # A function of the caller's own; `Any`, because Orbax's protocol is Orbax's own.
    barrier_sync_fn: Any = None
    """Of Orbax; must be None. Processes meet by `jax.distributed`."""

    post_finalization_callback: Callable[[], None] | None = None
    """Called when the checkpoint is published, in the primary process.

    In Orbax a moment earlier, when it cannot be loaded yet. What it raises is
    logged, for the checkpoint is there all the same; in Orbax `wait_until_finished`
    raises it.
    """

    create_directories_asynchronously: bool = True
    """Ignored: a directory is made when something is written there."""


@dataclass
class MultiprocessingOptions:
    """Which processes take part.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.options.MultiprocessingOptions().primary_host
        0
    """

    primary_host: int | None = 0
    """The process that completes a checkpoint. In a run of several, 0 alone works."""

    active_processes: set[int] | None = None
    """Those that take part; None: all. In a run of several, all have to."""

    barrier_sync_key_prefix: str | None = None
    """Put before the names under which processes meet."""


class AtomicityMode(enum.StrEnum):
    """How a checkpoint becomes visible.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.options.AtomicityMode.AUTO.value
        'auto'
    """

    AUTO = "auto"
    """By what the store can do."""

    COMMIT_FILE = "commit_file"
    """By a file that is written last. Refused where directories can be renamed."""

    ATOMIC_RENAME = "atomic_rename"
    """By the rename of a draft."""


@dataclass(frozen=True)
class AtomicityOptions:
    """How a checkpoint becomes visible.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.options.AtomicityOptions().mode.name
        'AUTO'
    """

    mode: AtomicityMode = AtomicityMode.AUTO
    """See `AtomicityMode`."""

    allow_legacy_atomic_rename: bool = False
    """Ignored: a checkpoint without a commit file is read in any case."""


@dataclass(frozen=True)
class FileOptions:
    """How directories are made.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.options.FileOptions(path_permission_mode=0o750).path_permission_mode
        488
    """

    path_permission_mode: int | None = None
    """Permission bits of the directory of a checkpoint; None: those of any other."""

    skip_sync_file_validations: bool = False
    """Ignored: whether something is at the path is always looked at."""


@dataclass
class MemoryLimitOptions:
    """How much host memory a save may take.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.options.MemoryLimitOptions(max_transfer_concurrent_gb=4)
        MemoryLimitOptions(max_transfer_concurrent_gb=4)
    """

    max_transfer_concurrent_gb: int | None = None
    """Upper limit for values on their way to files, in GB."""
