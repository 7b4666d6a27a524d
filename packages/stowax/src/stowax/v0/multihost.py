"""Which process am I, and where do all of them meet."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import jax

from stowax._context import current_settings
from stowax._environment import runtime_of
from stowax._public import claim as _claim
from stowax.errors import UnsupportedOptionError
from stowax.multihost import is_pathways_backend as is_pathways_backend
from stowax.multihost import is_primary_host as is_primary_host
from stowax.multihost import process_count as process_count
from stowax.multihost import process_index as process_index
from stowax.training._run import HearsOfPreemption

__all__ = [
    "is_pathways_backend",
    "is_primary_host",
    "process_count",
    "process_index",
    "reached_preemption",
    "sync_global_processes",
]

_TIMEOUT_SECS = 300


def sync_global_processes(
    name: str,
    *,
    timeout: int | None = None,
    processes: Collection[int] | None = None,
    barrier_sync_fn: Any = None,
    record_event_name: str = "/jax/checkpoint/sync_global_devices_duration_sec",
) -> None:
    """Waits until all processes of the run have come to the same point.

    Args:
        name: Names the point; used once.
        timeout: How long to wait, in seconds; None: 300.
        processes: Must be None: some of the processes cannot meet alone.
        barrier_sync_fn: Must be None: processes meet by `jax.distributed`.
        record_event_name: The event of `jax.monitoring` that tells how long it took.

    Raises:
        DeadlineError: Names the processes that did not come.
        UnsupportedOptionError: `processes` or `barrier_sync_fn` is given.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.multihost.sync_global_processes("before reading")
    """
    if processes is not None or barrier_sync_fn is not None:
        raise UnsupportedOptionError(
            "`processes` and `barrier_sync_fn` must be None: all processes of the run "
            "meet, by `jax.distributed`"
        )
    settings = current_settings()
    runtime = runtime_of(settings)
    timeout_secs = _TIMEOUT_SECS if timeout is None else timeout
    begun_secs = time.monotonic()
    meeting = runtime.processes.barrier(
        f"{settings.barrier_prefix}v0/{name}", timeout_secs=timeout_secs
    )
    runtime.submit(meeting).result()
    jax.monitoring.record_event_duration_secs(
        record_event_name, time.monotonic() - begun_secs
    )


def reached_preemption(step: int) -> bool:
    """Whether this is the step to save before the run is stopped from outside.

    Args:
        step: The step that this process is at. All have to ask at every step.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.multihost.reached_preemption(7)
        False
    """
    processes = runtime_of(current_settings()).processes
    return isinstance(processes, HearsOfPreemption) and processes.reached_preemption(
        step
    )


_claim(globals())
