"""What may be said of one leaf, when a tree is saved and when it is restored."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental.layout import Format


@dataclass
class SaveArgs:
    """How one leaf of a tree is saved.

    A tree of these, of the same structure as the state, is the `save_args` of a save.

    Example:
        >>> import jax.numpy as jnp
        >>> from stowax import v0 as ocp
        >>> ocp.SaveArgs(dtype=jnp.bfloat16).aggregate
        False
    """

    aggregate: bool = False
    """Once put small leaves into one file. It has no effect any more, as in Orbax."""

    dtype: Any = None
    """The leaf is converted to it before it is written; None keeps its own."""

    chunk_byte_size: int | None = None
    """Largest size of a chunk of the array; None leaves the choice to the writer."""

    shard_axes: tuple[int, ...] = ()
    """Axes along which to cut first where `chunk_byte_size` asks for small chunks."""

    def __post_init__(self) -> None:
        if self.aggregate:
            warnings.warn(
                "SaveArgs(aggregate=True) has no effect; leave it out",
                DeprecationWarning,
                stacklevel=3,
            )


@dataclass
class RestoreArgs:
    """As what one leaf of a tree is restored.

    A tree of these, of the structure that is to come back, is the `restore_args` of a
    restore.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> ocp.RestoreArgs(restore_type=np.ndarray).dtype is None
        True
    """

    restore_type: Any = None
    """`numpy.ndarray`, `jax.Array`, `int`, `float`, `str`; None for what was saved."""

    dtype: Any = None
    """The leaf is converted to it; None keeps what was saved."""


@dataclass
class ArrayRestoreArgs(RestoreArgs):
    """As which `jax.Array` one leaf of a tree is restored, and where it is placed.

    Args:
        restore_type: As in `RestoreArgs`.
        dtype: As in `RestoreArgs`.
        mesh: Devices for the array; with `mesh_axes` it counts before `sharding`.
        mesh_axes: How the array is laid out over them.
        sharding: A JAX sharding, one with a memory layout, or the `sharding` of a leaf
            of metadata.
        global_shape: Shape of the result; None for the one that was saved.
        shape: The same by another name.
        strict: Whether it is an error if the result has another shape than what was
            saved. False cuts it, or pads it with zeros, at the end of each axis.

    Raises:
        ValueError: `global_shape` and `shape` are not the same.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.ArrayRestoreArgs(global_shape=(4, 2)).shape
        (4, 2)
    """

    restore_type: Any = jax.Array
    mesh: jax.sharding.Mesh | None = None
    mesh_axes: jax.sharding.PartitionSpec | None = None
    sharding: jax.sharding.Sharding | Format | Any | None = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if self.shape is None:
            self.shape = self.global_shape
        elif self.global_shape is None:
            self.global_shape = self.shape
        elif self.shape != self.global_shape:
            raise ValueError(
                f"shape={self.shape!r} and global_shape={self.global_shape!r} are two "
                "names of one thing; give one of them"
            )


@dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """The same; that one replica reads for all is an option of loading here.

    Example:
        >>> from stowax.v0 import type_handlers
        >>> type_handlers.SingleReplicaArrayRestoreArgs().strict
        True
    """

    single_replica_sharding: jax.sharding.NamedSharding | None = None
    """Not needed any more, as in Orbax."""
