"""Shardings as plain values, which need no devices to be looked at."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from stowax import _sharding
from stowax.errors import InvalidArgumentError


class ShardingError(InvalidArgumentError):
    """A sharding cannot be had: of its devices, or of what describes it.

    Example:
        >>> from stowax import v0 as ocp
        >>> sharding = ocp.metadata.SingleDeviceShardingMetadata("tpu:9999")
        >>> try:
        ...     sharding.to_jax_sharding()
        ... except ValueError as error:
        ...     print(type(error).__name__)
        ShardingError
    """


@dataclass(eq=False)
class ShardingMetadata(abc.ABC):
    """How an array was spread over devices when it was saved."""

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> Any:
        """The description of a sharding.

        Raises:
            ShardingError: It is of a kind that checkpoints do not record.
        """
        document = _sharding.describe(jax_sharding)
        if document is None:
            raise ShardingError(
                f"{jax_sharding!r} is of a kind that no checkpoint records; give a "
                "`NamedSharding` over devices, or a `SingleDeviceSharding`"
            )
        return cls.from_deserialized_dict(document)

    @classmethod
    @abc.abstractmethod
    def from_deserialized_dict(cls, deserialized_dict: dict[str, Any]) -> Any:
        """The description that a document of a checkpoint has.

        Raises:
            ShardingError: It is none of this kind.
        """

    @abc.abstractmethod
    def to_document(self) -> dict[str, Any]:
        """The same as a document of a checkpoint has it."""

    def to_serialized_string(self) -> str:
        """The document as text."""
        return json.dumps(self.to_document())

    def to_jax_sharding(self) -> Any:
        """The sharding, on the devices of this run.

        Raises:
            ShardingError: This run lacks some of them.
        """
        sharding = _sharding.restore(self.to_document(), jax.devices())
        if sharding is None:
            raise ShardingError(
                f"this run does not have the devices of {self!r}; restore with a "
                "sharding of your own, such as `ArrayRestoreArgs(sharding=...)`"
            )
        return sharding

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardingMetadata):
            return NotImplemented
        return self.to_document() == other.to_document()

    __hash__ = None  # pyright: ignore[reportAssignmentType] - they can be changed


@dataclass(eq=False)
class NamedShardingMetadata(ShardingMetadata):
    """A `jax.sharding.NamedSharding` as a plain value.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
        >>> metadata = ocp.metadata.NamedShardingMetadata.from_jax_sharding(sharding)
        >>> metadata.axis_names, metadata.partition_spec
        (['data'], ('data',))
        >>> metadata.to_jax_sharding() == sharding
        True
    """

    shape: Any
    """Extents of the mesh, as a NumPy array."""

    axis_names: list[str]
    """Names of its axes."""

    partition_spec: tuple[Any, ...]
    """For every axis of the array a name, several, or None."""

    axis_types: tuple[jax.sharding.AxisType, ...] | None = None
    """Types of the axes of the mesh; None: `Auto`."""

    device_mesh: Any = None
    """Ids of the devices, nested as the mesh is; None: all devices of the run."""

    @classmethod
    def from_deserialized_dict(cls, deserialized_dict: dict[str, Any]) -> Any:
        """See `ShardingMetadata`."""
        document = deserialized_dict
        types, mesh = document.get("axis_types"), document.get("device_mesh")
        try:
            return cls(
                shape=np.array(document["shape"]),
                axis_names=list(document["axis_names"]),
                partition_spec=tuple(
                    tuple(e) if isinstance(e, list) else e
                    for e in document["partition_spec"]
                ),
                axis_types=types
                and tuple(
                    jax.sharding.AxisType[kind.removeprefix("AxisType.")]
                    for kind in types
                ),
                device_mesh=mesh and mesh["mesh"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardingError(
                f"{document!r} describes no NamedSharding: {error!r}"
            ) from error

    def to_document(self) -> dict[str, Any]:
        """See `ShardingMetadata`."""
        document: dict[str, Any] = {
            "sharding_type": "NamedSharding",
            "shape": np.asarray(self.shape).tolist(),
            "axis_names": list(self.axis_names),
            "partition_spec": [
                list(e) if isinstance(e, tuple) else e for e in self.partition_spec
            ],
        }
        if self.axis_types is not None:
            document["axis_types"] = [f"AxisType.{t.name}" for t in self.axis_types]
        if self.device_mesh is not None:
            document["device_mesh"] = {"mesh": self.device_mesh}
        return document


@dataclass(eq=False)
class SingleDeviceShardingMetadata(ShardingMetadata):
    """A `jax.sharding.SingleDeviceSharding` as a plain value.

    Example:
        >>> from stowax import v0 as ocp
        >>> metadata = ocp.metadata.SingleDeviceShardingMetadata("cpu:0")
        >>> metadata == ocp.metadata.SingleDeviceShardingMetadata("TFRT_CPU_0")
        True
    """

    device_str: str
    """Kind and id of the device, `cpu:0`."""

    @classmethod
    def from_deserialized_dict(cls, deserialized_dict: dict[str, Any]) -> Any:
        """See `ShardingMetadata`."""
        device = deserialized_dict.get("device_str")
        if not isinstance(device, str):
            raise ShardingError(
                f"{deserialized_dict!r} describes no SingleDeviceSharding: it has no "
                "device_str"
            )
        return cls(device)

    def to_document(self) -> dict[str, Any]:
        """See `ShardingMetadata`."""
        # JAX once called devices of the CPU by another name.
        device = self.device_str.replace("TFRT_CPU_", "cpu:")
        return {"sharding_type": "SingleDeviceSharding", "device_str": device}


def describe_sharding(sharding: Any) -> ShardingMetadata | None:
    """The description of a sharding; None of one of a kind that is not recorded."""
    return recorded_sharding(_sharding.describe(sharding))


def recorded_sharding(document: Mapping[str, Any] | None) -> ShardingMetadata | None:
    """The description that a checkpoint has, whether this run has the devices or not.

    Args:
        document: As it is recorded; None: it is not.
    """
    if document is None:
        return None
    if document["sharding_type"] == "NamedSharding":
        return NamedShardingMetadata.from_deserialized_dict(dict(document))
    return SingleDeviceShardingMetadata.from_deserialized_dict(dict(document))
