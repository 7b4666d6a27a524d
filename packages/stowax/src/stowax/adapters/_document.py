"""The document beside a tree: a small JSON object with a format version and a kind.

It is read strictly: absent is allowed, anything else than what was written is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType, UnionType
from typing import Any

from stowax.adapters._paths import KeyPath, StoredName, stored_name
from stowax.errors import CorruptCheckpointError, InvalidLayoutError
from stowax.path import Path

FORMAT = 1
"""Version of the documents; raised when an older reader would misread a newer one."""

_NOTES: Mapping[str, type] = MappingProxyType(
    {"prng_impl": str, "python": str, "weak": bool}
)
"""What `note_of` may say of a leaf."""


def encode_document(document: Mapping[str, Any]) -> str:
    """The text of a document.

    Raises:
        TypeError: It holds something that JSON cannot say.
    """
    return json.dumps({"format": FORMAT, **document}, sort_keys=True)


def read_document(path: Path, kind: str) -> dict[str, Any] | None:
    """Reads what `encode_document` made; None if there is nothing at the path.

    Raises:
        InvalidLayoutError: It has another format version, or is of another kind.
        CorruptCheckpointError: It is no JSON object with a format version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise corrupt_document(path, f"not JSON ({error})") from error
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise corrupt_document(path, "no JSON object with a format version")
    if document["format"] != FORMAT:
        raise InvalidLayoutError(
            f"{path} has format {document['format']}, and this version reads format "
            f"{FORMAT}. Install the version that wrote it, or load the plain tree "
            "with `stowax.load`."
        )
    if document.get("kind") != kind:
        raise InvalidLayoutError(
            f"{path} describes a {document.get('kind')!r}, not a {kind!r}."
        )
    return document


def parse_leaves(
    leaves: Iterable[Any],
    *,
    required: Mapping[str, type | UnionType] = MappingProxyType({}),
    optional: Mapping[str, type | UnionType] = MappingProxyType({}),
) -> dict[StoredName, Mapping[str, Any]]:
    """The entries of a document's list of leaves, checked, by the names of the leaves.

    Args:
        leaves: The list.  Every entry has the `path` of its leaf, and may have what
            `note_of` returned.
        required: What else every entry has, and of which type it is.
        optional: What else an entry may have.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another type.

    Example:
        >>> import stowax
        >>> leaves = [{"path": ["layers", 0], "size": 3, "weak": True}]
        >>> entries = stowax.adapters.parse_leaves(leaves, required={"size": int})
        >>> entries["layers", "0"]["size"]
        3
    """
    entries: dict[StoredName, Mapping[str, Any]] = {}
    for entry in leaves:
        path = parse_path(entry["path"])
        for name, kind in {**_NOTES, **optional, **required}.items():
            if name in required or name in entry:
                check_type(name, entry[name], kind)
        entries[stored_name(path)] = entry
    return entries


def parse_path(path: Any) -> KeyPath:
    """A path as a document holds it, checked.

    Args:
        path: A JSON value.

    Raises:
        TypeError: It is no list of strings and integers.

    Example:
        >>> import stowax
        >>> stowax.adapters.parse_path(["layers", 0, "kernel"])
        ('layers', 0, 'kernel')
    """
    check_type("a path", path, list)
    if wrong := [key for key in path if type(key) not in (str, int)]:
        raise TypeError(f"{wrong[0]!r} is no key of a path")
    return tuple(path)


def check_type(name: str, value: Any, kind: type | UnionType) -> None:
    """Checks a value of a document.

    Args:
        name: What it is, for the message.
        value: A JSON value.
        kind: What it must be.

    Raises:
        TypeError: It is something else.

    Example:
        >>> import stowax
        >>> stowax.adapters.check_type("tag", 3, str | None)
        Traceback (most recent call last):
            ...
        TypeError: tag is 3
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")


def corrupt_document(path: Path, problem: str) -> CorruptCheckpointError:
    """The error for a document that no adapter can have written.

    Args:
        path: The document.
        problem: What is wrong with it, in a few words.

    Returns:
        The error, to be raised; it proposes to load the tree without the document.

    Example:
        >>> import stowax
        >>> path = stowax.path.Path("checkpoint/model/words.json")
        >>> raise stowax.adapters.corrupt_document(path, "no list of leaves")
        Traceback (most recent call last):
            ...
        stowax.errors.CorruptCheckpointError: checkpoint/model/words.json: no list ...
    """
    return CorruptCheckpointError(
        f"{path}: {problem}. The document is damaged or was edited; load the plain "
        "tree with `stowax.load` if the arrays are all you need."
    )
