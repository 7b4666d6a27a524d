"""Public names: an object is known by the module from which users import it."""

from __future__ import annotations

import inspect
from typing import Any


def claim(namespace: dict[str, Any]) -> None:
    """Makes the exports of a public module call it their home.

    So tracebacks and documentation show names that can be imported. What another public
    module has claimed stays there.

    Args:
        namespace: `globals()` of the module, with `__all__`.
    """
    for name in namespace["__all__"]:
        value = namespace[name]
        if inspect.isclass(value) or inspect.isroutine(value):
            parts = (value.__module__ or "").split(".")
            if parts[0] == "stowax" and any(part.startswith("_") for part in parts):
                value.__module__ = namespace["__name__"]
