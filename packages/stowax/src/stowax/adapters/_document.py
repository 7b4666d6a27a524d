"""The document beside a tree: a small JSON object with a format version and a kind.

It is read strictly: absent is allowed, anything else than what was written is an error.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from stowax.errors import CorruptCheckpointError, InvalidLayoutError
from stowax.path import Path

FORMAT = 1
"""Version of the documents; raised when an older reader would misread a newer one."""


def encode_document(document: Mapping[str, Any]) -> str:
    """The text of a document.

    Raises:
        TypeError: It holds something that JSON cannot say.
    """
    return json.dumps({"format": FORMAT, **document}, sort_keys=True)


def write_document(path: Path, text: str) -> None:
    """Puts the text at the path as a whole, whoever else does the same."""
    # No process knows here whether it is the primary one, so each writes the same text
    # under a name of its own and moves it into place: the last one wins, all are equal,
    # and nobody ever sees half a document.
    draft = path.parent / f"{path.name}.{uuid.uuid4().hex}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def read_document(path: Path, kind: str) -> dict[str, Any] | None:
    """Reads what `write_document` wrote; None if there is nothing at the path.

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
