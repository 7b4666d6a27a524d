"""Shardings as plain values, and back.

A sharding is described by what a JSON document can hold, in the words of Orbax's
`_sharding` document: the mesh with its device ids, and the partition spec.  Memory
kinds are not described.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box, from_slices


def describe(sharding: jax.sharding.Sharding) -> dict[str, Any] | None:
    """The sharding as a JSON value; None for kinds that the documents cannot say."""
    if isinstance(sharding, jax.sharding.SingleDeviceSharding):
        (device,) = sharding.device_set
        return {"sharding_type": "SingleDeviceSharding", "device_str": _text(device)}
    if isinstance(sharding, jax.sharding.NamedSharding):
        return _describe_named(sharding)
    return None


@functools.lru_cache(maxsize=1024)
def _describe_named(sharding: jax.sharding.NamedSharding) -> dict[str, Any] | None:
    mesh = sharding.mesh
    if not isinstance(mesh, jax.sharding.Mesh):
        return None
    ids = np.vectorize(lambda device: device.id, otypes=[object])(mesh.devices)
    return {
        "sharding_type": "NamedSharding",
        "shape": list(mesh.devices.shape),
        "axis_names": [str(name) for name in mesh.axis_names],
        "axis_types": [f"AxisType.{kind.name}" for kind in mesh.axis_types],
        "partition_spec": [_spec_entry(entry) for entry in sharding.spec],
        "device_mesh": {"mesh": _with_ids(ids.tolist())},
    }


def restore(
    document: Any, devices: Sequence[jax.Device]
) -> jax.sharding.Sharding | None:
    """The sharding that a document describes, on the devices of this run.

    Returns:
        None when the document is missing or damaged, is of an unknown kind, or names
        devices that this run does not have: the caller places the array as it sees fit.
    """
    if not isinstance(document, Mapping):
        return None
    match document.get("sharding_type"):
        case "SingleDeviceSharding":
            text = document.get("device_str")
            for device in devices:
                if text in (_text(device), f"TFRT_{_text(device, '_').upper()}"):
                    return jax.sharding.SingleDeviceSharding(device)
        case "NamedSharding":
            return _restore_named(document, devices)
    return None


def boxes_by_device(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> dict[jax.Device, Box]:
    """The part of an array of this shape that every device holds."""
    index_map = sharding.devices_indices_map(shape)
    return {device: from_slices(i, shape) for device, i in index_map.items()}


def _restore_named(
    document: Mapping[str, Any], devices: Sequence[jax.Device]
) -> jax.sharding.NamedSharding | None:
    by_id = {device.id: device for device in devices}
    try:
        shape = tuple(document["shape"])
        recorded = document.get("device_mesh")
        if recorded is not None:
            ids = _without_ids(recorded["mesh"])
            grid = np.array([by_id[i] for i in _flat(ids)], dtype=object)
        else:
            # Writers before 2024 kept no device ids: the order of the run stands in.
            grid = np.array(list(devices), dtype=object)
        kinds = document.get("axis_types") or ["AxisType.Auto"] * len(shape)
        mesh = jax.sharding.Mesh(
            grid.reshape(shape),
            tuple(document["axis_names"]),
            axis_types=tuple(
                jax.sharding.AxisType[kind.removeprefix("AxisType.")] for kind in kinds
            ),
        )
        entries = [
            tuple(e) if isinstance(e, list) else e for e in document["partition_spec"]
        ]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*entries))
    except Exception:  # noqa: BLE001 JAX has errors of its own for odd specs
        # Another number of devices, or a document that no sharding can be made of: a
        # recorded sharding is a wish, not data, so it is dropped rather than an error.
        return None


def _text(device: jax.Device, separator: str = ":") -> str:
    return f"{device.platform}{separator}{device.id}"


def _spec_entry(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return [str(name) for name in entry]
    return None if entry is None else str(entry)


def _with_ids(nested: Any) -> Any:
    if isinstance(nested, list):
        return [_with_ids(part) for part in nested]
    return {"id": nested}


def _without_ids(nested: Any) -> Any:
    if isinstance(nested, list):
        return [_without_ids(part) for part in nested]
    return nested["id"]


def _flat(nested: Any) -> list[int]:
    if isinstance(nested, list):
        return [i for part in nested for i in _flat(part)]
    return [nested]
