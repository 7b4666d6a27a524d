"""Every public name of Orbax v1 is here, and every call that fits there fits here.

The installed peer is the reference: its names, signatures, fields, enumerations and
exceptions are walked and held against ours.  What is not the same stands in one of
three tables, each entry of which must still be true:

* `PENDING`: names that are not built yet; users read of them below "What is not there
  yet" of `docs/from-orbax.md`.
* `LEFT_OUT`: names that no program of a user calls, with the reason.
* "Defaults that differ" in `docs/from-orbax.md`.
"""

import dataclasses
import enum
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from orbax.checkpoint import v1
from page_tables import FROM_ORBAX, table

import stowax

MODULES = [
    *("", "arrays", "errors", "handlers", "multihost", "options", "partial"),
    *("path", "path.step", "training", "training.errors", "training.pathways"),
    *("training.preservation_policies", "training.save_decision_policies", "tree"),
]
"""The public modules of the peer, by their path below `v1`."""

PENDING = {
    "path.step": "names of steps",
    "training.pathways": "Pathways",
}
"""Names that are not built yet, with what brings them; a module stands for all of its
names.  An entry goes when its name has come: the test that it is missing fails."""

_V0 = "converts to the options of the older API, for the peer's own use"

LEFT_OUT = {
    "options.AsyncOptions.v0": _V0,
    "options.AtomicityOptions.v0": _V0,
    "options.FileOptions.v0": _V0,
    "options.MultiprocessingOptions.v0": _V0,
    "options.MemoryOptions.RegulatorOptions.regulator": (
        "the object at work inside the peer"
    ),
}
"""Names that no program of a user calls, with the reason."""

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


def pairs() -> dict[str, Pair]:
    """Every public name of the peer, those of the members of its classes included."""
    found: dict[str, Pair] = {}
    for module in MODULES:
        theirs, ours = _find(v1, module), _find(stowax, module)
        if module:
            found[module] = Pair(name=module, theirs=theirs, ours=ours)
        for name, value in _offered(theirs):
            dotted = f"{module}.{name}" if module else name
            for pair in _with_members(dotted, value, _get(ours, name)):
                found[pair.name] = pair
    return found


