"""The names by which documents know classes: `flax.nnx:Param`, `my.models:EMA`."""

from __future__ import annotations


def class_name(cls: type, *homes: str) -> str:
    """The name of a class, the same wherever a library keeps it.

    Args:
        cls: The class.
        homes: Packages of the library: a class from a module below one of them is
            named after the package; the first that fits counts.

    Returns:
        Module and qualified name, with a colon between.

    Example:
        >>> import collections.abc
        >>> import stowax
        >>> stowax.adapters.class_name(collections.abc.Set, "collections")
        'collections:Set'
    """
    module = cls.__module__
    home = next((home for home in homes if _is_below(module, home)), module)
    return f"{home}:{cls.__qualname__}"


def same_class(stored: str | None, live: str | None, *, library: str) -> bool:
    """Whether two names mean one class, which may have moved between modules.

    A class of the library is never taken for one from elsewhere.

    Args:
        stored: What `class_name` returned when the item was saved; None where there
            was no class to name.
        live: The same of the live object.
        library: Package of the library.

    Example:
        >>> import stowax
        >>> same_class = stowax.adapters.same_class
        >>> same_class("my.models:EMA", "my.averages:EMA", library="flax.nnx")
        True
        >>> same_class("flax.nnx:Param", "my.models:Param", library="flax.nnx")
        False
    """
    if stored is None or live is None:
        return stored == live
    (stored_home, stored_class), (live_home, live_class) = map(_split, (stored, live))
    if _is_below(stored_home, library) != _is_below(live_home, library):
        return False
    return stored_class == live_class


def _split(name: str) -> tuple[str, str]:
    """The home of a class, and its name without the function that defined it."""
    home, _, qualified_name = name.partition(":")
    return home, qualified_name.rpartition("<locals>.")[2]


def _is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
