"""Which process am I, and which one publishes."""

from __future__ import annotations

from stowax._context import current_settings
from stowax._operation import runtime_of

__all__ = ["is_primary_host", "process_count", "process_index"]


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
