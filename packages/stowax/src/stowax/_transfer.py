"""Arrays between host memory and devices: the only place that moves them.

On CPU both directions share memory, but for elements of less than a byte.  A host view
that is held makes XLA copy a buffer that is later donated instead of overwriting it, so
staging a `jax.Array` needs no copy of ours; and a 64-byte aligned host array is adopted
by `jax.device_put` as it is.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

from stowax._box import Box, from_slices
from stowax._caller import mesh_in_scope

ALIGNMENT_BYTES = 64
"""What XLA asks of host memory that it is to adopt."""


_SMALL_BYTES = 4 << 10
"""Below this, JAX is quicker to copy memory than to adopt it."""

_BLOCK_BYTES = 64 << 10
"""What is kept of memory, at most, by a small array that alone is left of a tree."""

_PINNED = "pinned_host"

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


def to_host(
    parts: Sequence[jax.Array | np.ndarray], *, pin: bool | None = None
) -> list[np.ndarray]:
    """Host memory of single-device arrays; all transfers run side by side.

    Args:
        parts: Arrays of NumPy are answered as they are.
        pin: Whether transfers go through page-locked memory, which a device writes to
            by itself; None: from GPUs, of which one brought a GiB in 0.02 s that way,
            in 0.6 s otherwise.
    """
    elsewhere = {
        position: part
        for position, part in enumerate(parts)
        if isinstance(part, jax.Array) and not is_shared(part.sharding, part.dtype)
    }
    found = list(parts)
    arrays = _pinned([*elsewhere.values()], pin)
    for position, array in zip(elsewhere, arrays, strict=True):
        array.copy_to_host_async()
        found[position] = array
    return [np.asarray(part) for part in found]


def _pinned(arrays: list[jax.Array], pin: bool | None) -> list[jax.Array]:
    """Has what lies on devices that can do so copied to page-locked memory."""
    places = {
        position: place
        for position, array in enumerate(arrays)
        if (place := _pinned_place(array.sharding, pin)) is not None
    }
    moved = [arrays[position] for position in places]
    try:
        # One call: that is twice as fast for many small arrays.
        pinned = jax.device_put(moved, [*places.values()], may_alias=False)
        jax.block_until_ready(pinned)
    except jax.errors.JaxRuntimeError:
        # Such memory is scarce; what is wrong beyond that shows without it, too.
        return [_fresh(array) for array in arrays]
    found = [
        array if position in places else _fresh(array)
        for position, array in enumerate(arrays)
    ]
    for position, array in zip(places, pinned, strict=True):
        found[position] = array
    return found


def _fresh(array: jax.Array) -> jax.Array:
    """The same array on its device; an array keeps the copy that the host was given."""
    return jax.make_array_from_single_device_arrays(
        array.shape, array.sharding, [array], dtype=array.dtype
    )


@functools.lru_cache(maxsize=1024)
def _pinned_place(
    sharding: jax.sharding.Sharding, pin: bool | None
) -> jax.sharding.Sharding | None:
    """Where the transfer of a single-device array goes; None: to ordinary memory."""
    if sharding.memory_kind == _PINNED:
        # In any case: were a view of it held, JAX would refuse to donate it.
        return sharding
    (device,) = sharding.device_set
    kinds = {memory.kind for memory in device.addressable_memories()}
    if _PINNED not in kinds or not (device.platform == "gpu" if pin is None else pin):
        return None
    return jax.sharding.SingleDeviceSharding(device, memory_kind=_PINNED)


@functools.lru_cache(maxsize=1024)
def shares_host_memory(sharding: jax.sharding.Sharding) -> bool:
    """Whether arrays of a sharding lie where the host reads them without a copy."""
    return all(device.platform == "cpu" for device in sharding.device_set)


def default_shares_host_memory() -> bool:
    """Whether uncommitted arrays lie where the host reads them without a copy."""
    return jax.default_backend() == "cpu"


def settle(values: Sequence[Any]) -> None:
    """Returns when values are where they are to be, and need no host memory for it."""
    jax.block_until_ready(values)


def is_shared(sharding: jax.sharding.Sharding, dtype: np.dtype) -> bool:
    """Whether arrays of a dtype and a sharding are to the host what they are to JAX."""
    return shares_host_memory(sharding) and not is_packed(dtype)


@functools.lru_cache(maxsize=256)
def is_packed(dtype: Any) -> bool:
    """Whether an element has less than a byte, of which JAX keeps its own form."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits < 8
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 8


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised host memory that a device on the host can adopt."""
    size_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


class HostMemory:
    """Memory for the many arrays of a tree; small ones share blocks of it.

    Not for several threads.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._start = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Uninitialised memory that a device on the host can adopt."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes > _SMALL_BYTES:
            return allocate(shape, dtype)
        if self._start + size_bytes > self._block.size:
            self._block = allocate((_BLOCK_BYTES,), np.dtype(np.uint8))
            self._start = 0
        start = self._start
        self._start = start + size_bytes + -size_bytes % ALIGNMENT_BYTES
        return np.ndarray(shape, dtype, self._block, start)


def to_default_device(part: np.ndarray) -> jax.Array:
    """An uncommitted array, as `jnp.zeros` makes one; the memory may be adopted."""
    is_plain = part.nbytes < _SMALL_BYTES and part.dtype.isbuiltin == 1
    if is_plain and mesh_in_scope() is None and default_shares_host_memory():
        # Twice as fast on a CPU, three times slower on a GPU. It copies, knows fewer
        # dtypes, and spreads over a mesh.
        return jnp.asarray(part)
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

    One call to JAX for all parts: a transfer of each of them takes five times as long.

    Args:
        shape: Shape of the global array.
        sharding: Its sharding; memory kinds are kept.
        boxes: Part of every device of this process.
        parts: Host memory of every such part; it may be adopted by a device.
        dtype: That of an array of which this process holds no part.
        layout: In which order the elements of a part lie; None leaves it to JAX.
    """
    if layout is None:

        def part(index: Any) -> np.ndarray:
            return parts[from_slices(index, shape)]

        if len(parts) == 1:
            (only,) = parts.values()
            return jax.make_array_from_callback(shape, sharding, lambda _: only)
        return jax.make_array_from_callback(shape, sharding, part, dtype=dtype)
    kind = sharding.memory_kind
    places = [
        Format(layout, jax.sharding.SingleDeviceSharding(device, memory_kind=kind))
        for device in boxes
    ]
    arrays = jax.device_put([parts[box] for box in boxes.values()], places)
    return jax.make_array_from_single_device_arrays(
        shape, sharding, arrays, dtype=None if arrays else dtype
    )
