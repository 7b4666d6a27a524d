"""An optimizer state as its leaves, each with the transform that owns it.

The owner is the innermost NamedTuple around a leaf: `ScaleByAdamState` and its field
`mu`.  Two optimizers whose states look alike differ in their owners, and one optimizer
keeps its owners wherever it stands in a chain.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from stowax.adapters import Form, KeyPath, StoredName, class_name, form_of, show_path
from stowax.errors import UnsupportedLeafError

from ._params import children, parameter_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedLeaf:
    """One leaf of an optimizer state."""

    path: KeyPath
    live: Any
    form: Form
    owner: str | None
    """`optax:ScaleByAdamState`; None outside of any NamedTuple."""
    field: str | None
    """The field of the owner that the leaf is in, or below."""
    param: KeyPath | None
    """Path of the parameter it belongs to, where the parameters are known."""


def walk(tree: Any, params: Container[StoredName]) -> list[OwnedLeaf]:
    """Every leaf, in JAX's order.

    Raises:
        UnsupportedLeafError: A leaf is an object that no checkpoint can hold.
    """
    return list(_visit(tree, (), None, None, params))


def _visit(
    node: Any,
    path: KeyPath,
    owner: str | None,
    field: str | None,
    params: Container[StoredName],
) -> Iterator[OwnedLeaf]:
    below = children(node)
    if below is None:
        try:
            form = form_of(node)
        except UnsupportedLeafError as error:
            raise UnsupportedLeafError(f"{show_path(path)}: {error}.") from None
        yield OwnedLeaf(
            path=path,
            live=node,
            form=form,
            owner=owner,
            field=field,
            param=parameter_of(path, params),
        )
        return
    is_owner = isinstance(node, tuple) and hasattr(node, "_fields")
    for key, child in below:
        if is_owner:
            owner = class_name(type(node), "optax.contrib", "optax")
            field = str(key[0])
        yield from _visit(child, path + key, owner, field, params)
