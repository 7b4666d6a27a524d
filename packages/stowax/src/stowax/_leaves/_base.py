"""What every kind of leaf can do: describe itself, come to the host, be placed.

A `StandardLeaf` knows one kind of value.  On save it says what there is to store and
who holds which part; on load it says which parts it needs and makes the value of them.
It decides nothing about files, and moves nothing itself.

A `LeafHandler`, of which users write their own, knows nothing of parts: it tells a
value of its type as a standard leaf, and makes a value of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from stowax._box import Box
from stowax._manifest import LeafForm, LeafKind
from stowax._processes import Processes

T = TypeVar("T")


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
    """Word for messages: `array`, `bytes`, or a kind without an array."""
    shape: tuple[int, ...] | None = None
    """Shape of the stored array; None: any."""
    dtype: np.dtype | None = None
    """dtype to convert to; None: as stored."""
    prng_impl: str | None = None
    boxes: tuple[Box, ...] = ()
    """Parts of the stored array that this process needs."""
    is_moved: bool = False
    """Whether the value lies elsewhere, and leaves the memory of its parts unused."""


Placer = Callable[[Mapping[Box, np.ndarray]], Any]
"""Makes a value of parts in the wanted dtype, whose memory belongs to it.

Called on the thread of whoever loads, which has JAX's default device.
"""


class UnlikeError(Exception):
    """A target asks for another type than is stored; the text names that."""


class StandardLeaf(Protocol):
    """Everything the library knows about one kind of leaf."""

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of this kind and can be saved."""
        ...

    def outline(self, value: Any) -> Hashable:
        """All that `describe` goes by: of equal ones, of this kind, it says the same.

        Raises:
            UnsupportedLeafError: The value is there no more; says why.
        """
        ...

    def describe(self, value: Any, processes: Processes) -> Description:
        """What there is to store of `value`.

        Raises:
            UnsupportedLeafError: Of this kind, but not storable; says why.
        """
        ...

    def takes_memory(self, value: Any, *, borrow: bool) -> bool:
        """Whether `stage` takes memory, more than a few bytes, beside the value's."""
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

    def default_target(self, form: LeafForm) -> Any | None:
        """The target for a stored leaf when the caller gave none.

        Returns:
            None when another kind of leaf is made of such a form.
        """
        ...

    def want(self, target: Any, form: LeafForm, processes: Processes) -> Wanted:
        """What `target` asks of `form`."""
        ...

    def placer(self, target: Any, form: LeafForm, processes: Processes) -> Placer:
        """How a value is made of the parts that `want` asked for."""
        ...

    def metadata(self, form: LeafForm) -> Any | None:
        """What `metadata()` shows for a stored leaf; None for other kinds."""
        ...


class LeafHandler(Protocol[T]):
    """Teaches trees one more type of leaf; see `PyTreeOptions.leaf_handlers`.

    A value is stored as one standard leaf, its stored form, beside facts of JSON.  So
    Orbax, and every program that was not taught the type, load the stored form; nothing
    is imported by the name that is recorded.  A stored form that is a sharded
    `jax.Array` is written shard by shard, and loaded onto any other mesh.

    What a handler raises goes to the caller, with the name of the leaf.
    `stowax.testing.leaf_suite` has its promises as tests.

    Example:
        Exact decimal numbers, which are strings to everybody else:

        >>> import decimal
        >>> import stowax
        >>> class DecimalHandler:
        ...     typestr = "decimal.Decimal"
        ...
        ...     def accepts(self, value):
        ...         return isinstance(value, decimal.Decimal)
        ...
        ...     def describe(self, value):
        ...         return None
        ...
        ...     def stage(self, value):
        ...         return str(value)
        ...
        ...     def accepts_target(self, target):
        ...         return target is decimal.Decimal or self.accepts(target)
        ...
        ...     def want(self, target, facts):
        ...         return None
        ...
        ...     def place(self, stored, facts, target):
        ...         return decimal.Decimal(stored)
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> context = stowax.Context()
        >>> context.pytree.leaf_handlers = (DecimalHandler(),)
        >>> with context:
        ...     stowax.save(path, {"price": decimal.Decimal("0.10")})
        ...     stowax.load(path)
        {'price': Decimal('0.10')}
        >>> stowax.load(path)  # without the handler
        {'price': '0.10'}
    """

    @property
    def typestr(self) -> str:
        """The name that checkpoints record, for ever: the handler is found by it."""
        ...

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of this type.

        Asked of containers too, None excepted: one that is accepted is a leaf.
        """
        ...

    def describe(self, value: T) -> Any:
        """Facts that the stored form does not say: a JSON value, such as None.

        Of several processes the primary one's count.
        """
        ...

    def stage(self, value: T) -> Any:
        """The stored form: an array of JAX or NumPy, a number, a string or bytes.

        It is staged as any such leaf is: a NumPy array may be memory of the value, and
        is copied where the caller may change it before it is written.
        """
        ...

    def accepts_target(self, target: Any) -> bool:
        """Whether `target`, from an abstract state, asks for this type.

        Asked of containers too, None excepted: one that is accepted is a leaf.
        """
        ...

    def want(self, target: Any, facts: Any) -> Any:
        """The abstract leaf to load the stored form with, such as a `ShapeDtypeStruct`.

        Args:
            target: What `accepts_target` accepted.
            facts: What `describe` said.

        Returns:
            None to load it as it is stored.
        """
        ...

    def place(self, stored: Any, facts: Any, target: Any) -> T:
        """Makes the value.

        Args:
            stored: The stored form, loaded; it belongs to the value.
            facts: What `describe` said.
            target: What the abstract state asked for; None if there was none.
        """
        ...
