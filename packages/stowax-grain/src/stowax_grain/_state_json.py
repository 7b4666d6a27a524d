r"""Iterator state as JSON text, and back to equal values.

JSON alone changes a state silently: integer keys become strings (Grain then restarts
those shards from zero) and tuples become lists.  What JSON cannot say is written as an
object with one key that begins with `$`; everything else is written as it is.

    {2: "a"}         {"$dict": [[2, "a"]]}
    (1, 2)           {"$tuple": [1, 2]}
    b"\x00"          {"$bytes": "AA=="}
    np.arange(2)     {"$array": ["int64", [2], [0, 1]]}

NumPy scalars are written as the Python numbers they equal.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from stowax import errors

__all__ = ["decode_state", "encode_state"]

_ARRAY_KINDS = "biufSU"


def encode_state(state: Any) -> Any:
    """Copies `state` into plain JSON values.

    Raises:
        stowax.errors.UnsupportedLeafError: A value has no exact form in JSON.
    """
    return _encode(state, path="state")


def decode_state(value: Any) -> Any:
    """Builds the state that `encode_state` was given.

    Raises:
        ValueError: `value` has a `$` object that `encode_state` does not write.
    """
    match value:
        case list():
            return [decode_state(element) for element in value]
        case dict() if _is_escape(value):
            return _decode_escape(*value.items())
        case dict():
            return {key: decode_state(element) for key, element in value.items()}
        case _:
            return value


def _encode(value: Any, *, path: str) -> Any:
    match value:
        case np.generic():
            return _encode(value.item(), path=path)
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        case tuple():
            return {"$tuple": _encode_elements(value, path=path)}
        case list():
            return _encode_elements(value, path=path)
        case Mapping():
            return _encode_mapping(value, path=path)
        case np.ndarray() if value.dtype.kind in _ARRAY_KINDS:
            elements = [_encode(e, path=path) for e in value.ravel().tolist()]
            return {"$array": [value.dtype.str, list(value.shape), elements]}
    kind = type(value)
    raise errors.UnsupportedLeafError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which an iterator state"
        " cannot hold; return numbers, strings, bytes, NumPy arrays, lists, tuples and"
        " dictionaries from get_state()"
    )


def _encode_elements(values: list[Any] | tuple[Any, ...], *, path: str) -> list[Any]:
    return [_encode(value, path=f"{path}[{i}]") for i, value in enumerate(values)]


def _encode_mapping(mapping: Mapping[Any, Any], *, path: str) -> dict[str, Any]:
    encoded = [
        (_encode(key, path=f"{path} key"), _encode(value, path=f"{path}[{key!r}]"))
        for key, value in mapping.items()
    ]
    plain = dict(encoded) if all(isinstance(key, str) for key in mapping) else None
    if plain is None or _is_escape(plain):
        return {"$dict": [list(pair) for pair in encoded]}
    return plain


def _is_escape(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _decode_escape(escape: tuple[str, Any]) -> Any:
    match escape:
        case ("$dict", pairs):
            return {decode_state(key): decode_state(value) for key, value in pairs}
        case ("$tuple", elements):
            return tuple(decode_state(element) for element in elements)
        case ("$bytes", text):
            return base64.b64decode(text, validate=True)
        case ("$array", [dtype, shape, elements]):
            values = [decode_state(element) for element in elements]
            return np.array(values, dtype=np.dtype(dtype)).reshape(shape)
    raise ValueError(f"unknown object in an iterator state: {json.dumps(escape[0])}")
