"""Public names: an object is known by the module from which users import it."""

from __future__ import annotations

import inspect
from typing import Any


def claim(namespace: dict[str, Any]) -> None:
    """Makes the exports of a public module call it their home.

    So tracebacks and documentation show names that can be imported. What another public
    module has claimed stays there, and so does what is exported under another name.

    Args:
        namespace: `globals()` of the module, with `__all__`.
    """
    for name in namespace["__all__"]:
        value = namespace[name]
        is_named = getattr(value, "__qualname__", name) == name
        if is_named and (inspect.isclass(value) or inspect.isroutine(value)):
            parts = (value.__module__ or "").split(".")
            if parts[0] == "stowax" and any(part.startswith("_") for part in parts):
                value.__module__ = namespace["__name__"]
