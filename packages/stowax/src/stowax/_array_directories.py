"""What arrays may be called that are directories, as in Orbax without OCDBT.

The name of an array is the path of its directory below the item.  Orbax takes any name
for one: those that lead out of the checkpoint, those of documents, and those of files
of other arrays.
"""

from __future__ import annotations

from collections.abc import Iterable

from stowax._formats._base import ITEM_DOCUMENT
from stowax._formats._orbax_json import (
    ARRAYS_DIRECTORY,
    COMMIT_DOCUMENT,
    SHARDING_DOCUMENT,
    STRINGS_DOCUMENT,
)
from stowax._formats._stowax import MANIFEST, PART_PREFIX, PROCESS_PREFIX
from stowax.errors import InvalidNameError

_RESERVED = frozenset(
    {
        *(ITEM_DOCUMENT, SHARDING_DOCUMENT, STRINGS_DOCUMENT, ARRAYS_DIRECTORY),
        *(MANIFEST, "manifest.ocdbt", "d", COMMIT_DOCUMENT),
        # That of the oldest checkpoints of Orbax, which it would take this for.
        "checkpoint",
    }
)
_NAME_LIMIT_BYTES = 255


def check_array_names(names: Iterable[str]) -> None:
    """Refuses names of arrays that cannot be directories of one item.

    Raises:
        InvalidNameError: Says of each such name what is wrong with it.
    """
    directories = {name.rstrip("/"): name for name in names}
    problems: list[str] = []
    for directory, name in directories.items():
        reason = _reason(directory)
        for end in range(len(directory)):
            above = directory[:end]
            if (end == 0 or directory[end] == "/") and above in directories:
                reason = f"lies within that of {directories[above] or '<root>'!r}"
        if reason is not None:
            problems.append(f"  {name or '<root>'!r} {reason}")
    if problems:
        raise InvalidNameError(
            "Context.array.saving.use_ocdbt is False, so that every array is a "
            "directory; these names cannot be:\n"
            + "\n".join(problems)
            + "\nRename the keys, or leave use_ocdbt at True. Nothing was written."
        )


def _reason(directory: str) -> str | None:
    if not directory:  # The only leaf: the item itself.
        return None
    first, *_ = parts = directory.split("/")
    if first in _RESERVED or first.startswith((PART_PREFIX, PROCESS_PREFIX)):
        return f"is that of a document, {first!r}"
    for part in parts:
        if part in ("", ".", ".."):
            return "is no plain path"
        if "\\" in part or "\0" in part:
            return "has a character that file names cannot have"
        if len(part.encode("utf-8", "surrogateescape")) > _NAME_LIMIT_BYTES:
            return f"is longer than {_NAME_LIMIT_BYTES} bytes"
    return None
