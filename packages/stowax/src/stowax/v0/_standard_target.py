"""What a target of `StandardRestore` asks of every leaf, its sharding above all."""

from __future__ import annotations

from typing import Any

import jax

from stowax._formats._base import TreeItem
from stowax._keypath import flatten
from stowax.errors import TreeMismatchError
from stowax.v0._flat import str_keypath
from stowax.v0._leaf_metadata import ArrayMetadata
from stowax.v0._restore_args import construct_restore_args
from stowax.v0._sharding_metadata import ShardingError, ShardingMetadata
from stowax.v0._targets import texts_of
from stowax.v0._tree_metadata import shown_tree


def standard_restore_args(
    target: Any,
    item: TreeItem,
    *,
    fallback_sharding: jax.sharding.Sharding | None,
    support_layout: bool,
) -> Any:
    """The `RestoreArgs` of every leaf.

    A leaf of the target that names no sharding is placed as it was when it was saved.

    Args:
        target: The target; None: what is stored, as it was placed.
        item: What is stored.
        fallback_sharding: For arrays that were on devices which this run lacks.
        support_layout: Whether layouts of the target count.

    Raises:
        TreeMismatchError: The target has leaves that are not stored.
        ShardingError: There is no sharding for an array; give it one in the target.
    """
    stored = shown_tree(item)
    flat = flatten(stored)
    by_texts = dict(zip(map(texts_of, flat.paths), flat.leaves, strict=True))

    def stored_sharding(leaf: Any) -> Any:
        if not isinstance(leaf, ArrayMetadata) or leaf.sharding is None:
            return None
        try:
            return leaf.sharding.to_jax_sharding()
        except ShardingError:
            if fallback_sharding is None:
                raise
            return fallback_sharding

    def asked_sharding(path: Any, leaf: Any) -> Any:
        if not hasattr(leaf, "sharding"):
            return None
        found = leaf.sharding
        if isinstance(found, ShardingMetadata):
            found = found.to_jax_sharding()
        if support_layout and getattr(leaf, "format", None) is not None:
            found = leaf.format if leaf.format.layout is not None else found
        if found is not None:
            return found
        texts = str_keypath(path)
        if texts not in by_texts:
            name = ".".join(texts)
            raise TreeMismatchError(
                f"the target has the leaf {name!r}, which is not stored in {item.path}",
                [name],
            )
        return stored_sharding(by_texts[texts])

    if target is None:
        shardings = jax.tree.map(stored_sharding, stored)
        return construct_restore_args(stored, shardings)
    shardings = jax.tree_util.tree_map_with_path(asked_sharding, target)
    return construct_restore_args(target, shardings)
