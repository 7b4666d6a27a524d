"""What users keep with a checkpoint: JSON, their own copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stowax.errors import InvalidMetadataError


def json_object(what: str, value: Any) -> Any:
    """Checks what a user wants to keep, and makes JSON of it.

    The result shares nothing with the value. Scalars of NumPy and JAX become numbers.

    Args:
        what: Name of the argument.
        value: A dict, or None.

    Raises:
        InvalidMetadataError: It is no dict with string keys, or is not JSON inside.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        found = type(value).__qualname__
        raise InvalidMetadataError(f"{what} must be a dict, found {found}")
    return json_value(what, value)


def json_value(where: str, value: Any) -> Any:
    """The same for any value of JSON, where it is named by `where`."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidMetadataError(
                    f"{where}: keys must be strings, found {key!r}"
                )
        return {key: json_value(f"{where}[{key!r}]", v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(f"{where}[{i}]", element) for i, element in enumerate(value)]
    if getattr(value, "shape", None) == ():
        number = np.asarray(value)
        if number.dtype.kind in "biu":
            return number.item()
        return float(number)
    raise InvalidMetadataError(
        f"{where} must be JSON (a dict, list, number, string, bool or None), found "
        f"{type(value).__qualname__}"
    )
