"""What both arrangements of Orbax have in common: tree items and documents at the root.

The documents come through the store, and so do the arrays of an item if they lie in a
database whose index can be read here.  All others come through TensorStore, which needs
a real directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stowax._database_index import DATABASE
from stowax._database_source import open_database
from stowax._formats._base import (
    ITEM_DOCUMENT,
    RESERVED_NAMES,
    ArraySource,
    TreeItem,
)
from stowax._formats._orbax_json import (
    ARRAYS_DIRECTORY,
    DELETION_DOCUMENT,
    INDICATOR,
    METRICS_DOCUMENT,
    ROOT_DOCUMENT,
    SHARDING_DOCUMENT,
    STRINGS_DOCUMENT,
    UNFINISHED_MARK,
    RootDocument,
    decode_deletion,
    decode_json,
    decode_root,
)
from stowax._formats._orbax_tree_read import TreeDocuments, decode_documents
from stowax._loop import on_worker
from stowax._manifest import NO_ARRAY_KINDS, LeafEntry, Manifest
from stowax._stores._base import Entry, Store, read_bytes
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

if TYPE_CHECKING:
    from stowax._tensorstore import TensorStoreSource

_OF_A_PROCESS = "ocdbt.process_"
"""Begin of the names of the directories in which processes have their databases."""

AGGREGATE_DOCUMENT = "checkpoint"
"""The whole tree as msgpack: all there was before 2024."""


async def open_tree(
    store: Store,
    path: str,
    *,
    verify: bool,
    rich_types: bool = False,
    fills_missing: bool = False,
    is_merged: bool = True,
) -> TreeItem:
    """Opens a tree item: its documents, and the metadata of every array.

    Args:
        store: Where it lies.
        path: The item's directory.
        verify: Whether an item that names a manifest must have it.
        rich_types: Whether tuples and NamedTuples are told apart where that is known.
        fills_missing: Whether missing chunks are zeros, whatever the item says of them.
        is_merged: Whether the databases of all processes have been made into one.

    Raises:
        InvalidLayoutError: It is no tree item, or not one that can be read here.
        CorruptCheckpointError: A document or an array's metadata is damaged.
    """
    entries = await store.list(path)
    names = {entry.name for entry in entries}
    if ITEM_DOCUMENT not in names:
        hint = ""
        if INDICATOR in names:
            hint = (
                " It is a whole checkpoint, and not the directory of a tree: leave "
                "`checkpointable_name` at 'AUTO', or say which tree in it is meant."
            )
        raise InvalidLayoutError(
            f"{path} has no {ITEM_DOCUMENT}{_found(entries)}{hint}"
        )
    documents = {
        name: await read_bytes(store, f"{path}/{name}")
        for name in (ITEM_DOCUMENT, SHARDING_DOCUMENT, STRINGS_DOCUMENT)
        if name in names
    }
    if ARRAYS_DIRECTORY in names:
        for entry in await store.list(f"{path}/{ARRAYS_DIRECTORY}"):
            name = f"{ARRAYS_DIRECTORY}/{entry.name}"
            documents[name] = await read_bytes(store, f"{path}/{name}")
    said = await on_worker(
        decode_documents, documents, path=path, rich_types=rich_types
    )
    if verify and said.manifest_name is not None:
        raise CorruptCheckpointError(
            f"{path}/{ITEM_DOCUMENT} names an integrity manifest, "
            f"{said.manifest_name!r}, which is missing. To load without verification: "
            "`Context(integrity=IntegrityOptions(verify=False))`."
        )

    use_ocdbt = DATABASE in names if said.use_ocdbt is None else said.use_ocdbt
    has_arrays = any(
        leaf.form.kind not in NO_ARRAY_KINDS for leaf in said.manifest.leaves
    )
    databases = [""]
    if not is_merged:
        databases = sorted(name for name in names if name.startswith(_OF_A_PROCESS))
    if has_arrays and use_ocdbt and is_merged and DATABASE not in names:
        raise CorruptCheckpointError(
            f"{path}: {DATABASE}, the table of contents of its arrays, is missing"
            + _found(entries)
        )
    manifest, source = await _open_arrays(
        store,
        path,
        said,
        use_ocdbt=use_ocdbt or not has_arrays,
        databases=databases,
        # zarr2 never left a chunk out.
        fills_missing=fills_missing or (said.use_zarr3 and not said.stores_fill_value),
    )
    return TreeItem(
        path=path,
        manifest=manifest,
        source=source,
        custom_metadata=said.custom_metadata,
    )


async def _open_arrays(
    store: Store,
    path: str,
    said: TreeDocuments,
    *,
    use_ocdbt: bool,
    databases: Sequence[str],
    fills_missing: bool,
) -> tuple[Manifest, ArraySource]:
    """The item with what its arrays are, and what reads them."""
    directory = store.local_path(path)

    def by_tensorstore(leaves: Sequence[LeafEntry]) -> TensorStoreSource:
        if directory is None:
            raise InvalidLayoutError(
                f"{path} was written by Orbax and lies in {store.description}; its "
                "arrays, or some of them, are in a form that can be read from a "
                "directory of a file system only."
            )
        # Not above: most loads never need it, and its import takes a while.
        from stowax._tensorstore import TensorStoreSource

        return TensorStoreSource(
            directory,
            leaves,
            use_ocdbt=use_ocdbt,
            use_zarr3=said.use_zarr3,
            fills_missing=fills_missing,
        )

    if use_ocdbt:
        database = await open_database(
            store,
            path,
            said.manifest,
            use_zarr3=said.use_zarr3,
            fills_missing=fills_missing,
            others=by_tensorstore,
            databases=databases,
        )
        if database is not None:
            return database.manifest, database
    source = by_tensorstore(said.manifest.leaves)
    return replace(said.manifest, leaves=await source.array_facts()), source


async def read_deletion(
    store: Store, path: str, entries: Iterable[Entry]
) -> str | None:
    """The item that Orbax has begun to delete, if there is one."""
    if not any(entry.name == DELETION_DOCUMENT for entry in entries):
        return None
    data = await read_bytes(store, f"{path}/{DELETION_DOCUMENT}")
    return decode_deletion(data, path=path)


def item_directories(
    path: str, entries: Iterable[Entry], deleting: str | None
) -> dict[str, str]:
    """Name and directory of every item; one that is being deleted is gone already."""
    hidden = {*RESERVED_NAMES, deleting}
    return {
        entry.name: f"{path}/{entry.name}"
        for entry in entries
        if entry.is_directory
        and entry.name not in hidden
        and UNFINISHED_MARK not in entry.name
    }


async def read_root(store: Store, path: str) -> RootDocument:
    """`_CHECKPOINT_METADATA`; a missing one says nothing."""
    try:
        data = await read_bytes(store, f"{path}/{ROOT_DOCUMENT}")
    except FileNotFoundError:
        return RootDocument()
    return decode_root(data, path=path)


async def read_metrics(store: Store, path: str) -> Any:
    """The metrics of a step, or None."""
    document = f"{path}/{METRICS_DOCUMENT}"
    try:
        data = await read_bytes(store, document)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return decode_json(data, path=document)


def describe(entries: Iterable[Entry]) -> str:
    """What is in a directory, for messages."""
    names = [e.name + "/" * e.is_directory for e in entries]
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return shown or "nothing"


def _found(entries: Iterable[Entry]) -> str:
    entries = list(entries)
    hint = ""
    if any(e.name == AGGREGATE_DOCUMENT and not e.is_directory for e in entries):
        hint = (
            f" The file {AGGREGATE_DOCUMENT!r} is the msgpack format that Orbax wrote "
            "until 2023, which cannot be read."
        )
    return f"; it holds: {describe(entries)}.{hint}"
