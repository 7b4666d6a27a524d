"""One leaf of a load on its way: memory taken, filled by others, made into a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from stowax._box import Box
from stowax._formats._base import ReadRequest
from stowax._keypath import KeyPath, at_leaf, shown_name
from stowax._leaves._abstract import is_array_like
from stowax._leaves._base import Placer, StandardLeaf, Wanted
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._manifest import LeafForm
from stowax._mapped import allocate_pages
from stowax._plan._cast import convert_into, loss
from stowax._processes import Processes
from stowax._transfer import HostMemory, allocate, settle
from stowax.errors import HostMemoryError


class PartPlan(NamedTuple):
    """One part that the kind of a leaf asked for."""

    box: Box
    inner: Box | None
    """What of it is stored; the rest, where it is padded, is zeros."""
    stored: Box | None
    """Where that lies in the stored array."""
    shape: tuple[int, ...]
    """Of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPlan:
    """How leaves of one form become what one target asks for."""

    form: LeafForm
    """As it is to be seen: a slice looks like a whole array."""
    target: Any
    kind: StandardLeaf
    decode: Callable[[Any], Any] | None
    """Makes the value of a taught type of what the kind gives."""
    wanted: Wanted
    stored_dtype: np.dtype | None
    """None where there is nothing to read, as of a string."""
    parts: tuple[PartPlan, ...]
    is_as_read: bool
    """Whether every part of the value is just what is read."""
    read_bytes: int
    """How much is read."""
    passing_bytes: int
    """Memory of what is read that is free again when the value is made."""
    may_map: bool = False
    """Whether memory may show the files."""

    def begin(self, position: int, path: KeyPath, memory: HostMemory) -> BegunLeaf:
        """Takes the memory that is to be filled.

        Args:
            position: Of the leaf in its manifest.
            path: Of the same.
            memory: Where it is taken from.

        Raises:
            HostMemoryError: There is not enough of it.
        """
        dtype = self.stored_dtype
        if dtype is None:
            return BegunLeaf(self, path, [])
        take = allocate_pages if self.may_map else memory.take
        try:
            requests = [
                ReadRequest(
                    position,
                    stored,
                    _take(shape, dtype, take),
                    self.may_map,
                )
                for _, _, stored, shape in self.parts
                if stored is not None
            ]
        except HostMemoryError:
            with at_leaf(shown_name(path)):
                raise
        return BegunLeaf(self, path, requests)

    @property
    def is_whole(self) -> bool:
        """Whether it has the shape of what is stored."""
        return self.wanted.shape in (None, self.form.shape)

    @property
    def made_dtype(self) -> np.dtype | None:
        """That of the parts that the value is made of."""
        return self.stored_dtype if self.wanted.dtype is None else self.wanted.dtype

    @property
    def is_cast(self) -> bool:
        """Whether it is converted to another dtype."""
        return self.made_dtype != self.stored_dtype

    @property
    def is_cut_by_jax(self) -> bool:
        """Whether JAX makes 32 bits of it that nobody asked for."""
        stored, target = self.stored_dtype, self.target
        if stored is None or not isinstance(self.kind, JaxArrayLeaf):
            return False
        if is_array_like(target) and target.dtype == self.wanted.dtype:
            return False
        half = jax.dtypes.canonicalize_dtype(stored)
        return half != stored and half == self.wanted.dtype

    def loss(self) -> str | None:
        """What the conversion loses beyond precision."""
        if self.wanted.dtype is None or self.stored_dtype is None:
            return None
        return loss(self.stored_dtype, self.wanted.dtype)

    def made(self, requests: Sequence[ReadRequest]) -> dict[Box, np.ndarray]:
        """The parts that the value is made of, given what was read of each."""
        if self.is_as_read:
            if len(requests) == 1:  # As most are.
                return {self.parts[0].box: requests[0].out}
            return {
                part.box: request.out
                for part, request in zip(self.parts, requests, strict=True)
            }
        remaining = iter([request.out for request in requests])
        return {
            part.box: self._made(part, None if part.stored is None else next(remaining))
            for part in self.parts
        }

    def _made(self, part: PartPlan, read: np.ndarray | None) -> np.ndarray:
        dtype = self.made_dtype
        assert dtype is not None
        if read is None or part.inner is None:
            return _zeros(part.box.shape, dtype)
        if part.shape != part.inner.shape:
            read = read.reshape(part.inner.shape)  # An axis that an index took away.
        if part.inner == part.box and not self.is_cast:
            return read
        if part.inner == part.box:
            made = _take(part.box.shape, dtype)
        else:
            made = _zeros(part.box.shape, dtype)
        convert_into(made[part.inner.within(part.box)], read)
        return made


class BegunLeaf(NamedTuple):
    """One leaf, with memory for what is read."""

    plan: LeafPlan
    path: KeyPath
    """Of the stored leaf."""
    requests: list[ReadRequest]
    """What the item's source is to fill."""


class Placing:
    """Makes values of leaves that have been read.

    Args:
        processes: Says which parts this process has.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._placers: dict[int, Placer] = {}

    def place(self, leaf: BegunLeaf) -> Any:
        """Makes the value, once all requests are filled."""
        plan = leaf.plan
        try:
            placer = self._placers.get(id(plan))
            if placer is None:
                placer = plan.kind.placer(plan.target, plan.form, self._processes)
                self._placers[id(plan)] = placer
            value = placer(plan.made(leaf.requests))
            if plan.decode is None:
                return value
            if plan.wanted.is_moved:
                settle([value])
            return plan.decode(value)
        except Exception:  # Any failure deserves its place; raised again as it is.
            with at_leaf(shown_name(leaf.path)):
                raise


def _take(
    shape: tuple[int, ...],
    dtype: np.dtype,
    take: Callable[[tuple[int, ...], np.dtype], np.ndarray] = allocate,
) -> np.ndarray:
    """Host memory for a part of a leaf.

    A document can claim any shape, and a large array may well be meant for many hosts;
    that there is memory for it is known only when it is taken.

    Raises:
        HostMemoryError: There is not enough.
    """
    try:
        return take(shape, dtype)
    except MemoryError as error:
        size_bytes = math.prod(shape) * dtype.itemsize
        raise HostMemoryError(
            f"{dtype}{list(shape)} takes {size_bytes} bytes, which this host does not "
            "have; ask for it with a sharding over more devices or processes, load a "
            "slice with `load_leaf(path, name, index=...)`, or leave it out with "
            "`PLACEHOLDER`"
        ) from error


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    zeros = _take(shape, dtype)
    # By bytes: some dtypes of ml_dtypes cannot be assigned a Python number.
    zeros.reshape(-1).view(np.uint8)[...] = 0
    return zeros
