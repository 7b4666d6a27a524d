"""What every kind of leaf can do: describe itself, come to the host, be placed.

A handler knows one kind of value.  On save it says what there is to store and who
holds which part; on load it says which parts it needs and makes the value of them.
It decides nothing about files, and moves nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from stowax._box import Box
from stowax._manifest import LeafEntry, LeafKind
from stowax._processes import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One part of an array, and the processes that hold a replica of it."""

    box: Box
    processes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a value is, before anything is decided about its storage."""

    kind: LeafKind
    dtype: np.dtype | None = None
    """dtype of the stored array; None when there is none."""
    shape: tuple[int, ...] = ()
    """Shape of the stored array."""
    holdings: tuple[Holding, ...] = ()
    """Parts that cover the array without overlap; none of an array without elements."""
    text: str | None = None
    prng_impl: str | None = None
    sharding: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a target asks of a stored leaf."""

    kind: str
    """Word for messages: `array`, `scalar`, `string`."""
    shape: tuple[int, ...] | None = None
    """Shape of the stored array; None: any."""
    dtype: np.dtype | None = None
    """dtype to convert to; None: as stored."""
    prng_impl: str | None = None
    boxes: tuple[Box, ...] = ()
    """Parts of the stored array that this process needs."""


class LeafHandler(Protocol):
    """Everything the library knows about one kind of leaf."""

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of this kind and can be saved."""
        ...

    def describe(self, value: Any, processes: Processes) -> Description:
        """What there is to store of `value`.

        Raises:
            UnsupportedLeafError: Of this kind, but not storable; says why.
        """
        ...

    def stage(
        self, value: Any, boxes: Sequence[Box], processes: Processes, *, borrow: bool
    ) -> Sequence[jax.Array | np.ndarray]:
        """The memory of parts that this process holds, one array per box.

        Args:
            value: What `describe` described.
            boxes: Parts out of the holdings of this process.
            processes: Says which devices are this process's own.
            borrow: Whether the caller leaves the value alone until all is written; if
                not, memory that the caller can change is copied.
        """
        ...

    def accepts_target(self, target: Any) -> bool:
        """Whether `target`, a leaf of an abstract state, asks for this kind."""
        ...

    def default_target(self, entry: LeafEntry) -> Any | None:
        """The target for a stored leaf when the caller gave none.

        Returns:
            None when another kind of leaf is made of such an entry.
        """
        ...

    def want(self, target: Any, entry: LeafEntry, processes: Processes) -> Wanted:
        """What `target` asks of `entry`."""
        ...

    def place(
        self,
        target: Any,
        entry: LeafEntry,
        parts: Mapping[Box, np.ndarray],
        processes: Processes,
    ) -> Any:
        """Makes the value of the parts that `want` asked for, in the wanted dtype."""
        ...

    def metadata(self, entry: LeafEntry) -> Any | None:
        """What `metadata()` shows for a stored leaf; None for other kinds."""
        ...
