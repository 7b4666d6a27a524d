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
from stowax._plan import _chunk_shape, _write
from stowax._plan._chunk_shape import choose_chunk_shape
from stowax._plan._write import (
    ArrayLayout,
    Sharing,
    place,
    plan_write,
)

EXAMPLES = 3000 if os.environ.get("STOWAX_SOAK") else 100


@st.composite
def layouts(draw, process_count):
    """Arrays, each cut evenly along its axes, its parts held by some processes."""
    found = []
    for _ in range(draw(st.integers(0, 5))):
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
        dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4", "c16"])))
        found.append(ArrayLayout(shape=shape, dtype=dtype, parts=tuple(parts)))
    return found


def plans(arrays, process_count):
    """The plan of every process."""
    return [
        plan_write(dict(enumerate(arrays)), process_index=i, data_directory=f"p{i}/")
        for i in range(process_count)
    ]


@contextlib.contextmanager
def limits(size_bytes):
    """Chunk and file limits that matter for small arrays, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunk_shape, "CHUNK_LIMIT_BYTES", size_bytes)
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
    for leaf, array in enumerate(arrays):
        written = np.zeros(array.shape, int)
        for process, plan in enumerate(found):
            for chunk in (c for f in plan.files for c in f.chunks):
                if chunk.leaf == leaf:
                    written[chunk.box.within(whole(array.shape))] += 1
                    part = plan.parts[chunk.part]
                    assert part.leaf == leaf
                    assert process in dict(array.parts)[part.box]
                    assert part.box.intersect(chunk.box) == chunk.box
                    assert chunk.cut in (None, chunk.box.within(part.box))
                    assert (chunk.cut is None) == (chunk.box == part.box)
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
        assert chunk.grid.shape == shape
        assert chunk.box == chunk_box(tuple(map(int, index)), array.shape, shape)
        assert chunk.grid.size_bytes == math.prod(shape) * array.dtype.itemsize


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
            begin = place(end, chunk.grid.size_bytes)
            assert end <= begin < end + 4096
            assert begin % 64 == 0
            end = begin + chunk.grid.size_bytes + TRAILER_BYTES
        assert file.size_bytes == end


def test_large_chunks_begin_on_pages():
    """A chunk that is worth a read of its own begins on a page, others on a line."""
    assert place(0, 10) == 0
    assert place(1, 65535) == 64
    assert place(64, 65535) == 64
    assert place(1, 65536) == 4096
    assert place(4097, 1 << 30) == 8192


def test_two_files_from_the_limit_on():
    """From the limit on the bytes are shared out among two files about evenly."""
    half = _write.FILE_LIMIT_BYTES // 8
    arrays = [
        ArrayLayout(
            shape=(half,), dtype=np.dtype("u1"), parts=((whole((half,)), (0,)),)
        )
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
        ArrayLayout(shape=(n,), dtype=np.dtype("u4"), parts=((whole((n,)), everybody),))
        for i, n in enumerate([100, 90, 110, 95, 105] * process_count)
    ]

    loads = [
        sum(c.grid.size_bytes for f in plan.files for c in f.chunks)
        for plan in plans(arrays, process_count)
    ]

    assert max(loads) - min(loads) <= 4 * 110
    assert sum(loads) == sum(4 * array.shape[0] for array in arrays)


def test_parts_of_one_array_are_shared_out():
    """The shards of one array that two processes hold go to both."""
    parts = tuple((Box((i,), (i + 1,)), (0, 1)) for i in range(8))
    arrays = [ArrayLayout(shape=(8,), dtype=np.dtype("u4"), parts=parts)]

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
    assert size_bytes <= _chunk_shape.CHUNK_LIMIT_BYTES
    assert size_bytes >= _chunk_shape.CHUNK_LIMIT_BYTES // 4
    stored = math.prod(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
    assert stored <= math.prod(shape) * 1.05


def test_chunks_of_a_large_shard():
    """A large shard is cut at its own divisors: no chunk crosses a shard's border."""
    boxes = [Box((0, 0), (3 << 14, 4096)), Box((3 << 14, 0), (3 << 15, 4096))]

    chunk = choose_chunk_shape((3 << 15, 4096), boxes, 4)

    assert math.prod(chunk) * 4 <= _chunk_shape.CHUNK_LIMIT_BYTES
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


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_chunks_obey_the_caller(data):
    """However small the limit, chunks keep to it, and to the borders of shards."""
    (array,) = data.draw(layouts(1).filter(lambda arrays: len(arrays) == 1))
    limit_bytes = data.draw(st.integers(array.dtype.itemsize, 300))
    rank = len(array.shape)
    axes = data.draw(st.sets(st.integers(0, max(0, rank - 1)), max_size=rank))
    boxes = [box for box, _ in array.parts]

    chunk = choose_chunk_shape(
        array.shape,
        boxes,
        array.dtype.itemsize,
        limit_bytes=limit_bytes,
        shard_axes=tuple(axes),
    )

    assert math.prod(chunk) * array.dtype.itemsize <= limit_bytes
    assert [chunk[axis] for axis in axes] == [1] * len(axes)
    for axis, (n, extent) in enumerate(zip(array.shape, chunk, strict=True)):
        borders = {b for box in boxes for b in (box.start[axis], box.stop[axis])}
        assert [b for b in borders - {n} if b % extent] == []


