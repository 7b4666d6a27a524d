"""Boxes: what NumPy's own indexing says of them."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stowax._box import (
    Box,
    chunk_box,
    chunks_in,
    from_slices,
    grid_counts,
    grid_index_of,
    ordinal_of,
    whole,
)


@st.composite
def shapes_and_boxes(draw, count=2):
    """A shape and boxes within it, empty ones included."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    boxes = []
    for _ in range(count):
        ends = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
        boxes.append(Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))
    return shape, *boxes


def elements(box):
    """The set of index tuples in a box."""
    return set(itertools.product(*map(range, box.start, box.stop)))


@given(shapes_and_boxes())
def test_a_box_is_its_elements(case):
    """Size and intersection are those of the sets of elements."""
    _, a, b = case
    common = a.intersect(b)

    assert a.size == len(elements(a)) == math.prod(a.shape)
    assert elements(a) & elements(b) == (elements(common) if common else set())


@given(shapes_and_boxes())
def test_within(case):
    """A box is cut out of the memory of another, a 0-d one as a view."""
    shape, outer, box = case
    array = np.arange(math.prod(shape)).reshape(shape)
    memory = array[outer.within(whole(shape))]
    common = box.intersect(outer)

    if common is not None:
        cut = memory[common.within(outer)]
        assert cut.tolist() == array[common.within(whole(shape))].tolist()
        assert isinstance(cut, np.ndarray)


@given(shapes_and_boxes(count=1), st.data())
def test_chunks(case, data):
    """The chunks in a box are exactly those that share an element with it."""
    shape, box = case
    chunk_shape = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    counts = grid_counts(shape, chunk_shape)
    grid = itertools.product(*map(range, counts))
    expected = {
        index: found
        for index in grid
        if (found := chunk_box(index, shape, chunk_shape)).intersect(box)
    }

    assert dict(chunks_in(box, shape, chunk_shape)) == expected
    whole_grid = [b for _, b in chunks_in(whole(shape), shape, chunk_shape)]
    assert sum(b.size for b in whole_grid) == math.prod(shape)


@given(st.lists(st.integers(1, 5), max_size=3))
def test_ordinals(counts):
    """Chunks are numbered in C order, and the number tells the chunk."""
    grid = list(itertools.product(*map(range, counts)))

    assert [ordinal_of(index, counts) for index in grid] == list(range(len(grid)))
    assert [grid_index_of(i, counts) for i in range(len(grid))] == grid


def test_from_slices():
    """Open ends mean the whole dimension."""
    found = from_slices((slice(None), slice(2, 4), slice(3, None)), (5, 6, 7))

    assert found == Box((0, 2, 3), (5, 4, 7))
    assert from_slices((), ()) == Box((), ())


def test_text():
    """A box is shown as its ranges."""
    assert str(Box((0, 2), (3, 4))) == "[0:3, 2:4]"
    assert str(Box((), ())) == "[]"
