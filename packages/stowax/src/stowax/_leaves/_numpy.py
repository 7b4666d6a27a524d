"""NumPy arrays: stored whole, by the primary process, whose values count."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._codecs._zarr import dtype_from_name, dtype_name
from stowax._leaves._abstract import (
    NumpyMetadata,
    StorageMetadata,
    asked_dtype,
    asked_shape,
    has_sharding,
    is_array_like,
)
from stowax._leaves._base import Description, Holding, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes
from stowax.errors import UnsupportedLeafError


class NumpyLeaf:
    """Saves and loads host arrays; a NumPy scalar is saved as a 0-d array."""

    def accepts(self, value: Any) -> bool:
        """Arrays and NumPy scalars."""
        return isinstance(value, np.ndarray | np.generic)

    def outline(self, value: np.ndarray | np.generic) -> Hashable:
        """Class, dtype and shape."""
        return type(value), value.dtype, value.shape

    def describe(self, value: np.ndarray, processes: Processes) -> Description:
        """One part, held by the primary process."""
        if isinstance(value, np.ma.MaskedArray):
            raise UnsupportedLeafError(
                "a masked array would lose its mask; save `.filled(...)`, or `.data` "
                "and `.mask` as two leaves"
            )
        _check_dtype(value.dtype)
        box = whole(value.shape)
        held = (Holding(box=box, processes=(processes.primary,)),)
        return Description(
            kind="np.ndarray",
            dtype=value.dtype.newbyteorder("<"),
            shape=value.shape,
            holdings=held if value.size else (),
        )

    def takes_memory(self, value: np.ndarray, *, borrow: bool) -> bool:
        """A copy, unless the array may be borrowed as it is."""
        is_ready = value.flags.c_contiguous and value.dtype.isnative
        return not (borrow and is_ready)

    def stage(
        self,
        value: np.ndarray,
        boxes: Sequence[Box],
        processes: Processes,
        *,
        borrow: bool,
    ) -> Sequence[jax.Array | np.ndarray]:
        """The array itself if it may be borrowed, else a copy; little-endian."""
        del boxes, processes
        dtype = value.dtype.newbyteorder("<")
        return [np.asarray(value).astype(dtype, order="C", copy=not borrow)]

    def accepts_target(self, target: Any) -> bool:
        """Whatever has a shape and a dtype and no sharding, and types of NumPy."""
        if isinstance(target, type):
            return target is np.ndarray or _is_scalar_type(target)
        return is_array_like(target) and not has_sharding(target)

    def default_target(self, form: LeafForm) -> Any | None:
        """Shape and dtype as stored."""
        return self.metadata(form)

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """The whole array, in every process."""
        del processes
        if target is np.ndarray:
            target = NumpyMetadata(shape=form.shape, dtype=None)
        elif isinstance(target, type):
            target = NumpyMetadata(shape=(), dtype=target)
        shape = form.shape if target.shape is None else asked_shape(target.shape)
        # `dataclasses.replace(metadata, dtype=np.float16)` puts in a class.
        dtype = None if target.dtype is None else asked_dtype(target.dtype)
        return Wanted(kind="array", shape=shape, dtype=dtype, boxes=(whole(shape),))

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """A writable array of its own memory."""
        del target, form, processes
        return _only

    def metadata(self, form: LeafForm) -> Any | None:
        """Shape, dtype and chunks."""
        if form.kind != "np.ndarray":
            return None
        return NumpyMetadata(
            shape=form.shape,
            dtype=dtype_from_name(form.dtype or ""),
            storage_metadata=StorageMetadata(
                chunk_shape=form.chunk_shape, write_shape=form.write_shape
            ),
        )


def _only(parts: Mapping[Box, np.ndarray]) -> np.ndarray:
    (part,) = parts.values()
    return part


def _is_scalar_type(cls: type) -> bool:
    # The abstract types, such as `np.floating`, are no dtypes.
    if not issubclass(cls, np.generic) or cls.__subclasses__():
        return False
    try:
        asked_dtype(cls)
    except UnsupportedLeafError:
        return False
    return True


def _check_dtype(dtype: np.dtype) -> None:
    """Refuses a dtype that no document can say, with advice."""
    try:
        dtype_name(dtype)
    except UnsupportedLeafError:
        advice = _advice(dtype)
        if advice is None:
            raise
        raise UnsupportedLeafError(
            f"arrays of dtype {dtype} cannot be saved; {advice}"
        ) from None


def _advice(dtype: np.dtype) -> str | None:
    """What to save in place of arrays of a dtype that no document can say.

    Returns:
        None where nothing better is known than another dtype.
    """
    if dtype == jax.dtypes.float0:
        return "a gradient by integers has no values: leave it out, or save None"
    if dtype.names is not None:
        return "save each field: `{name: array[name] for name in array.dtype.names}`"
    as_integers = "save `array.view('int64')` and, as a string, `str(array.dtype)`"
    return {
        "f": "save `array.astype('float64')`",
        "c": "save `array.astype('complex128')`",
        "M": as_integers,
        "m": as_integers,
        "S": "save `array.tolist()`, a list of bytes",
        "U": "save `array.tolist()`, a list of strings",
        "T": "save `array.tolist()`, a list of strings",
        "O": "save `array.tolist()`, or convert it to an array of numbers",
    }.get(dtype.kind)
