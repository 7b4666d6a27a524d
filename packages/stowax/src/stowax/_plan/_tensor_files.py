"""Which tensor goes into which safetensors file, who writes it, and of which parts.

A file is written by one process, and a tensor lies in it as one run of bytes.  So
whoever writes a file needs all of its tensors: parts that only other processes hold are
lent to it, each by one of them, in one file per lender that is forgotten afterwards.
Every process computes the same answer from facts that all processes share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stowax._box import Box, whole
from stowax._plan._write import PartWrite


class TensorSpec(NamedTuple):
    """A tensor to be written."""

    leaf: int
    dtype: np.dtype
    """In which it is written."""
    shape: tuple[int, ...]
    parts: tuple[tuple[Box, tuple[int, ...]], ...]
    """Boxes that cover it without overlap, and the processes that hold each."""

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize


class Source(NamedTuple):
    """Where the writer of a tensor finds one part of it."""

    box: Box
    part: int
    """Position in `TensorPlan.parts`; -1: it is lent."""
    lender: int
    """The process that lends it; -1: nobody does."""
    offset_bytes: int
    """Where it begins in the file of its lender."""


class TensorWrite(NamedTuple):
    """A tensor that this process writes."""

    spec: TensorSpec
    unit: int
    """What has to be staged before."""
    sources: tuple[Source, ...]


class TensorFile(NamedTuple):
    """One file."""

    writer: int
    """The process that writes it."""
    specs: tuple[TensorSpec, ...]
    """In order of their place."""
    tensors: tuple[TensorWrite, ...]
    """The same, with what is needed to write them; empty in other processes."""


class Loan(NamedTuple):
    """A part that this process lends."""

    spec: TensorSpec
    part: PartWrite


class TensorPlan(NamedTuple):
    """What is written by all processes, and what this one has to do for it."""

    files: tuple[TensorFile, ...]
    loans: tuple[Loan, ...]
    """In order of their place."""
    parts: tuple[PartWrite, ...]
    """What this process brings to the host for its own files, in order."""
    needs: tuple[range, ...]
    """The parts of every unit: of a tensor of its files."""
    has_loans: bool
    """Whether any process lends anything."""


def plan_tensors(
    specs: Sequence[TensorSpec],
    *,
    process_index: int,
    file_limit_bytes: int | None = None,
) -> TensorPlan:
    """Decides files, writers and lenders.

    Args:
        specs: Every tensor, in the same order in every process.
        process_index: The process whose part is wanted.
        file_limit_bytes: A file that has a tensor takes no other one beyond this; None:
            there is one file.
    """
    groups = _cut_into_files(specs, file_limit_bytes)
    writers = _writers(groups)
    lenders = _lenders(groups, writers)
    loans = [
        Loan(lent.spec, PartWrite(leaf, box))
        for (leaf, box), lent in lenders.items()
        if lent.lender == process_index
    ]
    parts: list[PartWrite] = []
    needs: list[range] = []
    files: list[TensorFile] = []
    for group, writer in zip(groups, writers, strict=True):
        tensors: list[TensorWrite] = []
        for spec in group if writer == process_index else ():
            own = [
                PartWrite(spec.leaf, box)
                for box, _ in spec.parts
                if (spec.leaf, box) not in lenders
            ]
            positions = itertools.count(len(parts))
            sources = tuple(
                Source(box, -1, lent.lender, lent.offset_bytes)
                if (lent := lenders.get((spec.leaf, box))) is not None
                else Source(box, next(positions), -1, 0)
                for box, _ in spec.parts
            )
            tensors.append(TensorWrite(spec, len(needs), sources))
            needs.append(range(len(parts), len(parts) + len(own)))
            parts += own
        files.append(TensorFile(writer, tuple(group), tuple(tensors)))
    return TensorPlan(
        files=tuple(files),
        loans=tuple(loans),
        parts=tuple(parts),
        needs=tuple(needs),
        has_loans=bool(lenders),
    )


STEM = "model"
"""What model hubs call the files of a directory, and their index, is made of it."""


def file_names(count: int) -> list[str]:
    """What model hubs call the files of a directory.

    Example:
        >>> file_names(2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if count == 1:
        return [f"{STEM}.safetensors"]
    return [f"{STEM}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def pieces_of(shape: tuple[int, ...], itemsize: int, limit_bytes: int) -> Iterator[Box]:
    """Boxes that follow each other in an array in C order, each one run of it.

    Args:
        shape: Of the array.
        itemsize: Of an element, in bytes.
        limit_bytes: No box is larger, unless it is a single element.

    Example:
        >>> [str(box) for box in pieces_of((3, 4), 1, 8)]
        ['[0:2, 0:4]', '[2:3, 0:4]']
    """
    if math.prod(shape) == 0:
        return
    # The first axis of which whole rows are small enough is cut; those before it are
    # gone through one by one.
    axis, row_bytes = 0, math.prod(shape) * itemsize
    if row_bytes <= limit_bytes or not shape:
        yield whole(shape)
        return
    while axis < len(shape):
        row_bytes //= shape[axis]
        if row_bytes <= limit_bytes:
            break
        axis += 1
    axis = min(axis, len(shape) - 1)
    step = max(1, limit_bytes // row_bytes)
    inner = shape[axis + 1 :]
    for index in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], step):
            stop = min(start + step, shape[axis])
            yield Box(
                (*index, start, *[0] * len(inner)),
                (*[i + 1 for i in index], stop, *inner),
            )


def begin_in(box: Box, part: Box) -> int:
    """Where the elements of a box begin in an array that holds just `part`.

    The box is the common part of `part` and of one that `pieces_of` gave, so that its
    elements are one run there, too.
    """
    offset = 0
    for begin, outer_begin, outer_end in zip(
        box.start, part.start, part.stop, strict=True
    ):
        offset = offset * (outer_end - outer_begin) + begin - outer_begin
    return offset


def _cut_into_files(
    specs: Sequence[TensorSpec], limit_bytes: int | None
) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    sum_bytes = 0
    for spec in specs:
        is_full = limit_bytes is not None and sum_bytes + spec.size_bytes > limit_bytes
        if is_full and groups[-1]:
            groups.append([])
            sum_bytes = 0
        groups[-1].append(spec)
        sum_bytes += spec.size_bytes
    # Wide elements first, so that every tensor begins at a multiple of its own.
    return [sorted(group, key=lambda s: -s.dtype.itemsize) for group in groups]


def _writers(groups: Sequence[Sequence[TensorSpec]]) -> list[int]:
    """For each file the process that holds most of it; of several, the least busy."""
    load_bytes: dict[int, int] = {}
    writers: list[int] = []
    for group in groups:
        held_bytes: dict[int, int] = {0: 0}
        for spec in group:
            for box, holders in spec.parts:
                for process in holders:
                    size_bytes = box.size * spec.dtype.itemsize
                    held_bytes[process] = held_bytes.get(process, 0) + size_bytes
        most_bytes = max(held_bytes.values())
        writer = min(
            (process for process, held in held_bytes.items() if held == most_bytes),
            key=lambda process: (load_bytes.get(process, 0), process),
        )
        load_bytes[writer] = load_bytes.get(writer, 0) + most_bytes
        writers.append(writer)
    return writers


class _Lent(NamedTuple):
    spec: TensorSpec
    lender: int
    offset_bytes: int


def _lenders(
    groups: Sequence[Sequence[TensorSpec]], writers: Sequence[int]
) -> dict[tuple[int, Box], _Lent]:
    """Who lends what its writer does not hold, and where it lies in the lender's file.

    By leaf and box, in order of their place.
    """
    end_bytes: dict[int, int] = {}
    lent: dict[tuple[int, Box], _Lent] = {}
    for group, writer in zip(groups, writers, strict=True):
        for spec in group:
            for box, holders in spec.parts:
                if writer in holders:
                    continue
                lender = min(holders, key=lambda p: (end_bytes.get(p, 0), p))
                begin_bytes = end_bytes.get(lender, 0)
                lent[spec.leaf, box] = _Lent(spec, lender, begin_bytes)
                end_bytes[lender] = begin_bytes + box.size * spec.dtype.itemsize
    return lent
