"""How leaves are stored, by a tree of `SaveArgs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from stowax._settings import StorageSettings
from stowax.errors import InvalidArgumentError, TreeMismatchError
from stowax.options import ArrayOptions
from stowax.v0._arguments import SaveArgs

_StorageOptions = ArrayOptions.Saving.StorageOptions

OfLeaf = Callable[[Any, Any], Any]
"""Called with key path and value of a leaf: what is asked of it."""


def leaf_storage(
    item: Any, save_args: Any
) -> tuple[StorageSettings | None, OfLeaf | None]:
    """What is asked of all leaves, or, where they differ, of each.

    Args:
        item: The tree.
        save_args: A tree of the same keys, of `SaveArgs` or None; or None.

    Raises:
        TreeMismatchError: Lists the leaves of which it says nothing.
        InvalidArgumentError: Something else stands in the place of `SaveArgs`.
    """
    if save_args is None:
        return None, None
    asked = {
        jax.tree_util.keystr(path): _checked(path, args)
        for path, args in jax.tree_util.tree_leaves_with_path(
            save_args, is_leaf=lambda node: node is None or isinstance(node, SaveArgs)
        )
    }
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(item)
    ]
    if missing := [name for name in names if name not in asked]:
        raise TreeMismatchError(
            f"save_args says nothing of {len(missing)} of {len(names)} leaves:\n  "
            + "\n  ".join(missing)
            + "\nGive a `SaveArgs` or None for each, or leave `save_args` out.",
            missing,
        )
    options = {name: _options(asked[name]) for name in names}
    different = list(options.values())
    if not different or all(each == different[0] for each in different):
        return (_settings(different[0]) if different else None), None

    def of_leaf(path: Any, value: Any) -> _StorageOptions | None:
        del value
        return options.get(jax.tree_util.keystr(path))

    return None, of_leaf


def _checked(path: Any, args: Any) -> SaveArgs | None:
    if args is None or isinstance(args, SaveArgs):
        return args
    raise InvalidArgumentError(
        f"save_args has a {type(args).__qualname__} for the leaf "
        f"{jax.tree_util.keystr(path)}; give a `SaveArgs`, or None"
    )


def _options(args: SaveArgs | None) -> _StorageOptions | None:
    if args is None or (
        args.dtype is None and args.chunk_byte_size is None and not args.shard_axes
    ):
        return None
    return _StorageOptions(
        dtype=args.dtype,
        chunk_byte_size=args.chunk_byte_size,
        shard_axes=tuple(args.shard_axes) or None,
    )


def _settings(options: _StorageOptions | None) -> StorageSettings | None:
    if options is None:
        return None
    return StorageSettings(
        dtype=options.dtype,
        chunk_byte_size=options.chunk_byte_size,
        shard_axes=options.shard_axes,
    )
