"""Which blocks of a chunk hold what is wanted of it.

A checksum is noted at the end of every block, so whole blocks are the least that can be
read and verified.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

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


def _runs(blocks: Sequence[int]) -> list[range]:
    runs: list[range] = []
    for block in blocks:
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs
