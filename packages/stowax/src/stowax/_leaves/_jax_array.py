"""`jax.Array` leaves: sharded, replicated, on one device, and typed PRNG keys.

A typed PRNG key is stored as its key data, a uint32 array with one more axis; the name
of its implementation stands beside it.  The extra axis is never split.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.layout import Layout

from stowax import _sharding
from stowax._box import Box, whole
from stowax._codecs._zarr import dtype_from_name, dtype_name
from stowax._leaves._abstract import (
    ArrayMetadata,
    StorageMetadata,
    asked_dtype,
    asked_placement,
    asked_shape,
    has_sharding,
    is_array_like,
)
from stowax._leaves._base import Description, Holding, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes
from stowax._transfer import (
    default_shares_host_memory,
    is_packed,
    is_shared,
    shards_here,
    to_default_device,
    to_devices,
)
from stowax.errors import DeletedArrayError


class JaxArrayLeaf:
    """Saves arrays shard by shard, and loads them shard by shard."""

    def accepts(self, value: Any) -> bool:
        """Any committed or uncommitted array; not a tracer."""
        return isinstance(value, jax.Array) and not isinstance(value, Tracer)

    def outline(self, value: jax.Array) -> Hashable:
        """Shape, dtype, and where it lies."""
        if value.is_deleted():
            raise DeletedArrayError(
                "the array has been deleted or donated; save it before it is given away"
            )
        return value.shape, value.dtype, value.sharding, value.committed

    def describe(self, value: jax.Array, processes: Processes) -> Description:
        """Shape, dtype and holders of the array, or of the key data of PRNG keys."""
        impl, dtype, shape = None, value.dtype, value.shape
        if is_key(dtype):
            impl = str(jax.random.key_impl(value))
            shape = (*shape, *_key_shape(dtype))
            dtype = np.uint32
        dtype = np.dtype(dtype)
        dtype_name(dtype)  # Refuses a dtype that no document can say.
        return Description(
            kind="jax.Array",
            dtype=dtype,
            shape=shape,
            holdings=_holdings(value, shape, processes),
            prng_impl=impl,
            sharding=_sharding.describe(value.sharding),
        )

    def takes_memory(self, value: jax.Array, *, borrow: bool) -> bool:
        """A copy of what the host cannot read where it is."""
        del borrow
        return not is_shared(value.sharding, value.dtype)

    def stage(
        self,
        value: jax.Array,
        boxes: Sequence[Box],
        processes: Processes,
        *,
        borrow: bool,
    ) -> Sequence[jax.Array | np.ndarray]:
        """The shards themselves: nobody can change a `jax.Array` behind our back."""
        del borrow
        parts = [value]
        if len(value.sharding.device_set) > 1:
            shape = (*value.shape, *boxes[0].shape[value.ndim :])
            own = _own_boxes(value.sharding, value.shape, shape, processes)
            held = {
                own[device]: data
                for device, data in shards_here(value).items()
                if device in own and own[device] in boxes
            }
            parts = [held[box] for box in boxes]
        if not is_key(value.dtype):
            return parts
        # Part by part, because only the processes that write them come here: no
        # computation may run on devices of the others.
        return [jax.random.key_data(part) for part in parts]

    def accepts_target(self, target: Any) -> bool:
        """`jax.Array`, or what has a shape, a dtype and a sharding, even if None."""
        if target is jax.Array:
            return True
        return is_array_like(target) and (has_sharding(target) or is_key(target.dtype))

    def default_target(self, form: LeafForm) -> Any | None:
        """Shape and dtype as stored; spread as it was, where that is possible."""
        if form.kind != "jax.Array":
            return None
        shape, dtype = _described(form)
        return ArrayMetadata(shape=shape, dtype=dtype)

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """The parts that the target's sharding gives to this process."""
        shape, dtype = _asked(target, form)
        logical, impl = shape, None
        if is_key(dtype):
            impl = key_impl_name(dtype)
            shape = (*shape, *form.shape[-1:]) if form.prng_impl else shape
            dtype = np.dtype(np.uint32)
        boxes = {whole(shape)}
        sharding, layout = _placement(target, form, logical)
        if sharding is not None:
            boxes = set(_own_boxes(sharding, logical, shape, processes).values())
        return Wanted(
            kind="array",
            shape=shape,
            # Without x64, JAX would cut 64 bits to 32 by itself, and without a word.
            dtype=np.dtype(jax.dtypes.canonicalize_dtype(dtype)),
            prng_impl=impl,
            boxes=tuple(boxes),
            is_moved=layout is not None or not _is_adopted(sharding, dtype),
        )

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """Makes the array under the target's sharding; uncommitted if it has none."""
        shape, dtype = _asked(target, form)
        impl = key_impl(dtype) if is_key(dtype) else None
        stored = shape if impl is None else (*shape, *form.shape[-1:])
        sharding, layout = _placement(target, form, shape)
        if sharding is None:
            place = _to_default_device
        else:
            boxes = _own_boxes(sharding, shape, stored, processes)
            dtype = jax.dtypes.canonicalize_dtype(dtype if impl is None else np.uint32)
            place = functools.partial(
                to_devices,
                stored,
                _extended(sharding, shape, stored),
                boxes,
                dtype=np.dtype(dtype),
                # The extra axis of key data has no place in a layout of the keys.
                layout=layout if impl is None else None,
            )
        if impl is None:
            return place
        return lambda parts: jax.random.wrap_key_data(place(parts), impl=impl)

    def metadata(self, form: LeafForm) -> Any | None:
        """The abstract array, with its sharding where this run has its devices."""
        return _abstract(form) if form.kind == "jax.Array" else None


def _is_adopted(sharding: jax.sharding.Sharding | None, dtype: Any) -> bool:
    """Whether host memory becomes that of the array."""
    if sharding is None:
        return default_shares_host_memory() and not is_packed(dtype)
    return is_shared(sharding, dtype)


def _to_default_device(parts: Mapping[Box, np.ndarray]) -> jax.Array:
    (part,) = parts.values()
    return to_default_device(part)


class _Asked(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


def _asked(target: Any, form: LeafForm) -> _Asked:
    """Shape and dtype that the target asks for; None in it means as stored."""
    stored = _described(form)
    if target is jax.Array:
        return stored
    shape = stored.shape if target.shape is None else asked_shape(target.shape)
    dtype = stored.dtype if target.dtype is None else target.dtype
    return _Asked(shape, dtype if is_key(dtype) else asked_dtype(dtype))


@functools.cache
def key_dtype(impl: str) -> Any:
    """The dtype of typed PRNG keys of one implementation."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype


def is_registered(impl: str) -> bool:
    """Whether JAX finds a PRNG implementation by its name.

    It does not find those that a program defines: their keys can be made only of an
    abstract array that has their dtype.
    """
    try:
        key_dtype(impl)
    except ValueError:
        return False
    return True


@functools.cache
def key_impl(dtype: Any) -> Any:
    """The implementation behind a dtype of typed PRNG keys, as JAX takes it.

    JAX tells it of keys only, traced ones included.
    """
    found: list[Any] = []
    key = jax.ShapeDtypeStruct((), dtype)
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def key_impl_name(dtype: Any) -> str:
    """Its name in checkpoints; of one that JAX does not ship, its tag."""
    return str(key_impl(dtype))


@functools.cache
def _key_shape(dtype: Any) -> tuple[int, ...]:
    """What the key data of one typed PRNG key has for a shape."""
    key = jax.ShapeDtypeStruct((), dtype)
    return jax.eval_shape(jax.random.key_data, key).shape


def is_key(dtype: Any) -> bool:
    """Whether a dtype is one of typed PRNG keys."""
    try:
        return _is_key(dtype)
    except TypeError:  # It is no dtype at all.
        return False


@functools.lru_cache(maxsize=256)
def _is_key(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _holdings(
    value: jax.Array, stored: tuple[int, ...], processes: Processes
) -> tuple[Holding, ...]:
    """Who holds what of an array; of an uncommitted one the primary process's counts.

    Every process has a copy of its own of the latter, as of a NumPy array.
    """
    if math.prod(stored) == 0:
        return ()
    if not value.committed and len(value.sharding.device_set) == 1:
        return (Holding(box=whole(stored), processes=(processes.primary,)),)
    if len(value.sharding.device_set) == 1:
        (device,) = value.sharding.device_set
        return (Holding(box=whole(stored), processes=(processes.owner(device),)),)
    holders: dict[Box, set[int]] = {}
    boxes = _boxes(value.sharding, value.shape, stored)
    for device, box in boxes.items():
        holders.setdefault(box, set()).add(processes.owner(device))
    return tuple(
        Holding(box=box, processes=tuple(sorted(holders[box])))
        for box in sorted(holders, key=lambda box: box.start)
    )


def _own_boxes(
    sharding: jax.sharding.Sharding,
    shape: tuple[int, ...],
    stored: tuple[int, ...],
    processes: Processes,
) -> dict[jax.Device, Box]:
    """Part of every device of this process."""
    return {
        device: box
        for device, box in _boxes(sharding, shape, stored).items()
        if processes.owner(device) == processes.index
    }


def _boxes(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...], stored: tuple[int, ...]
) -> dict[jax.Device, Box]:
    """Part of every device; PRNG keys keep their data axis whole."""
    extra = stored[len(shape) :]
    return {
        device: Box((*box.start, *[0] * len(extra)), (*box.stop, *extra))
        for device, box in _sharding.boxes_by_device(sharding, shape).items()
    }


def _extended(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...], stored: tuple[int, ...]
) -> jax.sharding.Sharding:
    """The sharding of the stored array, given that of the keys it holds."""
    if shape == stored or not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (len(stored) - len(sharding.spec))]
    return sharding.update(spec=jax.sharding.PartitionSpec(*spec))


def _placement(
    target: Any, form: LeafForm, shape: tuple[int, ...]
) -> tuple[jax.sharding.Sharding | None, Layout | None]:
    """The sharding to load onto, and the layout; no sharding leaves it uncommitted.

    A live array that is not committed to its device asks for no device either. A target
    without a sharding falls back on the recorded one when that is over several devices:
    an array that was spread may not fit one.
    """
    sharding, layout = asked_placement(target)
    if sharding is not None:
        return (
            (sharding, layout) if getattr(target, "committed", True) else (None, None)
        )
    recorded = _restored(form, shape)
    if recorded is None or len(recorded.device_set) == 1:
        return None, None
    return recorded, None


def _restored(form: LeafForm, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
    sharding = _sharding.restore(form.sharding, jax.devices())
    logical = form.shape if form.prng_impl is None else form.shape[:-1]
    if sharding is None or len(shape) != len(logical):
        return None
    try:
        sharding.shard_shape(shape)
    except ValueError:
        # A recorded sharding is a wish: one that does not divide the shape is dropped.
        return None
    return sharding


def _described(form: LeafForm) -> _Asked:
    """Shape and dtype of the array that was saved."""
    # An implementation that JAX does not find by its name leaves plain data.
    if form.prng_impl is not None and is_registered(form.prng_impl):
        return _Asked(form.shape[:-1], key_dtype(form.prng_impl))
    # A text has no dtype; that it is no array is found when kinds are compared.
    return _Asked(form.shape, dtype_from_name(form.dtype or "uint8"))


def _abstract(form: LeafForm) -> ArrayMetadata:
    shape, dtype = _described(form)
    return ArrayMetadata(
        shape=shape,
        dtype=dtype,
        sharding=_restored(form, shape),
        storage_metadata=StorageMetadata(
            chunk_shape=form.chunk_shape, write_shape=form.write_shape
        ),
    )
