"""JSON that may be damaged, or written by somebody who wants to do harm."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from stowax.errors import CorruptCheckpointError

_T = TypeVar("_T")


def parse(data: bytes, where: str, *, unique_keys: bool = True) -> Any:
    """The value of a document.

    Raises:
        CorruptCheckpointError: It is no JSON, or a key occurs twice.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise CorruptCheckpointError(f"{where}: nested too deeply.") from None
    except ValueError as error:
        # Not UTF-8 is a ValueError, too.
        raise CorruptCheckpointError(f"{where}: no valid JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; refuses keys that occur twice, one of which would be dropped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} occurs twice")
    return found


def as_object(value: Any, where: str) -> dict[str, Any]:
    """A value that has to be an object; see `as_typed`."""
    return as_typed(value, dict, "an object", where)


def as_list(value: Any, where: str) -> list[Any]:
    """A value that has to be a list; see `as_typed`."""
    return as_typed(value, list, "a list", where)


def as_typed(value: Any, kind: type[_T], words: str, where: str) -> _T:
    """A value that has to be of one type.

    Raises:
        CorruptCheckpointError: It is of another.
    """
    if isinstance(value, kind):
        return value
    raise CorruptCheckpointError(f"{where}: expected {words}, found {value!r:.80}.")
