"""The leaves of a load, parted so that what each wave passes on is limited."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stowax._plan._waves import in_waves

SIZES = st.lists(st.one_of(st.just(0), st.integers(0, 100)), max_size=60)


@given(SIZES, st.integers(0, 120))
def test_every_leaf_is_in_one_wave(sizes_bytes, limit_bytes):
    """In order, and with what it needs."""
    waves = in_waves(sizes_bytes, limit_bytes)

    assert [i for w in waves for i in range(w.start, w.stop)] == [
        *range(len(sizes_bytes))
    ]
    for wave in waves:
        assert wave.passing_bytes == sum(sizes_bytes[wave.start : wave.stop])


@given(SIZES, st.integers(0, 120))
def test_a_wave_beyond_the_limit_is_one_leaf(sizes_bytes, limit_bytes):
    """There is no smaller wave than that."""
    for wave in in_waves(sizes_bytes, limit_bytes):
        needing = [size for size in sizes_bytes[wave.start : wave.stop] if size]
        assert wave.passing_bytes <= limit_bytes or len(needing) == 1


@given(SIZES, st.integers(0, 120))
def test_no_two_waves_would_fit_into_one(sizes_bytes, limit_bytes):
    """As few as can be had without another order."""
    waves = in_waves(sizes_bytes, limit_bytes)
    for wave, following in itertools.pairwise(waves):
        [first, *_] = [s for s in sizes_bytes[following.start : following.stop] if s]
        assert wave.passing_bytes + first > limit_bytes


def test_what_stays_is_read_at_once():
    """Arrays whose memory becomes that of the result need no waves."""
    assert len(in_waves([0] * 1000, 1)) == 1
