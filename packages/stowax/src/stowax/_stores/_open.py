"""From a path to the store that keeps it."""

from __future__ import annotations

import re

from stowax._stores._base import Store
from stowax._stores._local import LocalStore
from stowax.errors import InvalidNameError

# Two letters at least: "C:" is a drive, not a scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def open_store(path: str) -> Store:
    """The store for a path.

    Raises:
        InvalidNameError: The path names a kind of storage that is not supported.
    """
    scheme = _SCHEME.match(path)
    if scheme is not None:
        raise InvalidNameError(
            f"{path}: there is no store for {scheme.group(1)!r} yet. Supported now are"
            " paths of a mounted file system, such as '/runs/a/checkpoint', and stores"
            " of your own, chosen through a `Context`."
        )
    return LocalStore()
