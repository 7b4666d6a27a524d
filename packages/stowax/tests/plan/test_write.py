"""A write plan covers every array once, in every process alike."""

import contextlib
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowax._box import Box, chunk_box, whole
from stowax._codecs._zarr import TRAILER_BYTES
from stowax._plan import _write
from stowax._plan._write import ArrayLayout, choose_chunk_shape, plan_write

EXAMPLES = 3000 if os.environ.get("STOWAX_SOAK") else 100


@st.composite
def layouts(draw, process_count):
    """Arrays, each cut evenly along its axes, its parts held by some processes."""
    found = []
    for leaf in range(draw(st.integers(0, 5))):
        cuts = draw(st.lists(st.integers(1, 3), max_size=3))
        extents = [draw(st.integers(1, 6)) for _ in cuts]
        shape = tuple(c * n for c, n in zip(cuts, extents, strict=True))
        parts = []
        for index in np.ndindex(*cuts):
            start = tuple(i * n for i, n in zip(index, extents, strict=True))
            stop = tuple(a + n for a, n in zip(start, extents, strict=True))
            holders = draw(
                st.sets(
                    st.integers(0, process_count - 1),
                    min_size=1,
                    max_size=process_count,
                )
            )
            parts.append((Box(start, stop), tuple(sorted(holders))))
        itemsize = draw(st.sampled_from([1, 2, 4, 16]))
        found.append(
            ArrayLayout(leaf=leaf, shape=shape, itemsize=itemsize, parts=tuple(parts))
        )
    return found


def plans(arrays, process_count):
    """The plan of every process."""
    return [
        plan_write(arrays, process_index=i, data_directory=f"p{i}/")
        for i in range(process_count)
    ]


