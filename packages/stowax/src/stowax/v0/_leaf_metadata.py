"""What `metadata` of the older API shows of every leaf: facts without values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from stowax._leaves import _abstract
from stowax.tree import PLACEHOLDER
from stowax.v0._sharding_metadata import ShardingMetadata, describe_sharding

_DTYPES = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
"""Of numbers; in this order, because a bool is an int, too."""


@dataclass
class Metadata:
    """What all leaves have. Where one lies makes no difference to `==`.

    Example:
        >>> from stowax.v0 import metadata
        >>> one = metadata.StringMetadata(name="a.b", directory=None)
        >>> one == metadata.StringMetadata(name="c", directory=None)
        True
    """

    name: str | None = field(compare=False)
    """Name of the leaf: the keys of its path, joined by dots."""

    directory: epath.Path | None = field(compare=False)
    """Directory of the item."""


@dataclass(frozen=True)
class StorageMetadata:
    """How an array lies on disk.

    Example:
        >>> from stowax.v0 import metadata
        >>> metadata.StorageMetadata(chunk_shape=(4, 2)).chunk_shape
        (4, 2)
    """

    chunk_shape: tuple[int, ...] | None
    """Extent of one chunk."""

    write_shape: tuple[int, ...] | None = None
    """Extent of one shard when it was written."""

    zarr_metadata: Any = field(default=None, compare=False, repr=False)
    """Of Orbax; None here."""


@dataclass
class ArrayMetadata(Metadata):
    """A stored array.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"w": np.ones((2, 3))})
        ...     found = checkpointer.metadata(path).item_metadata["w"]
        >>> found.shape, found.dtype.name
        ((2, 3), 'float64')
    """

    shape: tuple[int, ...]
    """Extent of each axis."""

    sharding: ShardingMetadata | Any | None
    """How it was spread over devices; None of an array of NumPy, and where this run
    has other devices."""

    dtype: Any
    """Type of the elements."""

    storage: StorageMetadata | None = None
    """How it lies on disk."""

    @classmethod
    def from_shape_dtype_struct(
        cls,
        s: jax.ShapeDtypeStruct,
        name: str | None = None,
        directory: epath.Path | None = None,
    ) -> ArrayMetadata:
        """The same of an abstract array.

        Args:
            s: The abstract array.
            name: See `Metadata`.
            directory: See `Metadata`.
        """
        return cls(
            name=name,
            directory=directory,
            shape=s.shape,
            sharding=s.sharding,
            dtype=s.dtype,
        )


@dataclass
class ScalarMetadata(ArrayMetadata):
    """A stored number.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7})
        ...     checkpointer.metadata(path).item_metadata["step"].dtype.name
        'int64'
    """

    shape: tuple[int, ...] = ()
    sharding: ShardingMetadata | Any | None = None
    dtype: Any = None


@dataclass
class StringMetadata(Metadata):
    """A stored string.

    Example:
        >>> from stowax.v0 import metadata
        >>> metadata.StringMetadata(name="label", directory=None).name
        'label'
    """


@dataclass
class BytesMetadata(Metadata):
    """Stored bytes; Orbax does not save such leaves.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"raw": b"abc"})
        ...     checkpointer.metadata(path).item_metadata["raw"].name
        'raw'
    """


def leaf_metadata(stored: Any, name: str, directory: epath.Path | None) -> Any:
    """What is shown of a leaf.

    Args:
        stored: The leaf as `stowax.metadata` shows it.
        name: See `Metadata`.
        directory: See `Metadata`.
    """
    if isinstance(stored, _abstract.CustomLeafMetadata):
        return leaf_metadata(stored.stored, name, directory)
    if stored is PLACEHOLDER:
        return PLACEHOLDER
    if isinstance(stored, bytes):
        return BytesMetadata(name=name, directory=directory)
    if isinstance(stored, str):
        return StringMetadata(name=name, directory=directory)
    if isinstance(stored, _abstract.ArrayMetadata | _abstract.NumpyMetadata):
        sharding = getattr(stored, "sharding", None)
        found = stored.storage_metadata
        storage = found and StorageMetadata(found.chunk_shape, found.write_shape)
        return ArrayMetadata(
            name=name,
            directory=directory,
            shape=stored.shape,
            sharding=sharding and describe_sharding(sharding),
            dtype=stored.dtype,
            storage=storage,
        )
    dtype = next(dtype for cls, dtype in _DTYPES.items() if isinstance(stored, cls))
    return ScalarMetadata(name=name, directory=directory, dtype=np.dtype(dtype))
