"""Which class of handlers a checkpoint names: type strings, and what they stand for."""

from __future__ import annotations

from typing import Any

from stowax.errors import HandlerError

_SRC = "orbax.checkpoint._src."
_TYPES: dict[str, Any] = {}


def typestr_of(handler: Any) -> str:
    """The name under which a checkpoint records a handler, a class or an instance."""
    cls = handler if isinstance(handler, type) else type(handler)
    ask = getattr(handler, "typestr", None)
    if ask is not None:
        return ask()
    return f"{cls.__module__}.{cls.__qualname__}"


def register_handler_type(handler_cls: Any, *others: str) -> None:
    """Makes a class of handlers known under its type string, and under others.

    Raises:
        HandlerError: The name stands for another class, of another name.
    """
    for typestr in (typestr_of(handler_cls), *others):
        known = _TYPES.get(typestr, handler_cls)
        # A cell of a notebook that runs again makes its class again.
        if _full_name(known) != _full_name(handler_cls):
            raise HandlerError(
                f"the type string {typestr!r} is that of {known!r} already; give "
                f"{handler_cls!r} another with a `typestr` of its own"
            )
        _TYPES[typestr] = handler_cls


def handler_type(typestr: str | None) -> Any | None:
    """The class that a checkpoint names; None if nobody knows it."""
    if typestr is None:
        return None
    # Where the older API is going to live in Orbax.
    return _TYPES.get(typestr.replace("orbax.checkpoint.v0._src.", _SRC))


def _full_name(cls: Any) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__
