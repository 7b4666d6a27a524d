"""The leaves of a load, parted so that what each wave passes on is limited."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stowax._plan._waves import Wave, in_waves

SIZES = st.lists(st.one_of(st.just(0), st.integers(0, 100)), max_size=60)


@given(SIZES, st.integers(0, 120))
def test_every_leaf_is_in_one_wave(sizes_bytes, limit_bytes):
    """In order within each, and with what they need."""
    waves = in_waves(sizes_bytes, limit_bytes)

    leaves = [leaf for wave in waves for leaf in wave.leaves]
    assert sorted(leaves) == [*range(len(sizes_bytes))]
    for wave in waves:
        assert [*wave.leaves] == sorted(wave.leaves)
        assert wave.leaves
        assert wave.passing_bytes == sum(sizes_bytes[leaf] for leaf in wave.leaves)


@given(SIZES, st.integers(0, 120))
def test_a_wave_beyond_the_limit_is_one_leaf(sizes_bytes, limit_bytes):
    """There is no smaller wave than that."""
    for wave in in_waves(sizes_bytes, limit_bytes):
        assert wave.passing_bytes <= limit_bytes or len(wave.leaves) == 1


@given(SIZES, st.integers(0, 120))
def test_no_two_waves_would_fit_into_one(sizes_bytes, limit_bytes):
    """As few as can be had without another order."""
    waves = [wave for wave in in_waves(sizes_bytes, limit_bytes) if wave.passing_bytes]
    for wave, following in itertools.pairwise(waves):
        assert wave.passing_bytes + sizes_bytes[following.leaves[0]] > limit_bytes


@given(SIZES, st.integers(0, 120))
def test_what_stays_is_read_at_once(sizes_bytes, limit_bytes):
    """Before the others, which it would keep waiting for their memory."""
    staying = [leaf for leaf, size in enumerate(sizes_bytes) if not size]
    waves = in_waves(sizes_bytes, limit_bytes)

    at_once = [Wave([*w.leaves], 0) for w in waves if not w.passing_bytes]
    assert at_once == ([Wave(staying, 0)] if staying else [])
    assert all(wave.passing_bytes for wave in waves[1:])
