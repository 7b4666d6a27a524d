"""Arrays between host memory and devices: the only place that moves them.

On CPU both directions share memory.  A host view that is held makes XLA copy a buffer
that is later donated instead of overwriting it, so staging a `jax.Array` needs no copy
of ours; and a 64-byte aligned host array is adopted by `jax.device_put` as it is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout

from stowax._box import Box

ALIGNMENT_BYTES = 64
"""What XLA asks of host memory that it is to adopt."""


_SHARDS = threading.Lock()


def shards_here(array: jax.Array) -> dict[jax.Device, jax.Array]:
    """The parts of an array that lie on devices of this process, by device.

    JAX makes them when they are first asked for, without a lock of its own: threads
    that ask at the same time are given too few of them, or some twice.
    """
    with _SHARDS:
        # `Any`: to the checker, what is here might have no data.
        shards: Sequence[Any] = array.addressable_shards
    return {shard.device: shard.data for shard in shards}


def to_host(parts: Sequence[jax.Array | np.ndarray]) -> list[np.ndarray]:
    """Host memory of single-device arrays; all transfers run side by side."""
    for part in parts:
        if isinstance(part, jax.Array):
            part.copy_to_host_async()
    return [np.asarray(part) for part in parts]


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised host memory that a device on the host can adopt."""
    size_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def to_default_device(part: np.ndarray) -> jax.Array:
    """An uncommitted array, as `jnp.zeros` makes one; the memory may be adopted."""
    return jax.device_put(part)


def to_sharding(array: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """The same values, committed to the devices of the sharding."""
    return jax.device_put(array, sharding)


def to_devices(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    boxes: Mapping[jax.Device, Box],
    parts: Mapping[Box, np.ndarray],
    dtype: np.dtype,
    *,
    layout: Layout | None = None,
) -> jax.Array:
    """Makes a global array of the parts that the devices of this process hold.

    Args:
        shape: Shape of the global array.
        sharding: Its sharding; memory kinds are kept.
        boxes: Part of every device of this process.
        parts: Host memory of every such part; it may be adopted by a device.
        dtype: That of an array of which this process holds no part.
        layout: In which order the elements of a part lie; None leaves it to JAX.
    """
    kind = sharding.memory_kind
    places: list[Any] = [
        jax.sharding.SingleDeviceSharding(device, memory_kind=kind) for device in boxes
    ]
    if layout is not None:
        places = [Format(layout, place) for place in places]
    arrays = jax.device_put([parts[box] for box in boxes.values()], places)
    return jax.make_array_from_single_device_arrays(
        shape, sharding, arrays, dtype=None if arrays else dtype
    )
