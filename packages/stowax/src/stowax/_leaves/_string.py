"""Strings: kept in the documents of an item, not in its data files."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box
from stowax._leaves._base import Description, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes
from stowax.errors import UnsupportedLeafError


class StringLeaf:
    """Saves and loads `str`; that of the primary process counts."""

    def accepts(self, value: Any) -> bool:
        """Strings and their subclasses, which come back as plain strings."""
        return isinstance(value, str)

    def outline(self, value: str) -> Hashable:
        """The text itself: `str` of a subclass may be something else (`Enum`)."""
        return str.__str__(value)

    def describe(self, value: str, processes: Processes) -> Description:
        """The text itself."""
        del processes
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedLeafError(
                f"a string with half a surrogate pair has no UTF-8 form: {error}"
            ) from error
        return Description(kind="string", text=str.__str__(value))

    def takes_memory(self, value: Any, *, borrow: bool) -> bool:
        """There is nothing to stage."""
        del value, borrow
        return False

    def stage(
        self, value: str, boxes: Sequence[Box], processes: Processes, *, borrow: bool
    ) -> Sequence[jax.Array | np.ndarray]:
        """Nothing to move."""
        del value, boxes, processes, borrow
        return []

    def accepts_target(self, target: Any) -> bool:
        """A string, or the type."""
        return target is str or isinstance(target, str)

    def default_target(self, form: LeafForm) -> Any | None:
        """Any string."""
        return self.metadata(form)

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """Nothing from the data files."""
        del target, form, processes
        return Wanted(kind="string")

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """The text."""
        del target, processes
        return lambda _: form.text or ""

    def metadata(self, form: LeafForm) -> Any | None:
        """The word `string`."""
        return "string" if form.kind == "string" else None
