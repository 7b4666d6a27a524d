"""N-dimensional index boxes: which part of an array is meant.

A box is half-open in every dimension, has no step, and says nothing about memory.
A 0-d array has exactly one box, the empty tuple of ranges.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import NamedTuple


class Box(NamedTuple):
    """The index range `[start, stop)` in every dimension of an array."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent in every dimension."""
        return tuple(map(operator.sub, self.stop, self.start))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def within(self, outer: Box) -> tuple[slice | EllipsisType, ...]:
        """The box as an index into an array that holds just `outer`.

        It ends in `...`, so that NumPy gives a view of a 0-d array too.
        """
        ranges = (
            slice(a - o, b - o)
            for a, b, o in zip(self.start, self.stop, outer.start, strict=True)
        )
        return (*ranges, ...)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None when there is no common element."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, stop)

    def __str__(self) -> str:
        ranges = zip(self.start, self.stop, strict=True)
        return "[" + ", ".join(f"{a}:{b}" for a, b in ranges) + "]"


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole array."""
    return Box((0,) * len(shape), tuple(shape))


def from_slices(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """The box that an index of plain slices, open ends allowed, selects."""
    ranges = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
    return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))


def grid_counts(shape: Sequence[int], chunk_shape: Sequence[int]) -> tuple[int, ...]:
    """Number of chunks in every dimension; an empty dimension has none."""
    return tuple(-(-n // c) for n, c in zip(shape, chunk_shape, strict=True))


def ordinal_of(grid_index: Sequence[int], counts: Sequence[int]) -> int:
    """Position of a chunk in its grid, in C order; `grid_index_of` is the way back."""
    ordinal = 0
    for i, count in zip(grid_index, counts, strict=True):
        ordinal = ordinal * count + i
    return ordinal


def grid_index_of(ordinal: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Index in the grid of the chunk at a position in C order."""
    reversed_index = []
    for count in reversed(counts):
        ordinal, i = divmod(ordinal, count)
        reversed_index.append(i)
    return tuple(reversed(reversed_index))


def chunk_box(
    grid_index: Sequence[int], shape: Sequence[int], chunk_shape: Sequence[int]
) -> Box:
    """The elements of one chunk of a regular grid; clipped at the array's edge."""
    start = tuple(i * c for i, c in zip(grid_index, chunk_shape, strict=True))
    stop = tuple(
        min(a + c, n) for a, c, n in zip(start, chunk_shape, shape, strict=True)
    )
    return Box(start, stop)


def chunks_in(
    box: Box, shape: Sequence[int], chunk_shape: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Grid index and box of every chunk that shares an element with `box`."""
    if box.size == 0:
        return
    if tuple(shape) == tuple(chunk_shape):  # So are most arrays.
        yield (0,) * len(shape), whole(shape)
        return
    ranges = (
        range(a // c, -(-b // c))
        for a, b, c in zip(box.start, box.stop, chunk_shape, strict=True)
    )
    for grid_index in itertools.product(*ranges):
        yield grid_index, chunk_box(grid_index, shape, chunk_shape)