def _find(root: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        root = _get(root, name)
    return root


def _get(value: Any, name: str) -> Any:
    """A member; a field of a dataclass that has no default is one, too."""
    if dataclasses.is_dataclass(value) and name in _fields(value):
        return _fields(value)[name]
    return getattr(value, name, ABSENT)


def _fields(cls: Any) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _offered(module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "") or ""
        # A public module of the peer imports what it offers and nothing else; a module
        # of its implementation also what it needs.
        is_offer = not _is_implementation(module) or home.startswith("orbax.")
        if is_offer and not name.startswith("_") and not inspect.ismodule(value):
            yield name, value


def _is_implementation(module: Any) -> bool:
    return "._src." in module.__name__


def _with_members(name: str, theirs: Any, ours: Any) -> Iterator[Pair]:
    yield Pair(name=name, theirs=theirs, ours=ours)
    if not inspect.isclass(theirs) or not theirs.__module__.startswith("orbax."):
        return
    if issubclass(theirs, enum.Enum | BaseException):
        return
    members = {*dir(theirs), *(_fields(theirs) if _is_dataclass(theirs) else ())}
    for member in sorted(members):
        if not member.startswith("_"):
            theirs_member = _get(theirs, member)
            yield from _with_members(
                f"{name}.{member}", theirs_member, _get(ours, member)
            )


def _is_dataclass(value: Any) -> bool:
    return inspect.isclass(value) and dataclasses.is_dataclass(value)


PAIRS = pairs()
HERE = [pair for pair in PAIRS.values() if pair.ours is not ABSENT]


def named(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Arguments of `parametrize` for a test of each pair, told apart by its name."""
    found = list(pairs)
    return {
        "argnames": "pair",
        "argvalues": found,
        "ids": [pair.name for pair in found],
    }


def is_pending(name: str) -> bool:
    """Whether a name, or what it is a part of, is not built yet."""
    return any(name == each or name.startswith(f"{each}.") for each in PENDING)


def test_modules_are_all_of_them():
    """The list of public modules is that of the installed peer."""
    assert set(MODULES) - {""} == set(_modules(v1, ""))


def _modules(module: Any, prefix: str) -> Iterator[str]:
    for name, value in vars(module).items():
        if (
            inspect.ismodule(value)
            and not name.startswith("_")
            and value.__name__.startswith(v1.__name__)
            and not _is_implementation(module)
        ):
            yield prefix + name
            yield from _modules(value, f"{prefix}{name}.")


def test_every_name_is_here():
    """Modules, functions and classes are here, with all their members and fields."""
    missing = {name for name, pair in PAIRS.items() if pair.ours is ABSENT}

    assert {n for n in missing if not is_pending(n)} - {*LEFT_OUT} == set()


def test_pending_is_missing():
    """A name that has come is no longer pending, and none is pending by mistake."""
    for name in PENDING:
        function, _, parameter = name.removesuffix("=)").partition("(")
        pair = PAIRS[function]
        if parameter:
            assert parameter in inspect.signature(pair.theirs).parameters
            assert parameter not in inspect.signature(pair.ours).parameters, name
        else:
            assert pair.ours is ABSENT, name


def test_pending_is_on_the_page():
    """The page tells of all names that are not there, and of no others."""
    rows = table(FROM_ORBAX, "What is not there yet")
    spans = {span for row in rows for span in re.findall("`([^`]+)`", row[0])}
    told = {span.removeprefix("ocp.") for span in spans} & PAIRS.keys()

    # The page also has what is there, and refused.
    assert {n for n in told if PAIRS[n].ours is ABSENT} == set(PENDING)


def test_left_out_is_missing():
    """What we leave out on purpose is really out, and the peer really has it."""
    assert [name for name in LEFT_OUT if PAIRS[name].ours is not ABSENT] == []


@pytest.mark.parametrize(**named(pair for pair in HERE if callable(pair.theirs)))
def test_every_call_fits(pair):
    """Arguments that the peer takes are taken here, by position and by name."""
    problems = [
        problem
        for parameter, problem in _misfits(pair)
        if f"{pair.name}({parameter}=)" not in PENDING
    ]

    assert problems == []
    assert inspect.isclass(pair.ours) == inspect.isclass(pair.theirs) or _is_any(
        pair.ours
    )
    assert _is_async(pair.theirs) == _is_async(pair.ours)


def _is_any(value: Any) -> bool:
    """The peer makes empty classes of what may be anything; `Any` is no class."""
    return value is Any


def _is_async(value: Any) -> bool:
    return inspect.iscoroutinefunction(value)


def _misfits(pair: Pair) -> Iterator[tuple[str, str]]:
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


def test_defaults_differ_as_the_page_says():
    """Who leaves an argument or an option out gets the same, or the page tells."""
    rows = table(FROM_ORBAX, "Defaults that differ")
    told = {row[0].strip("`"): row[1:3] for row in rows}
    found = {
        _shown(name): (theirs, ours)
        for pair in HERE
        for name, theirs, ours in _defaults(pair)
        if theirs != ours
    }

    assert sorted(told) == sorted(found)
    for name, defaults in found.items():
        for cell, default in zip(told[name], defaults, strict=True):
            # Objects are described in words.
            if default is None or isinstance(default, str | int | float):
                assert f"`{default!r}`".replace("'", '"') in cell, name


def _shown(name: str) -> str:
    """A name as the page has it, without the module."""
    modules = [module for module in MODULES if name.startswith(f"{module}.")]
    return name.removeprefix(f"{max(modules, key=len)}.") if modules else name


def _defaults(pair: Pair) -> Iterator[tuple[str, Any, Any]]:
    """Every default of a call or of a dataclass: what gets it, theirs, ours."""
    if _is_dataclass(pair.theirs) and _is_dataclass(pair.ours):
        mine = _fields(pair.ours)
        for name, field in _fields(pair.theirs).items():
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


def _of(kind: type) -> list[Pair]:
    return [p for p in HERE if inspect.isclass(p.theirs) and issubclass(p.theirs, kind)]


@pytest.mark.parametrize(**named(_of(enum.Enum)))
def test_enumerations(pair):
    """Members have the same names and values, and are found by their values."""
    for member in pair.theirs:
        assert pair.ours[member.name].value == member.value
        assert pair.ours(member.value).name == member.name


@pytest.mark.parametrize(**named(_of(BaseException)))
def test_exceptions(pair):
    """Who catches the built-in exception of the peer's catches ours."""
    built_in = [c for c in pair.theirs.__mro__ if c.__module__ == "builtins"]

    assert issubclass(pair.ours, built_in[0])
    assert issubclass(pair.ours, stowax.errors.StowaxError)


@pytest.mark.parametrize(
    **named(p for p in HERE if getattr(p.theirs, "_is_protocol", False))
)
def test_protocols(pair):
    """What can be asked with `isinstance` there can be asked here."""
    assert _is_asked(pair.ours) or not _is_asked(pair.theirs)


def _is_asked(protocol: type) -> bool:
    return getattr(protocol, "_is_runtime_protocol", False)


@pytest.mark.parametrize(**named(p for p in HERE if _is_dataclass(p.theirs)))
def test_dataclasses(pair):
    """What `dataclasses.replace` and `fields` find there, they find here."""
    fields = {field for field in _fields(pair.theirs) if not field.startswith("_")}

    assert fields <= _fields(pair.ours).keys()


@pytest.mark.parametrize("name", [name for name in MODULES if not is_pending(name)])
def test_modules_can_be_imported(name):
    """A public module is an attribute, and can be imported by its name."""
    module = importlib.import_module(f"stowax.{name}" if name else "stowax")

    assert module is _find(stowax, name)
