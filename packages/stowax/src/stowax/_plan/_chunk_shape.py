"""How large the chunks of an array are: units that are read and written alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from stowax._box import Box

CHUNK_LIMIT_BYTES = 64 << 20
"""Larger shards are split: a chunk is one unit of reading in parallel."""

CODED_CHUNK_LIMIT_BYTES = 4 << 20
"""The same of chunks that may be compressed.  Such a chunk is held whole, on both ways,
by every worker that is busy with one."""


def choose_chunk_shape(
    shape: tuple[int, ...],
    boxes: Sequence[Box],
    itemsize: int,
    *,
    limit_bytes: int | None = None,
    shard_axes: Sequence[int] = (),
    is_coded: bool = False,
) -> tuple[int, ...]:
    """The extent of a chunk: a shard, split while it is large.

    Chunk borders never cross a shard's border, so one process owns a chunk.

    Args:
        shape: Shape of the array.
        boxes: Its shards.
        itemsize: Size of an element, in bytes.
        limit_bytes: What the caller wants a chunk to stay within, whatever it takes;
            the longest axes are split, those first that are split already.
        shard_axes: Axes along which the caller wants a chunk to hold one element.
        is_coded: Whether chunks may be compressed.
    """
    if not boxes or 0 in shape:
        return tuple(max(1, n) for n in shape)
    shard = [_common_extent(axis, n, boxes) for axis, n in enumerate(shape)]
    chunk = [1 if axis in shard_axes else n for axis, n in enumerate(shard)]
    if limit_bytes is not None:
        _split_longest(chunk, shard, shape, limit_bytes // itemsize)
    wish_bytes = CODED_CHUNK_LIMIT_BYTES if is_coded else CHUNK_LIMIT_BYTES
    # Our own limit is a wish: leading axes, so that a chunk stays one run of memory.
    for axis, n in enumerate(shape):
        size_bytes = math.prod(chunk) * itemsize
        if size_bytes <= wish_bytes:
            break
        row_bytes = size_bytes // chunk[axis]
        rows = max(1, wish_bytes // row_bytes)
        best = _fitting(shard[axis], n, rows)
        if best * 8 >= min(
            chunk[axis], rows
        ):  # Tiny pieces are worse than a large one.
            chunk[axis] = best
    return tuple(chunk)


def _split_longest(
    chunk: list[int], shard: Sequence[int], shape: Sequence[int], limit: int
) -> None:
    """Makes a chunk hold at most so many elements, one axis after another.

    The longest axis is halved, or less where that is enough; the first among equals,
    and before all others those along which the array is split into shards.
    """
    while (size := math.prod(chunk)) > limit:
        axes = [axis for axis, extent in enumerate(chunk) if extent > 1]
        split = [axis for axis in axes if shard[axis] < shape[axis]]
        axis = max(split or axes, key=lambda axis: chunk[axis])
        enough = limit // (size // chunk[axis])
        most = max(enough, chunk[axis] // 2)
        chunk[axis] = _fitting(shard[axis], shape[axis], most)


def _fitting(shard: int, n: int, most: int) -> int:
    """The largest extent up to `most` of chunks, along an axis, that split a shard."""
    if shard == n:
        # Nobody's border lies on this axis: even pieces, the last one padded.
        return -(-n // -(-n // most))
    small = [d for d in range(1, math.isqrt(shard) + 1) if shard % d == 0]
    return max(d for d in (*small, *(shard // d for d in small)) if d <= most)


def _common_extent(axis: int, n: int, boxes: Iterable[Box]) -> int:
    """The largest extent whose multiples hold every border along one axis."""
    borders = {0, n}
    for box in boxes:
        borders.update((box.start[axis], box.stop[axis]))
    inner = [border for border in borders if 0 < border < n]
    if not inner:
        return n
    step = math.gcd(*inner)
    return min(n, step)
