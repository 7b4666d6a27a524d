"""A basic slice of a stored array: which box of it is meant, and what it looks like.

As in NumPy: integers take one position and drop the axis, slices go by ones, `...`
stands for all axes that are not named, negative numbers count from the end.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stowax._box import Box
from stowax.errors import LeafIndexError


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A box of a stored array, seen as an array of its own."""

    box: Box
    """In the stored array."""
    kept: tuple[int, ...]
    """The axes that the view has; along all others the box has one position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        extents = self.box.shape
        return tuple(extents[axis] for axis in self.kept)

    def stored_box(self, part: Box) -> Box:
        """A box of the view, as one of the stored array."""
        start, stop = list(self.box.start), list(self.box.stop)
        for axis, a, b in zip(self.kept, part.start, part.stop, strict=True):
            start[axis], stop[axis] = self.box.start[axis] + a, self.box.start[axis] + b
        return Box(tuple(start), tuple(stop))


def view_of(index: Any, shape: Sequence[int], *, extra: int = 0) -> View:
    """What an index selects.

    Args:
        index: An integer, a slice, `...`, or a tuple of such.
        shape: Shape of the stored array.
        extra: How many axes at the end are out of the index's reach.

    Raises:
        LeafIndexError: It is no basic index, or goes beyond the array.

    Example:
        >>> view_of((..., 2), (10, 4)).shape
        (10,)
    """
    ndim = len(shape) - extra
    starts, stops, kept = [0] * len(shape), list(shape), list(range(len(shape)))
    for axis, part in enumerate(_per_axis(index, ndim)):
        n = shape[axis]
        if isinstance(part, slice):
            try:
                start, stop, step = part.indices(n)
            except (TypeError, ValueError) as error:
                raise LeafIndexError(f"{part} is no slice: {error}") from error
            if step != 1:
                raise LeafIndexError(
                    f"{part} has a step; load without it, and take the step afterwards"
                )
            starts[axis], stops[axis] = start, max(start, stop)
            continue
        position = part + n if part < 0 else part
        if not 0 <= position < n:
            raise LeafIndexError(f"{part} is out of range for axis {axis}, of {n}")
        starts[axis], stops[axis] = position, position + 1
        kept.remove(axis)
    return View(box=Box(tuple(starts), tuple(stops)), kept=tuple(kept))


def _per_axis(index: Any, ndim: int) -> list[int | slice]:
    parts: list[Any] = list(index) if isinstance(index, tuple) else [index]
    ellipses = [i for i, part in enumerate(parts) if part is ...]
    if len(ellipses) > 1:
        raise LeafIndexError("an index has at most one `...`")
    if len(parts) - len(ellipses) > ndim:
        raise LeafIndexError(f"{len(parts)} indices for a leaf of {ndim} axes")
    for i in ellipses:
        parts[i : i + 1] = [slice(None)] * (ndim - len(parts) + 1)
    return [_checked(part) for part in parts]


def _checked(part: Any) -> int | slice:
    if isinstance(part, slice):
        return part
    try:
        if not isinstance(part, bool):  # To NumPy that is a mask.
            return operator.index(part)
    except TypeError:
        pass
    raise LeafIndexError(
        f"{part!r} is no basic index: take integers, slices and `...`; load the rest "
        "and index it afterwards"
    )
