"""Which parameter a leaf of an optimizer state belongs to.

Optax repeats the tree of the parameters inside its states, below any number of tuples
and wrappers.  So the path of such a leaf contains the path of its parameter as one
contiguous segment, for every transform, and nothing but paths is needed to find it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax

from stowax.adapters import KeyPath, StoredName, plain_key, stored_name


def parameters(params: Any) -> Mapping[StoredName, Any]:
    """Every parameter by the name of its path, Variables of NNX taken as their values.

    `params` may be any tree, or a state of NNX.
    """
    return {stored_name(path): leaf for path, leaf in named_leaves(params)}


def named_leaves(tree: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Leaves in JAX's order, with paths in which a Variable is no level of its own."""
    below = children(tree)
    if below is None:
        yield (), tree
        return
    for key, child in below:
        yield from ((key + path, leaf) for path, leaf in named_leaves(child))


def children(node: Any) -> list[tuple[KeyPath, Any]] | None:
    """The children one level below, each with zero or one key; None for a leaf."""
    opened, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda part: part is not node
    )
    if len(opened) == 1 and not opened[0][0]:
        return None
    if is_variable(node):
        return [((), child) for _, child in opened]
    return [((plain_key(path[0]),), child) for path, child in opened]


def is_variable(node: Any) -> bool:
    """Whether the node is a Variable of NNX; asks without importing Flax."""
    return hasattr(node, "get_raw_value") and hasattr(node, "get_metadata")


def parameter_of(path: KeyPath, params: Container[StoredName]) -> KeyPath | None:
    """The longest segment that is the path of a parameter, the last one if tied."""
    names = stored_name(path)
    for length in range(len(names), 0, -1):
        for start in range(len(names) - length, -1, -1):
            if names[start : start + length] in params:
                return path[start : start + length]
    return None
