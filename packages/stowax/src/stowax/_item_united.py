"""A tree item made of others: their data files under second names, new documents.

No array is read. What is left of an item is listed in the new documents, and a data
file of which nothing is left is left out; of one of which something is left, all stays.

Of what Orbax wrote there are no checksums, so a checkpoint with anything of it has no
seal, and its items no manifests: it is one of Orbax.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stowax._codecs._item_manifest import (
    digest,
    encode_part,
    encode_root,
    encode_structure,
)
from stowax._codecs._ocdbt import Reference
from stowax._codecs._zarr import ZarrVersion
from stowax._formats._orbax_tree_write import encode_documents
from stowax._formats._stowax import record_names
from stowax._item_write import array_documents, encode_index, index_entries
from stowax._keypath import array_prefix, leaf_name, walk
from stowax._loop import on_worker
from stowax._manifest import ChunkTable, Digest, LeafEntry, Manifest
from stowax._operation import Operation
from stowax._plan._unite import UnitedTree
from stowax._stores._base import Store, join
from stowax._uncollected import uncollected
from stowax.errors import CorruptCheckpointError

Entries = Mapping[str, bytes | Reference]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSource:
    """A tree item that others are united with."""

    directory: str
    manifest: Manifest
    entries: Entries | None = None
    """The database of an item of Orbax; None: it is ours, and has chunk tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayForm:
    """How the arrays of an item are stored; the same in all that are united."""

    use_ocdbt: bool
    zarr_version: ZarrVersion


@dataclass(slots=True, kw_only=True)
class _Union:
    """What the new item consists of."""

    links: dict[str, tuple[str, int | None]] = field(
        default_factory=dict[str, "tuple[str, int | None]"]
    )
    """Path in the new item → the file that is linked there, and its size if known."""
    tables: list[ChunkTable] = field(default_factory=list[ChunkTable])
    ours: set[int] = field(default_factory=set[int])
    """Leaves that the tables are of."""
    entries: list[tuple[str, bytes | Reference]] = field(
        default_factory=list["tuple[str, bytes | Reference]"]
    )
    """Of the index, as Orbax had them."""


async def write_united(
    operation: Operation,
    directory: str,
    sources: Sequence[ItemSource],
    tree: UnitedTree,
    form: ArrayForm,
    *,
    is_sealed: bool,
) -> None:
    """Writes an item that consists of others, all of it durable but its names.

    Args:
        operation: Under way; `operation.manifests` gets the item if it has a manifest.
        directory: Of the new item.
        sources: What it is made of, all in this store.
        tree: Which leaf comes from which of them.
        form: How their arrays are stored.
        is_sealed: Whether the checkpoint has a seal; only then the item has a manifest.
    """
    now_nsecs = operation.runtime.now_nsecs()
    union, files, manifest = await on_worker(
        functools.partial(_unite, is_sealed=is_sealed),
        operation,
        sources,
        tree,
        form,
        now_nsecs,
    )
    store = operation.store
    await store.make_directory(directory)
    for name, (source, size_bytes) in union.links.items():
        await check_file(store, source, size_bytes)
        await store.link(source, join(directory, name))
    for name, data in files.items():
        await store.write(join(directory, name), [data], size_bytes=len(data))
    await store.sync([join(directory, name) for name in files])
    if manifest is not None:
        covered = frozenset([*files, *union.links])
        operation.manifests[directory] = manifest, covered


async def check_file(store: Store, path: str, size_bytes: int | None) -> None:
    """Refuses to link a file that is known not to be what was saved.

    Args:
        store: Where it is.
        path: The file.
        size_bytes: What it has at least; None if that is not known.

    Raises:
        CorruptCheckpointError: It is missing, or too short.
    """
    entry = await store.stat(path)
    if entry is None:
        found = "is missing"
    elif entry.size_bytes < (size_bytes or 0):
        found = f"has {entry.size_bytes} of {size_bytes} bytes"
    else:
        return
    raise CorruptCheckpointError(
        f"{path} {found}. Nothing was changed: save what it held once more, with "
        "`replace=True`, or delete the update that it belongs to"
    )


