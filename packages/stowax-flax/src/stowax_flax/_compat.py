"""Where the supported releases of Flax differ; nothing else may ask which one it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from flax import nnx

from stowax.adapters import KeyPath

_GRAPH_MODE: dict[str, Any] = (
    {"graph": True} if "graph" in inspect.signature(nnx.state).parameters else {}
)
"""Graph mode walks shared Variables; releases without the argument know no other."""

_BOOKKEEPING = frozenset(
    {"hijax", "ref", "is_hijax", "has_ref", "is_mutable", "eager_sharding", "mesh"}
)
"""Metadata with which Flax describes the object in memory, under old and new names."""

_RENAMED: dict[str, str] = {"sharding_names": "out_sharding"}


def state(node: Any, *filters: Any) -> Any:
    """The state of NNX with the Variables and plain arrays that pass the filter."""
    return nnx.state(node, *filters, **_GRAPH_MODE)


def flatten_state(state: Any) -> list[tuple[KeyPath, Any]]:
    """The Variables and plain arrays of a state, by their paths."""
    flat: Any = nnx.to_flat_state(state)
    return list(flat)


def update(node: Any, nodes: Mapping[KeyPath, Any]) -> None:
    """Puts these Variables and arrays in the place of those at the same paths."""
    by_path: Any = nodes
    nnx.update(node, nnx.from_flat_state(by_path))


def duplicates(node: Any) -> list[list[KeyPath]]:
    """The paths of every object, Variable or module, that has several."""
    groups: Any = nnx.find_duplicates(node)
    return groups


def raw_value(variable: Any) -> Any:
    """What the Variable holds, without the hooks that change what a reader sees."""
    value = variable.get_raw_value()
    metadata = variable.get_metadata()
    # A mutable array is stored as the array it refers to.
    return value[...] if metadata.get("ref") or metadata.get("has_ref") else value


def metadata(variable: Any) -> dict[str, Any]:
    """The metadata of the user, under the names of the newest release."""
    found: dict[str, Any] = variable.get_metadata()
    return {
        _RENAMED.get(name, name): value
        for name, value in found.items()
        if name not in _BOOKKEEPING
    }
