"""What a restore of the older API asks for, said as an abstract state.

There an `item` gives the structure and `restore_args` say what each leaf becomes; here
one abstract state says both.  The translation is pure: it is given what is stored, as
`PyTreeHandler.metadata` shows it, and touches no file.  What an abstract state cannot
say, a last conversion of a leaf, is done to what has been loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Format

from stowax._keypath import FlatTree, KeyPath, flatten, shown_name, unflatten
from stowax._leaves._abstract import (
    ArrayMetadata,
    CustomLeafMetadata,
    NumpyMetadata,
    is_array_like,
)
from stowax._leaves._jax_array import is_key
from stowax._uncollected import uncollected
from stowax.errors import InvalidArgumentError, TreeMismatchError
from stowax.tree import PLACEHOLDER
from stowax.v0._arguments import ArrayRestoreArgs, RestoreArgs

Texts = tuple[str, ...]
"""A key path by the texts of its keys, which is how both libraries match trees."""

Convert = Callable[[Any], Any]
"""A last conversion of a leaf that was loaded."""

_NUMBERS = (bool, int, float, complex)

_ABSENT = object()
"""Stands for what is not stored, or not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """How a restore is carried out by a load."""

    abstract: Any
    """The abstract state to load; None for all as it is stored."""

    pads: bool = False
    """Whether arrays may be cut or padded: load with
    `Context.array.loading.enable_padding_and_truncation`."""

    is_partial: bool = False
    """Whether the abstract state leaves out stored leaves: load with
    `Context.pytree.loading.partial_load`."""

    finish: Convert = lambda loaded: loaded
    """Makes the result of what has been loaded."""


@uncollected()
def plan_restore(
    item: Any, restore_args: Any, stored: Any, *, is_partial: bool = False
) -> Restoration:
    """Translates a restore without transformations.

    Args:
        item: The structure of the result; None for the stored one. Of its leaves only
            those count that have a shape and for which `restore_args` has a strict
            `ArrayRestoreArgs`, which takes shape and dtype from it, and placeholders.
        restore_args: A `RestoreArgs` for every leaf; None: all as they are stored.
        stored: The tree of metadata leaves, `PyTreeHandler.metadata(directory)`. Not
            looked at where the first two are None.
        is_partial: Whether the item may leave out stored leaves. Its own leaves that
            are not stored stay as they are then.

    Raises:
        TreeMismatchError: Lists the leaves that have no `RestoreArgs`, or those that
            are strict and do not have the stored shape; or, of a partial restore, those
            in whose place something else is stored.
        InvalidArgumentError: Something else stands in the place of `RestoreArgs`.
    """
    if item is None and restore_args is None:
        return Restoration(abstract=None)
    stored_flat = flatten(stored)
    if item is None:
        shape_of, wanted = {}, stored_flat
    else:
        wanted = flatten(item)
        shape_of = _by_texts(wanted)
    stored_by_texts = _by_texts(stored_flat)
    if is_partial:
        _check_places(wanted, stored_flat)
    args = arguments_of(wanted, restore_args)
    asked: list[_Asked] = []
    for texts in map(texts_of, wanted.paths):
        like = shape_of.get(texts)
        if is_partial and texts not in stored_by_texts:
            asked.append(_Asked(PLACEHOLDER, functools.partial(_instead, like)))
            continue
        leaf_args = args.get(texts, RestoreArgs())
        asked.append(_ask(stored_by_texts.get(texts, _ABSENT), leaf_args, like))
    return _restoration(wanted, asked, is_partial=is_partial)


@uncollected()
def plan_selection(
    stored: Any, chosen: Mapping[Texts, RestoreArgs | None]
) -> Restoration:
    """Translates a restore of some leaves in the structure of what is stored.

    Args:
        stored: As for `plan_restore`.
        chosen: The leaves to load. The others come back as placeholders.
    """
    flat = flatten(stored)
    asked = [
        _ask(leaf, chosen[texts] or RestoreArgs(), None)
        if (texts := texts_of(path)) in chosen
        else _Asked(PLACEHOLDER)
        for path, leaf in zip(flat.paths, flat.leaves, strict=True)
    ]
    return _restoration(flat, asked)


def texts_of(path: KeyPath) -> Texts:
    """The texts of the keys of a path."""
    return tuple([key.text for key in path])


