"""Our own format: a manifest in every item, and a seal over the root.

`stowax.json` at the root holds digests of the documents at the root, of every item's
manifest and of the files that guests wrote.  `stowax.manifest` in an item holds what
is stored and digests of the item's other documents.  Reading needs nothing else; the
documents of Orbax beside them are written for others, and only their digests matter
here.

The encoders are pure; the `StowaxFormat` reads.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stowax._box import grid_counts
from stowax._codecs._checksum import seal, unseal
from stowax._codecs._compression import CODECS
from stowax._codecs._item_manifest import (
    SEAL,
    ItemRoot,
    check_version,
    decode_digests,
    decode_part,
    decode_root,
    digest,
    encode_digests,
)
from stowax._codecs._zarr import check_extents, dtype_from_name
from stowax._engine_read import ChunkSource
from stowax._formats import _orbax_json
from stowax._formats._base import Layout, OpenCheckpoint, TreeItem
from stowax._loop import on_worker
from stowax._manifest import (
    NO_ARRAY_KINDS,
    ChunkTable,
    Digest,
    LeafEntry,
    LeafForm,
    Manifest,
)
from stowax._stores._base import Store, join, read_bytes
from stowax.errors import CorruptCheckpointError, UnsupportedLeafError

ROOT_SEAL = "stowax.json"
MANIFEST = "stowax.manifest"
PART_PREFIX = "stowax.chunks."


class RecordNames(NamedTuple):
    """What our records in an item are called."""

    manifest: str
    part_prefix: str
    """Begin of the names of chunk tables; the number of a process follows."""


def record_names(update: str = "") -> RecordNames:
    """Names of records: those of a checkpoint, or of an update of a session.

    Args:
        update: The id of the update; "" for a checkpoint.
    """
    if not update:
        return RecordNames(MANIFEST, PART_PREFIX)
    return RecordNames(f"{MANIFEST}.{update}", f"{PART_PREFIX}{update}.")


PROCESS_PREFIX = "ocdbt.process_"
"""Begin of the data area of a process; Orbax looks for the same."""

_ADVICE = (
    "It is damaged, or was changed after it was saved (by deleting an item with Orbax, "
    "for instance). To load what is there without comparing checksums, use "
    "`Context(integrity=IntegrityOptions(verify=False))`."
)


def encode_seal(
    *,
    layout: Layout,
    documents: Mapping[str, Digest],
    manifests: Mapping[str, Digest],
    guests: Mapping[str, Digest],
) -> bytes:
    """The seal of a checkpoint; all names are relative to its root."""
    return seal(
        {
            "format": SEAL,
            "version": 1,
            "layout": layout,
            "documents": encode_digests(documents),
            "manifests": encode_digests(manifests),
            "guests": encode_digests(guests),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What the seal of a checkpoint vouches for; all names are relative to its root."""

    layout: Layout
    documents: Mapping[str, Digest]
    manifests: Mapping[str, Digest]
    guests: Mapping[str, Digest]

    @property
    def digests(self) -> dict[str, Digest]:
        """All of them."""
        return {**self.documents, **self.manifests, **self.guests}


