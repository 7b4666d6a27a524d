"""Placeholders that Orbax stored: leaves without a value, which are never saved here.

The older API of Orbax saves a tree that was loaded in part with `...` in the places of
the other leaves, and gives that back.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box
from stowax._leaves._base import Description, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes
from stowax.tree import PLACEHOLDER

_AS_STORED = object()


class PlaceholderLeaf:
    """Gives back `...` for what is stored as that."""

    def accepts(self, value: Any) -> bool:
        """Never: what was not loaded is left out of a state."""
        del value
        return False

    def outline(self, value: Any) -> Hashable:
        """Nothing; no value is of this kind."""
        del value

    def describe(self, value: Any, processes: Processes) -> Description:
        """Nothing to store."""
        del value, processes
        return Description(kind="placeholder")

    def takes_memory(self, value: Any, *, borrow: bool) -> bool:
        """There is nothing to stage."""
        del value, borrow
        return False

    def stage(
        self, value: Any, boxes: Sequence[Box], processes: Processes, *, borrow: bool
    ) -> Sequence[jax.Array | np.ndarray]:
        """Nothing to move."""
        del value, boxes, processes, borrow
        return []

    def accepts_target(self, target: Any) -> bool:
        """Never of an abstract state, where `...` is not looked for at all."""
        return target is _AS_STORED

    def default_target(self, form: LeafForm) -> Any | None:
        """What nobody else can ask for."""
        return _AS_STORED if form.kind == "placeholder" else None

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """Nothing from the data files."""
        del target, form, processes
        return Wanted(kind="placeholder")

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """`...`."""
        del target, form, processes
        return lambda _: PLACEHOLDER

    def metadata(self, form: LeafForm) -> Any | None:
        """`...`."""
        return PLACEHOLDER if form.kind == "placeholder" else None
