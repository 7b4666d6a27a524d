"""A target held against a stored leaf: whether it fits, and how it would be loaded.

What has to be found out depends on the form of a stored leaf and on what is asked of
it, not on its place in the tree; a model has few such pairs, so each is settled once.
No memory is taken and nothing is read, so a dry run ends here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._codecs._zarr import dtype_from_name
from stowax._item_leaf import LeafPlan, PartPlan
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
from stowax._leaves._abstract import ArrayMetadata, NumpyMetadata, asked_layout
from stowax._leaves._base import UnlikeError, Wanted
from stowax._leaves._registry import Leaves, kind_of_target
from stowax._manifest import NO_ARRAY_KINDS, LeafForm
from stowax._mapped import CAN_MAP
from stowax._plan._index import View
from stowax._plan._rows import Cause, LeafPreview, Outcome
from stowax._processes import Processes
from stowax._settings import LoadSettings
from stowax.errors import UnsupportedLeafError

ANYTHING: Any = object()
"""The target where the caller asked for nothing in particular."""


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
    if cls is ArrayMetadata or cls is NumpyMetadata:
        outline = cls, target.shape, target.dtype, getattr(target, "sharding", None)
        return outline if _has_hash(outline) else None
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


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # Anything may stand in for a shape, a dtype or a sharding.
        return False
    return True


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
    # By identity: to NumPy, None is equal to float64.
    made_dtype = dtype if wanted.dtype is None else wanted.dtype
    is_cast = made_dtype != dtype
    plan = LeafPlan(
        form=seen,
        target=ready_target,
        kind=kind,
        decode=asked.decode,
        wanted=wanted,
        stored_dtype=dtype,
        parts=parts,
        is_as_read=not is_cast
        and all(part.box == part.inner and view is None for part in parts),
        read_bytes=sum(_read_bytes(part, dtype) for part in parts),
        passing_bytes=_passing_bytes(
            parts,
            dtype,
            made_dtype,
            is_cast=is_cast,
            # Nobody knows what a value of a taught type keeps.
            is_left=wanted.is_moved or asked.decode is not None,
        ),
        may_map=CAN_MAP and loading.maps_files,
    )
    lost = plan.loss() or ""
    cause: Cause = "cast"
    if lost and plan.is_cut_by_jax:
        lost += "; jax_enable_x64 is off, `np.ndarray` or `as_numpy` would keep them"
        cause = "x64"
    if lost and loading.casting == "safe":
        return fit(None, lost, cause)
    return fit(plan, lost)


def _passing_bytes(
    parts: Sequence[PartPlan],
    dtype: np.dtype | None,
    made_dtype: np.dtype | None,
    *,
    is_cast: bool,
    is_left: bool,
) -> int:
    """Memory of parts, as read and as made, that is not that of the value.

    Args:
        parts: What the value is made of.
        dtype: As it is stored; None: it is no array.
        made_dtype: As it is made.
        is_cast: Whether these differ.
        is_left: Whether the value has memory of its own.
    """
    if dtype is None or made_dtype is None:
        return 0
    sum_bytes = 0
    for part in parts:
        is_made = is_cast or part.box != part.inner
        if is_made or is_left:
            sum_bytes += _read_bytes(part, dtype)
        if is_made and is_left:
            sum_bytes += math.prod(part.box.shape) * made_dtype.itemsize
    return sum_bytes


def _read_bytes(part: PartPlan, dtype: np.dtype | None) -> int:
    if dtype is None or part.stored is None:
        return 0
    return math.prod(part.shape) * dtype.itemsize


def _part(box: Box, form: LeafForm, view: View | None, *, is_whole: bool) -> PartPlan:
    inner = box if is_whole else box.intersect(whole(form.shape))
    if inner is None:
        return PartPlan(box, None, None, ())
    stored = inner if view is None else view.stored_box(inner)
    return PartPlan(box, inner, stored, stored.shape)


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
    has_text = form.kind in NO_ARRAY_KINDS or wanted.kind in NO_ARRAY_KINDS
    if has_text and form.kind != wanted.kind:
        return False
    if wanted.kind == "bytes" and (form.dtype, len(form.shape)) != ("uint8", 1):
        return False
    return form.prng_impl == wanted.prng_impl


def _may_pad(form: LeafForm, wanted: Wanted) -> bool:
    assert wanted.shape is not None
    return len(wanted.shape) == len(form.shape)
