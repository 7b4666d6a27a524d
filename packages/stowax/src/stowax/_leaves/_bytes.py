"""Python `bytes`: an array of `uint8`, by the primary process, whose value counts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._leaves._base import Description, Holding, Placer, Wanted
from stowax._manifest import LeafForm
from stowax._processes import Processes


class BytesLeaf:
    """Saves and loads `bytes`; not `bytearray`, which would come back as another type.

    Any array of `uint8` with one axis can be loaded as bytes, whoever saved it.
    """

    def accepts(self, value: Any) -> bool:
        """Bytes and their subclasses, which come back as plain bytes."""
        return isinstance(value, bytes)

    def outline(self, value: bytes) -> Hashable:
        """The length."""
        return len(value)

    def describe(self, value: bytes, processes: Processes) -> Description:
        """One part, held by the primary process."""
        shape = (len(value),)
        held = (Holding(box=whole(shape), processes=(processes.primary,)),)
        return Description(
            kind="bytes",
            dtype=np.dtype(np.uint8),
            shape=shape,
            holdings=held if value else (),
        )

    def takes_memory(self, value: Any, *, borrow: bool) -> bool:
        """The bytes themselves are staged: nobody can change them."""
        del value, borrow
        return False

    def stage(
        self, value: bytes, boxes: Sequence[Box], processes: Processes, *, borrow: bool
    ) -> Sequence[jax.Array | np.ndarray]:
        """The memory of the bytes themselves, which nobody can change."""
        del boxes, processes, borrow
        return [np.frombuffer(value, np.uint8)]

    def accepts_target(self, target: Any) -> bool:
        """Bytes, or the type."""
        return target is bytes or isinstance(target, bytes)

    def default_target(self, form: LeafForm) -> Any | None:
        """Bytes of any length."""
        return self.metadata(form)

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """All of them, in every process."""
        del target, processes
        return Wanted(kind="bytes", boxes=(whole(form.shape),))

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """The bytes."""
        del target, form, processes

        def place(parts: Mapping[Box, np.ndarray]) -> bytes:
            (part,) = parts.values()
            return part.tobytes()

        return place

    def metadata(self, form: LeafForm) -> Any | None:
        """No bytes."""
        return b"" if form.kind == "bytes" else None
