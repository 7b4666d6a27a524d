"""Which leaves of a load are read at one time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Wave(NamedTuple):
    """Leaves that are read, and made into values, before those of the next wave are."""

    leaves: Sequence[int]
    """By position in the load, in order."""
    passing_bytes: int
    """Memory that they need until they are values, and not afterwards."""


def in_waves(passing_bytes: Sequence[int], limit_bytes: int) -> list[Wave]:
    """Parts the leaves of a load so that what each wave passes on stays within a limit.

    Leaves that pass nothing on are the first wave, all of them; of the others, one that
    needs more than the limit has a wave of its own.

    Args:
        passing_bytes: What every leaf needs until it is a value, in the order of the
            load.
        limit_bytes: What a wave may need.

    Example:
        >>> in_waves([0, 3, 4, 9], limit_bytes=8)
        [Wave(leaves=[0], passing_bytes=0), Wave(leaves=[1, 2], passing_bytes=7), \
Wave(leaves=[3], passing_bytes=9)]
    """
    if not any(passing_bytes):
        return [Wave(range(len(passing_bytes)), 0)] if passing_bytes else []
    at_once = [leaf for leaf, size_bytes in enumerate(passing_bytes) if not size_bytes]
    waves = [Wave(at_once, 0)] if at_once else []
    leaves: list[int] = []
    sum_bytes = 0
    for leaf, size_bytes in enumerate(passing_bytes):
        if not size_bytes:
            continue
        if leaves and sum_bytes + size_bytes > limit_bytes:
            waves.append(Wave(leaves, sum_bytes))
            leaves, sum_bytes = [], 0
        leaves.append(leaf)
        sum_bytes += size_bytes
    return [*waves, Wave(leaves, sum_bytes)]
