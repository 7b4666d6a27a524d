"""The names that checkpointables and checkpoints may have."""

from __future__ import annotations

import posixpath
from typing import Any

from stowax._commit import draft_of
from stowax._formats._base import RESERVED_NAMES
from stowax._formats._orbax_json import (
    COMMIT_DOCUMENT,
    INDICATOR,
    PARTIAL_MARK,
    ROOT_DOCUMENT,
    UNFINISHED_MARK,
)
from stowax._formats._stowax import ROOT_SEAL
from stowax.errors import InvalidNameError

_ROOT_NAMES = frozenset({ROOT_DOCUMENT, INDICATOR, COMMIT_DOCUMENT, ROOT_SEAL})
_NAME_LIMIT_BYTES = 255


def check_name(name: Any, reserved: frozenset[str] = RESERVED_NAMES) -> None:
    """Refuses names that would clash with files of the format, or leave the directory.

    Args:
        name: Of a checkpointable.
        reserved: Names that are ours to give.

    Raises:
        InvalidNameError: Says what is wrong with the name.
    """
    if not isinstance(name, str):
        reason = "is no string"
    elif name in reserved or name in _ROOT_NAMES:
        reason = "is reserved"
    elif UNFINISHED_MARK in name:
        reason = "marks unfinished checkpoints"
    elif name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        reason = "is no name of a directory"
    elif (problem := _unwritable(name)) is not None:
        reason = problem
    else:
        return
    raise InvalidNameError(f"the checkpointable name {name!r} {reason}")


def check_directory(location: str, *, is_update: bool = False) -> None:
    """Refuses a path whose last part a file system does not take, or not as a draft.

    Args:
        location: The path.
        is_update: Whether it is saved in parts, whose names are longer.

    Raises:
        InvalidNameError: Says why.
    """
    longest = draft_of(location)
    if is_update:
        longest = f"{location}{PARTIAL_MARK}.pending_{10**19}_{'0' * 32}"
    limit_bytes = _NAME_LIMIT_BYTES - (len(longest) - len(location))
    problem = _unwritable(posixpath.basename(location), limit_bytes)
    if problem is not None:
        raise InvalidNameError(
            f"{location!r}: the last part {problem} (until it is complete, a "
            "checkpoint has a longer name); choose another"
        )


def _unwritable(name: str, limit_bytes: int = _NAME_LIMIT_BYTES) -> str | None:
    """What keeps a file system from having a directory of this name."""
    try:
        size_bytes = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    if size_bytes > limit_bytes:
        return f"has {size_bytes} bytes; it may have {limit_bytes}"
    return None
