"""Python numbers: `bool`, `int`, `float` and `complex`, stored as 0-d arrays.

An integer beyond 64 bits has no array: its digits are text.  They are hexadecimal,
because Python converts decimal ones in quadratic time, and no more than 4300 of them.
The value of the primary process counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._leaves._base import Description, Holding, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes

_Number = bool | int | float | complex
_DTYPES: dict[type, np.dtype] = {
    # In the order of `isinstance` checks: a bool is an int too.
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
}
_INT_MIN, _INT_MAX = int(np.iinfo(np.int64).min), int(np.iinfo(np.uint64).max)
_ZEROS: dict[str, bool | int | float | complex] = {
    "bool": False,
    "int": 0,
    "uint": 0,
    "complex": 0j,
}


class ScalarLeaf:
    """Saves and loads Python numbers."""

    def accepts(self, value: Any) -> bool:
        """Python numbers and their subclasses, `numpy.float64` among them."""
        return isinstance(value, _Number)

    def outline(self, value: _Number) -> Hashable:
        """The letter of its dtype; of a large integer its text."""
        text = _large(value)
        return _as_array(value).dtype.char if text is None else text

    def describe(self, value: _Number, processes: Processes) -> Description:
        """A 0-d array of 64 bits (a bool: of one byte); of a large integer its text."""
        text = _large(value)
        if text is not None:
            return Description(kind="integer", text=text)
        return Description(
            kind="scalar",
            dtype=_as_array(value).dtype,
            holdings=(Holding(box=whole(()), processes=(processes.primary,)),),
        )

    def takes_memory(self, value: Any, *, borrow: bool) -> bool:
        """A few bytes."""
        del value, borrow
        return False

    def stage(
        self,
        value: _Number,
        boxes: Sequence[Box],
        processes: Processes,
        *,
        borrow: bool,
    ) -> Sequence[jax.Array | np.ndarray]:
        """The number as an array."""
        del boxes, processes, borrow
        return [_as_array(value)]

    def accepts_target(self, target: Any) -> bool:
        """A number, or one of the types."""
        if isinstance(target, type):
            return target in _DTYPES
        return isinstance(target, _Number)

    def default_target(self, form: LeafForm) -> Any | None:
        """A number of the kind that the stored dtype has."""
        return self.metadata(form)

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """The only element, converted only if the target's type is another."""
        del processes
        cls = _python_type(target)
        if cls is int and form.kind == "integer":
            return Wanted(kind="integer")
        stored = _python_type(self.metadata(form)) if form.kind == "scalar" else None
        dtype = None if cls is stored else _DTYPES[cls]
        return Wanted(kind="scalar", shape=(), dtype=dtype, boxes=(whole(()),))

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """The Python number."""
        del processes
        if form.kind == "integer":
            return lambda _: int(form.text or "", 16)
        cls = _python_type(target)

        def place(parts: Mapping[Box, np.ndarray]) -> _Number:
            (part,) = parts.values()
            return cls(part.item())

        return place

    def metadata(self, form: LeafForm) -> Any | None:
        """Zero, of the type that will come back."""
        if form.kind not in ("scalar", "integer"):
            return None
        if form.kind == "integer":
            return 0
        family = (form.dtype or "").rstrip("0123456789")
        return _ZEROS.get(family, 0.0)


def _large(value: _Number) -> str | None:
    """The digits of an integer that no array holds."""
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        return hex(value)
    return None


def _python_type(target: Any) -> type[Any]:
    cls = target if isinstance(target, type) else type(target)
    return next(known for known in _DTYPES if issubclass(cls, known))


def _as_array(value: Any) -> np.ndarray:
    cls = _python_type(value)
    if cls is int and value.real > np.iinfo(np.int64).max:
        return np.array(cls(value), np.uint64)
    return np.array(cls(value), _DTYPES[cls])
