"""What `metadata` of the older API shows of every leaf: facts without values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental.layout import Format

from stowax._leaves._abstract import ArrayMetadata as _StoredArray
from stowax._leaves._abstract import CustomLeafMetadata
from stowax._leaves._abstract import NumpyMetadata as _StoredNumpy
from stowax._leaves._abstract import StorageMetadata

_SCALAR_DTYPES = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}


@dataclass(frozen=True)
class ShardingMetadata:
    """How an array was spread over devices that this run has, too.

    Example:
        >>> import jax.numpy as jnp
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"w": jnp.ones(2)})
        ...     found = checkpointer.metadata(path).item_metadata["w"]
        >>> type(found.sharding.to_jax_sharding()).__name__
        'SingleDeviceSharding'
    """

    sharding: jax.sharding.Sharding

    def to_jax_sharding(self) -> jax.sharding.Sharding:
        """The same in JAX's words."""
        return self.sharding


@dataclass(frozen=True)
class NamedShardingMetadata(ShardingMetadata):
    """A sharding over a mesh with named axes.

    Example:
        >>> import jax
        >>> from stowax.v0.metadata import NamedShardingMetadata
        >>> mesh = jax.make_mesh((2, 4), ("x", "y"))
        >>> sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
        >>> NamedShardingMetadata(sharding).axis_names
        ['x', 'y']
    """

    sharding: jax.sharding.NamedSharding

    @property
    def shape(self) -> np.ndarray:
        """Lengths of the axes of the mesh."""
        return np.array(list(self.sharding.mesh.shape.values()))

    @property
    def axis_names(self) -> list[str]:
        """Names of the axes of the mesh."""
        return [str(name) for name in self.sharding.mesh.axis_names]

    @property
    def partition_spec(self) -> tuple[Any, ...]:
        """Which axis of the mesh each axis of the array is spread over."""
        return tuple(self.sharding.spec)


@dataclass(frozen=True)
class SingleDeviceShardingMetadata(ShardingMetadata):
    """An array on one device.

    Example:
        >>> import jax
        >>> from stowax.v0.metadata import SingleDeviceShardingMetadata
        >>> sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        >>> SingleDeviceShardingMetadata(sharding).device_str == str(jax.devices()[0])
        True
    """

    @property
    def device_str(self) -> str:
        """The device, as JAX calls it."""
        (device,) = self.sharding.device_set
        return str(device)


@dataclass
class Metadata:
    """What all leaves have.

    Example:
        >>> from stowax.v0 import metadata
        >>> metadata.StringMetadata(name="a.b", directory=None).name
        'a.b'
    """

    name: str
    """Name of the leaf: the keys of its path, joined by dots."""

    directory: epath.Path | None
    """Directory of the item."""


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
    sharding: ShardingMetadata | None
    """None of an array of NumPy, and where this run has other devices."""

    dtype: Any
    storage: StorageMetadata | None = field(default=None, compare=False)
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
            name=name or "",
            directory=directory,
            shape=s.shape,
            sharding=sharding_metadata(s.sharding),
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
    sharding: ShardingMetadata | None = None
    dtype: Any = None


@dataclass
class StringMetadata(Metadata):
    """A stored string.

    Example:
        >>> from stowax.v0 import metadata
        >>> metadata.StringMetadata(name="label", directory=None).name
        'label'
    """


def leaf_metadata(stored: Any, name: str, directory: epath.Path) -> Any:
    """What is shown of a leaf.

    Args:
        stored: The leaf as `stowax.metadata` shows it.
        name: See `Metadata`.
        directory: See `Metadata`.
    """
    if isinstance(stored, CustomLeafMetadata):
        stored = stored.stored
    if isinstance(stored, str | bytes):
        return StringMetadata(name=name, directory=directory)
    if isinstance(stored, _StoredArray | _StoredNumpy):
        return ArrayMetadata(
            name=name,
            directory=directory,
            shape=stored.shape,
            sharding=sharding_metadata(getattr(stored, "sharding", None)),
            dtype=stored.dtype,
            storage=stored.storage_metadata,
        )
    dtype = np.dtype(_SCALAR_DTYPES.get(type(stored), "float64"))
    return ScalarMetadata(name=name, directory=directory, dtype=dtype)


def sharding_metadata(sharding: Any) -> ShardingMetadata | None:
    """A sharding of JAX as it is shown; None of none."""
    if isinstance(sharding, Format):
        sharding = sharding.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return NamedShardingMetadata(sharding)
    if isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return SingleDeviceShardingMetadata(sharding)
    if isinstance(sharding, jax.sharding.Sharding):
        return ShardingMetadata(sharding)
    return None
