"""Which tensor goes where: every byte once, from one who has it."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stowax._box import Box, whole
from stowax._plan._tensor_files import (
    TensorSpec,
    begin_in,
    file_names,
    pieces_of,
    plan_tensors,
)

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shape=SHAPES, limit_bytes=st.integers(1, 60), itemsize=st.sampled_from([1, 4]))
def test_pieces_follow_each_other(shape, limit_bytes, itemsize):
    """Together they are the array in C order, and none is larger than asked for."""
    array = np.arange(math.prod(shape)).reshape(shape)
    pieces = list(pieces_of(shape, itemsize, limit_bytes))

    cuts = [array[box.within(whole(shape))] for box in pieces]
    found = [element for cut in cuts for element in cut.ravel().tolist()]

    assert found == array.ravel().tolist()
    assert all(
        cut.nbytes // array.itemsize * itemsize <= max(limit_bytes, itemsize)
        for cut in cuts
    )


@given(st.data())
def test_what_is_common_is_one_run(data):
    """In the memory of a part, what a piece needs of it lies together."""
    shape = data.draw(SHAPES.filter(math.prod))
    bounds = [
        sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        for n in shape
    ]
    part = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    array = np.arange(math.prod(shape)).reshape(shape)
    held = array[part.within(whole(shape))].ravel()

    for box in pieces_of(shape, 1, data.draw(st.integers(1, 40))):
        if (common := box.intersect(part)) is not None:
            begin = begin_in(common, part)
            expected = array[common.within(whole(shape))].ravel()
            assert held[begin : begin + common.size].tolist() == expected.tolist()


@st.composite
def tensors(draw, count):
    """Tensors of some rows, in parts that processes out of `count` hold."""
    found = []
    for leaf in range(draw(st.integers(0, 6))):
        rows, part_count = draw(st.integers(0, 4)), draw(st.integers(1, 3))
        dtype = np.dtype(draw(st.sampled_from(["int8", "int16", "float32"])))
        borders = sorted(
            {0, rows, *(draw(st.integers(0, rows)) for _ in range(part_count - 1))}
        )
        processes = st.sets(st.integers(0, count - 1), min_size=1)
        parts = tuple(
            (Box((a, 0), (b, 3)), tuple(sorted(draw(processes))))
            for a, b in itertools.pairwise(borders)
        )
        found.append(TensorSpec(leaf, dtype, (rows, 3), parts))
    return found


@given(st.data())
def test_every_part_comes_from_one_who_has_it(data):
    """From the memory of the writer, or from a place in the file of one lender."""
    count = data.draw(st.integers(1, 4))
    specs = data.draw(tensors(count))
    limit_bytes = data.draw(st.none() | st.integers(1, 40))
    plans = [
        plan_tensors(specs, process_index=index, file_limit_bytes=limit_bytes)
        for index in range(count)
    ]

    agreed = [[(file.writer, file.specs) for file in plan.files] for plan in plans]
    assert all(files == agreed[0] for files in agreed)
    assert sorted(s.leaf for file in plans[0].files for s in file.specs) == [
        spec.leaf for spec in specs
    ]
    lent = [_places(plan) for plan in plans]
    for index, plan in enumerate(plans):
        assert [part for need in plan.needs for part in need] == list(
            range(len(plan.parts))
        )
        for file in plan.files:
            assert bool(file.tensors) <= (file.writer == index)
            if file.writer == index:
                assert tuple(tensor.spec for tensor in file.tensors) == file.specs
            for spec, unit, sources in file.tensors:
                assert [source.box for source in sources] == [b for b, _ in spec.parts]
                for source, (box, holders) in zip(sources, spec.parts, strict=True):
                    if source.part >= 0:
                        assert index in holders
                        assert source.part in plan.needs[unit]
                        assert plan.parts[source.part] == (spec.leaf, box)
                    else:
                        assert source.lender in holders
                        found = lent[source.lender][spec.leaf, box]
                        assert found == source.offset_bytes
        assert plan.has_loans == any(lent)


def _places(plan):
    """Where the parts lie that a process lends, if it writes them in order."""
    found, end_bytes = {}, 0
    for spec, (leaf, box) in plan.loans:
        assert leaf == spec.leaf
        found[leaf, box] = end_bytes
        end_bytes += box.size * spec.dtype.itemsize
    return found


def test_nobody_lends_what_the_writer_has():
    """What all processes hold is written by one, from its own memory."""
    spec = TensorSpec(0, np.dtype("f4"), (2, 3), ((whole((2, 3)), (0, 1, 2)),))
    plans = [plan_tensors([spec], process_index=index) for index in range(3)]

    assert [plan.has_loans for plan in plans] == [False] * 3
    assert [len(plan.parts) for plan in plans] == [1, 0, 0]


def test_files_are_shared_out():
    """Processes that hold everything write as many files each."""
    specs = [
        TensorSpec(leaf, np.dtype("f4"), (8,), ((whole((8,)), (0, 1)),))
        for leaf in range(6)
    ]
    plan = plan_tensors(specs, process_index=0, file_limit_bytes=32)

    assert [file.writer for file in plan.files] == [0, 1, 0, 1, 0, 1]


def test_names_of_files():
    """They sort by their number, however many there are."""
    assert file_names(1) == ["model.safetensors"]
    names = file_names(12)
    assert names == sorted(names)
    assert names[11] == "model-00012-of-00012.safetensors"