def decode_seal(data: bytes) -> Seal:
    """Reads the seal of a checkpoint.

    Raises:
        CorruptCheckpointError: A byte is not what was written, or a newer release of
            this library wrote it. The message names no path; the caller knows it.
    """
    document = unseal(data)
    check_version(document, SEAL)
    try:
        layout = document["layout"]
        if layout not in ("composite", "direct"):
            raise ValueError(f"its layout is {layout!r}")
        return Seal(
            layout=layout,
            documents=decode_digests(document["documents"]),
            manifests=decode_digests(document["manifests"]),
            guests=decode_digests(document["guests"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCheckpointError(f"it is no seal: {error}") from error


def without_item(data: bytes, name: str, root: bytes) -> bytes:
    """The seal of a checkpoint as it was, but for one item.

    Args:
        data: The seal.
        name: The item.
        root: What stands at the root instead.

    Raises:
        CorruptCheckpointError: See `decode_seal`.
    """
    sealed = decode_seal(data)

    def others(digests: Mapping[str, Digest]) -> dict[str, Digest]:
        return {k: v for k, v in digests.items() if not k.startswith(f"{name}/")}

    documents = {**sealed.documents, _orbax_json.ROOT_DOCUMENT: digest(root)}
    return encode_seal(
        layout="composite",
        documents=documents,
        manifests=others(sealed.manifests),
        guests=others(sealed.guests),
    )


class StowaxFormat:
    """Reads what this library wrote."""

    name = "stowax"
    is_sealed = True

    async def recognises(self, store: Store, path: str) -> bool:
        """By the seal; or, of an item alone, by its manifest."""
        return (
            await store.stat(join(path, ROOT_SEAL)) is not None
            or await store.stat(join(path, MANIFEST)) is not None
        )

    async def open(self, store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
        """Reads the seal and the metadata at the root."""
        if await store.stat(join(path, ROOT_SEAL)) is None:
            if verify and await is_unsealed(store, path):
                raise CorruptCheckpointError(
                    f"{join(path, ROOT_SEAL)} is missing, but there are "
                    f"{_orbax_json.ROOT_DOCUMENT} and a manifest. {_ADVICE}"
                )
            return OpenCheckpoint(path=path, items={"": path})
        seal = await _read_seal(store, join(path, ROOT_SEAL))
        digests = seal.digests
        deleting = await _read_deletion(store, path)
        names = {n.split("/")[0] for n in digests if "/" in n}
        items = _directories(path, sorted(names - {deleting}))
        is_direct = seal.layout == "direct"
        if is_direct:
            items = {"": path}
        elif verify:
            # Before the root is looked at: a missing item says more than its digest.
            await _check_items(store, path, items, deleting)
        root = await read_document(
            store,
            join(path, _orbax_json.ROOT_DOCUMENT),
            seal.documents.get(_orbax_json.ROOT_DOCUMENT),
            verify,
        )
        facts = _orbax_json.decode_root(root, path=path)
        # An item without any file stands in no digest.
        if not is_direct:
            named = [name for name in facts.typestrs if name not in ("", deleting)]
            items = _directories(path, [*items, *named])
        if not verify and not is_direct:
            items = {
                name: directory
                for name, directory in items.items()
                if await store.stat(directory) is not None
            }
        metrics = items.pop("metrics", None)
        return OpenCheckpoint(
            path=path,
            items=items,
            typestrs=facts.typestrs,
            init_timestamp_nsecs=facts.init_timestamp_nsecs,
            commit_timestamp_nsecs=facts.commit_timestamp_nsecs,
            custom_metadata=facts.custom_metadata,
            metrics=None
            if metrics is None or _orbax_json.METRICS_DOCUMENT not in digests
            else await _read_metrics(store, join(metrics, "metrics"), digests, verify),
            deleting=deleting,
            guest_files={join(path, name): d for name, d in digests.items()},
        )


async def is_unsealed(store: Store, path: str) -> bool:
    """Whether a checkpoint of ours whose item lies at the root has lost its seal.

    The directory of an item has a manifest, but no metadata of a checkpoint.
    """
    names = (MANIFEST, _orbax_json.ROOT_DOCUMENT)
    entries = [await store.stat(join(path, name)) for name in names]
    return None not in entries


async def _read_deletion(store: Store, path: str) -> str | None:
    """The item that Orbax has begun to delete, if there is one."""
    try:
        data = await read_bytes(store, join(path, _orbax_json.DELETION_DOCUMENT))
    except FileNotFoundError:
        return None
    return _orbax_json.decode_deletion(data, path=path)


async def open_tree_item(
    store: Store,
    path: str,
    expected: Digest | None,
    *,
    verify: bool,
    manifest_name: str = MANIFEST,
) -> TreeItem:
    """Opens an item by its manifest.

    Args:
        store: Where it lies.
        path: The directory of the item.
        expected: What the seal of the checkpoint says of the manifest, if known.
        verify: Whether checksums are compared.
        manifest_name: What the manifest is called.
    """
    location = join(path, manifest_name)
    try:
        data = await read_document(store, location, expected, verify)
        root = await on_worker(decode_root, data)
        tables = []
        for name, recorded in root.parts.items():
            location = join(path, name)
            part = await read_document(store, location, recorded, verify)
            tables.append(await on_worker(decode_part, part))
        location = join(path, manifest_name)
        return await on_worker(_tree_item, store, path, root, tables, verify=verify)
    except CorruptCheckpointError as error:
        if str(error).startswith(location):
            raise
        raise CorruptCheckpointError(f"{location}: {error}. {_ADVICE}") from error


def _tree_item(
    store: Store,
    path: str,
    root: ItemRoot,
    tables: Sequence[ChunkTable],
    *,
    verify: bool,
) -> TreeItem:
    check_leaves(root.leaves, tables)
    manifest = Manifest(root=root.root, leaves=root.leaves, chunks=tuple(tables))
    return TreeItem(
        path=path,
        manifest=manifest,
        source=ChunkSource(store, path, manifest, verify=verify),
        documents=root.documents,
    )


async def read_document(
    store: Store, path: str, expected: Digest | None, verify: bool
) -> bytes:
    """Reads a whole document and compares it with its digest.

    Raises:
        CorruptCheckpointError: It is missing although it is recorded, or differs.
    """
    try:
        data = await read_bytes(store, path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    if verify and expected is not None:
        check_digest(path, await on_worker(digest, data), expected)
    return data


def check_digest(path: str, found: Digest | None, expected: Digest) -> None:
    """Compares a file with what was recorded of it.

    Args:
        path: The file.
        found: Its digest; None if there is no such file.
        expected: The digest of what was saved.

    Raises:
        CorruptCheckpointError: It is missing, or differs.
    """
    if found is None:
        raise _missing(path)
    if found != expected:
        raise CorruptCheckpointError(
            f"{path}: its {found.size_bytes} bytes are not the {expected.size_bytes} "
            f"bytes that were saved (by their checksum). {_ADVICE}"
        )


def _missing(path: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path} is missing. {_ADVICE}")


def _directories(path: str, names: Iterable[str]) -> dict[str, str]:
    return {name: join(path, name) for name in sorted(set(names))}


async def _read_seal(store: Store, path: str) -> Seal:
    try:
        return await on_worker(decode_seal, await read_bytes(store, path))
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{path}: {error}. {_ADVICE}") from error


async def _read_metrics(
    store: Store, path: str, digests: Mapping[str, Digest], verify: bool
) -> Any:
    data = await read_document(store, path, digests.get("metrics/metrics"), verify)
    return _orbax_json.decode_json(data, path=path)


async def _check_items(
    store: Store, path: str, items: Mapping[str, str], deleting: str | None
) -> None:
    """Refuses items that the seal does not know: nothing there would be verified."""
    for entry in await store.list(path):
        if entry.is_directory and entry.name not in {*items, "metrics", deleting}:
            below = {child.name for child in await store.list(join(path, entry.name))}
            if MANIFEST in below:
                raise CorruptCheckpointError(
                    f"{join(path, entry.name)} has a manifest that "
                    f"{posixpath.join(path, ROOT_SEAL)} does not name. {_ADVICE}"
                )
    for name, directory in items.items():
        if await store.stat(directory) is None:
            raise CorruptCheckpointError(
                f"{path}: the checkpointable {name!r} is missing. {_ADVICE}"
            )


def check_leaves(leaves: Sequence[LeafEntry], tables: Sequence[ChunkTable]) -> None:
    """Refuses leaves whose shape is not that of the chunks that are stored.

    Memory is taken by the shape, so it must not say more than there is, or than could
    have been compressed into what there is.

    Raises:
        CorruptCheckpointError: Names the leaf.
    """
    known: dict[int, _Stored] = {}
    stored: list[_Stored] = []
    for leaf in leaves:
        found = known.get(id(leaf.form))
        if found is None:
            found = known[id(leaf.form)] = _stored(leaf)
        stored.append(found)
    least, most, expected = np.array(stored, np.uint64).reshape(-1, 3).T
    counts = np.zeros(len(leaves), np.uint64)
    for table in tables:
        if len(table) == 0:
            continue
        if (last := int(table.leaf.max())) >= len(leaves):
            raise CorruptCheckpointError(
                f"a chunk table names leaf {last} of {len(leaves)}"
            )
        counts += np.bincount(table.leaf, minlength=len(leaves)).astype(np.uint64)
        length, leaf = table.length_bytes, table.leaf
        wrong = (length < least[leaf]) | (length > most[leaf])
        if wrong.any():
            row = int(wrong.argmax())
            ends = sorted({int(least[leaf[row]]), int(most[leaf[row]])})
            raise CorruptCheckpointError(
                f"a chunk of leaf {leaves[leaf[row]].name!r} has {length[row]} bytes; "
                f"its shape and dtype ask for {' to '.join(map(str, ends))}"
            )
    wrong = counts != expected
    if wrong.any():
        first = int(wrong.argmax())
        raise CorruptCheckpointError(
            f"leaf {leaves[first].name!r} has {counts[first]} chunks; its shape, "
            f"{list(leaves[first].form.shape)}, asks for {expected[first]}"
        )


class _Stored(NamedTuple):
    """What there has to be of every leaf of a form."""

    least_bytes: int
    """Of a chunk."""
    most_bytes: int
    chunk_count: int


def _stored(leaf: LeafEntry) -> _Stored:
    """What its shape, dtype and codec ask for.

    Raises:
        CorruptCheckpointError: No array has its shape; names the leaf.
    """
    form, itemsize = leaf.form, _itemsize(leaf.form)
    try:
        check_extents(form.shape, itemsize)
    except ValueError as error:
        raise CorruptCheckpointError(f"leaf {leaf.name!r} has {error}") from error
    count = 0
    if form.kind not in NO_ARRAY_KINDS:
        count = math.prod(grid_counts(form.shape, form.chunk_shape))
    # No chunk is as long as the largest number that its length is stored in.
    longest = 2**64 - 1
    if itemsize == 0:
        return _Stored(0, longest, min(count, longest))
    size_bytes = math.prod(form.chunk_shape) * itemsize
    least = most = size_bytes
    if form.codec is not None:
        least, most = CODECS[form.codec].stored_bytes(size_bytes)
    return _Stored(min(least, longest), min(most, longest), min(count, longest))


def _itemsize(form: LeafForm) -> int:
    """Bytes of an element; 0 if nothing can be said of it."""
    try:
        return dtype_from_name(form.dtype or "").itemsize
    except UnsupportedLeafError:  # Raised again for whoever asks for the leaf.
        return 0
