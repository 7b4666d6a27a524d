"""Which blocks of a chunk hold what is wanted of it.

A checksum is noted at the end of every block, so whole blocks are the least that can be
read and verified.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from stowax._box import Box


def needed_blocks(
    boxes: Iterable[Box], shape: Sequence[int], itemsize: int, block_bytes: int
) -> list[range]:
    """Runs of blocks, in order, that hold all elements of some boxes.

    Axes whose steps are shorter than a block are taken from the first to the last
    element that is wanted: there is hardly a block between them that is not.

    Args:
        boxes: Within the chunk, none of them empty.
        shape: Of the chunk, which is in C order.
        itemsize: Of an element, in bytes.
        block_bytes: Length of a block.

    Example:
        >>> needed_blocks([Box((1, 0), (2, 1))], (4, 8), 1, block_bytes=4)
        [range(2, 3)]
    """
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    found: set[int] = set()
    for box in boxes:
        outer = [axis for axis, stride in enumerate(strides) if stride >= block_bytes]
        inner = range(len(outer), len(shape))
        first = sum(box.start[axis] * strides[axis] for axis in inner)
        last = sum((box.stop[axis] - 1) * strides[axis] for axis in inner)
        for index in itertools.product(
            *(range(box.start[axis], box.stop[axis]) for axis in outer)
        ):
            base = sum(i * strides[axis] for i, axis in zip(index, outer, strict=True))
            begin, end = base + first, base + last + itemsize
            found.update(range(begin // block_bytes, -(-end // block_bytes)))
    return _runs(sorted(found))


def boxes_of_run(
    first: int, end: int, shape: Sequence[int]
) -> Iterator[tuple[int, Box]]:
    """Boxes that together are a run of elements of an array in C order.

    Args:
        first: Position of the first element.
        end: Position after the last one.
        shape: Of the array.

    Yields:
        The position of the first element of a box, and the box; its elements follow
        each other. There are at most two boxes per axis, but for the first.

    Example:
        >>> [(n, str(box)) for n, box in boxes_of_run(3, 9, (3, 4))]
        [(3, '[0:1, 3:4]'), (4, '[1:2, 0:4]'), (8, '[2:3, 0:1]')]
    """
    if first >= end:
        return
    if not shape:
        yield first, Box((), ())
        return
    row = math.prod(shape[1:])
    inner = tuple(shape[1:])
    begin_row, end_row = first // row, end // row
    if first % row:
        # What is left of the row in which the run begins.
        stop = min(end, (begin_row + 1) * row)
        offset = begin_row * row
        for start, box in boxes_of_run(first - offset, stop - offset, inner):
            yield start + offset, _in_row(begin_row, box)
        if stop == end:
            return
        begin_row += 1
    if begin_row < end_row:
        box = Box((begin_row, *[0] * len(inner)), (end_row, *inner))
        yield begin_row * row, box
    if end % row:
        offset = end_row * row
        for start, box in boxes_of_run(0, end - offset, inner):
            yield start + offset, _in_row(end_row, box)


def _in_row(row: int, box: Box) -> Box:
    return Box((row, *box.start), (row + 1, *box.stop))


def _runs(blocks: Sequence[int]) -> list[range]:
    runs: list[range] = []
    for block in blocks:
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs
