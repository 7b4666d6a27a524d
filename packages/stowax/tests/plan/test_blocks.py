"""Which blocks of a chunk are read for a part of it."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stowax._box import Box
from stowax._plan._blocks import boxes_of_run, needed_blocks


@st.composite
def parts(draw):
    """The shape of a chunk, and boxes in it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        start = [draw(st.integers(0, n - 1)) for n in shape]
        stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
        boxes.append(Box(tuple(start), tuple(stop)))
    return shape, boxes


@given(parts(), st.sampled_from([1, 2, 8]), st.sampled_from([8, 16, 32]))
def test_every_element_is_in_a_block(shape_and_boxes, itemsize, block_bytes):
    """Runs are in order, apart, and hold all bytes of every element."""
    shape, boxes = shape_and_boxes
    offsets = np.arange(int(np.prod(shape))).reshape(shape) * itemsize

    runs = needed_blocks(boxes, shape, itemsize, block_bytes)

    read = {block for run in runs for block in run}
    wanted = {
        (int(offset) + byte) // block_bytes
        for box in boxes
        for offset in np.atleast_1d(
            offsets[box.within(Box((0,) * len(shape), shape))]
        ).flat
        for byte in range(itemsize)
    }
    assert wanted <= read
    assert all(a.stop < b.start for a, b in itertools.pairwise(runs))
    # Between two blocks that hold something wanted of one row, all are taken.
    assert read <= set(range(min(wanted), max(wanted) + 1))


def test_rows_that_are_longer_than_a_block():
    """Of a column that is cut out of long rows, only its blocks are read."""
    runs = needed_blocks([Box((0, 5), (3, 7))], (3, 32), 1, block_bytes=8)

    assert runs == [range(1), range(4, 5), range(8, 9)]


def test_rows_that_are_shorter_than_a_block():
    """Of short rows, all between the first and the last element are read."""
    runs = needed_blocks([Box((1, 1), (5, 2))], (8, 4), 1, block_bytes=8)

    assert runs == [range(3)]


@given(parts(), st.data())
def test_boxes_of_a_run(shape_and_boxes, data):
    """Together they are exactly the run, in order, each of it in one piece."""
    shape, _ = shape_and_boxes
    count = int(np.prod(shape))
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, count)] * 2)))
    elements = np.arange(count).reshape(shape)

    found = list(boxes_of_run(first, end, shape))

    together = []
    for start, box in found:
        inside = elements[box.within(Box((0,) * len(shape), shape))]
        assert inside.reshape(-1)[0] == start
        together += inside.reshape(-1).tolist()
    assert together == list(range(first, end))
    assert len(found) <= max(1, 2 * len(shape) - 1)
