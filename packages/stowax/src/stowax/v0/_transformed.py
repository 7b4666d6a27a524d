"""A restore with transformations: which stored leaves it needs, and what it makes.

The transformations are followed backwards first, from the keys of the result to those
of the checkpoint, so that nothing is loaded that no key of the result is made of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stowax._keypath import flatten, unflatten
from stowax.errors import InvalidArgumentError
from stowax.v0._arguments import RestoreArgs
from stowax.v0._flat import to_flat_dict
from stowax.v0._targets import Restoration, arguments_of, plan_selection, texts_of
from stowax.v0._transforms import (
    SEPARATOR,
    Transform,
    apply_transformations,
    original_key,
)


def plan_transformed(
    item: Any,
    restore_args: Any,
    transforms: Any,
    stored: Any,
    *,
    default_to_original: bool = True,
) -> Restoration:
    """Translates a restore with transformations.

    Args:
        item: The structure of the result, with the values of keys that come from
            nowhere else.
        restore_args: A `RestoreArgs` for every leaf of the result; None: all as they
            are stored.
        transforms: A tree of `Transform`.
        stored: The tree of metadata leaves, `PyTreeHandler.metadata(directory)`.
        default_to_original: As for `apply_transformations`.

    Raises:
        InvalidArgumentError: There is no item, or a transformation does not say what
            its function needs.
        TreeMismatchError: Lists the leaves that have no `RestoreArgs`.
    """
    if item is None:
        raise InvalidArgumentError(
            "transforms are for an item; give the structure of the result as `item`"
        )
    wanted = flatten(item)
    by_texts = arguments_of(wanted, restore_args)
    args = {
        SEPARATOR.join(texts): by_texts.get(texts, RestoreArgs())
        for texts in map(texts_of, wanted.paths)
    }
    needs = _needs(to_flat_dict(transforms, sep=SEPARATOR), args)
    chosen: dict[tuple[str, ...], RestoreArgs | None] = {}
    for path in flatten(stored).paths:
        texts = texts_of(path)
        key = SEPARATOR.join(texts)
        found = needs.of(key)
        if found is None and key in args:
            is_fallback = needs.is_fallback(key)
            if is_fallback != default_to_original:
                found = args[key]
        if found is not None:
            chosen[texts] = found
    plan = plan_selection(stored, chosen)
    given = _with_arguments(transforms, args)

    def finish(loaded: Any) -> Any:
        original = plan.finish(loaded)
        return apply_transformations(original, given, item, default_to_original)

    return replace(plan, finish=finish)


@dataclass(slots=True)
class _Needs:
    """What transformations need of a checkpoint; the first that needs a key counts."""

    by_key: dict[str, tuple[int, RestoreArgs]] = field(default_factory=dict)
    by_pattern: list[tuple[int, re.Pattern[str], RestoreArgs]] = field(
        default_factory=list
    )
    fallbacks: list[re.Pattern[str]] = field(default_factory=list)

    def of(self, key: str) -> RestoreArgs | None:
        """As what a stored key is needed; None if no transformation is about it."""
        found = [
            (rank, args)
            for rank, pattern, args in self.by_pattern
            if pattern.fullmatch(key)
        ]
        if key in self.by_key:
            found.append(self.by_key[key])
        return min(found, key=lambda each: each[0])[1] if found else None

    def is_fallback(self, key: str) -> bool:
        """Whether a key of the result is to come from where others do not."""
        return any(pattern.fullmatch(key) for pattern in self.fallbacks)


def _needs(
    transforms: Mapping[str, Transform], args: Mapping[str, RestoreArgs]
) -> _Needs:
    needs = _Needs()
    for rank, (name, transform) in enumerate(transforms.items()):
        pattern = re.compile(name)
        if transform.use_fallback:
            needs.fallbacks.append(pattern)
        elif transform.multi_value_fn is not None:
            for key, key_args in _inputs(name, transform).items():
                needs.by_pattern.append((rank, re.compile(key), key_args))
        else:
            for key, key_args in args.items():
                if (match := pattern.fullmatch(key)) is not None:
                    needs.by_key.setdefault(
                        original_key(transform, match), (rank, key_args)
                    )
    return needs


def _inputs(name: str, transform: Transform) -> Mapping[str, RestoreArgs]:
    inputs = getattr(transform, "multi_value_fn_input_args", None)
    if inputs is None:
        raise InvalidArgumentError(
            f"the transformation of {name!r} has a multi_value_fn, and a restore must "
            "know which leaves it looks at; give a `RestoreTransform` with "
            "`multi_value_fn_input_args`"
        )
    return {key: args or RestoreArgs() for key, args in inputs.items()}


def _with_arguments(transforms: Any, args: Mapping[str, RestoreArgs]) -> Any:
    """The same; functions of several values get the arguments of the new key."""

    def bind(transform: Transform) -> Transform:
        function = transform.multi_value_fn
        if function is None:
            return transform
        return Transform(
            multi_value_fn=lambda key, tree: function(key, tree, args[key])
        )

    flat = flatten(transforms)
    return unflatten(flat.root, [bind(transform) for transform in flat.leaves])
