"""How a data file is cut so that every byte of it can be compared with something.

At the borders of what its chunk table records::

    chunk                                         chunk
    |- block -|- block -|- rest -|- trailer -|    gap    |- rest -|- trailer -|
      running checksums of the     the last      zeros
      chunk, each continued from   of them,
      the one before               for zarr

Each of these spans is compared alone, so what is damaged has a leaf and a place.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from stowax._box import Box, chunk_box, grid_counts, grid_index_of
from stowax._codecs._checksum import verify_blocks
from stowax._codecs._zarr import TRAILER_BYTES, encode_trailer
from stowax._manifest import ChunkTable, LeafEntry

_SKIPPED_BYTES = 64 << 10
"""Less than this between two spans is read along, rather than by another read."""

_GAP_BYTES = 1 << 20
"""What does not belong to a chunk is compared in pieces of this size."""

_RUN_SPANS = 1024
"""More in one run would hold up whoever makes it for too long."""


class Span(NamedTuple):
    """Bytes of a data file that can be compared alone."""

    begin_bytes: int
    end_bytes: int
    row: int
    """Of the chunk table; of a gap, the chunk beside it."""
    kind: Literal["block", "trailer", "gap"]
    block: int = 0
    """Which block of the chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """A data file, and what of it is to be compared."""

    name: str
    """Relative to the directory of the item."""
    size_bytes: int
    """When it was saved."""
    table: ChunkTable
    rows: Sequence[int]
    """Chunks, in order of their place."""
    is_whole: bool
    """Whether these are all, and what lies between them is compared, too."""

    @property
    def compared_bytes(self) -> int:
        """The length of all spans."""
        if self.is_whole:
            return self.size_bytes
        lengths = self.table.length_bytes[self.rows]
        ends = self.table.offset_bytes[self.rows] + lengths
        trailer_count = np.count_nonzero(ends < self.size_bytes)
        return int(lengths.sum()) + TRAILER_BYTES * int(trailer_count)

    def spans(self) -> Iterator[Span]:
        """What is to be compared, in order of its place."""
        at_bytes = row = 0
        for row in self.rows:
            begin = int(self.table.offset_bytes[row])
            end = begin + int(self.table.length_bytes[row])
            if self.is_whole:
                yield from _gap(at_bytes, begin, row)
            step = self.table.block_bytes
            for block, start in enumerate(range(begin, end, step)):
                yield Span(start, min(start + step, end), row, "block", block)
            at_bytes = end
            # A file that ends with its payload is a chunk of zarr 2, without checksum.
            if end < self.size_bytes:
                at_bytes = end + TRAILER_BYTES
                yield Span(end, at_bytes, row, "trailer")
        if self.is_whole:
            yield from _gap(at_bytes, self.size_bytes, row)

    def is_right(self, span: Span, data: memoryview) -> bool:
        """Whether the bytes of a span are those that were saved."""
        if span.kind == "gap":
            return not np.frombuffer(data, np.uint8).any()
        first = int(self.table.sum_ends[span.row - 1]) if span.row else 0
        sums = self.table.sums[first : int(self.table.sum_ends[span.row])]
        if span.kind == "trailer":
            return bytes(data) == encode_trailer(int(sums[-1]))
        before = max(0, span.block - 1)
        near = sums[before : span.block + 1].tolist()
        bad = verify_blocks(
            data,
            near,
            first_block=span.block - before,
            block_bytes=self.table.block_bytes,
        )
        return bad is None

    def owner(
        self, span: Span, leaves: Sequence[LeafEntry]
    ) -> tuple[LeafEntry, Box] | None:
        """The leaf that a span belongs to, and the box of its chunk; a gap has none."""
        if span.kind == "gap":
            return None
        leaf = leaves[int(self.table.leaf[span.row])]
        shape, chunk_shape = leaf.form.shape, leaf.form.chunk_shape
        counts = grid_counts(shape, chunk_shape)
        position = grid_index_of(int(self.table.chunk[span.row]), counts)
        return leaf, chunk_box(position, shape, chunk_shape)


def plan_checks(
    table: ChunkTable, positions: Collection[int] | None
) -> list[FileCheck]:
    """What to compare of the files of a table.

    Args:
        table: Its rows lie anywhere in the files.
        positions: Leaves whose chunks are compared; None: all, and all other bytes,
            unless these are remains of other chunks.
    """
    rows = np.lexsort((table.offset_bytes, table.file))
    if positions is not None:
        rows = rows[np.isin(table.leaf[rows], list(positions))]
    borders = np.searchsorted(table.file[rows], np.arange(len(table.files) + 1))
    checks = [
        FileCheck(
            name=name,
            size_bytes=table.file_size_bytes[file],
            table=table,
            rows=rows[borders[file] : borders[file + 1]].tolist(),
            is_whole=positions is None and not table.has_remains,
        )
        for file, name in enumerate(table.files)
    ]
    return [check for check in checks if check.is_whole or check.rows]


def runs(spans: Iterable[Span], limit_bytes: int) -> Iterator[list[Span]]:
    """Spans that are read at once: close together, `limit_bytes` at most, or one."""
    run: list[Span] = []
    for span in spans:
        if run and (
            span.end_bytes - run[0].begin_bytes > limit_bytes
            or not 0 <= span.begin_bytes - run[-1].end_bytes <= _SKIPPED_BYTES
            or len(run) == _RUN_SPANS
        ):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _gap(begin_bytes: int, end_bytes: int, row: int) -> Iterator[Span]:
    for start in range(begin_bytes, end_bytes, _GAP_BYTES):
        yield Span(start, min(start + _GAP_BYTES, end_bytes), row, "gap")
