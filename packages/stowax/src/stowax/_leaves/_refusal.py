"""What is said about leaves that cannot be saved or loaded: all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from stowax.errors import DeletedArrayError, UnsupportedLeafError
from stowax.tree import PLACEHOLDER

TEACH = "teach it with `PyTreeOptions.leaf_handlers`"

_SHOWN = 20
"""Problems in one message."""

_ARRAYS_ONLY = "(of an Equinox model: `eqx.filter(model, eqx.is_array)`)"
_FUNCTION = f"drop functions before saving {_ARRAYS_ONLY}"
_TRACED = (
    "inside of a transformation such as `jax.jit` it has no value yet: save outside"
)
_ADVICE: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, Tracer), _TRACED),
    (
        lambda value: isinstance(value, jax.ShapeDtypeStruct),
        "it has no elements: save the array that it describes",
    ),
    (lambda value: isinstance(value, bytearray | memoryview), "save `bytes(value)`"),
    (lambda value: isinstance(value, set | frozenset), "save a list of its elements"),
    (
        lambda value: isinstance(value, type),
        "save its name, as a string, or leave it out",
    ),
    (callable, _FUNCTION),
)


def unsupported(value: Any) -> UnsupportedLeafError:
    """The error for a value that no kind of leaf takes; says what to do."""
    if value is PLACEHOLDER:
        return UnsupportedLeafError(
            "`stowax.PLACEHOLDER` stands for a leaf that was not loaded, and cannot be "
            "saved; load that leaf, or leave it out of the state"
        )
    general = f"convert it to an array, a number, a string or bytes, or {TEACH}"
    advice = next((text for applies, text in _ADVICE if applies(value)), general)
    return UnsupportedLeafError(
        f"an object of type {type_name(value)} cannot be saved; {advice}"
    )


def unsupported_target(target: Any, typestr: str | None = None) -> UnsupportedLeafError:
    """The error for a leaf of an abstract state that asks for no kind of leaf.

    Args:
        target: The leaf.
        typestr: Name of the type that is stored, if it is one that can be taught.
    """
    advice = "" if typestr is None else f"; a {typestr!r} is stored: {TEACH}"
    if (drop := function_advice(target)) is not None:
        advice += f"; {drop}"
    return UnsupportedLeafError(
        f"{target!r} asks for nothing that a checkpoint can hold; give a "
        "`jax.ShapeDtypeStruct`, an array, a number, a string, bytes, one of the "
        "types int, float, bool, complex, str and bytes, or `stowax.PLACEHOLDER`"
        f"{advice}"
    )


def function_advice(target: Any) -> str | None:
    """What to do with a function in an abstract state; None if it is none."""
    if not callable(target) or isinstance(target, type) or hasattr(target, "shape"):
        return None
    return f"drop functions {_ARRAYS_ONLY}"


def type_name(value: Any) -> str:
    """Name of a value's type, with its module unless it is built in."""
    cls = type(value)
    name = cls.__qualname__
    return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"


def check_all(errors: Sequence[UnsupportedLeafError], verb: str) -> None:
    """Raises all errors as one, if there are any.

    Args:
        errors: One for every leaf that is not supported.
        verb: What was not done, `written` or `loaded`.

    Raises:
        UnsupportedLeafError: Lists them.
        DeletedArrayError: The same, if it is true of one of them.
    """
    if not errors:
        return
    problems = [str(error) for error in errors]
    if len(problems) == 1:
        lines = list(problems)
    else:
        lines = [f"{len(problems)} leaves are not supported:"]
        lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  … and {len(problems) - _SHOWN} more (see `problems`)")
    text = "\n".join(lines)
    is_deleted = any(isinstance(error, DeletedArrayError) for error in errors)
    kind = DeletedArrayError if is_deleted else UnsupportedLeafError
    raise kind(f"{text}\nNothing was {verb}.", problems)
