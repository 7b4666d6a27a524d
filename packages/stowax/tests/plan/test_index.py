"""Basic slices, with NumPy as the oracle."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stowax._box import Box, whole
from stowax._plan._index import view_of
from stowax.errors import LeafIndexError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(st.data())
def test_as_numpy_has_it(data):
    """The box holds the elements that NumPy's basic indexing takes, in its shape."""
    shape = data.draw(SHAPES)
    array = np.arange(int(np.prod(shape))).reshape(shape)
    assume(0 not in shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    parts = index if isinstance(index, tuple) else (index,)
    assume(all(not isinstance(p, slice) or p.step in (None, 1) for p in parts))

    view = view_of(index, shape)

    expected = array[index]
    assert view.shape == np.shape(expected)
    found = array[view.box.within(whole(shape))].reshape(view.shape)
    np.testing.assert_array_equal(found, expected)


@given(st.data())
def test_a_part_of_a_view(data):
    """A box of the view is found in the array where the view says."""
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5))
    array = np.arange(int(np.prod(shape))).reshape(shape)
    index = tuple(
        data.draw(st.one_of(st.integers(-n, n - 1), st.just(slice(1, None))))
        for n in shape
    )
    view = view_of(index, shape)
    assume(0 not in view.shape)
    start = [data.draw(st.integers(0, n - 1)) for n in view.shape]
    part = Box(tuple(start), view.shape)

    stored = view.stored_box(part)

    expected = array[index][part.within(whole(view.shape))]
    found = array[stored.within(whole(shape))].reshape(part.shape)
    np.testing.assert_array_equal(found, expected)


def test_extra_axes():
    """Axes at the end that the index cannot reach are kept whole."""
    view = view_of((..., 1), (3, 4, 2), extra=1)

    assert view.shape == (3, 2)
    assert view.box == Box((0, 1, 0), (3, 2, 2))


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (3, "out of range for axis 0, of 3"),
        (-4, "out of range"),
        ((0, 0, 0), "3 indices for a leaf of 2 axes"),
        ((..., ...), "at most one"),
        (slice(None, None, 2), "has a step"),
        (slice(None, None, -1), "has a step"),
        (slice(None, None, 0), "no slice"),
        (slice("a"), "no slice"),
        (None, "no basic index"),
        (True, "no basic index"),
        ([0, 1], "no basic index"),
        ("w", "no basic index"),
        (1.0, "no basic index"),
    ],
)
def test_no_index(index, why):
    """What is no basic index, or goes beyond the array, is refused."""
    with pytest.raises(LeafIndexError, match=why) as caught:
        view_of(index, (3, 4))

    assert isinstance(caught.value, IndexError)