def arguments_of(wanted: FlatTree, restore_args: Any) -> dict[Texts, RestoreArgs]:
    """The `RestoreArgs` of every leaf of the result, by its path.

    A None is one that says nothing, and so is a whole tree of them that is None.

    Args:
        wanted: The result.
        restore_args: A tree of the same key paths, whatever its containers are.

    Raises:
        TreeMismatchError: Lists the leaves that have none.
        InvalidArgumentError: Something else stands in the place of one.
    """
    if restore_args is None:
        return {}
    given = flatten(restore_args)
    for path, leaf in zip(given.paths, given.leaves, strict=True):
        if not isinstance(leaf, RestoreArgs):
            raise InvalidArgumentError(
                f"restore_args has a {type(leaf).__qualname__} for the leaf "
                f"{shown_name(path) or '<root>'!r}; give a `RestoreArgs`, an "
                "`ArrayRestoreArgs`, or None"
            )
    found = _by_texts(given)
    known = {*found, *map(texts_of, given.nones)}
    missing = [path for path in wanted.paths if texts_of(path) not in known]
    if missing:
        names = [shown_name(path) or "<root>" for path in missing]
        raise TreeMismatchError(
            f"restore_args says nothing of {len(names)} of {len(wanted.paths)} leaves:"
            "\n  "
            + "\n  ".join(names)
            + "\nGive a `RestoreArgs` or None for each, or leave `restore_args` out.",
            names,
        )
    return found


def _check_places(wanted: FlatTree, stored: FlatTree) -> None:
    """Refuses leaves that are not stored because something else is in their place.

    Taken for new ones, they would keep what the item has for them.

    Raises:
        TreeMismatchError: Lists them.
    """
    leaves = set(map(texts_of, stored.paths))
    containers: dict[Texts, bool] = {}
    """Every stored container with children, and whether these have names."""
    for path in stored.paths:
        for depth, key in enumerate(path):
            containers[texts_of(path[:depth])] = key.is_named
    problems: list[str] = []
    for path in wanted.paths:
        texts = texts_of(path)
        if texts in leaves:
            continue
        name = shown_name(path) or "<root>"
        if texts in containers:
            problems.append(f"{name}: asked a leaf, stored a container")
        for depth, key in enumerate(path):
            above = texts[:depth]
            shown = shown_name(path[:depth]) or "<root>"
            if above in leaves:
                problems.append(f"{name}: stored a leaf {shown!r}, above it")
            elif containers.get(above, key.is_named) != key.is_named:
                kinds = "sequence", "mapping"
                stored_as = kinds[containers[above]]
                problems.append(f"{name}: stored a {stored_as} {shown!r}, above it")
    if problems:
        raise TreeMismatchError(
            f"{len(problems)} of {len(wanted.paths)} leaves have something else stored "
            "in their place:\n  "
            + "\n  ".join(problems)
            + "\nGive the item the stored structure, as `metadata` shows it.",
            problems,
        )


class _Asked(NamedTuple):
    """What is asked of one leaf."""

    target: Any
    convert: Convert | None = None
    shape: Sequence[int] | None = None
    """The shape of the result, where one was named that is not the stored one."""
    is_strict: bool = True


def _by_texts(flat: FlatTree) -> dict[Texts, Any]:
    return dict(zip(map(texts_of, flat.paths), flat.leaves, strict=True))


def _restoration(
    flat: FlatTree, asked: Sequence[_Asked], *, is_partial: bool = False
) -> Restoration:
    pads = any(each.shape is not None and not each.is_strict for each in asked)
    if pads:
        # The setting is for all arrays, and some of them may not be changed.
        _check_strict(flat, asked)
    converts = {
        texts_of(path): each.convert
        for path, each in zip(flat.paths, asked, strict=True)
        if each.convert is not None
    }
    return Restoration(
        abstract=unflatten(flat.root, [each.target for each in asked]),
        pads=pads,
        is_partial=is_partial,
        finish=_converting(converts),
    )


def _check_strict(flat: FlatTree, asked: Sequence[_Asked]) -> None:
    problems = [
        f"{shown_name(path) or '<root>'}: asked for the shape {tuple(each.shape)}, "
        "which is not the stored one"
        for path, each in zip(flat.paths, asked, strict=True)
        if each.shape is not None and each.is_strict
    ]
    if problems:
        raise TreeMismatchError(
            f"{len(problems)} leaves do not fit the checkpoint:\n  "
            + "\n  ".join(problems)
            + "\n`ArrayRestoreArgs(strict=False)` cuts or pads them.",
            problems,
        )


def _converting(converts: Mapping[Texts, Convert]) -> Convert:
    def finish(loaded: Any) -> Any:
        if not converts:
            return loaded
        flat = flatten(loaded)
        values = [
            converts[texts](leaf) if (texts := texts_of(path)) in converts else leaf
            for path, leaf in zip(flat.paths, flat.leaves, strict=True)
        ]
        return unflatten(flat.root, values)

    return finish


