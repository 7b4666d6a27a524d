"""Which process am I, and which one publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import jax

from stowax._context import current_settings
from stowax._environment import runtime_of
from stowax.errors import UnsupportedOptionError

__all__ = [
    "is_pathways_backend",
    "is_primary_host",
    "process_count",
    "process_index",
    "sync_global_processes",
]


def process_index() -> int:
    """The index of this process among those of the run.

    Example:
        >>> import stowax
        >>> stowax.multihost.process_index()
        0
    """
    return runtime_of(current_settings()).processes.index


def process_count() -> int:
    """How many processes the run has.

    Example:
        >>> import stowax
        >>> stowax.multihost.process_count()
        1
    """
    return runtime_of(current_settings()).processes.count


def is_primary_host(primary_host: int | None = 0) -> bool:
    """Whether this process is the primary one.

    Args:
        primary_host: The index of the primary process; None: every process is.

    Example:
        >>> import stowax
        >>> stowax.multihost.is_primary_host()
        True
    """
    return primary_host is None or process_index() == primary_host


async def sync_global_processes(
    key: str,
    *,
    operation_id: str,
    timeout: float | None = None,  # noqa: ASYNC109 the name that Orbax gave it
    processes: Collection[int] | None = None,
    record_event_name: str = "/jax/checkpoint/sync_global_devices_duration_sec",
) -> None:
    """Waits until all processes of the run have come to the same point.

    Args:
        key: Names the point.
        operation_id: Names the operation; together with `key` used once.
        timeout: How long to wait, in seconds; None: `AsyncOptions.timeout_secs`.
        processes: Must be None: some of the processes cannot meet alone yet.
        record_event_name: The event of `jax.monitoring` that tells how long it took.

    Raises:
        DeadlineError: Names the processes that did not come.

    Example:
        >>> import asyncio
        >>> import stowax
        >>> meeting = stowax.multihost.sync_global_processes("read", operation_id="1")
        >>> asyncio.run(meeting)
    """
    if processes is not None:
        raise UnsupportedOptionError("`processes` must be None in this version")
    settings = current_settings()
    runtime = runtime_of(settings)
    timeout_secs = settings.timeout_secs if timeout is None else timeout
    name = f"{settings.barrier_prefix}{operation_id}/{key}"
    loop = asyncio.get_running_loop()  # Its clock is never set, as that of the wall is.
    begun_secs = loop.time()
    meeting = runtime.processes.barrier(name, timeout_secs=timeout_secs)
    await asyncio.wrap_future(runtime.submit(meeting))
    jax.monitoring.record_event_duration_secs(
        record_event_name, loop.time() - begun_secs
    )


def is_pathways_backend() -> bool:
    """Whether JAX runs under Pathways, which this library does not support.

    Example:
        >>> import stowax
        >>> stowax.multihost.is_pathways_backend()
        False
    """
    return False