@uncollected()
def _unite(
    operation: Operation,
    sources: Sequence[ItemSource],
    tree: UnitedTree,
    form: ArrayForm,
    now_nsecs: int,
    *,
    is_sealed: bool,
) -> tuple[_Union, dict[str, bytes], Digest | None]:
    paths = [path for path, node in walk(tree.root) if node.kind == "leaf"]
    leaves = tuple(
        [
            LeafEntry(
                path, leaf_name(path), sources[o.tree].manifest.leaves[o.leaf].form
            )
            for path, o in zip(paths, tree.origins, strict=True)
        ]
    )
    union = _Union()
    for position, source in enumerate(sources):
        left = {
            origin.leaf: leaf
            for leaf, origin in enumerate(tree.origins)
            if origin.tree == position
        }
        if source.entries is None:
            _add_tables(union, source, position, left, use_ocdbt=form.use_ocdbt)
        else:
            _add_entries(union, source, source.entries, position, left)
    manifest = Manifest(root=tree.root, leaves=leaves, chunks=tuple(union.tables))
    is_ours = is_sealed and all(source.entries is None for source in sources)
    files = _documents(operation, manifest, form, union, now_nsecs, is_ours=is_ours)
    if not is_ours:
        return union, files, None
    names = record_names()
    parts = {
        f"{names.part_prefix}{position}": encode_part(table)
        for position, table in enumerate(union.tables)
    }
    root = encode_root(
        encode_structure(tree.root, leaves),
        documents={name: digest(data) for name, data in files.items()},
        parts={name: digest(data) for name, data in parts.items()},
    )
    return union, {**files, **parts, names.manifest: root}, digest(root)


def _documents(
    operation: Operation,
    manifest: Manifest,
    form: ArrayForm,
    union: _Union,
    now_nsecs: int,
    *,
    is_ours: bool,
) -> dict[str, bytes]:
    settings = operation.settings
    documents = encode_documents(
        manifest,
        process_count=operation.processes.count,
        manifest_name=record_names().manifest if is_ours else None,
        use_ocdbt=form.use_ocdbt,
        use_zarr3=form.zarr_version == 3,
        rich_types=settings.rich_types,
        array_metadata=settings.saving.record_array_metadata,
    )
    if not form.use_ocdbt:
        return documents | array_documents(manifest, form.zarr_version)
    if any(leaf.form.dtype is not None for leaf in manifest.leaves):
        own = index_entries(
            manifest, form.zarr_version, union.tables, documented=union.ours
        )
        documents |= encode_index("", [*own, *union.entries], now_nsecs)
    return documents


def _add_tables(
    union: _Union,
    source: ItemSource,
    position: int,
    left: Mapping[int, int],
    *,
    use_ocdbt: bool,
) -> None:
    """Adds the chunks of those leaves of an item of ours that are left."""
    union.ours.update(left.values())
    leaf_of = np.full(len(source.manifest.leaves), -1, np.int64)
    leaf_of[list(left)] = list(left.values())
    for table in source.manifest.chunks or ():
        kept = leaf_of[table.leaf] >= 0 if len(table) else np.zeros(0, bool)
        if not kept.any():
            continue
        sum_counts = np.diff(table.sum_ends.astype(np.int64), prepend=0)
        files, file = np.unique(table.file[kept], return_inverse=True)
        is_cut = bool(np.isin(table.file[~kept], files).any())
        names: list[str] = []
        for number in files.tolist():
            name = table.files[number]
            target = _data_file(union, position) if use_ocdbt else name
            place = join(source.directory, name)
            union.links[target] = place, table.file_size_bytes[number]
            names.append(target)
        union.tables.append(
            replace(
                table,
                files=tuple(names),
                file_size_bytes=tuple(
                    [table.file_size_bytes[number] for number in files.tolist()]
                ),
                leaf=leaf_of[table.leaf[kept]].astype(np.uint32),
                chunk=table.chunk[kept],
                file=file.astype(np.uint32),
                offset_bytes=table.offset_bytes[kept],
                length_bytes=table.length_bytes[kept],
                sum_ends=np.cumsum(sum_counts[kept]).astype(np.uint64),
                sums=table.sums[np.repeat(kept, sum_counts)],
                has_remains=table.has_remains or is_cut,
            )
        )


def _add_entries(
    union: _Union,
    source: ItemSource,
    entries: Entries,
    position: int,
    left: Mapping[int, int],
) -> None:
    """Adds what the database of an item of Orbax says of the leaves that are left."""
    prefixes = {
        array_prefix(entry.name): leaf
        for leaf, entry in enumerate(source.manifest.leaves)
        if entry.form.dtype is not None
    }
    targets: dict[str, str] = {}
    for key, value in entries.items():
        if _leaf_of(key, prefixes) not in left:
            continue
        if isinstance(value, Reference):
            target = targets.get(value.path)
            if target is None:
                target = targets[value.path] = _data_file(union, position)
                union.links[target] = join(source.directory, value.path), None
            value = value._replace(path=target)
        union.entries.append((key, value))


def _leaf_of(key: str, prefixes: Mapping[str, int]) -> int | None:
    """The leaf that a key belongs to: that with the longest name."""
    for prefix in _beginnings(key):
        if prefix in prefixes:
            return prefixes[prefix]
    return None


def _beginnings(key: str) -> Iterable[str]:
    end = key.rfind("/")
    while end >= 0:
        yield key[: end + 1]
        end = key.rfind("/", 0, end)
    yield ""


def _data_file(union: _Union, position: int) -> str:
    """A name for one more data file."""
    return f"d/{position}.{len(union.links)}"
