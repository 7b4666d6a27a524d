"""A face of Orbax beside ours: every public name, and how it may be called.

The installed peer is walked, module by module; tests hold what is found against ours.
"""

import dataclasses
import enum
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

ABSENT = object()
"""Stands for what is not there; a default may be None."""

ANYTHING = object()
"""Stands for what a call leaves open, as `*args` and `**kwargs` do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A public name, with what it stands for in both libraries."""

    name: str
    theirs: Any
    ours: Any


def named(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Arguments of `parametrize` for a test of each pair, told apart by its name."""
    found = list(pairs)
    return {
        "argnames": "pair",
        "argvalues": found,
        "ids": [pair.name for pair in found],
    }


def find(root: Any, path: str) -> Any:
    """What a dotted path leads to; `ABSENT` where it ends before."""
    for name in path.split(".") if path else ():
        root = get(root, name)
    return root


def get(value: Any, name: str) -> Any:
    """A member; a field of a dataclass that has no default is one, too."""
    if dataclasses.is_dataclass(value) and name in fields(value):
        return fields(value)[name]
    return getattr(value, name, ABSENT)


def fields(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass by their names."""
    return {field.name: field for field in dataclasses.fields(cls)}


def offered(module: Any) -> Iterator[tuple[str, Any]]:
    """What a module of the peer offers, modules excepted."""
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "") or ""
        # A public module of the peer imports what it offers and nothing else; a module
        # of its implementation also what it needs.
        is_offer = not is_implementation(module) or home.startswith("orbax.")
        if is_offer and not name.startswith("_") and not inspect.ismodule(value):
            yield name, value


def is_implementation(module: Any) -> bool:
    """Whether a module of the peer is not for users."""
    return "._src." in module.__name__


def with_members(name: str, theirs: Any, ours: Any) -> Iterator[Pair]:
    """A name, and those of the members of a class of the peer's."""
    yield Pair(name=name, theirs=theirs, ours=ours)
    if not inspect.isclass(theirs) or not theirs.__module__.startswith("orbax."):
        return
    if issubclass(theirs, enum.Enum | BaseException):
        return
    members = {*dir(theirs), *(fields(theirs) if is_dataclass(theirs) else ())}
    for member in sorted(members):
        if not member.startswith("_"):
            theirs_member = get(theirs, member)
            yield from with_members(
                f"{name}.{member}", theirs_member, get(ours, member)
            )


def is_dataclass(value: Any) -> bool:
    """Whether it is a dataclass, and no instance of one."""
    return inspect.isclass(value) and dataclasses.is_dataclass(value)


def is_any(value: Any) -> bool:
    """The peer makes empty classes of what may be anything; `Any` is no class."""
    return value is Any


def is_async(value: Any) -> bool:
    """Whether a call of it has to be awaited."""
    return inspect.iscoroutinefunction(value)


def misfits(pair: Pair) -> Iterator[tuple[str, str]]:
    """Parameters of the peer that ours does not take in the same way."""
    theirs, ours = _parameters(pair.theirs), _parameters(pair.ours)
    if theirs is ANYTHING or ours is ANYTHING:
        return
    places = {name: i for i, name in enumerate(ours)}
    for place, (name, parameter) in enumerate(theirs.items()):
        mine = ours.get(name)
        if mine is None:
            yield name, f"no parameter {name}"
        elif parameter.kind not in _TAKES[mine.kind]:
            yield name, f"{name} is {mine.kind.description}"
        elif parameter.kind in _POSITIONAL and places[name] != place:
            yield name, f"{name} is at position {places[name]}, there at {place}"
    for name, mine in ours.items():
        if name not in theirs and mine.default is mine.empty and mine.kind not in _VAR:
            yield name, f"{name} must be given"


_KINDS = inspect.Parameter
_POSITIONAL = (_KINDS.POSITIONAL_ONLY, _KINDS.POSITIONAL_OR_KEYWORD)
_VAR = (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)
_TAKES = {
    _KINDS.POSITIONAL_ONLY: (_KINDS.POSITIONAL_ONLY,),
    _KINDS.POSITIONAL_OR_KEYWORD: (*_POSITIONAL, _KINDS.KEYWORD_ONLY),
    _KINDS.KEYWORD_ONLY: (_KINDS.KEYWORD_ONLY,),
    _KINDS.VAR_POSITIONAL: (_KINDS.VAR_POSITIONAL,),
    _KINDS.VAR_KEYWORD: (_KINDS.VAR_KEYWORD,),
}


def _parameters(function: Callable[..., Any]) -> Any:
    """The parameters of a call; `ANYTHING` where the signature says nothing."""
    try:
        found = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ANYTHING
    if [each for name, each in found.items() if name != "self"] == [
        each for each in found.values() if each.kind in _VAR
    ]:
        return ANYTHING  # A deprecated alias, or a protocol, which cannot be made.
    return found


def defaults(pair: Pair) -> Iterator[tuple[str, Any, Any]]:
    """Every default of a call or of a dataclass: what gets it, theirs, ours."""
    if is_dataclass(pair.theirs) and is_dataclass(pair.ours):
        mine = fields(pair.ours)
        for name, field in fields(pair.theirs).items():
            if name in mine:
                label = f"{pair.name}.{name}"
                yield label, _told(_value(field)), _told(_value(mine[name]))
        return
    if not callable(pair.theirs):
        return
    theirs, ours = _parameters(pair.theirs), _parameters(pair.ours)
    if theirs is ANYTHING or ours is ANYTHING:
        return
    for name, parameter in theirs.items():
        # One that must be given there may have a default here.
        if name in ours and parameter.default is not parameter.empty:
            label = f"{pair.name}({name}=)"
            yield label, _told(parameter.default), _told(ours[name].default)


def _value(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


class Told(NamedTuple):
    """An object, which the two libraries have classes of their own for."""

    kind: str
    name: str = ""


def _told(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return Told(type(value).__name__, value.name)
    home = type(value).__module__.partition(".")[0]
    if dataclasses.is_dataclass(value) or home in ("orbax", "stowax"):
        # Groups of options; each of their fields is compared by itself.
        return Told(type(value).__name__)
    return value