@contextlib.contextmanager
def limits(size_bytes):
    """Chunk and file limits that matter for small arrays, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_write, "CHUNK_LIMIT_BYTES", size_bytes)
        patch.setattr(_write, "FILE_LIMIT_BYTES", size_bytes)
        yield


@pytest.mark.parametrize("limit_bytes", [64 << 20, 64, 1])
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_every_element_is_written_once(limit_bytes, data):
    """All plans together hold every element of every array exactly once."""
    process_count = data.draw(st.integers(1, 4))
    arrays = data.draw(layouts(process_count))

    with limits(limit_bytes):
        found = plans(arrays, process_count)

    assert all(plan.chunk_shapes == found[0].chunk_shapes for plan in found)
    for array in arrays:
        written = np.zeros(array.shape, int)
        for process, plan in enumerate(found):
            for chunk in (c for f in plan.files for c in f.chunks):
                if chunk.leaf == array.leaf:
                    written[chunk.box.within(whole(array.shape))] += 1
                    assert process in dict(array.parts)[chunk.part]
                    assert chunk.part.intersect(chunk.box) == chunk.box
        assert (written == 1).all()


@pytest.mark.parametrize("limit_bytes", [64 << 20, 64, 1])
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_chunks_are_the_grids(limit_bytes, data):
    """A chunk is the one of its place in the grid, of the chunk shape's length."""
    arrays = data.draw(layouts(1))

    with limits(limit_bytes):
        (plan,) = plans(arrays, 1)

    for chunk in (c for f in plan.files for c in f.chunks):
        array = arrays[chunk.leaf]
        shape = plan.chunk_shapes[chunk.leaf]
        counts = [-(-n // c) for n, c in zip(array.shape, shape, strict=True)]
        index = np.unravel_index(chunk.chunk, counts) if counts else ()
        assert chunk.chunk_shape == shape
        assert chunk.box == chunk_box(tuple(map(int, index)), array.shape, shape)
        assert chunk.length_bytes == math.prod(shape) * array.itemsize


@pytest.mark.parametrize("limit_bytes", [64 << 20, 64, 1])
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_files(limit_bytes, data):
    """In a file chunks do not overlap, begin aligned, and fill it to its end."""
    arrays = data.draw(layouts(1))

    with limits(limit_bytes):
        (plan,) = plans(arrays, 1)

    assert len(plan.files) <= 2
    assert [f.name for f in plan.files] == [
        f"p0/data-{i}" for i in range(len(plan.files))
    ]
    for file in plan.files:
        end = 0
        for chunk in file.chunks:
            assert end <= chunk.offset_bytes < end + 4096
            assert chunk.offset_bytes % 64 == 0
            end = chunk.offset_bytes + chunk.length_bytes + TRAILER_BYTES
        assert file.size_bytes == end


def test_large_chunks_begin_on_pages():
    """A chunk that is worth a read of its own begins on a page."""
    arrays = [
        ArrayLayout(
            leaf=i, shape=(n,), itemsize=1, parts=((whole((n,)), (0,)),)
        )
        for i, n in enumerate([10, 100_000, 10, 65536])
    ]  # fmt: skip

    (plan,) = plans(arrays, 1)

    offsets = [chunk.offset_bytes for chunk in plan.files[0].chunks]
    assert [offset % 4096 == 0 for offset in offsets] == [True, True, False, True]


def test_two_files_from_the_limit_on():
    """From the limit on the bytes are shared out among two files about evenly."""
    half = _write.FILE_LIMIT_BYTES // 8
    arrays = [
        ArrayLayout(leaf=i, shape=(half,), itemsize=1, parts=((whole((half,)), (0,)),))
        for i in range(8)
    ]

    (plan,) = plans(arrays, 1)
    (small,) = plans(arrays[:7], 1)

    assert [len(file.chunks) for file in plan.files] == [4, 4]
    assert len(small.files) == 1


@pytest.mark.parametrize("process_count", [2, 3, 8])
def test_replicas_are_shared_out(process_count):
    """What all processes hold is written by all of them, about evenly."""
    everybody = tuple(range(process_count))
    arrays = [
        ArrayLayout(leaf=i, shape=(n,), itemsize=4, parts=((whole((n,)), everybody),))
        for i, n in enumerate([100, 90, 110, 95, 105] * process_count)
    ]

    loads = [
        sum(c.length_bytes for f in plan.files for c in f.chunks)
        for plan in plans(arrays, process_count)
    ]

    assert max(loads) - min(loads) <= 4 * 110
    assert sum(loads) == sum(4 * array.shape[0] for array in arrays)


def test_parts_of_one_array_are_shared_out():
    """The shards of one array that two processes hold go to both."""
    parts = tuple((Box((i,), (i + 1,)), (0, 1)) for i in range(8))
    arrays = [ArrayLayout(leaf=0, shape=(8,), itemsize=4, parts=parts)]

    counts = [sum(len(f.chunks) for f in plan.files) for plan in plans(arrays, 2)]

    assert counts == [4, 4]


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [
        *(
            ((1 << 30,), 4),
            ((100_003, 1009), 4),
            ((7, 1 << 28), 1),
            ((3, 5, 1 << 25), 2),
        ),
        *(((1 << 14, 1 << 14), 4), ((1, 1, 1 << 27), 1), ((10_000_019,), 16)),
    ],
)
def test_chunks_of_a_large_array(shape, itemsize):
    """A large array is cut into chunks near the limit, with little padding."""
    chunk = choose_chunk_shape(shape, [whole(shape)], itemsize)

    size_bytes = math.prod(chunk) * itemsize
    assert size_bytes <= _write.CHUNK_LIMIT_BYTES
    assert size_bytes >= _write.CHUNK_LIMIT_BYTES // 4
    stored = math.prod(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
    assert stored <= math.prod(shape) * 1.05


def test_chunks_of_a_large_shard():
    """A large shard is cut at its own divisors: no chunk crosses a shard's border."""
    boxes = [Box((0, 0), (3 << 14, 4096)), Box((3 << 14, 0), (3 << 15, 4096))]

    chunk = choose_chunk_shape((3 << 15, 4096), boxes, 4)

    assert math.prod(chunk) * 4 <= _write.CHUNK_LIMIT_BYTES
    assert (3 << 14) % chunk[0] == 0
    assert chunk[1] == 4096


@given(
    rows=st.integers(1, 5000),
    shards=st.integers(2, 4),
    limit_bytes=st.integers(1, 5000),
)
def test_pieces_of_a_large_shard(rows, shards, limit_bytes):
    """The largest divisor within the limit is taken, or else the shard stays whole."""
    borders = [(i * rows, (i + 1) * rows) for i in range(shards)]

    with limits(limit_bytes):
        (found,) = choose_chunk_shape(
            (shards * rows,), [Box((a,), (b,)) for a, b in borders], 1
        )

    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    best = max(d for d in divisors if d <= limit_bytes)
    assert found == (best if best * 8 >= min(rows, limit_bytes) else rows)


def test_a_shard_without_divisors():
    """A shard whose length is a large prime stays whole, however large it is."""
    prime = (1 << 31) - 1
    boxes = [Box((0,), (prime,)), Box((prime,), (2 * prime,))]

    assert choose_chunk_shape((2 * prime,), boxes, 4) == (prime,)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), ()), ((0,), (1,)), ((3, 0, 2), (3, 1, 2)), ((5,), (5,))],
)
def test_small_chunks(shape, expected):
    """A small array is one chunk; an empty axis counts as 1."""
    boxes = [] if 0 in shape else [whole(shape)]

    assert choose_chunk_shape(shape, boxes, 4) == expected
