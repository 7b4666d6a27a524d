"""One leaf of a load: whether it fits, what is read for it, and what is made of that.

Planning takes no memory and reads nothing, so a dry run ends here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._codecs._zarr import dtype_from_name
from stowax._context import LoadSettings
from stowax._formats._base import ReadRequest
from stowax._item_target import (
    NoMeshError,
    asked_form,
    is_unknown_key,
    ready,
    ready_default,
    stored_form,
    unknown_key_note,
)
from stowax._keypath import at_leaf, shown_name
from stowax._leaves._abstract import is_array_like
from stowax._leaves._base import StandardLeaf, UnlikeError, Wanted
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._leaves._registry import Leaves, kind_of_target
from stowax._manifest import TEXT_KINDS, LeafEntry
from stowax._plan._cast import convert, loss
from stowax._plan._index import View
from stowax._plan._rows import Cause, LeafPreview, Outcome
from stowax._processes import Processes
from stowax._transfer import allocate
from stowax.errors import HostMemoryError, UnsupportedLeafError

ANYTHING: Any = object()
"""The target where the caller asked for nothing in particular."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPlan:
    """One leaf that fits, on its way to its place in the result."""

    position: int
    entry: LeafEntry
    """As it is to be seen: a slice looks like a whole array."""
    target: Any
    kind: StandardLeaf
    decode: Callable[[Any], Any] | None
    """Makes the value of a taught type of what the kind gives."""
    wanted: Wanted
    view: View | None

    @property
    def stored_dtype(self) -> np.dtype | None:
        """None where there is nothing to read, as of a string."""
        return None if self.entry.dtype is None else dtype_from_name(self.entry.dtype)

    def begin(self) -> BegunLeaf:
        """Takes the memory that is to be filled.

        Raises:
            HostMemoryError: There is not enough of it.
        """
        dtype = self.stored_dtype
        with at_leaf(shown_name(self.entry.path)):
            parts = (
                []
                if dtype is None
                else [self._part(b, dtype) for b in self.wanted.boxes]
            )
        return BegunLeaf(plan=self, parts=parts)

    def _part(self, box: Box, dtype: np.dtype) -> _Part:
        # What is stored of the box; the rest, where it is padded, is zeros.
        inner = box if self.is_whole else box.intersect(whole(self.entry.shape))
        if inner is None:
            return _Part(box=box, inner=None, request=None)
        stored = inner if self.view is None else self.view.stored_box(inner)
        out = _memory(stored.shape, dtype)
        request = ReadRequest(leaf=self.position, box=stored, out=out)
        return _Part(box=box, inner=inner, request=request)

    @property
    def is_whole(self) -> bool:
        """Whether it has the shape of what is stored."""
        return self.wanted.shape in (None, self.entry.shape)

    @property
    def is_cast(self) -> bool:
        """Whether it is converted to another dtype."""
        return self.wanted.dtype not in (None, self.stored_dtype)

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


@dataclass(frozen=True, slots=True)
class _Part:
    box: Box
    """What the handler asked for."""
    inner: Box | None
    """What of it is stored."""
    request: ReadRequest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunLeaf:
    """One leaf, with memory for what is read."""

    plan: LeafPlan
    parts: Sequence[_Part]

    @property
    def requests(self) -> list[ReadRequest]:
        """What the item's source is to fill."""
        return [part.request for part in self.parts if part.request is not None]

    def place(self, processes: Processes) -> Any:
        """Makes the value, once all requests are filled."""
        plan = self.plan
        with at_leaf(shown_name(plan.entry.path)):
            parts = {part.box: self._made(part) for part in self.parts}
            value = plan.kind.place(plan.target, plan.entry, parts, processes)
            return value if plan.decode is None else plan.decode(value)

    def _made(self, part: _Part) -> np.ndarray:
        stored = self.plan.stored_dtype
        assert stored is not None
        dtype = stored if self.plan.wanted.dtype is None else self.plan.wanted.dtype
        if part.request is None or part.inner is None:
            return _zeros(part.box.shape, dtype)
        read = part.request.out.reshape(part.inner.shape)
        if part.inner == part.box and dtype == stored:
            return read
        if part.inner == part.box:
            made = _memory(part.box.shape, dtype)
        else:
            made = _zeros(part.box.shape, dtype)
        made[part.inner.within(part.box)] = convert(read, made.dtype)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFit:
    """A leaf of the result held against the stored one."""

    name: str
    """In the result."""
    entry: LeafEntry
    target: Any
    plan: LeafPlan | None
    """None: it does not fit."""
    note: str = ""
    """Why it does not fit, or what is lost."""
    cause: Cause = ""
    taught: str = ""
    """Name of the type that is asked for, if it is one that was taught."""

    def row(self) -> LeafPreview:
        """The same in words."""
        asked = repr(self.taught) if self.taught else ""
        if not asked and self.target is not ANYTHING:
            asked = asked_form(self.target, self.entry)
        return LeafPreview(
            target=self.name,
            stored=shown_name(self.entry.path),
            asked_form=asked,
            stored_form=stored_form(self.entry),
            outcome="mismatch" if self.plan is None else _outcome(self.plan),
            note=self.note,
            cause=self.cause,
        )


