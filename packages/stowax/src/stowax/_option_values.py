"""Values that an option or a flag cannot have, by what it is declared to take.

Only plain declarations are held against the value: numbers, flags, texts, choices among
texts, callables and None.  Everything else is looked at where it is used.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from stowax._group import OptionGroup
from stowax.errors import InvalidArgumentError


class BadValue(NamedTuple):
    """An option with a value that it cannot have."""

    option: str
    """Its name from the outermost group on, `array.saving.use_compression`."""
    value: object
    expected: str


def bad_values(group: OptionGroup, prefix: str = "") -> Iterator[BadValue]:
    """All of a group, and of the groups inside."""
    assert dataclasses.is_dataclass(group)
    for field in dataclasses.fields(group):
        option, value = f"{prefix}{field.name}", getattr(group, field.name)
        if isinstance(value, OptionGroup):
            yield from bad_values(value, f"{option}.")
            continue
        if _is_group(field.default_factory):
            # By default; a dict of its options, for instance, is none.
            if value is not None:
                yield BadValue(option, value, f"an object of class {field.type}")
            continue
        expected = _expected(str(field.type), value)
        if expected is None and not _is_in_range(option, value):
            low, high = _RANGES[option]
            expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
        if expected is not None:
            yield BadValue(option, value, expected)


def check_flags(**flags: object) -> None:
    """Refuses arguments that must be True or False, and are neither.

    `overwrite="no"` would overwrite. 0 and 1 can mean one thing only.

    Raises:
        InvalidArgumentError: Names all of them, with what was found.
    """
    bad = {
        name: value
        for name, value in flags.items()
        if not _is_bool(value) and not (type(value) is int and value in (0, 1))
    }
    if bad:
        shown = ", ".join(f"`{name}` is {value!r:.80}" for name, value in bad.items())
        raise InvalidArgumentError(f"{shown}; it takes {_SHOWN['bool']}")


_LITERAL: Final = re.compile(r"Literal\[(.*)\]")

_RANGES: Final[dict[str, tuple[int, float]]] = {
    "array.saving.max_replicas_for_replica_parallel": (1, math.inf),
    "array.saving.min_slice_bytes_for_replica_parallel": (0, math.inf),
    "file.path_permission_mode": (0, 0o7777),
    "memory.read_concurrent_bytes": (0, math.inf),
    "memory.transfer_concurrent_bytes": (0, math.inf),
    "memory.write_concurrent_bytes": (0, math.inf),
    "safetensors.max_file_bytes": (1, math.inf),
}

_CHECKS: Final[dict[str, Callable[[object], bool]]] = {
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "int": lambda value: isinstance(value, numbers.Integral) and not _is_bool(value),
    "float": lambda value: isinstance(value, numbers.Real) and not _is_bool(value),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
    "Callable": callable,
    "ScopedStorageOptionsCreator": callable,
}

_SHOWN: Final = {
    "bool": "True or False",
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "Callable": "a callable",
    "ScopedStorageOptionsCreator": "a callable",
}


def _expected(declared: str, value: object) -> str | None:
    """What the option takes, if that is not what it has; None if all is well."""
    words, choices = _choices(declared)
    parts = [part.partition("[")[0] for part in words]
    if not all(part in _CHECKS for part in parts):
        return None
    is_choice = isinstance(value, str) and value in choices
    if is_choice or any(_CHECKS[part](value) for part in parts):
        return None
    return " or ".join([*map(repr, choices), *(_SHOWN.get(p, p) for p in parts)])


def _choices(declared: str) -> tuple[list[str], list[str]]:
    """What a declaration is made of: types, and the texts of its `Literal`."""
    words = declared.split(" | ")
    found = [_LITERAL.fullmatch(word) for word in words]
    texts = [text for match in found if match for text in match[1].split(", ")]
    others = [word for word, match in zip(words, found, strict=True) if not match]
    return others, [text.strip("\"'") for text in texts]


def _is_group(made_by: object) -> bool:
    return isinstance(made_by, type) and issubclass(made_by, OptionGroup)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_in_range(option: str, value: object) -> bool:
    if option not in _RANGES or not isinstance(value, int):
        return True
    low, high = _RANGES[option]
    return low <= value <= high
