"""What an item contains, independent of the format that it is written in.

Facts only: a format reads its documents into these values, a plan is made of them, and
a format writes them down again.  Positions in `leaves` are the numbers in the skeleton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from stowax._keypath import KeyPath, Node

StoredKind = Literal["jax.Array", "np.ndarray", "scalar", "string", "integer", "bytes"]
"""What a leaf was when it was saved: words of the documents of Orbax, and two of ours.

An `integer` is one beyond 64 bits, and `bytes` are stored as an array of `uint8`.
"""

LeafKind = StoredKind | Literal["placeholder"]
"""The same, and what only Orbax saves: `...`, which has no value."""

NO_ARRAY_KINDS = ("string", "integer", "placeholder")
"""Kinds of which the text, if any, is all there is; all others have an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomType:
    """What a standard leaf stands for, if a type of the user's was stored as one."""

    typestr: str
    """Name of the type; nothing is ever imported by it."""
    facts: Any = None
    """A JSON value: what the stored form does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafForm:
    """What a stored leaf is, wherever it stands.

    The leaves of a model have few forms, and those that are alike share one value: what
    follows from a form is found once for all of them.
    """

    kind: LeafKind
    dtype: str | None = None
    """Name of the stored dtype (`bfloat16`); None for a text."""
    shape: tuple[int, ...] = ()
    """Shape of the stored array; of a typed PRNG key that of its key data."""
    chunk_shape: tuple[int, ...] = ()
    """Extent of one chunk of the regular grid; at least 1 in every dimension."""
    codec: str | None = None
    """How chunks are compressed: a name in `_codecs._compression`; None: not at all."""
    write_shape: tuple[int, ...] | None = None
    """Extent of one shard when it was written; only known of `jax.Array`."""
    text: str | None = None
    """The value of a string; that of an integer in hex, `-0x1f`."""
    prng_impl: str | None = None
    """`threefry2x32`, `rbg`, …: the stored array is the data of typed PRNG keys."""
    sharding: Mapping[str, Any] | None = None
    """Sharding of a `jax.Array` when it was saved, as `_sharding.describe` says it; of
    typed PRNG keys that of the keys, without the axis of their data."""
    custom: CustomType | None = None
    """The leaf is the stored form of a value of this type."""


class LeafEntry(NamedTuple):
    """One stored leaf."""

    path: KeyPath
    name: str
    form: LeafForm


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
    each block of a payload, and at its end.
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
    block_bytes: int
    """Length of a block."""
    has_remains: bool = False
    """Whether in the files lie chunks, too, that were replaced; else zeros are between
    those that are listed."""

    def __len__(self) -> int:
        return len(self.leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is stored in one tree item."""

    root: Node
    leaves: tuple[LeafEntry, ...]
    is_flat: bool = False
    """Whether the keys of the tree are names of leaves in some tree that the format
    does not know; what is asked for is found by its name then."""
    chunks: tuple[ChunkTable, ...] | None = None
    """One table per writing process; None when the format keeps its own index."""
