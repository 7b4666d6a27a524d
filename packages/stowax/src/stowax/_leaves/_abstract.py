"""What `metadata()` shows for a stored array: facts without values.

Such a value can be given to `load` as a leaf of the abstract state, changed with
`dataclasses.replace` before if need be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageMetadata:
    """How an array lies on disk."""

    chunk_shape: tuple[int, ...]
    """Extent of one chunk."""

    write_shape: tuple[int, ...] | None = None
    """Extent of one shard when it was written; None where nobody recorded it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumpyMetadata:
    """A stored NumPy array: `float32[4, 5]`, without its values."""

    shape: tuple[int, ...]
    dtype: Any
    storage_metadata: StorageMetadata | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayMetadata:
    """A stored `jax.Array`, or typed PRNG keys, without values."""

    shape: tuple[int, ...]
    dtype: Any
    """A NumPy dtype, or that of typed PRNG keys (`key<fry>`)."""

    sharding: jax.sharding.Sharding | None = None
    """As it was saved, if this run has the devices; else None."""

    storage_metadata: StorageMetadata | None = None
