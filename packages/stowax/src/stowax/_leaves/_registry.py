"""The kinds of leaves in order of preference: the first that accepts wins.

First those that the options teach, the last one first, then the standard ones.  A
taught kind ends where the stored form of its values begins: that is a standard leaf.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from stowax._keypath import FlatTree, at_leaf
from stowax._leaves._abstract import CustomLeafMetadata
from stowax._leaves._base import LeafHandler, StandardLeaf, UnlikeError
from stowax._leaves._bytes import BytesLeaf
from stowax._leaves._jax_array import JaxArrayLeaf
from stowax._leaves._numpy import NumpyLeaf
from stowax._leaves._placeholder import PlaceholderLeaf
from stowax._leaves._refusal import (
    check_all,
    type_name,
    unsupported,
    unsupported_target,
)
from stowax._leaves._scalar import ScalarLeaf
from stowax._leaves._string import StringLeaf
from stowax._manifest import CustomType, LeafForm
from stowax.errors import HandlerError, UnsupportedLeafError
from stowax.tree import PLACEHOLDER

STANDARD: tuple[StandardLeaf, ...] = (
    JaxArrayLeaf(),
    ScalarLeaf(),
    StringLeaf(),
    # Before NumPy, to which a fixed-width scalar of bytes would be an array.
    BytesLeaf(),
    NumpyLeaf(),
    PlaceholderLeaf(),
)

_METHODS = ("accepts", "describe", "stage", "accepts_target", "want", "place")


class EncodedLeaf(NamedTuple):
    """A value on its way to the store: a standard leaf, and what that stands for."""

    kind: StandardLeaf
    value: Any
    custom: CustomType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedLeaf:
    """How a stored leaf becomes what was asked for."""

    target: Any
    """What is asked of a standard kind; None: the leaf as it is stored."""
    decode: Callable[[Any], Any] | None = None
    """Makes the value of what the standard kind gives; None: that is the value."""


class Leaves:
    """The kinds of leaves that one operation knows.

    Args:
        handlers: Those of the options: `LeafHandler`s, classes or instances.

    Raises:
        HandlerError: One of them is no leaf handler, or two have one name.
    """

    def __init__(self, handlers: Sequence[Any] = ()) -> None:
        taught = list(map(_made, handlers))
        _check_handlers(taught)
        self._taught = cast("tuple[LeafHandler[Any], ...]", tuple(reversed(taught)))
        self._by_typestr = {each.typestr: each for each in self._taught}

    @property
    def are_taught(self) -> bool:
        """Whether there are others than the standard ones."""
        return bool(self._taught)

    @property
    def takes_value(self) -> Callable[[Any], bool] | None:
        """Tells which containers of a state are leaves; None if no kind is taught."""
        return self._takes_value if self._taught else None

    @property
    def takes_target(self) -> Callable[[Any], bool] | None:
        """Tells the same of an abstract state."""
        return self._takes_target if self._taught else None

    def check_values(self, flat: FlatTree) -> None:
        """Refuses a tree with leaves that cannot be saved; placeholders pass.

        Raises:
            UnsupportedLeafError: Lists them.
        """
        _check(flat, self._accepts, unsupported, "written")

    def check_targets(self, flat: FlatTree) -> None:
        """Refuses an abstract tree with leaves that ask for what nobody can load.

        Raises:
            UnsupportedLeafError: Lists them.
        """
        _check(flat, self._accepts_target, unsupported_target, "loaded")

    def encode(self, value: Any) -> EncodedLeaf:
        """How `value` is saved.

        Raises:
            UnsupportedLeafError: No kind accepts it; says what to do.
            HandlerError: The handler that was taught broke its contract.
        """
        for handler in self._taught:
            if _takes(handler, handler.accepts, value):
                return _encode_by(handler, value)
        kind = _for_value(value)
        if kind is None:
            raise unsupported(value)
        return EncodedLeaf(kind=kind, value=value)

    def ask(self, target: Any, form: LeafForm) -> AskedLeaf:
        """How `form` becomes what `target` asks for.

        Args:
            target: A leaf of the abstract state; None where nothing is asked for.
            form: The stored leaf.

        Raises:
            UnlikeError: It asks for another type than is stored; the text names that.
            UnsupportedLeafError: It asks for nothing that a checkpoint can hold.
            HandlerError: The handler that was taught broke its contract.
        """
        typestr = None if form.custom is None else form.custom.typestr
        taught = self._by_typestr.get(typestr or "")
        if target is None:
            return _ask_by(taught, form, None, None)
        if isinstance(target, CustomLeafMetadata):
            if target.typestr != typestr:
                raise UnlikeError(target.typestr)
            return _ask_by(taught, form, target.stored, None)
        if taught is not None and _takes(taught, taught.accepts_target, target):
            facts = None if form.custom is None else form.custom.facts
            with _blaming(taught):
                asked = taught.want(target, facts)
            return _ask_by(taught, form, asked, target)
        for handler in self._taught:
            if handler is not taught and _takes(handler, handler.accepts, target):
                # Such a value may look like an array, and must not become one.
                raise UnlikeError(handler.typestr)
        if _for_target(target) is not None:
            return AskedLeaf(target=target)
        for handler in self._taught:
            if _takes(handler, handler.accepts_target, target):
                raise UnlikeError(handler.typestr)
        raise unsupported_target(target, typestr)

    def _accepts(self, value: Any) -> bool:
        return self._takes_value(value) or _for_value(value) is not None

    def _accepts_target(self, target: Any) -> bool:
        is_described = isinstance(target, CustomLeafMetadata)
        taken = is_described or self._takes_target(target)
        return taken or _for_target(target) is not None

    def _takes_value(self, value: Any) -> bool:
        return any(_takes(each, each.accepts, value) for each in self._taught)

    def _takes_target(self, target: Any) -> bool:
        return any(_takes(each, each.accepts_target, target) for each in self._taught)


def default_target(form: LeafForm) -> Any:
    """What asks a standard kind for a leaf as it is stored."""
    return next(
        target for kind in STANDARD if (target := kind.default_target(form)) is not None
    )


def kind_of_target(target: Any) -> StandardLeaf:
    """The standard kind that loads what `target` asks for.

    Raises:
        UnsupportedLeafError: There is none.
    """
    kind = _for_target(target)
    if kind is None:
        raise unsupported_target(target)
    return kind


def metadata(form: LeafForm) -> Any:
    """What `metadata()` shows for a stored leaf, whether its type is taught or not."""
    shown = next(
        shown for kind in STANDARD if (shown := kind.metadata(form)) is not None
    )
    return shown if form.custom is None else _described(form.custom, shown)


def _check(
    flat: FlatTree,
    accepts: Callable[[Any], bool],
    refusal: Callable[[Any], UnsupportedLeafError],
    verb: str,
) -> None:
    errors: list[UnsupportedLeafError] = []
    for leaf, name in zip(flat.leaves, flat.names, strict=True):
        try:
            with at_leaf(name):
                if leaf is not PLACEHOLDER and not accepts(leaf):
                    raise refusal(leaf)
        except UnsupportedLeafError as error:
            errors.append(error)
    check_all(errors, verb)


# --- the standard kinds ---------------------------------------------------------------


def _for_value(value: Any) -> StandardLeaf | None:
    for kind in STANDARD:
        if kind.accepts(value):
            return kind
    return None


def _for_target(target: Any) -> StandardLeaf | None:
    return next((kind for kind in STANDARD if kind.accepts_target(target)), None)


# --- the kinds that are taught --------------------------------------------------------


def _made(handler: Any) -> Any:
    """The handler, of a class an instance.

    Raises:
        HandlerError: It cannot be made without arguments.
    """
    if not isinstance(handler, type):
        return handler
    try:
        return handler()
    except TypeError as error:
        raise HandlerError(
            f"{handler.__qualname__} in `PyTreeOptions.leaf_handlers` cannot be made "
            f"without arguments ({error}); give an instance"
        ) from error


def _check_handlers(handlers: Sequence[Any]) -> None:
    """Refuses what is no leaf handler.

    Raises:
        HandlerError: Says what it lacks.
    """
    seen: set[str] = set()
    for handler in handlers:
        name = type(handler).__qualname__
        missing = [method for method in _METHODS if not hasattr(handler, method)]
        typestr = getattr(handler, "typestr", None)
        if missing or not isinstance(typestr, str) or not typestr:
            lacks = ", ".join(missing) or f"a name: its `typestr` is {typestr!r}"
            raise HandlerError(
                f"{name} in `PyTreeOptions.leaf_handlers` is no "
                f"`stowax.handlers.LeafHandler`; it lacks {lacks}"
            )
        if typestr in seen:
            raise HandlerError(
                f"two of `PyTreeOptions.leaf_handlers` have the name {typestr!r}; what "
                "is stored is found by it"
            )
        seen.add(typestr)


def _takes(
    handler: LeafHandler[Any], accepts: Callable[[Any], bool], value: Any
) -> bool:
    """What a handler says of a value or a target: yes or no."""
    try:
        return bool(accepts(value))
    except Exception as error:  # Asked of every node; raised again as it is.
        _blame(handler, error)
        raise


def _encode_by(handler: LeafHandler[Any], value: Any) -> EncodedLeaf:
    with _blaming(handler):
        facts, stored = handler.describe(value), handler.stage(value)
    kind = _for_value(stored)
    if kind is None:
        raise HandlerError(
            f"the leaf handler {handler.typestr!r} stages an object of type "
            f"{type_name(stored)}; it has to be an array of JAX or NumPy, a number, a "
            "string or bytes"
        )
    try:
        # What is compared, and what others see, is what JSON makes of it.
        facts = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(
            f"the leaf handler {handler.typestr!r} describes a value by what JSON "
            f"cannot say: {error}"
        ) from error
    custom = CustomType(typestr=handler.typestr, facts=facts)
    return EncodedLeaf(kind=kind, value=stored, custom=custom)


def _ask_by(
    handler: LeafHandler[Any] | None, form: LeafForm, asked: Any, target: Any
) -> AskedLeaf:
    """Asks for the stored form; if the type is taught, the value is made of it."""
    if asked is not None and _for_target(asked) is None:
        name = "CustomLeafMetadata.stored" if handler is None else handler.typestr
        raise HandlerError(
            f"the stored form is asked for, by {name!r}, with {asked!r}; it has to be "
            "an abstract leaf of a standard kind, or None"
        )
    custom = form.custom
    if handler is None or custom is None:
        return AskedLeaf(target=asked)

    def decode(stored: Any) -> Any:
        with _blaming(handler):
            return handler.place(stored, custom.facts, target)

    return AskedLeaf(target=asked, decode=decode)


def _described(custom: CustomType, stored: Any) -> CustomLeafMetadata:
    return CustomLeafMetadata(typestr=custom.typestr, facts=custom.facts, stored=stored)


@contextlib.contextmanager
def _blaming(handler: LeafHandler[Any]) -> Generator[None]:
    """Says which handler raised what is raised inside."""
    try:
        yield
    except Exception as error:  # The code of a user; raised again as it is.
        _blame(handler, error)
        raise


def _blame(handler: LeafHandler[Any], error: Exception) -> None:
    error.add_note(f"in the leaf handler {handler.typestr!r}")
