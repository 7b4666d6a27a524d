"""Which leaves of a load are read at one time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Wave(NamedTuple):
    """Leaves that are read, and made into values, before the next ones are."""

    start: int
    stop: int
    passing_bytes: int
    """Memory that they need until they are values, and not afterwards."""


def in_waves(passing_bytes: Sequence[int], limit_bytes: int) -> list[Wave]:
    """Parts the leaves of a load so that what each wave passes on stays within a limit.

    A leaf that needs more than the limit shares its wave with none that needs any.
    Where no leaf needs any, all are read at once. There always is a wave.

    Args:
        passing_bytes: What every leaf needs until it is a value, in the order of the
            load.
        limit_bytes: What a wave may need.

    Example:
        >>> in_waves([0, 3, 4, 0, 9, 0], limit_bytes=8)
        [Wave(start=0, stop=4, passing_bytes=7), Wave(start=4, stop=6, passing_bytes=9)]
    """
    waves: list[Wave] = []
    start, sum_bytes = 0, 0
    for position, size_bytes in enumerate(passing_bytes):
        if sum_bytes and size_bytes and sum_bytes + size_bytes > limit_bytes:
            waves.append(Wave(start, position, sum_bytes))
            start, sum_bytes = position, 0
        sum_bytes += size_bytes
    return [*waves, Wave(start, len(passing_bytes), sum_bytes)]
