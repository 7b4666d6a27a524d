"""The kinds of leaves in order of preference: the first that accepts wins."""

from __future__ import annotations

from typing import Any

from stowax._leaves._base import LeafHandler
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._leaves._numpy import NumpyLeaf
from stowax._leaves._scalar import ScalarLeaf
from stowax._leaves._string import StringLeaf
from stowax._manifest import LeafEntry
from stowax.errors import UnsupportedLeafError

STANDARD: tuple[LeafHandler, ...] = (
    JaxArrayLeaf(),
    ScalarLeaf(),
    StringLeaf(),
    NumpyLeaf(),
)


def for_value(value: Any, name: str) -> LeafHandler:
    """The handler that saves `value`.

    Raises:
        UnsupportedLeafError: No kind accepts it; names the leaf and says what to do.
    """
    for handler in STANDARD:
        if handler.accepts(value):
            return handler
    hint = "convert it to an array, a number or a string"
    if callable(value):
        hint = (
            "drop functions before saving (Equinox: `eqx.filter(tree, eqx.is_array)`)"
        )
    raise UnsupportedLeafError(
        f"leaf {name or '<root>'!r} is a {type(value).__module__}."
        f"{type(value).__qualname__}, which a checkpoint cannot hold; {hint}. "
        "Nothing was written."
    )


def for_target(target: Any, name: str) -> LeafHandler:
    """The handler that loads what `target` asks for.

    Raises:
        UnsupportedLeafError: It asks for nothing that a checkpoint can hold.
    """
    for handler in STANDARD:
        if handler.accepts_target(target):
            return handler
    raise UnsupportedLeafError(
        f"leaf {name or '<root>'!r} of the abstract state is {target!r}; give a "
        "`jax.ShapeDtypeStruct`, an array, a number, a string, one of the types int, "
        "float, bool, complex and str, or `stowax.PLACEHOLDER`"
    )


def default_target(entry: LeafEntry) -> Any:
    """The target for a stored leaf when the caller gave none."""
    return next(
        target
        for handler in STANDARD
        if (target := handler.default_target(entry)) is not None
    )


def metadata(entry: LeafEntry) -> Any:
    """What `metadata()` shows for a stored leaf."""
    return next(
        shown for handler in STANDARD if (shown := handler.metadata(entry)) is not None
    )
