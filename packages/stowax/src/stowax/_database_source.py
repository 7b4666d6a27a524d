"""Arrays that others keep in an OCDBT database, read by the database's own index.

The index is read once: it has the documents of all arrays, and of every chunk either
the bytes or where they lie.  The chunks are then read like our own.  An array whose
document has a word that is not understood here is left to another source, TensorStore.

Nothing in a database is believed: lengths are held against the files before memory is
taken for what they promise.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence

from stowax._budget import Scratch
from stowax._codecs._ocdbt import Reference
from stowax._codecs._ocdbt_read import DatabaseDecoder
from stowax._codecs._zarr import DOCUMENT_NAMES, ZarrVersion
from stowax._codecs._zarr_read import Describer
from stowax._codecs._zarr_storage import ArrayStorage, array_storage
from stowax._database_index import (
    CONCURRENT_LOOKUPS,
    DATABASE,
    DatabaseIndex,
    Entries,
    place_of,
)
from stowax._engine_read import ChunkSource
from stowax._formats._base import ArraySource, Arrived, ReadRequest
from stowax._keypath import array_prefix
from stowax._loop import on_worker
from stowax._manifest import NO_ARRAY_KINDS, LeafEntry, Manifest
from stowax._stores._base import Store, join, no_file, read_bytes
from stowax._tasks import run_all
from stowax._uncollected import uncollected
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

_DOCUMENT_LIMIT_BYTES = 1 << 20
"""No document of an array is longer."""


class DatabaseSource:
    """Reads the arrays of an item by the index of its database: an `ArraySource`.

    Args:
        store: Where the item lies.
        directory: The item's directory.
        manifest: The item, with what the documents of its arrays say.
        storages: How the array of each leaf is stored; None: the other source has it.
        entries: The database.
        others: Makes that other source, if it is needed.

    Attributes:
        manifest: See above.
        entries: See above.
    """

    def __init__(
        self,
        store: Store,
        directory: str,
        manifest: Manifest,
        storages: Sequence[ArrayStorage | None],
        entries: Entries,
        others: Callable[[Sequence[LeafEntry]], ArraySource],
    ) -> None:
        self.manifest = manifest
        self.entries = entries
        self._storages = storages
        self._index = DatabaseIndex(
            store, directory, manifest.leaves, storages, entries
        )
        self._chunks = ChunkSource(
            store, directory, manifest, verify=True, index=self._index
        )
        self._make_others = others

    async def read(
        self,
        requests: Sequence[ReadRequest],
        scratch: Scratch,
        arrived: Arrived | None = None,
    ) -> None:
        """Fills every request; see `ArraySource`."""
        ours = [r for r in requests if self._storages[r.leaf] is not None]
        theirs = [r for r in requests if self._storages[r.leaf] is None]
        others = self._others if theirs else None
        reads = [self._read(ours, scratch, arrived)]
        if others is not None:
            reads.append(others.read(theirs, scratch, arrived))
        await run_all(reads)

    async def _read(
        self,
        requests: Sequence[ReadRequest],
        scratch: Scratch,
        arrived: Arrived | None,
    ) -> None:
        await self._index.look_up(requests)
        await self._chunks.read(requests, scratch, arrived)

    @functools.cached_property
    def _others(self) -> ArraySource:
        return self._make_others(self.manifest.leaves)


async def open_database(
    store: Store,
    directory: str,
    manifest: Manifest,
    *,
    use_zarr3: bool,
    fills_missing: bool,
    others: Callable[[Sequence[LeafEntry]], ArraySource],
    databases: Sequence[str] = ("",),
) -> DatabaseSource | None:
    """Reads the index of an item's database; None: it is not of a kind read here.

    Args:
        store: Where the item lies.
        directory: The item's directory.
        manifest: The item, without dtypes and shapes.
        use_zarr3: Arrays are zarr3, and not zarr2.
        fills_missing: A chunk that is missing has the fill value of its array.
        others: Makes the source of arrays that cannot be read here.
        databases: Where in the item it begins: "", or the directories of processes,
            each with one of its own, as long as nobody has merged them.

    Raises:
        CorruptCheckpointError: The index or the document of an array is missing or
            damaged, or does not describe what its leaf must be.
        InvalidLayoutError: Arrays of its dtype cannot be loaded.
        OSError: The system failed.
    """
    version: ZarrVersion = 3 if use_zarr3 else 2
    keys = [
        None
        if leaf.form.kind in NO_ARRAY_KINDS
        else array_prefix(leaf.name) + DOCUMENT_NAMES[version]
        for leaf in manifest.leaves
    ]
    # An item of strings alone has no database.
    entries: dict[str, bytes | Reference] = {}
    for database in databases if any(keys) else ():
        found = await _read_entries(store, directory, database)
        if found is None:
            return None
        entries |= found
    documents = await _read_documents(store, directory, entries, filter(None, keys))

    @uncollected()
    def understand() -> tuple[list[LeafEntry], list[ArrayStorage | None]]:
        describer = Describer(version)
        known: dict[bytes, ArrayStorage | None] = {}
        leaves: list[LeafEntry] = []
        storages: list[ArrayStorage | None] = []
        for leaf, key in zip(manifest.leaves, keys, strict=True):
            if key is None:
                leaves.append(leaf)
                storages.append(None)
                continue
            data = documents.get(key)
            leaves.append(describer.describe(leaf, data, place_of(directory, leaf)))
            assert data is not None  # The describer has refused it.
            if data not in known:
                known[data] = array_storage(data, version, fills_missing=fills_missing)
            storages.append(known[data])
        return leaves, storages

    leaves, storages = await on_worker(understand)
    return DatabaseSource(
        store,
        directory,
        Manifest(root=manifest.root, leaves=tuple(leaves)),
        storages,
        entries,
        others,
    )


async def _read_entries(
    store: Store, directory: str, database: str
) -> dict[str, bytes | Reference] | None:
    """Every key of a database; None: it is not of a kind read here.

    Paths are relative to the item, wherever in it the database begins.
    """
    item, directory = directory, join(directory, database) if database else directory
    path = join(directory, DATABASE)
    try:
        manifest = await read_bytes(store, path)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{path} is missing") from error
    try:
        decoder = await on_worker(DatabaseDecoder, manifest)
        while decoder.wanted is not None:
            node = await _read_range(store, directory, decoder.wanted)
            await on_worker(_add, decoder, node)
    except InvalidLayoutError:
        return None
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{directory}: {error}") from error
    if directory == item:
        return decoder.entries
    return {
        key: value
        if isinstance(value, bytes)
        else value._replace(path=f"{database}/{value.path}")
        for key, value in decoder.entries.items()
    }


@uncollected()
def _add(decoder: DatabaseDecoder, node: bytes) -> None:
    decoder.add(node)


async def _read_documents(
    store: Store, directory: str, entries: Entries, keys: Iterable[str]
) -> dict[str, bytes]:
    """The documents that are there; nearly all stand in the index itself."""
    found: dict[str, bytes] = {}
    outside: dict[str, Reference] = {}
    for key in keys:
        value = entries.get(key)
        if isinstance(value, bytes):
            found[key] = value
        elif value is not None:
            outside[key] = value
    gate = asyncio.Semaphore(CONCURRENT_LOOKUPS)

    async def read(key: str, place: Reference) -> None:
        path = join(directory, place.path)
        if place.length_bytes > _DOCUMENT_LIMIT_BYTES:
            raise CorruptCheckpointError(
                f"{path}: {place.length_bytes} bytes for {key!r}; the document of an "
                f"array has at most {_DOCUMENT_LIMIT_BYTES}"
            )
        async with gate:
            content = bytearray(place.length_bytes)
            try:
                await store.read_into(path, place.offset_bytes, content)
            except (FileNotFoundError, CorruptCheckpointError) as error:
                raise CorruptCheckpointError(
                    f"{path} is missing or cut short; it holds {key!r}: {error}"
                ) from error
        found[key] = bytes(content)

    await run_all(read(*each) for each in outside.items())
    return found


async def _read_range(store: Store, directory: str, place: Reference) -> bytes:
    """The bytes of a range, once its file is known to be so long."""
    path = join(directory, place.path)
    entry = await store.stat(path)
    if entry is not None and entry.is_directory:
        raise no_file(path)
    end_bytes = place.offset_bytes + place.length_bytes
    if entry is None or end_bytes > entry.size_bytes:
        found = "it is missing" if entry is None else f"{entry.size_bytes} found"
        raise CorruptCheckpointError(
            f"{path} is missing or cut short: {end_bytes} bytes expected, {found}"
        )
    content = bytearray(place.length_bytes)
    await store.read_into(path, place.offset_bytes, content)
    return bytes(content)
