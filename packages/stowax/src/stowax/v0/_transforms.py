"""Trees that change their structure between a save and a restore.

Names of leaves are the texts of their keys joined with "/".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from stowax.errors import InvalidArgumentError, LeafNotFoundError
from stowax.v0._flat import from_flat_dict, to_flat_dict

SEPARATOR = "/"


@dataclass
class Transform:
    r"""Where the value of one key of the result, or of several, comes from.

    It stands in a tree of transformations under the key that it is for, which may be a
    regular expression: ``{r"(.*)/kernel": Transform(original_key=r"\1/w")}``.

    Args:
        original_key: The key of the value in the original tree. ``\1`` stands for the
            first group of the regular expression. None for the same key.
        use_fallback: Whether the value comes from where those come from that no
            transformation is for, but the other way round: from the new tree under
            `default_to_original`, else from the original one.
        value_fn: Makes the new value of the original one.
        multi_value_fn: Makes the new value of the new key and the original tree.

    Raises:
        InvalidArgumentError: They say where the value comes from more than once.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.apply_transformations(
        ...     {"w": 2.0, "step": 7},
        ...     {"kernel": ocp.Transform(original_key="w", value_fn=lambda w: w / 2)},
        ...     {"kernel": 0.0, "step": 0},
        ... )
        {'kernel': 1.0, 'step': 7}
    """

    original_key: str | tuple[str] | None = None
    use_fallback: bool = False
    value_fn: Callable[..., Any] | None = None
    multi_value_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self._refuse("use_fallback", "original_key", "value_fn", "multi_value_fn")
        self._refuse("multi_value_fn", "original_key", "value_fn")

    def _refuse(self, one: str, *others: str) -> None:
        """Refuses arguments that say nothing beside another."""
        found = [name for name in others if getattr(self, name) is not None]
        if getattr(self, one) and found:
            raise InvalidArgumentError(
                f"{type(self).__name__}: {one} says where the value comes from, and so "
                f"does {' and '.join(found)}; give one of them"
            )


@dataclass
class RestoreTransform(Transform):
    """A transformation for restoring, which says what a function of it needs.

    Args:
        original_key: As in `Transform`.
        use_fallback: As in `Transform`.
        value_fn: As in `Transform`.
        multi_value_fn: As in `Transform`; its third argument is the `RestoreArgs` of
            the new key.
        multi_value_fn_input_args: The `RestoreArgs` of every leaf of the checkpoint
            that `multi_value_fn` looks at, by its key, which may be a regular
            expression. Others are not loaded.

    Raises:
        InvalidArgumentError: They say where the value comes from more than once, or
            there are arguments for a function that is not given.

    Example:
        >>> from stowax import v0 as ocp
        >>> transform = ocp.RestoreTransform(
        ...     multi_value_fn=lambda key, tree, args: tree["a"] + tree["b"],
        ...     multi_value_fn_input_args={"[ab]": ocp.RestoreArgs()},
        ... )
    """

    multi_value_fn_input_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_value_fn_input_args is not None and self.multi_value_fn is None:
            raise InvalidArgumentError(
                "RestoreTransform: multi_value_fn_input_args is for multi_value_fn, "
                "which is not given"
            )


def apply_transformations(
    original_tree: Any,
    transformations: Any,
    new_tree: Any,
    default_to_original: bool | None = True,
) -> Any:
    r"""Makes a tree of another structure of the values of a tree.

    Args:
        original_tree: Where the values come from.
        transformations: A tree of `Transform`, by the keys of the result, which may be
            regular expressions; of several that fit the last one counts.
        new_tree: The structure of the result. Its own values are those of keys that
            come from nowhere else.
        default_to_original: Whether a key that no transformation is for, and that both
            trees have, gets the value of the original one.

    Returns:
        A new tree; an empty dict if `new_tree` is empty.

    Raises:
        LeafNotFoundError: The original tree lacks a key that a transformation names.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.apply_transformations(
        ...     {"block1": {"w": 1}, "block2": {"w": 2}},
        ...     {r"layers/(\d)/w": ocp.Transform(original_key=r"block\1/w")},
        ...     {"layers": {"1": {"w": 0}, "2": {"w": 0}}, "new": 3},
        ... )
        {'layers': {'1': {'w': 1}, '2': {'w': 2}}, 'new': 3}
    """
    if not jax.tree.leaves(new_tree) and not new_tree:
        return {}
    original = to_flat_dict(original_tree, sep=SEPARATOR)
    new = to_flat_dict(new_tree, sep=SEPARATOR)
    patterns = {
        re.compile(key): transform
        for key, transform in to_flat_dict(transformations, sep=SEPARATOR).items()
    }
    for key in new:
        is_named = False
        for pattern, transform in patterns.items():
            match = pattern.fullmatch(key)
            if match is None:
                continue
            is_named = True
            if transform.use_fallback:
                if not default_to_original:
                    new[key] = _find(original, key, key)
            elif transform.multi_value_fn is not None:
                new[key] = transform.multi_value_fn(key, original_tree)
            else:
                value = _find(original, original_key(transform, match), key)
                new[key] = transform.value_fn(value) if transform.value_fn else value
        if not is_named and default_to_original and key in original:
            new[key] = original[key]
    return from_flat_dict(new, target=new_tree, sep=SEPARATOR)


def original_key(transform: Transform, match: re.Match[str]) -> str:
    """The key in the original tree, given how that of the result was matched."""
    if transform.original_key is None:
        return match.string
    if isinstance(transform.original_key, tuple):
        return match.expand(SEPARATOR.join(transform.original_key))
    return match.expand(transform.original_key)


def _find(original: Mapping[str, Any], key: str, new_key: str) -> Any:
    if key not in original:
        raise LeafNotFoundError(
            f"a transformation makes {new_key!r} of {key!r}, which the original tree "
            "lacks; it has " + (", ".join(map(repr, list(original)[:10])) or "nothing")
        )
    return original[key]


def merge_trees(*trees: Any, target: Any = None) -> Any:
    """The leaves of several trees in one; of several for one key the last one.

    Args:
        *trees: Any trees.
        target: The structure of the result; None for nested dicts.

    Raises:
        LeafNotFoundError: No tree has a leaf of the target.
        KeyPathCollisionError: A leaf of one lies on the path of that of another.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.merge_trees({"a": 1, "b": 2}, {"b": 3})
        {'a': 1, 'b': 3}
    """
    merged: dict[Any, Any] = {}
    for tree in trees:
        merged |= to_flat_dict(tree)
    return from_flat_dict(merged, target=target)


def intersect_trees(*trees: Any, target: Any = None) -> Any:
    """The leaves whose keys all of several trees have, with the values of the last.

    Args:
        *trees: Any trees, at least one.
        target: The structure of the result; None for nested dicts.

    Raises:
        LeafNotFoundError: Not all trees have a leaf of the target.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.transform_utils.intersect_trees({"a": 1, "b": 2}, {"b": 3})
        {'b': 3}
    """
    flat = [to_flat_dict(tree) for tree in trees]
    shared = set[Any].intersection(*map(set[Any], flat))
    last = {key: leaf for key, leaf in flat[-1].items() if key in shared}
    return from_flat_dict(last, target=target)
