"""Arrays without values: what abstract states and metadata are made of."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from stowax._leaves._abstract import ArrayMetadata as ArrayMetadata
from stowax._leaves._abstract import NumpyMetadata as NumpyMetadata
from stowax._leaves._abstract import StorageMetadata as StorageMetadata
from stowax._public import claim as _claim
from stowax.tree import AbstractArray as AbstractArray
from stowax.tree import AbstractShardedArray as AbstractShardedArray
from stowax.tree import Scalar as Scalar

__all__ = [
    "AbstractArray",
    "AbstractScalar",
    "AbstractShardedArray",
    "ArrayLike",
    "ArrayMetadata",
    "DType",
    "NumpyMetadata",
    "Scalar",
    "Shape",
    "StorageMetadata",
    "to_shape_dtype_struct",
]

AbstractScalar = Scalar | type[int] | type[float]
ArrayLike = jax.Array | np.ndarray
DType = np.dtype
Shape = tuple[int, ...]


def to_shape_dtype_struct(
    arr: Any,
    dtype: Any = None,
    scalar_dtype: type[int | float] | None = None,
    support_format: bool = False,
) -> Any:
    """The abstract array of anything that has a shape and a dtype.

    A typed PRNG key keeps its key dtype.

    Args:
        arr: An array, concrete or abstract, or a Python number.
        dtype: Overrides the dtype of an array.
        scalar_dtype: `int` or `float`, to which a Python number is converted.
        support_format: Whether to take over `arr.format` (memory layout) where there is
            one, in place of its sharding.

    Returns:
        A `jax.ShapeDtypeStruct` with the sharding of `arr`; of a Python number the
        number itself.

    Example:
        >>> import jax.numpy as jnp
        >>> import stowax
        >>> stowax.arrays.to_shape_dtype_struct(jnp.ones(3), dtype=jnp.int8).dtype
        dtype('int8')
    """
    if isinstance(arr, int | float):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    sharding = getattr(arr, "sharding", None)
    if support_format and getattr(arr, "format", None) is not None:
        sharding = arr.format
    return jax.ShapeDtypeStruct(arr.shape, dtype or arr.dtype, sharding=sharding)


_claim(globals())