def plan_leaf(
    position: int,
    entry: LeafEntry,
    target: Any,
    *,
    name: str,
    loading: LoadSettings,
    processes: Processes,
    leaves: Leaves,
    view: View | None = None,
) -> LeafFit:
    """How to load one leaf, or why it does not fit.

    Args:
        position: Of the entry in its manifest.
        entry: The stored leaf.
        target: The abstract leaf, or `ANYTHING`.
        name: Of the leaf in the result.
        loading: The settings.
        processes: Says which parts this process needs.
        leaves: The kinds of leaves that are known.
        view: Which slice of it is meant; None for all of it.

    Raises:
        UnsupportedLeafError: The target asks for nothing that a checkpoint can hold.
        Exception: Whatever the handler of a taught type raises.
    """
    if view is not None:
        entry = _sliced(entry, view)

    def fit(
        plan: LeafPlan | None, note: str = "", cause: Cause = "", taught: str = ""
    ) -> LeafFit:
        return LeafFit(
            name=name,
            entry=entry,
            target=target,
            plan=plan,
            note=note,
            cause=cause,
            taught=taught,
        )

    try:
        with at_leaf(name):
            asked = leaves.ask(None if target is ANYTHING else target, entry)
    except UnlikeError as error:
        return fit(None, cause="kind", taught=str(error))
    try:
        if asked.target is None:
            ready_target, seen = ready_default(entry, loading)
        else:
            ready_target, seen = ready(asked.target, entry, loading)
        kind = kind_of_target(ready_target)
        wanted = kind.want(ready_target, seen, processes)
    except NoMeshError as error:
        return fit(None, str(error), "mesh")
    except UnsupportedLeafError as error:
        with at_leaf(name):
            raise error
    except (ValueError, IndexError) as error:
        # JAX refuses a sharding that does not divide the shape, or that has more axes;
        # that is a mismatch.
        return fit(None, f"cannot be placed: {error}", "kind")
    if not _is_of_one_kind(seen, wanted):
        note = unknown_key_note(seen) if is_unknown_key(seen) else ""
        return fit(None, note, "kind")
    plan = LeafPlan(
        position=position,
        entry=seen,
        target=ready_target,
        kind=kind,
        decode=asked.decode,
        wanted=wanted,
        view=view,
    )
    if not plan.is_whole:
        if not _may_pad(seen, wanted):
            return fit(None, "another number of axes", "kind")
        if not loading.pads:
            return fit(None, cause="shape")
    lost = plan.loss() or ""
    cause: Cause = "cast"
    if lost and plan.is_cut_by_jax:
        lost += "; jax_enable_x64 is off, `np.ndarray` or `as_numpy` would keep them"
        cause = "x64"
    if lost and loading.casting == "safe":
        return fit(None, lost, cause)
    return fit(plan, lost)


def _outcome(plan: LeafPlan) -> Outcome:
    if plan.is_whole:
        return "cast" if plan.is_cast else "as is"
    return "cast, padded" if plan.is_cast else "padded"


def _sliced(entry: LeafEntry, view: View) -> LeafEntry:
    """A slice of a leaf, which looks like a whole array."""
    kind = entry.kind
    if kind == "bytes" and len(view.shape) != 1:
        kind = "np.ndarray"
    # The recorded sharding is about axes and extents that a slice does not have.
    sharding = entry.sharding if view.shape == entry.shape else None
    # A taught type makes values of whole stored forms: `custom` is None.
    return dataclasses.replace(
        entry, kind=kind, shape=view.shape, sharding=sharding, custom=None
    )


def _is_of_one_kind(entry: LeafEntry, wanted: Wanted) -> bool:
    """Whether one can become the other at all."""
    has_text = entry.kind in TEXT_KINDS or wanted.kind in TEXT_KINDS
    if has_text and entry.kind != wanted.kind:
        return False
    if wanted.kind == "bytes" and (entry.dtype, len(entry.shape)) != ("uint8", 1):
        return False
    return entry.prng_impl == wanted.prng_impl


def _may_pad(entry: LeafEntry, wanted: Wanted) -> bool:
    assert wanted.shape is not None
    return len(wanted.shape) == len(entry.shape)


def _memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Host memory for a part of a leaf.

    A document can claim any shape, and a large array may well be meant for many hosts;
    that there is memory for it is known only when it is taken.

    Raises:
        HostMemoryError: There is not enough.
    """
    try:
        return allocate(shape, dtype)
    except MemoryError as error:
        size_bytes = math.prod(shape) * dtype.itemsize
        raise HostMemoryError(
            f"{dtype}{list(shape)} takes {size_bytes} bytes, which this host does not "
            "have; ask for it with a sharding over more devices or processes, load a "
            "slice with `load_leaf(path, name, index=...)`, or leave it out with "
            "`PLACEHOLDER`"
        ) from error


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    zeros = _memory(shape, dtype)
    # By bytes: some dtypes of ml_dtypes cannot be assigned a Python number.
    zeros.reshape(-1).view(np.uint8)[...] = 0
    return zeros