def _ask(stored: Any, args: RestoreArgs, like: Any) -> _Asked:
    """What is asked of one leaf.

    Args:
        stored: What `metadata` shows of it, or `_ABSENT`.
        args: What is said of it.
        like: The leaf of the item, if there is one.
    """
    if like is PLACEHOLDER or args.restore_type is type(PLACEHOLDER):
        return _Asked(PLACEHOLDER)
    if stored is PLACEHOLDER and args.restore_type is None:
        return _Asked(PLACEHOLDER)
    if stored is _ABSENT:
        # The load tells of it, together with all the others.
        return _Asked(like if _is_told(like) else np.ndarray)
    if isinstance(stored, CustomLeafMetadata):
        asked = _ask(stored.stored, args, like)
        return asked._replace(target=replace(stored, stored=asked.target), convert=None)
    wanted = _kind_of(stored) if args.restore_type is None else args.restore_type
    if not isinstance(wanted, type):
        raise InvalidArgumentError(
            f"restore_type={wanted!r} is no type; give `jax.Array`, `numpy.ndarray`, "
            "`int`, `float` or `str`, or None for what was saved"
        )
    if issubclass(wanted, jax.Array):
        return _ask_jax_array(stored, args, like)
    if issubclass(wanted, np.ndarray):
        return _ask_numpy(stored, args)
    if issubclass(wanted, _NUMBERS) or issubclass(wanted, np.number):
        return _ask_number(stored, args, wanted)
    # Strings, bytes, and types that `PyTreeOptions.leaf_handlers` teaches.
    return _Asked(next((c for c in (str, bytes) if issubclass(wanted, c)), wanted))


def _instead(like: Any, _: Any) -> Any:
    return like


def _is_told(leaf: Any) -> bool:
    """Whether a message can say what a leaf of an item asks for."""
    return is_array_like(leaf) or isinstance(leaf, (*_NUMBERS, str))


def _kind_of(stored: Any) -> Any:
    if isinstance(stored, ArrayMetadata):
        return jax.Array
    return np.ndarray if isinstance(stored, NumpyMetadata) else type(stored)


def _ask_jax_array(stored: Any, args: RestoreArgs, like: Any) -> _Asked:
    shape = getattr(stored, "shape", None)
    dtype = getattr(stored, "dtype", None)
    if not isinstance(args, ArrayRestoreArgs):
        asked_dtype = dtype if args.dtype is None else args.dtype
        return _Asked(ArrayMetadata(shape=shape, dtype=asked_dtype))
    sharding = _sharding_of(args)
    if is_key(dtype):
        # They are described by their key data or as keys; only the place is a choice.
        sharding = _for_keys(sharding, len(stored.shape))
        return _Asked(ArrayMetadata(shape=shape, dtype=dtype, sharding=sharding))
    asked_shape, asked_dtype = args.global_shape, args.dtype
    if args.strict and _says_shape(like):
        asked_shape = like.shape if asked_shape is None else asked_shape
        asked_dtype = like.dtype if asked_dtype is None else asked_dtype
    target = ArrayMetadata(
        shape=shape if asked_shape is None else tuple(asked_shape),
        dtype=dtype if asked_dtype is None else asked_dtype,
        sharding=sharding,
    )
    if shape is None or target.shape == tuple(shape):
        return _Asked(target)
    return _Asked(target, shape=target.shape, is_strict=args.strict)


def _says_shape(like: Any) -> bool:
    """Whether a leaf of an item has something to say about an array.

    As in Orbax, one without axes has not, and neither have PRNG keys.
    """
    return is_array_like(like) and bool(like.shape) and not is_key(like.dtype)


def _sharding_of(args: ArrayRestoreArgs) -> Any:
    if args.mesh is not None and args.mesh_axes is not None:
        return jax.sharding.NamedSharding(args.mesh, args.mesh_axes)
    return args.sharding


def _for_keys(sharding: Any, ndim: int) -> Any:
    """The sharding of PRNG keys, if it may be that of their key data."""
    if isinstance(sharding, Format):
        sharding = sharding.sharding
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    return sharding.update(spec=jax.sharding.PartitionSpec(*sharding.spec[:ndim]))


def _ask_numpy(stored: Any, args: RestoreArgs) -> _Asked:
    shape = getattr(stored, "shape", ())
    if is_key(dtype := getattr(stored, "dtype", None)):
        target = ArrayMetadata(shape=shape, dtype=dtype)
        return _Asked(target, lambda keys: np.asarray(jax.random.key_data(keys)))
    dtype = dtype if args.dtype is None else args.dtype
    return _Asked(NumpyMetadata(shape=shape, dtype=dtype))


def _ask_number(stored: Any, args: RestoreArgs, wanted: type) -> _Asked:
    base = next((cls for cls in _NUMBERS if issubclass(wanted, cls)), None)
    given = type(stored) if isinstance(stored, _NUMBERS) else None
    if args.dtype is None:
        if base is wanted:
            return _Asked(base)
        return _Asked(base or given or float, wanted)
    dtype = args.dtype

    def convert(value: Any) -> Any:
        number = np.asarray(value).astype(dtype).item()
        return number if args.restore_type is None else wanted(number)

    return _Asked(given or base or float, convert)
