"""A fingerprint tells pipelines apart, and nothing else."""

from __future__ import annotations

import grain
import pytest
from grain import experimental

from stowax_grain._fingerprint import fingerprint


def _shuffled(seed=7, batch_size=4, count=100, epochs=3, threads=16):
    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .map(lambda x: x + 1)
        .repeat(epochs)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads))
        .batch(batch_size)
    )


def test_it_reads_like_the_pipeline():
    """One line per transformation, the last one first."""
    assert fingerprint(iter(_shuffled())) == (
        "BatchDatasetIterator(batch_size=4, drop_remainder=False)",
        "  PrefetchDatasetIterator(allow_nones=False)",
        "    RepeatMapDataset(num_epochs=3) len=300",
        "      MapMapDataset(transform=<lambda>) len=100",
        "        ShuffleMapDataset seed=7 len=100",
        "          RangeMapDataset(start=0, stop=100, step=1) len=100",
    )


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"batch_size": 8}, {"count": 99}, {"epochs": 2}]
)
def test_what_changes_the_elements_changes_it(change):
    """Seeds, sizes and lengths count."""
    assert fingerprint(iter(_shuffled())) != fingerprint(iter(_shuffled(**change)))


def test_what_changes_only_the_speed_does_not():
    """Thread counts, prefetching and the position do not count."""
    reference = fingerprint(iter(_shuffled()))
    fewer_threads = iter(_shuffled(threads=2))
    prefetched = experimental.ThreadPrefetchIterDataset(
        _shuffled(), prefetch_buffer_size=2
    )
    advanced = iter(_shuffled())
    next(advanced)

    assert fingerprint(fewer_threads) == reference
    assert fingerprint(iter(prefetched)) == reference
    assert fingerprint(advanced) == reference


def test_transforms_below_a_mixture_are_seen():
    """Each branch of a mixture is part of it."""
    one, two = (grain.MapDataset.range(n).to_iter_dataset() for n in (10, 20))

    mixed = grain.IterDataset.mix([one, two], [1, 2])

    text = "\n".join(fingerprint(iter(mixed)))
    assert "stop=10" in text
    assert "stop=20" in text


def test_equal_shards_are_counted():
    """An interleave of many equal shards is one entry."""
    shards = [grain.MapDataset.range(6)] * 500

    lines = fingerprint(
        iter(experimental.InterleaveIterDataset(shards, cycle_length=2))
    )

    assert lines[1:] == ("  500 x RangeMapDataset(start=0, stop=6, step=1) len=6",)
