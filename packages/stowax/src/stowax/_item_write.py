"""How one tree item is written: taken in, written in parts, completed by one process.

An item is complete by itself: data files, one chunk table per writing process, the
documents that Orbax reads, and the manifest that is written last and covers them all.
Nothing here knows about checkpoints, drafts or publishing, and whatever grows with the
number of leaves is done off the engine's loop.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stowax._box import Box, grid_counts, grid_index_of
from stowax._codecs._item_manifest import (
    ItemRoot,
    decode_part,
    digest,
    encode_part,
    encode_root,
)
from stowax._codecs._ocdbt import Reference
from stowax._codecs._ocdbt_write import encode_database
from stowax._codecs._zarr import TRAILER_BYTES, array_document, chunk_key, dtype_name
from stowax._context import SaveSettings
from stowax._engine_write import write_chunks
from stowax._formats._orbax_strings import check_string_names
from stowax._formats._orbax_tree_write import encode_documents
from stowax._formats._stowax import MANIFEST, PART_PREFIX, PROCESS_PREFIX
from stowax._keypath import (
    FlatTree,
    KeyPath,
    Node,
    array_prefix,
    at_leaf,
    check_names,
    flatten,
)
from stowax._leaves._base import Description
from stowax._leaves._refusal import check_all
from stowax._leaves._registry import EncodedLeaf, Leaves
from stowax._manifest import Digest, LeafEntry, Manifest
from stowax._operation import ItemPart, Operation
from stowax._plan._storage import LeafStorage, narrowed, plan_storage
from stowax._plan._write import ArrayLayout, Sharing, WritePlan, plan_write
from stowax._processes import Processes
from stowax._runtime import on_worker
from stowax._stores._base import join
from stowax._tasks import run_all
from stowax._transfer import to_host
from stowax.errors import ProcessesError, TreeError, UnsupportedLeafError

_AS_USUAL = SaveSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedItem:
    """A tree whose values the caller may change again: all that is left is to write."""

    root: Node
    entries: tuple[LeafEntry, ...]
    plan: WritePlan
    parts: Mapping[tuple[int, Box], np.ndarray]
    narrowed: tuple[str, ...] = ()
    """Leaves that lose range or kind in the dtype that they are stored in."""
    tells_orbax_of_arrays: bool = True
    """Whether `array_metadatas` is written."""


def stage_item(
    tree: Any,
    processes: Processes,
    *,
    borrow: bool,
    leaves: Leaves,
    saving: SaveSettings = _AS_USUAL,
    codec: str | None = None,
) -> StagedItem:
    """Checks, names, plans and brings to the host what this process writes of a tree.

    Args:
        tree: Any tree; nothing is written if it cannot be saved as a whole.
        processes: Says what this process holds.
        borrow: Whether the caller leaves host arrays alone until all is written.
        leaves: The kinds of leaves that it may have.
        saving: How arrays are to be stored.
        codec: How chunks are compressed; None: not at all.

    Raises:
        TreeError: Names every leaf that stands in the way.
        UnsupportedOptionError: Names every leaf that cannot be stored as asked.
    """
    if tree is None:
        raise TreeError("None is no state; to save nothing, save an empty dict, {}")
    flat = flatten(tree, leaves.takes_value)
    check_names(flat.root)
    encoded, described = _describe(flat, leaves, processes)
    check_string_names(
        [n for n, d in zip(flat.names, described, strict=True) if d.text is not None]
    )
    storages = plan_storage(flat, described, saving)
    alone = processes.count == 1
    plan = plan_write(
        [
            _layout(i, d, storage, codec)
            for i, (d, storage) in enumerate(zip(described, storages, strict=True))
            if storage is not None
        ],
        process_index=processes.index,
        data_directory="d/" if alone else f"{PROCESS_PREFIX}{processes.index}/d/",
        sharing=Sharing(
            is_on=saving.share_among_replicas,
            from_bytes=saving.share_from_bytes,
            most=saving.share_among_most,
        ),
        file_limit_bytes=saving.data_file_size_bytes,
    )
    entries = tuple(
        _entry(path, name, e, d, storage, plan.chunk_shapes.get(i), codec)
        for i, (path, name, e, d, storage) in enumerate(
            zip(flat.paths, flat.names, encoded, described, storages, strict=True)
        )
    )
    if not saving.record_shardings:
        entries = tuple(replace(entry, sharding=None) for entry in entries)
    return StagedItem(
        root=flat.root,
        entries=entries,
        plan=plan,
        parts=_stage_parts(flat, encoded, plan, processes, borrow=borrow),
        narrowed=narrowed(flat.names, storages),
        tells_orbax_of_arrays=saving.record_array_metadata,
    )


def _describe(
    flat: FlatTree, leaves: Leaves, processes: Processes
) -> tuple[list[EncodedLeaf], list[Description]]:
    """What there is to store of every leaf; refuses all unsupported ones at once."""
    encoded: list[EncodedLeaf] = []
    described: list[Description] = []
    errors: list[UnsupportedLeafError] = []
    for leaf, name in zip(flat.leaves, flat.names, strict=True):
        try:
            with at_leaf(name):
                encoded.append(leaves.encode(leaf))
                described.append(
                    encoded[-1].kind.describe(encoded[-1].value, processes)
                )
        except UnsupportedLeafError as error:
            errors.append(error)
    check_all(errors, "written")
    return encoded, described


async def write_part(staged: StagedItem, directory: str, operation: Operation) -> None:
    """Writes what this process holds of an item: data files and their chunk table.

    They are durable when this returns.  No other process is waited for, so one that
    fails holds nobody up; the item is complete when the primary has called
    `complete_items` with what all processes tell (`told_parts`).
    """
    store = operation.store
    name = f"{PART_PREFIX}{operation.processes.index}"
    is_shared = operation.processes.count > 1
    structure = await on_worker(_structure, staged) if is_shared else b""
    table = await write_chunks(store, directory, staged.plan, staged.parts)
    part = await on_worker(encode_part, table)
    await store.write(join(directory, name), [part], size_bytes=len(part))
    await store.sync([join(directory, name)])
    operation.parts[directory] = ItemPart(
        table=structure + part,
        files=frozenset({name, *table.files}),
        complete=functools.partial(_write_documents, staged, directory, operation),
    )


def told_parts(operation: Operation) -> bytes:
    """What the primary has to know of the items that this process wrote part of."""
    parts = sorted(operation.parts.items())
    sizes = [[directory, len(part.table)] for directory, part in parts]
    return b"\n".join([json.dumps(sizes).encode(), *(part.table for _, part in parts)])


async def complete_items(operation: Operation, told: Sequence[bytes]) -> None:
    """Writes documents and manifest of every item; only the primary calls this.

    Files are durable when this returns; the directories that name them are not yet.

    Args:
        operation: Under way; `operation.manifests` is filled.
        told: What every process tells, by index.

    Raises:
        ProcessesError: The processes did not save the same; says what differs.
    """
    tables = [_tables_by_directory(message) for message in told]
    for index, theirs in enumerate(tables):
        if theirs.keys() != operation.parts.keys():
            raise ProcessesError(
                f"process {index} saved the items {sorted(theirs)}, process "
                f"{operation.processes.index} saved {sorted(operation.parts)}; all "
                "processes have to save the same"
            )
    await run_all(
        part.complete([theirs[directory] for theirs in tables])
        for directory, part in operation.parts.items()
    )


def _tables_by_directory(message: bytes) -> dict[str, bytes]:
    head, _, rest = message.partition(b"\n")
    tables: dict[str, bytes] = {}
    for directory, size_bytes in json.loads(head):
        tables[directory], rest = rest[:size_bytes], rest[size_bytes + 1 :]
    return tables


_STRUCTURE_BYTES = hashlib.sha256().digest_size


def _structure(staged: StagedItem) -> bytes:
    """A digest of what all processes have to see alike."""
    facts = [
        (
            e.name,
            e.kind == "jax.Array" and (e.dtype, e.shape, e.chunk_shape, e.codec),
            e.custom and e.custom.typestr,
        )
        for e in staged.entries
    ]
    return hashlib.sha256(repr(facts).encode()).digest()


def _check_alike(
    manifest: Manifest, directory: str, structures: Sequence[bytes]
) -> None:
    """Refuses what processes wrote together if they did not mean the same tree."""
    for index, structure in enumerate(structures):
        if structure != structures[0]:
            raise ProcessesError(
                f"{directory}: the trees of processes 0 and {index} differ in names, "
                "shapes, dtypes or shards; all processes have to save the same tree"
            )
    counts = [
        math.prod(grid_counts(leaf.shape, leaf.chunk_shape)) * (leaf.dtype is not None)
        for leaf in manifest.leaves
    ]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    written = np.zeros(starts[-1], np.int64)
    for table in manifest.chunks or ():
        np.add.at(written, starts[table.leaf] + table.chunk.astype(np.int64), 1)
    wrong = np.flatnonzero(written != 1)
    if len(wrong):
        leaf = int(np.searchsorted(starts, wrong[0], side="right")) - 1
        writers = [
            i for i, t in enumerate(manifest.chunks or ()) if np.any(t.leaf == leaf)
        ]
        raise ProcessesError(
            f"{directory}: parts of leaf {manifest.leaves[leaf].name!r} were written "
            f"{written[wrong[0]]} times, by the processes {writers}: they do not see "
            "the same array. If it lies on devices of one process, a copy in each, "
            "make one array of all of them with "
            "`jax.make_array_from_process_local_data`, or save it as a NumPy array, "
            "of which the primary process's counts."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Completion:
    """What an item lacks when all processes have written their part."""

    files: Mapping[str, bytes]
    """Documents, and the manifest, by path relative to the item."""
    manifest: Digest
    covered: frozenset[str]
    """Every file that the manifest vouches for."""


async def _write_documents(
    staged: StagedItem, directory: str, operation: Operation, told: Sequence[bytes]
) -> None:
    now_nsecs = operation.runtime.now_nsecs()
    completion = await on_worker(
        _completion,
        staged,
        directory,
        told,
        now_nsecs,
        rich_types=operation.settings.rich_types,
    )
    store = operation.store
    for name, data in completion.files.items():
        await store.write(join(directory, name), [data], size_bytes=len(data))
    await store.sync([join(directory, name) for name in completion.files])
    operation.manifests[directory] = completion.manifest, completion.covered


def _completion(
    staged: StagedItem,
    directory: str,
    told: Sequence[bytes],
    now_nsecs: int,
    *,
    rich_types: bool,
) -> _Completion:
    head_bytes = _STRUCTURE_BYTES if len(told) > 1 else 0
    parts = {f"{PART_PREFIX}{i}": data[head_bytes:] for i, data in enumerate(told)}
    tables = tuple(map(decode_part, parts.values()))
    manifest = Manifest(root=staged.root, leaves=staged.entries, chunks=tables)
    if len(told) > 1:
        _check_alike(manifest, directory, [message[:head_bytes] for message in told])
    documents = encode_documents(
        manifest,
        process_count=len(parts),
        manifest_name=MANIFEST,
        rich_types=rich_types,
        array_metadata=staged.tells_orbax_of_arrays,
    )
    if any(entry.dtype is not None for entry in staged.entries):
        index, head = encode_database(
            _index_entries(manifest),
            node_path="d/index",
            uuid=uuid.uuid4().bytes,
            commit_time_nsecs=now_nsecs,
        )
        documents |= {"d/index": index, "manifest.ocdbt": head}
    root = encode_root(
        ItemRoot(
            root=staged.root,
            leaves=staged.entries,
            documents={name: digest(data) for name, data in documents.items()},
            parts={name: digest(data) for name, data in parts.items()},
        )
    )
    data_files = (name for table in tables for name in table.files)
    return _Completion(
        files={**documents, MANIFEST: root},
        manifest=digest(root),
        covered=frozenset([*documents, *parts, *data_files]),
    )


def _index_entries(manifest: Manifest) -> list[tuple[str, bytes | Reference]]:
    """What OCDBT has to list: a document per array, a reference per chunk."""
    entries: list[tuple[str, bytes | Reference]] = []
    prefixes: list[str] = []
    counts: list[tuple[int, ...]] = []
    for leaf in manifest.leaves:
        prefixes.append(array_prefix(leaf.name))
        counts.append(grid_counts(leaf.shape, leaf.chunk_shape))
        if leaf.dtype is not None:
            document = array_document(
                leaf.shape, leaf.dtype, leaf.chunk_shape, leaf.codec
            )
            entries.append((f"{prefixes[-1]}zarr.json", document))
    for table in manifest.chunks or ():
        columns = (
            table.leaf,
            table.chunk,
            table.file,
            table.offset_bytes,
            table.length_bytes,
        )
        for leaf, chunk, file, offset, length in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            position = grid_index_of(chunk, counts[leaf])
            reference = Reference(
                path=table.files[file],
                offset_bytes=offset,
                length_bytes=length + TRAILER_BYTES,
            )
            entries.append((prefixes[leaf] + chunk_key(position), reference))
    return entries


def _layout(
    position: int, description: Description, storage: LeafStorage, codec: str | None
) -> ArrayLayout:
    return ArrayLayout(
        leaf=position,
        shape=description.shape,
        dtype=storage.dtype,
        parts=tuple((h.box, h.processes) for h in description.holdings),
        codec=codec,
        chunk_limit_bytes=storage.chunk_limit_bytes,
        shard_axes=storage.shard_axes,
    )


def _entry(
    path: KeyPath,
    name: str,
    encoded: EncodedLeaf,
    description: Description,
    storage: LeafStorage | None,
    chunk_shape: tuple[int, ...] | None,
    codec: str | None,
) -> LeafEntry:
    shards = [holding.box.shape for holding in description.holdings]
    is_sharded = description.kind == "jax.Array"
    write_shape = tuple(map(max, zip(*shards, strict=True))) if shards else None
    if is_sharded and write_shape is None:
        write_shape = tuple(max(1, n) for n in description.shape)
    return LeafEntry(
        path=path,
        name=name,
        kind=description.kind,
        dtype=None if storage is None else dtype_name(storage.dtype),
        shape=description.shape,
        chunk_shape=chunk_shape or (),
        codec=None if storage is None else codec,
        write_shape=write_shape if is_sharded else None,
        text=description.text,
        prng_impl=description.prng_impl,
        sharding=description.sharding,
        custom=encoded.custom,
    )


def _stage_parts(
    flat: FlatTree,
    encoded: Sequence[EncodedLeaf],
    plan: WritePlan,
    processes: Processes,
    *,
    borrow: bool,
) -> dict[tuple[int, Box], np.ndarray]:
    """The host memory of every part that this process writes."""
    needed: dict[int, dict[Box, None]] = {}
    for file in plan.files:
        for chunk in file.chunks:
            needed.setdefault(chunk.leaf, {})[chunk.part] = None
    keys: list[tuple[int, Box]] = []
    staged: list[Any] = []
    for leaf, boxes in needed.items():
        with at_leaf(flat.names[leaf]):
            staged += encoded[leaf].kind.stage(
                encoded[leaf].value, list(boxes), processes, borrow=borrow
            )
        keys += [(leaf, box) for box in boxes]
    return dict(zip(keys, to_host(staged), strict=True))
