"""Whether compressing an array is worth it: a look at a few blocks of it.

Pure.  The look is short, and says the same of the same elements: no clock has a say, so
that a checkpoint does not depend on how busy the machine was.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from stowax._codecs._compression import BLOSC
from stowax._plan._cast import convert

_SHARE = 16
"""One of so many elements is looked at,"""

_MOST_BYTES = 256 << 10
"""and no more than this in total,"""

_BLOCK_BYTES = 16 << 10
"""in runs of this length, spread evenly."""

_WORTH = 0.7
"""A sample that does not shrink to this is better stored as it is: on a disk that takes
1 GB/s, what is not written makes up for the compression from here on."""


def is_worth_it(arrays: Sequence[np.ndarray], dtype: np.dtype) -> bool:
    """Whether arrays, one after the other, are better compressed.

    Args:
        arrays: In host memory, of any layout.
        dtype: In which they are to be stored.

    Example:
        >>> noise = np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint32)
        >>> is_worth_it([noise], noise.dtype), is_worth_it([noise // 4096], noise.dtype)
        (False, True)
    """
    size_bytes = stored_bytes = 0
    for elements in _blocks(arrays, dtype.itemsize):
        # Each alone: side by side, what is alike far apart would seem to shrink.
        block = convert(elements, dtype).view(np.uint8).data
        size_bytes += block.nbytes
        stored_bytes += len(BLOSC.encode(block, dtype.itemsize))
    return stored_bytes < _WORTH * size_bytes


def _blocks(arrays: Sequence[np.ndarray], itemsize: int) -> Iterator[np.ndarray]:
    """Runs of elements that are spread evenly over all arrays."""
    ends = list(itertools.accumulate(array.size for array in arrays))
    total = ends[-1] if ends else 0
    wanted = min(total // _SHARE, _MOST_BYTES // itemsize)
    count = max(1, wanted * itemsize // _BLOCK_BYTES)
    length = wanted // count
    for number in range(count if length else 0):
        position = (2 * number + 1) * total // (2 * count)
        index = bisect.bisect_right(ends, position)
        array = arrays[index]
        start = position - (ends[index] - array.size)
        # At the end of an array the run is moved ahead, in a tiny one it is shorter.
        start = max(0, min(start, array.size - length))
        # `flat` takes any layout, but 50 us for a run.
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        yield flat[start : start + length]
