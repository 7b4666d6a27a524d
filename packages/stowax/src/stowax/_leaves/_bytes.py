"""Python `bytes`: an array of `uint8`, by the primary process, whose value counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stowax._box import Box, whole
from stowax._leaves._base import Description, Holding, Wanted
from stowax._manifest import LeafEntry
from stowax._processes import Processes


class BytesLeaf:
    """Saves and loads `bytes`; not `bytearray`, which would come back as another type.

    Any array of `uint8` with one axis can be loaded as bytes, whoever saved it.
    """

    def accepts(self, value: Any) -> bool:
        """Bytes and their subclasses, which come back as plain bytes."""
        return isinstance(value, bytes)

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

    def stage(
        self, value: bytes, boxes: Sequence[Box], processes: Processes, *, borrow: bool
    ) -> Sequence[jax.Array | np.ndarray]:
        """The memory of the bytes themselves, which nobody can change."""
        del boxes, processes, borrow
        return [np.frombuffer(value, np.uint8)]

    def accepts_target(self, target: Any) -> bool:
        """Bytes, or the type."""
        return target is bytes or isinstance(target, bytes)

    def default_target(self, entry: LeafEntry) -> Any | None:
        """Bytes of any length."""
        return self.metadata(entry)

    def want(self, target: Any, entry: LeafEntry, processes: Processes) -> Wanted:
        """All of them, in every process."""
        del target, processes
        return Wanted(kind="bytes", boxes=(whole(entry.shape),))

    def place(
        self,
        target: Any,
        entry: LeafEntry,
        parts: Mapping[Box, np.ndarray],
        processes: Processes,
    ) -> bytes:
        """The bytes."""
        del target, entry, processes
        (part,) = parts.values()
        return part.tobytes()

    def metadata(self, entry: LeafEntry) -> Any | None:
        """No bytes."""
        return b"" if entry.kind == "bytes" else None