@pytest.mark.parametrize(
    ("shape", "shard", "limit_bytes", "axes", "expected"),
    [
        ((1000, 1000), (1000, 1000), 100_000, (), (125, 200)),
        ((1000, 1000), (500, 1000), 100_000, (), (25, 1000)),
        ((48, 40), (48, 40), 1536, (), (16, 20)),
        ((64, 64), (64, 64), 256, (), (8, 8)),
        ((8, 8, 8), (8, 8, 8), 256, (), (4, 4, 4)),
        ((16, 12), (4, 6), 48, (), (4, 3)),
        ((64, 64), (64, 64), None, (0,), (1, 64)),
        ((64, 64), (64, 64), 1024, (0, 1), (1, 1)),
        ((6, 10), (6, 10), 64, (1,), (6, 1)),
        # Where Orbax takes divisors, down to a single element, these are even pieces.
        ((7, 13), (7, 13), 50, (), (3, 4)),
        ((50257, 768), (50257, 768), 1 << 20, (), (441, 384)),
        ((1_000_003,), (1_000_003,), 1 << 20, (), (250_001,)),
    ],
)
def test_chunks_under_a_limit(shape, shard, limit_bytes, axes, expected):
    """The longest axis gives way, a sharded one first, no further than it must."""
    counts = [n // e for n, e in zip(shape, shard, strict=True)]
    starts = [
        tuple(np.multiply(index, shard).tolist()) for index in np.ndindex(*counts)
    ]
    boxes = [Box(s, tuple(np.add(s, shard).tolist())) for s in starts]

    found = choose_chunk_shape(
        shape, boxes, 4, limit_bytes=limit_bytes, shard_axes=axes
    )

    assert found == expected


def test_a_large_limit_does_not_lift_ours():
    """A chunk stays one unit of reading, whatever the caller allows."""
    chunk = choose_chunk_shape(
        (1 << 14, 1 << 14), [whole((1 << 14, 1 << 14))], 4, limit_bytes=1 << 30
    )

    assert math.prod(chunk) * 4 == _chunk_shape.CHUNK_LIMIT_BYTES


@pytest.mark.parametrize("limit_bytes", [1000, 4096])
def test_files_stay_within_the_limit(limit_bytes):
    """No chunk is begun that would lead its file beyond the limit."""
    arrays = [
        ArrayLayout(
            shape=(n,),
            dtype=np.dtype("u1"),
            parts=((whole((n,)), (0,)),),
            chunk_limit_bytes=limit_bytes,
        )
        for i, n in enumerate([10, 990, 5000, 1, 1, 1000, 3])
    ]

    plan = plan_write(
        dict(enumerate(arrays)),
        process_index=0,
        data_directory="d/",
        file_limit_bytes=limit_bytes,
    )

    assert all(f.size_bytes <= limit_bytes + TRAILER_BYTES for f in plan.files)
    assert len(plan.files) > 5_000 // limit_bytes
    assert len({file.name for file in plan.files}) == len(plan.files)


def test_size_of_compressed_files_is_open():
    """Nobody knows beforehand how long a file with a compressed chunk will be."""
    parts = ((whole((8,)), (0,)),)
    arrays = [
        ArrayLayout(shape=(8,), dtype=np.dtype("u1"), parts=parts),
        ArrayLayout(shape=(8,), dtype=np.dtype("u1"), parts=parts, codec="zstd"),
    ]

    (plan,) = plans(arrays, 1)
    (plain,) = plans(arrays[:1], 1)

    assert [file.size_bytes for file in plan.files] == [None]
    assert [chunk.grid.codec for chunk in plan.files[0].chunks] == [None, "zstd"]
    assert plain.files[0].size_bytes == 8 + TRAILER_BYTES


def test_chunks_to_be_compressed_are_smaller():
    """What a worker holds whole is kept small; a wish, as is the other limit."""
    boxes = [whole((1 << 20, 64))]
    prime = (1 << 31) - 1
    unfit = [Box((0,), (prime,)), Box((prime,), (2 * prime,))]

    plain = choose_chunk_shape((1 << 20, 64), boxes, 4)
    coded = choose_chunk_shape((1 << 20, 64), boxes, 4, is_coded=True)

    assert math.prod(plain) * 4 == _chunk_shape.CHUNK_LIMIT_BYTES
    assert math.prod(coded) * 4 == _chunk_shape.CODED_CHUNK_LIMIT_BYTES
    assert choose_chunk_shape((2 * prime,), unfit, 4, is_coded=True) == (prime,)


@pytest.mark.parametrize("codec", [_write.AUTO, _write.AUTO_EACH])
@pytest.mark.parametrize(
    ("rows", "limit_bytes", "is_asked"),
    [
        (1 << 20, None, True),
        ((1 << 20) - 1, None, False),
        (1 << 21, 64 << 10, True),
        (1 << 21, (64 << 10) - 1, False),
        (2 * ((1 << 31) - 1), None, False),  # More than the codec takes.
    ],
)
def test_what_is_left_to_a_sample(codec, rows, limit_bytes, is_asked):
    """Sizes alone say which arrays and chunks are worth a sample."""
    half = rows // 2
    borders = [whole((rows,))]
    if rows > 1 << 30:
        borders = [Box((0,), (half,)), Box((half,), (rows,))]
    layout = ArrayLayout(
        shape=(rows,),
        dtype=np.dtype("u1"),
        parts=tuple((box, (0,)) for box in borders),
        codec=codec,
        chunk_limit_bytes=limit_bytes,
    )

    plan = plan_write({0: layout}, process_index=0, data_directory="d/")

    assert plan.codecs == {0: codec if is_asked else None}
    assert {chunk.grid.codec for file in plan.files for chunk in file.chunks} == {
        plan.codecs[0]
    }


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (Sharing(), [2, 2, 2, 2]),
        (Sharing(is_on=False), [8, 0, 0, 0]),
        (Sharing(most=2), [4, 4, 0, 0]),
        (Sharing(most=0), [8, 0, 0, 0]),
        (Sharing(from_bytes=100), [2, 2, 2, 2]),
        (Sharing(from_bytes=101), [8, 0, 0, 0]),
    ],
    ids=str,
)
def test_who_shares_the_writing(sharing, expected):
    """Replicas are shared out among those that the caller allows, the first ones."""
    arrays = [
        ArrayLayout(
            shape=(100,),
            dtype=np.dtype("u1"),
            parts=((whole((100,)), (0, 1, 2, 3)),),
        )
        for i in range(8)
    ]

    counts = [
        sum(len(file.chunks) for file in plan.files)
        for plan in (
            plan_write(
                dict(enumerate(arrays)),
                process_index=i,
                data_directory="",
                sharing=sharing,
            )
            for i in range(4)
        )
    ]

    assert counts == expected
