"""What an item contains, independent of the format that it is written in.

Facts only: a format reads its documents into these values, a plan is made of them, and
a format writes them down again.  Positions in `leaves` are the numbers in the skeleton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stowax._keypath import KeyPath, Node

LeafKind = Literal["jax.Array", "np.ndarray", "scalar", "string"]
"""What a leaf was when it was saved; the words of the documents of Orbax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafEntry:
    """One stored leaf."""

    path: KeyPath
    name: str
    kind: LeafKind
    dtype: str | None = None
    """Name of the stored dtype as in zarr3 (`bfloat16`); None for a string."""
    shape: tuple[int, ...] = ()
    """Shape of the stored array; of a typed PRNG key that of its key data."""
    chunk_shape: tuple[int, ...] = ()
    """Extent of one chunk of the regular grid; at least 1 in every dimension."""
    codec: str | None = None
    """How chunks are compressed: a name in `_codecs._compression`; None: not at all."""
    write_shape: tuple[int, ...] | None = None
    """Extent of one shard when it was written; only known of `jax.Array`."""
    text: str | None = None
    """The value of a string."""
    prng_impl: str | None = None
    """`threefry2x32`, `rbg`, …: the stored array is the data of typed PRNG keys."""
    sharding: Mapping[str, Any] | None = None
    """Sharding of a `jax.Array` when it was saved, as `_sharding.describe` says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What a whole file must be.

    Not a CRC-32C: several of our files end in their own, and all such files of one size
    have the same.
    """

    size_bytes: int
    sha256: str
    """In hex, as `sha256sum` prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTable:
    """Where the chunks of one writing process lie, by column: one row per chunk.

    The payload of a chunk is its elements in C order, little-endian, compressed if the
    leaf has a codec. The part of `sums`
    between two successive values of `sum_ends` holds the running CRC-32C at the end of
    each MiB of a payload, and at its end.
    """

    files: tuple[str, ...]
    """Data files, relative to the directory of the item."""
    file_size_bytes: tuple[int, ...]
    leaf: np.ndarray
    """uint32[n]: position of the leaf."""
    chunk: np.ndarray
    """uint64[n]: position of the chunk in its grid, in C order."""
    file: np.ndarray
    """uint32[n]: position in `files`."""
    offset_bytes: np.ndarray
    """uint64[n]"""
    length_bytes: np.ndarray
    """uint64[n]: length of the payload."""
    sum_ends: np.ndarray
    """uint64[n]: end of the row's part of `sums`."""
    sums: np.ndarray
    """uint32[m]"""

    def __len__(self) -> int:
        return len(self.leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is stored in one tree item."""

    root: Node
    leaves: tuple[LeafEntry, ...]
    chunks: tuple[ChunkTable, ...] | None = None
    """One table per writing process; None when the format keeps its own index."""
