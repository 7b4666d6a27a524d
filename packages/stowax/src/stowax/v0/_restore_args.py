"""Arguments of a restore, made of a tree that looks like the result."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from stowax._leaves import _abstract
from stowax._leaves._jax_array import is_key
from stowax.errors import UnsupportedLeafError
from stowax.tree import PLACEHOLDER
from stowax.v0._arguments import ArrayRestoreArgs, RestoreArgs
from stowax.v0._leaf_metadata import (
    ArrayMetadata,
    BytesMetadata,
    ScalarMetadata,
    StringMetadata,
)
from stowax.v0._sharding_metadata import ShardingMetadata
from stowax.v0._tree_metadata import TreeMetadata

STANDARD_ARRAY_TYPES = (int, float, np.ndarray, jax.Array)
"""The numbers and arrays that trees hold."""


def construct_restore_args(
    target: Any,
    sharding_tree: Any = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> Any:
    """The `RestoreArgs` that restore a checkpoint as what a tree looks like.

    Args:
        target: A tree of arrays, abstract ones included, numbers, strings, leaves of
            metadata and placeholders; or a `TreeMetadata`.
        sharding_tree: The sharding of every leaf; None: those of the target. A
            `jax.ShapeDtypeStruct`, or metadata, that has none becomes a NumPy array.
        set_global_shape: Whether arrays of JAX are restored in the shapes of the
            target.
        support_layout: Whether the memory layout of an array counts, too.
        strict: Whether it is an error if the stored shape is another. False cuts or
            pads.

    Returns:
        A tree of the same structure.

    Raises:
        UnsupportedLeafError: There is something else in the target.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> args = ocp.checkpoint_utils.construct_restore_args(
        ...     {"w": np.ones(2), "n": 1}
        ... )
        >>> args["n"].restore_type, args["w"].dtype
        (<class 'int'>, dtype('float64'))
    """

    def array_args(value: Any, sharding: Any) -> ArrayRestoreArgs:
        is_shaped = set_global_shape and not is_key(value.dtype)
        return ArrayRestoreArgs(
            sharding=sharding,
            global_shape=tuple(value.shape) if is_shaped else None,
            dtype=value.dtype,
            strict=strict,
        )

    def restore_args(path: Any, value: Any, sharding: Any) -> RestoreArgs:
        if value is PLACEHOLDER:
            return RestoreArgs(restore_type=type(PLACEHOLDER))
        if isinstance(value, str | StringMetadata):
            return RestoreArgs(restore_type=str)
        if isinstance(value, BytesMetadata):
            return RestoreArgs(restore_type=bytes)
        if isinstance(value, ScalarMetadata):
            return RestoreArgs(
                restore_type=_python_type(value.dtype), dtype=value.dtype
            )
        if isinstance(value, np.ndarray):
            return RestoreArgs(restore_type=type(value), dtype=value.dtype)
        if isinstance(value, jax.Array | _abstract.ArrayMetadata):
            return array_args(value, sharding)
        if isinstance(value, jax.ShapeDtypeStruct | ArrayMetadata):
            if sharding is not None:
                return array_args(value, sharding)
            return RestoreArgs(restore_type=np.ndarray, dtype=value.dtype)
        if isinstance(value, _abstract.NumpyMetadata):
            return RestoreArgs(restore_type=np.ndarray, dtype=value.dtype)
        if isinstance(value, int | float | complex | np.number | bytes):
            return RestoreArgs(restore_type=type(value))
        raise UnsupportedLeafError(
            f"leaf {jax.tree_util.keystr(path) or '<root>'} of the target is a "
            f"{type(value).__qualname__}; give an array, `jax.ShapeDtypeStruct`, a "
            "number, a string, or `...` for what is not to be restored"
        )

    def sharding_of(value: Any) -> Any:
        if support_layout and _abstract.asked_layout(value) is not None:
            return value.format
        return getattr(value, "sharding", None)

    # The stored leaf says that they are keys; here they are described by their data.
    target = jax.tree.map(_key_data, target)
    if sharding_tree is None:
        sharding_tree = jax.tree.map(sharding_of, target)
    if not isinstance(target, TreeMetadata):
        return jax.tree_util.tree_map_with_path(restore_args, target, sharding_tree)
    shardings = getattr(sharding_tree, "tree", sharding_tree)
    return TreeMetadata(
        tree=jax.tree_util.tree_map_with_path(restore_args, target.tree, shardings),
        custom_metadata=target.custom_metadata,
    )


def to_shape_dtype_struct(
    arr: Any,
    dtype: Any = None,
    scalar_dtype: type[int | float] | None = None,
    support_format: bool = False,
) -> Any:
    """The abstract array of anything that has a shape and a dtype.

    Typed PRNG keys become the abstract array of their key data, as a restore of the
    older API asks for them.

    Args:
        arr: An array, concrete or abstract, a leaf of metadata, or a number.
        dtype: Overrides the dtype of an array.
        scalar_dtype: `int` or `float`, to which a number is converted.
        support_format: Whether to take over the memory layout of an array.

    Returns:
        A `jax.ShapeDtypeStruct` with the sharding of `arr`; of a number the number.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> ocp.tree.to_shape_dtype_struct(jax.random.key(0)).shape
        (2,)
    """
    arr = _key_data(arr)
    if isinstance(arr, int | float | np.number):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    sharding = getattr(arr, "sharding", None)
    if isinstance(sharding, ShardingMetadata):
        sharding = sharding.to_jax_sharding()
    elif support_format and _abstract.asked_layout(arr) is not None:
        sharding = arr.format
    asked_dtype = arr.dtype if dtype is None else dtype
    return jax.ShapeDtypeStruct(arr.shape, asked_dtype, sharding=sharding)


def _key_data(value: Any) -> Any:
    if isinstance(value, jax.Array) and is_key(value.dtype):
        return jax.random.key_data(value)
    return value


def _python_type(dtype: Any) -> type:
    return type(np.zeros((), dtype).item())
