"""Every public name of Orbax v1 is here, and every call that fits there fits here.

The installed peer is the reference: its names, signatures, fields, enumerations and
exceptions are walked and held against ours.  What is not the same stands in one of
three tables, each entry of which must still be true:

* `PENDING`: names that are not built yet; users read of them below "What is not there
  yet" of `docs/from-orbax.md`.
* `LEFT_OUT`: names that no program of a user calls, with the reason.
* "Defaults that differ" in `docs/from-orbax.md`.
"""

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from faces import (
    ABSENT,
    Pair,
    defaults,
    fields,
    find,
    get,
    is_any,
    is_async,
    is_dataclass,
    is_implementation,
    misfits,
    named,
    offered,
    with_members,
)
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


def pairs() -> dict[str, Pair]:
    """Every public name of the peer, those of the members of its classes included."""
    found: dict[str, Pair] = {}
    for module in MODULES:
        theirs, ours = find(v1, module), find(stowax, module)
        if module:
            found[module] = Pair(name=module, theirs=theirs, ours=ours)
        for name, value in offered(theirs):
            dotted = f"{module}.{name}" if module else name
            for pair in with_members(dotted, value, get(ours, name)):
                found[pair.name] = pair
    return found


PAIRS = pairs()
HERE = [pair for pair in PAIRS.values() if pair.ours is not ABSENT]


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
            and not is_implementation(module)
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
        for parameter, problem in misfits(pair)
        if f"{pair.name}({parameter}=)" not in PENDING
    ]

    assert problems == []
    assert inspect.isclass(pair.ours) == inspect.isclass(pair.theirs) or is_any(
        pair.ours
    )
    assert is_async(pair.theirs) == is_async(pair.ours)


def test_defaults_differ_as_the_page_says():
    """Who leaves an argument or an option out gets the same, or the page tells."""
    rows = table(FROM_ORBAX, "Defaults that differ")
    told = {row[0].strip("`"): row[1:3] for row in rows}
    found = {
        _shown(name): (theirs, ours)
        for pair in HERE
        for name, theirs, ours in defaults(pair)
        if theirs != ours
    }

    assert sorted(told) == sorted(found)
    for name, values in found.items():
        for cell, default in zip(told[name], values, strict=True):
            # Objects are described in words.
            if default is None or isinstance(default, str | int | float):
                assert f"`{default!r}`".replace("'", '"') in cell, name


def _shown(name: str) -> str:
    """A name as the page has it, without the module."""
    modules = [module for module in MODULES if name.startswith(f"{module}.")]
    return name.removeprefix(f"{max(modules, key=len)}.") if modules else name


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


@pytest.mark.parametrize(**named(p for p in HERE if is_dataclass(p.theirs)))
def test_dataclasses(pair):
    """What `dataclasses.replace` and `fields` find there, they find here."""
    public = {field for field in fields(pair.theirs) if not field.startswith("_")}

    assert public <= fields(pair.ours).keys()


@pytest.mark.parametrize("name", [name for name in MODULES if not is_pending(name)])
def test_modules_can_be_imported(name):
    """A public module is an attribute, and can be imported by its name."""
    module = importlib.import_module(f"stowax.{name}" if name else "stowax")

    assert module is find(stowax, name)
