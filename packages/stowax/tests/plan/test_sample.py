"""A sample says what the whole would, from a few blocks, and always the same."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import NUMPY_DTYPES, bits

from stowax._plan import _sample
from stowax._plan._sample import is_worth_it


def noise(count):
    """Floats of which hardly a bit is like another's."""
    return np.random.default_rng(0).standard_normal(count, np.float32)


@given(
    sizes=st.lists(st.integers(0, 1 << 20), max_size=5),
    itemsize=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_a_sample_is_short_and_spread(sizes, itemsize):
    """At most a sixteenth of all, and 256 KiB, from everywhere."""
    starts = np.cumsum([0, *sizes])
    arrays = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    total = int(starts[-1])

    blocks = list(_sample._blocks(arrays, itemsize))

    taken = sum(block.size for block in blocks)
    assert taken <= min(total // 16, (256 << 10) // itemsize)
    assert all(block.size * itemsize < 2 * (16 << 10) for block in blocks)
    if blocks:
        # Runs follow each other, none further from the next than they are spread.
        firsts = [int(block[0]) for block in blocks if block.size]
        assert firsts == sorted(firsts)
        edges = [0, *firsts, total]
        most = max(b - a for a, b in itertools.pairwise(edges))
        assert most <= 2 * total // len(blocks) + max(sizes)


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_every_dtype(name):
    """Zeros are worth it in every dtype; noise is not, unless it has unused bits."""
    array = bits(name, (1 << 18,))
    has_unused_bits = name.startswith(("bool", "int1", "int2", "int4", "uint1"))
    has_unused_bits |= name.startswith(("uint2", "uint4", "float4", "float6"))

    assert is_worth_it([np.zeros_like(array)], array.dtype)
    if not has_unused_bits:
        assert not is_worth_it([array], array.dtype)


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_layout_in_memory(order):
    """How an array lies in memory has no say."""
    rows = np.arange(512)[:, None] % 2 * np.ones((1, 512), np.float32)
    array = np.asarray(rows, order=order)

    assert is_worth_it([array], array.dtype)
    assert is_worth_it([array[::2, ::3]], array.dtype)
    assert not is_worth_it([noise(1 << 18).reshape(512, -1).T], np.dtype("f4"))


def test_what_is_alike_far_apart():
    """Copies that no compressor would see are no reason to compress."""
    array = np.tile(noise(1 << 16), 16)

    assert not is_worth_it([array], array.dtype)


def test_parts_count_by_their_size():
    """Of several parts each has its share of the sample."""
    zeros = np.zeros(1 << 20, np.float32)

    assert is_worth_it([zeros, noise(1 << 17)], zeros.dtype)
    assert not is_worth_it([zeros[: 1 << 14], noise(1 << 20)], zeros.dtype)
    assert not is_worth_it([], zeros.dtype)
    assert not is_worth_it([zeros[:3], zeros[:0]], zeros.dtype)
