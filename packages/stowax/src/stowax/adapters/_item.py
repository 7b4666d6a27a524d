"""An item of an adapter: an ordinary tree item, and one JSON document beside it.

The tree is complete without the document: any reader of tree items loads it.  The
document holds what a tree cannot say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowax import multihost
from stowax._context import Context, current_context
from stowax.adapters._document import encode_document, read_document
from stowax.adapters._paths import (
    KeyPath,
    StoredName,
    flatten,
    map_with_path,
    stored_name,
)
from stowax.errors import TreeMismatchError
from stowax.handlers import PyTreeHandler
from stowax.options import PyTreeOptions
from stowax.path import Path, PathAwaitingCreation
from stowax.tree import PLACEHOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """What is stored, before any array is read; made by `open_item`."""

    directory: Path
    metadata: Any
    """The stored tree, with metadata in place of its leaves."""
    leaves: Mapping[StoredName, Any]
    """The same metadata by name; a stored None is there as None."""
    document: Mapping[str, Any] | None
    """The document beside the tree, or None if there is none."""


async def save_item(
    directory: PathAwaitingCreation, tree: Any, name: str, document: Mapping[str, Any]
) -> Awaitable[None]:
    """Stages a tree; awaiting what this returns writes the document and the tree.

    Once this returned, the caller may change, donate or delete every leaf.  All
    processes of a run call it; the document of the primary one is written.

    Args:
        directory: Where a `StatefulCheckpointable` or a handler is told to save.
        tree: The tree, as `nest` makes it of leaves from `storable_leaf`.
        name: File name of the document.
        document: JSON values, with a `kind` that `open_item` compares.  The key
            `format` is added: the version of this form.

    Returns:
        The rest of the work, to be returned by the caller's own `save`.

    Raises:
        TreeError: The tree cannot be saved; names every leaf in the way.
        TypeError: The document holds something that JSON cannot say.

    Example:
        Text that loads as a list, and knows which language it is in:

        >>> import stowax
        >>> class Words:
        ...     def __init__(self, words=(), language=None):
        ...         self.words, self.language = list(words), language
        ...
        ...     async def save(self, directory):
        ...         document = {"kind": "words", "language": self.language}
        ...         tree = {"words": self.words}
        ...         return await stowax.adapters.save_item(
        ...             directory, tree, "words.json", document
        ...         )
        ...
        ...     async def load(self, directory):
        ...         stored = await stowax.adapters.open_item(
        ...             directory, "words.json", "words"
        ...         )
        ...         loading = await stowax.adapters.load_item(stored, stored.leaves)
        ...
        ...         async def finish():
        ...             self.words = list((await loading).values())
        ...             self.language = stored.document["language"]
        ...
        ...         return finish()
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"w": Words(["eins", "zwei"], "de")})
        >>> stowax.load(path, checkpointable_name="w")
        {'words': ['eins', 'zwei']}
        >>> words = stowax.load_checkpointables(path, {"w": Words()})["w"]
        >>> words.language, words.words
        ('de', ['eins', 'zwei'])
    """
    text = encode_document(document)
    # Asked in the caller's Context, not wherever the rest is awaited.
    is_writer = multihost.is_primary_host()
    rest = await PyTreeHandler().save(directory, tree)

    async def finish() -> None:
        try:
            if is_writer:
                # Straight under its name: until all is published, nobody reads it.
                path = await directory.await_creation() / name
                path.write_text(text, encoding="utf-8")
        finally:
            # The tree is on its way already, and must not be written unattended.
            await rest

    return finish()


async def open_item(directory: Path, name: str, kind: str) -> StoredItem:
    """Reads the document and the metadata of the tree, and no array.

    Args:
        directory: The item's directory, as `load` of a checkpointable is given it.
        name: File name of the document.
        kind: What the document must say that it describes.

    Returns:
        What is stored; without a document if there is none, as in a plain tree.

    Raises:
        InvalidLayoutError: There is no tree; or the document has another format
            version, or is of another kind.
        CorruptCheckpointError: The document is no JSON object with a format version.

    Example:
        >>> import asyncio
        >>> import numpy as np
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"model": {"w": np.ones(3)}})
        >>> stored = asyncio.run(
        ...     stowax.adapters.open_item(path / "model", "words.json", "words")
        ... )
        >>> stored.leaves["w",].shape, stored.document
        ((3,), None)
    """
    metadata = await _reader().metadata(directory)
    return StoredItem(
        directory=directory,
        metadata=metadata,
        leaves={stored_name(path): leaf for path, leaf in flatten(metadata)},
        document=read_document(directory / name, kind),
    )


async def load_item(
    stored: StoredItem, requests: Mapping[StoredName, Any]
) -> Awaitable[dict[StoredName, Any]]:
    """Begins to load the requested leaves; the rest of the tree is left where it is.

    Options of the active Context that would change the tree (renaming, padding, NumPy
    only) are left to `stowax.load`, and a conversion that loses range or kind is a
    mismatch: an adapter promises its object, or an error.

    Args:
        stored: What `open_item` returned.
        requests: By name, the abstract leaf to load, as `abstract_leaf` makes it.  A
            name that is not stored has no meaning here: compare names first.

    Returns:
        The rest of the work: leaves by name.  Those that were not asked for are
        `stowax.PLACEHOLDER`, and a stored None is None.

    Raises:
        TreeMismatchError: Lists every leaf that does not fit its abstract leaf.

    Example:
        >>> import asyncio
        >>> import numpy as np
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"model": {"w": np.ones(3), "step": 7}})
        >>> async def load_step():
        ...     stored = await stowax.adapters.open_item(
        ...         path / "model", "words.json", "words"
        ...     )
        ...     return await (await stowax.adapters.load_item(stored, {("step",): 0}))
        >>> asyncio.run(load_step())["step",]
        7
    """
    abstract = map_with_path(
        lambda path, leaf: _ask(requests, path, leaf), stored.metadata
    )
    rest = await _reader().load(stored.directory, abstract)

    async def finish() -> dict[StoredName, Any]:
        return {stored_name(path): leaf for path, leaf in flatten(await rest)}

    return finish()


def tree_mismatch(
    stored: StoredItem, live: str, problems: Sequence[str], advice: str
) -> TreeMismatchError:
    """The error for an item that does not fit the live object.

    Args:
        stored: The item.
        live: The live object, in words.
        problems: A line for each leaf that does not fit.
        advice: What its user can do, as a sentence that goes on; loading the plain tree
            is proposed besides.

    Returns:
        The error, to be raised.

    Example:
        >>> import stowax
        >>> stored = stowax.adapters.StoredItem(
        ...     directory="checkpoint/x", metadata={}, leaves={}, document=None
        ... )
        >>> print(
        ...     stowax.adapters.tree_mismatch(
        ...         stored, "the words", ["words.0   not stored"], "Wait for the words"
        ...     )
        ... )
        1 problem(s) between the words and the checkpoint at checkpoint/x:
          words.0   not stored
        Nothing was changed. Wait for the words, or load the plain tree with ...
    """
    lines = sorted(set(problems))
    return TreeMismatchError(
        f"{len(lines)} problem(s) between {live} and the checkpoint at "
        f"{stored.directory}:\n"
        + "\n".join(f"  {line}" for line in lines)
        + f"\nNothing was changed. {advice}, or load the plain tree with "
        "`stowax.load(path, checkpointable_name=...)`.",
        lines,
    )


def _reader() -> PyTreeHandler:
    """Reads a tree as it was saved, whatever the caller's options for trees are."""
    context = Context(current_context())
    context.pytree.loading = PyTreeOptions.Loading()
    context.array.loading.casting = "safe"
    context.array.loading.enable_padding_and_truncation = False
    context.array.loading.as_numpy = False
    return PyTreeHandler(context=context)


def _ask(requests: Mapping[StoredName, Any], path: KeyPath, leaf: Any) -> Any:
    return None if leaf is None else requests.get(stored_name(path), PLACEHOLDER)
