"""One leaf of a load: whether it fits, what is read for it, and what is made of that.

What has to be found out depends on the form of a stored leaf and on what is asked of
it, not on its place in the tree; a model has few such pairs, so each is settled once.
Planning takes no memory and reads nothing, so a dry run ends here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from stowax._keypath import KeyPath, at_leaf, shown_name
from stowax._leaves._abstract import asked_layout, is_array_like
from stowax._leaves._base import Placer, StandardLeaf, UnlikeError, Wanted
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._leaves._registry import Leaves, kind_of_target
from stowax._manifest import TEXT_KINDS, LeafForm
from stowax._plan._cast import convert, loss
from stowax._plan._index import View
from stowax._plan._rows import Cause, LeafPreview, Outcome
from stowax._processes import Processes
from stowax._transfer import allocate
from stowax.errors import HostMemoryError, UnsupportedLeafError

ANYTHING: Any = object()
"""The target where the caller asked for nothing in particular."""


class _Part(NamedTuple):
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
    parts: tuple[_Part, ...]
    is_as_read: bool
    """Whether every part of the value is just what is read."""

    def begin(self, position: int, path: KeyPath) -> BegunLeaf:
        """Takes the memory that is to be filled.

        Args:
            position: Of the leaf in its manifest.
            path: Of the same.

        Raises:
            HostMemoryError: There is not enough of it.
        """
        dtype = self.stored_dtype
        if dtype is None:
            return BegunLeaf(self, path, [])
        try:
            requests = [
                ReadRequest(position, stored, _memory(shape, dtype))
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
            return {
                part.box: request.out
                for part, request in zip(self.parts, requests, strict=True)
            }
        remaining = iter([request.out for request in requests])
        return {
            part.box: self._made(part, None if part.stored is None else next(remaining))
            for part in self.parts
        }

    def _made(self, part: _Part, read: np.ndarray | None) -> np.ndarray:
        dtype = self.made_dtype
        assert dtype is not None
        if read is None or part.inner is None:
            return _zeros(part.box.shape, dtype)
        if part.shape != part.inner.shape:
            read = read.reshape(part.inner.shape)  # An axis that an index took away.
        if part.inner == part.box and not self.is_cast:
            return read
        if part.inner == part.box:
            made = _memory(part.box.shape, dtype)
        else:
            made = _zeros(part.box.shape, dtype)
        made[part.inner.within(part.box)] = convert(read, made.dtype)
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
            return value if plan.decode is None else plan.decode(value)
        except Exception:  # Any failure deserves its place; raised again as it is.
            with at_leaf(shown_name(leaf.path)):
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFit:
    """A target held against the form of a stored leaf."""

    form: LeafForm
    target: Any
    plan: LeafPlan | None
    """None: it does not fit."""
    note: str = ""
    """Why it does not fit, or what is lost."""
    cause: Cause = ""
    taught: str = ""
    """Name of the type that is asked for, if it is one that was taught."""

    def row(self, name: str, path: KeyPath) -> LeafPreview:
        """The same in words.

        Args:
            name: Of the leaf in the result.
            path: Of the stored leaf.
        """
        asked = repr(self.taught) if self.taught else ""
        if not asked and self.target is not ANYTHING:
            asked = asked_form(self.target, self.form)
        return LeafPreview(
            target=name,
            stored=shown_name(path),
            asked_form=asked,
            stored_form=stored_form(self.form),
            outcome="mismatch" if self.plan is None else _outcome(self.plan),
            note=self.note,
            cause=self.cause,
        )


class Fitting:
    """Holds targets against stored leaves; those that are alike, once.

    Args:
        loading: The settings.
        processes: Says which parts this process needs.
        leaves: The kinds of leaves that are known.
    """

    def __init__(
        self, loading: LoadSettings, processes: Processes, leaves: Leaves
    ) -> None:
        self._loading = loading
        self._processes = processes
        self._leaves = leaves
        # Handlers of the caller's own may tell values apart that look alike to us.
        self._remembers = not leaves.are_taught
        self._known: dict[Hashable, LeafFit] = {}

    def fit(self, form: LeafForm, target: Any, name: str) -> LeafFit:
        """How to load a leaf, or why it does not fit.

        Args:
            form: What is stored; the caller keeps it.
            target: The abstract leaf, or `ANYTHING`.
            name: Of the leaf in the result.

        Raises:
            UnsupportedLeafError: The target asks for nothing that a checkpoint can
                hold.
            Exception: Whatever the handler of a taught type raises.
        """
        key = None
        if self._remembers and (outline := _outline(target)) is not None:
            key = outline, id(form)
            if (known := self._known.get(key)) is not None:
                return known
        found = fit_leaf(
            form, target, name, self._loading, self._processes, self._leaves
        )
        if key is not None:
            self._known[key] = found
        return found


def _outline(target: Any) -> Hashable:
    """All that loading goes by, of targets of the usual types; None for others."""
    cls = type(target)
    if target is ANYTHING or cls is type:
        return target
    if cls is jax.ShapeDtypeStruct:
        return target
    if cls is np.ndarray:
        return cls, target.shape, target.dtype
    if isinstance(target, jax.Array) and not target.is_deleted():
        layout = asked_layout(target)
        return (
            cls,
            target.shape,
            target.dtype,
            target.sharding,
            target.committed,
            layout,
        )
    return None


def fit_leaf(
    form: LeafForm,
    target: Any,
    name: str,
    loading: LoadSettings,
    processes: Processes,
    leaves: Leaves,
    view: View | None = None,
) -> LeafFit:
    """How to load one leaf, or why it does not fit; see `Fitting.fit`.

    Args:
        form: What is stored.
        target: The abstract leaf, or `ANYTHING`.
        name: Of the leaf in the result.
        loading: The settings.
        processes: Says which parts this process needs.
        leaves: The kinds of leaves that are known.
        view: Which slice of it is meant; None for all of it.
    """
    if view is not None:
        form = _sliced(form, view)

    def fit(
        plan: LeafPlan | None, note: str = "", cause: Cause = "", taught: str = ""
    ) -> LeafFit:
        return LeafFit(
            form=form, target=target, plan=plan, note=note, cause=cause, taught=taught
        )

    try:
        with at_leaf(name):
            asked = leaves.ask(None if target is ANYTHING else target, form)
    except UnlikeError as error:
        return fit(None, cause="kind", taught=str(error))
    try:
        if asked.target is None:
            ready_target, seen = ready_default(form, loading)
        else:
            ready_target, seen = ready(asked.target, form, loading)
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
    is_whole = wanted.shape in (None, seen.shape)
    if not is_whole:
        if not _may_pad(seen, wanted):
            return fit(None, "another number of axes", "kind")
        if not loading.pads:
            return fit(None, cause="shape")
    dtype = None if seen.dtype is None else dtype_from_name(seen.dtype)
    parts = ()
    if dtype is not None:
        parts = tuple(_part(box, seen, view, is_whole=is_whole) for box in wanted.boxes)
    plan = LeafPlan(
        form=seen,
        target=ready_target,
        kind=kind,
        decode=asked.decode,
        wanted=wanted,
        stored_dtype=dtype,
        parts=parts,
        # By identity: to NumPy, None is equal to float64.
        is_as_read=(wanted.dtype is None or wanted.dtype == dtype)
        and all(part.box == part.inner and view is None for part in parts),
    )
    lost = plan.loss() or ""
    cause: Cause = "cast"
    if lost and plan.is_cut_by_jax:
        lost += "; jax_enable_x64 is off, `np.ndarray` or `as_numpy` would keep them"
        cause = "x64"
    if lost and loading.casting == "safe":
        return fit(None, lost, cause)
    return fit(plan, lost)


def _part(box: Box, form: LeafForm, view: View | None, *, is_whole: bool) -> _Part:
    inner = box if is_whole else box.intersect(whole(form.shape))
    if inner is None:
        return _Part(box, None, None, ())
    stored = inner if view is None else view.stored_box(inner)
    return _Part(box, inner, stored, stored.shape)


def _outcome(plan: LeafPlan) -> Outcome:
    if plan.is_whole:
        return "cast" if plan.is_cast else "as is"
    return "cast, padded" if plan.is_cast else "padded"


def _sliced(form: LeafForm, view: View) -> LeafForm:
    """A slice of a leaf, which looks like a whole array."""
    kind = form.kind
    if kind == "bytes" and len(view.shape) != 1:
        kind = "np.ndarray"
    # The recorded sharding is about axes and extents that a slice does not have.
    sharding = form.sharding if view.shape == form.shape else None
    # A taught type makes values of whole stored forms: `custom` is None.
    return dataclasses.replace(
        form, kind=kind, shape=view.shape, sharding=sharding, custom=None
    )


def _is_of_one_kind(form: LeafForm, wanted: Wanted) -> bool:
    """Whether one can become the other at all."""
    has_text = form.kind in TEXT_KINDS or wanted.kind in TEXT_KINDS
    if has_text and form.kind != wanted.kind:
        return False
    if wanted.kind == "bytes" and (form.dtype, len(form.shape)) != ("uint8", 1):
        return False
    return form.prng_impl == wanted.prng_impl


def _may_pad(form: LeafForm, wanted: Wanted) -> bool:
    assert wanted.shape is not None
    return len(wanted.shape) == len(form.shape)


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
