"""Where the chunks of an item lie, whoever wrote it: the seam between index and engine.

An index answers with a place for each chunk that is asked for, and the engine reads all
of them in the same way.  Our own index are the chunk tables of a manifest.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from stowax._box import Box, grid_counts, ordinal_of
from stowax._codecs._checksum import BLOCK_BYTES
from stowax._codecs._compression import CODECS
from stowax._codecs._zarr import dtype_from_name
from stowax._formats._base import ReadRequest
from stowax._manifest import ChunkTable, LeafEntry, Manifest
from stowax.errors import CorruptCheckpointError


class Decoder(Protocol):
    """Makes the elements of a chunk out of its payload."""

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        """Fills `out`.

        Raises:
            ValueError: `stored` is no payload of that length.
        """
        ...


@dataclass(slots=True)
class ChunkRead:
    """One stored chunk and everything that is wanted of it."""

    entry: LeafEntry
    box: Box
    file: str
    offset_bytes: int
    length_bytes: int
    decoder: Decoder | None
    """None: the payload is the elements."""
    sums: Sequence[int] | None
    """Running checksums of the payload; None where the format has no such thing."""
    block_bytes: int = BLOCK_BYTES
    """Of the payload, between two of them: the least that is verified alone."""
    payload: bytes | None = None
    """What stands there, if it came with the index and need not be read."""
    uses: list[tuple[ReadRequest, Box]] = field(default_factory=list)

    @property
    def end_bytes(self) -> int:
        """Where its payload ends in the file."""
        return self.offset_bytes + self.length_bytes

    @property
    def whole(self) -> ChunkShape:
        """What all of it is, before it was compressed."""
        form = self.entry.form
        return _chunk_shape(form.dtype or "", form.chunk_shape)

    @property
    def work_bytes(self) -> int:
        """What passes through the worker that reads it: zeros are stored in nothing."""
        if self.decoder is None:
            return self.length_bytes
        return max(self.length_bytes, self.whole.size_bytes)


class ChunkIndex(Protocol):
    """Says where the chunks of an item lie."""

    def locate(
        self, leaf: int, grid_index: tuple[int, ...], box: Box
    ) -> ChunkRead | None:
        """The place of a chunk, not used by anybody yet; None: it is all zeros.

        Raises:
            CorruptCheckpointError: There is no such chunk, or it makes no sense.
        """
        ...


_Row = tuple[str, int, int, Sequence[int], int]
"""File, offset, length, sums, and the length of a block."""


class TableIndex:
    """The chunk tables of a manifest."""

    def __init__(self, directory: str, manifest: Manifest) -> None:
        if manifest.chunks is None:
            raise ValueError("the manifest has no chunk tables")
        self._directory = directory
        self._leaves = manifest.leaves
        self._tables = manifest.chunks

    @functools.cached_property
    def _rows(self) -> dict[tuple[int, int], _Row]:
        """What the tables say, by leaf and chunk.

        Made for the first read, on its worker.
        """
        rows: dict[tuple[int, int], _Row] = {}
        for table in self._tables:
            rows.update(_rows_of(table))
        return rows

    def locate(self, leaf: int, grid_index: tuple[int, ...], box: Box) -> ChunkRead:
        entry = self._leaves[leaf]
        form = entry.form
        ordinal = 0
        if any(grid_index):
            counts = grid_counts(form.shape, form.chunk_shape)
            ordinal = ordinal_of(grid_index, counts)
        row = self._rows.get((leaf, ordinal))
        if row is None:
            raise CorruptCheckpointError(
                f"{self._directory}: chunk {box} of leaf {entry.name!r} is not in the "
                "manifest"
            )
        file, offset_bytes, length_bytes, sums, block_bytes = row
        decoder = None if form.codec is None else CODECS[form.codec]
        chunk = ChunkRead(
            *(entry, box, file, offset_bytes, length_bytes, decoder, sums, block_bytes)
        )
        if decoder is None and length_bytes != chunk.whole.size_bytes:
            raise CorruptCheckpointError(
                f"{self._directory}: chunk {box} of leaf {entry.name!r} has "
                f"{length_bytes} bytes in the manifest; {chunk.whole.size_bytes} "
                "expected"
            )
        return chunk


def _rows_of(
    table: ChunkTable,
) -> Iterator[tuple[tuple[int, int], _Row]]:
    sums, ends = table.sums.tolist(), table.sum_ends.tolist()
    for leaf, chunk, file, offset, length, start, end in zip(
        table.leaf.tolist(),
        table.chunk.tolist(),
        table.file.tolist(),
        table.offset_bytes.tolist(),
        table.length_bytes.tolist(),
        itertools.chain([0], ends),
        ends,
        strict=False,
    ):
        row = table.files[file], offset, length, sums[start:end], table.block_bytes
        yield (leaf, chunk), row


class ChunkShape(NamedTuple):
    """What a whole chunk of a form is, before it was compressed."""

    dtype: np.dtype
    shape: tuple[int, ...]
    size_bytes: int


@functools.lru_cache(maxsize=4096)
def _chunk_shape(dtype_name: str, shape: tuple[int, ...]) -> ChunkShape:
    dtype = dtype_from_name(dtype_name)
    return ChunkShape(dtype, shape, math.prod(shape) * dtype.itemsize)
