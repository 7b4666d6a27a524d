"""The document of the strings of a tree, `_strings.json`, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stowax._formats._orbax_json import STRINGS_DOCUMENT
from stowax.errors import (
    CorruptCheckpointError,
    KeyPathCollisionError,
)

_POINTER_ESCAPE = re.compile("~[01]")
_NO_ESCAPE = re.compile("~(?![01])")


def check_string_names(names: Iterable[str]) -> None:
    """Refuses names of string leaves that cannot stand in one `_strings.json`.

    Raises:
        KeyPathCollisionError: Names both leaves.
    """
    nest(dict.fromkeys(names, ""))


def nest(strings: Mapping[str, str]) -> dict[str, Any]:
    """Strings by name, arranged so that "/" + name is the JSON pointer to each.

    Orbax takes a name as a JSON pointer without escaping it: "/" makes an object, `~0`
    and `~1` are escapes.  A "~" that starts no escape is no pointer at all: Orbax can
    neither save nor load such a string.  Here it stands for itself, so that we find the
    string; `_METADATA` says None to Orbax, so that it finds the other leaves.

    Raises:
        KeyPathCollisionError: Two strings cannot both stand in it.
    """
    document: dict[str, Any] = {}
    owners: dict[tuple[str, ...], str] = {}
    for name, text in strings.items():
        steps = _pointer(name)
        place = document
        for depth, step in enumerate(steps[:-1], 1):
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise _string_collision(owners[steps[:depth]], name)
        if steps[-1] in place:
            # Either the same pointer, or objects that some longer name has made here.
            other = next(o for s, o in owners.items() if s[: len(steps)] == steps)
            raise _string_collision(other, name)
        place[steps[-1]] = text
        owners[steps] = name
    return document


def _pointer(name: str) -> tuple[str, ...]:
    return tuple(
        _POINTER_ESCAPE.sub(lambda match: "~/"[int(match[0][1])], step)
        for step in name.split("/")
    )


def is_pointer(name: str) -> bool:
    """Whether Orbax can find a string by the name."""
    return _NO_ESCAPE.search(name) is None


def _string_collision(first: str, second: str) -> KeyPathCollisionError:
    return KeyPathCollisionError(
        f"The strings at {first!r} and {second!r} would get one place in "
        f"{STRINGS_DOCUMENT}, in which '/' separates levels and '~0', '~1' stand for "
        "'~', '/'. Rename one of the keys."
    )


def is_hidden(strings: Mapping[str, Any], name: str) -> bool:
    """Whether a leaf that is None to Orbax is a string whose name is no pointer."""
    return not is_pointer(name) and isinstance(_find(strings, name), str)


def _find(strings: Mapping[str, Any], name: str) -> Any:
    value: Any = strings
    for step in _pointer(name):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def look_up(strings: Mapping[str, Any], name: str, path: str) -> str:
    """The string of a leaf.

    Raises:
        CorruptCheckpointError: There is none.
    """
    value = _find(strings, name)
    if value is None or isinstance(value, dict):
        raise CorruptCheckpointError(
            f"{path}/{STRINGS_DOCUMENT}: the string leaf {name!r} is missing."
        )
    return value if isinstance(value, str) else str(value)
