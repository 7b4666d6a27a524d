"""How one tree item is written: in parts by all processes, completed by one.

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
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stowax._box import grid_counts, grid_index_of
from stowax._codecs._item_manifest import (
    decode_part,
    digest,
    encode_part,
    encode_root,
    encode_structure,
)
from stowax._codecs._ocdbt import Reference
from stowax._codecs._ocdbt_write import encode_database
from stowax._codecs._zarr import (
    DOCUMENT_NAMES,
    TRAILER_BYTES,
    ZarrVersion,
    array_document,
    chunk_key,
)
from stowax._database_index import DATABASE
from stowax._engine_write import HostParts, write_chunks
from stowax._formats._orbax_tree_write import encode_documents
from stowax._formats._stowax import MANIFEST, PROCESS_PREFIX, RecordNames, record_names
from stowax._item_layout import Beside, ItemLayout, StagedItem
from stowax._keypath import array_prefix, shown_name
from stowax._loop import on_worker
from stowax._manifest import ChunkTable, Digest, LeafForm, Manifest
from stowax._operation import ItemPart, Operation
from stowax._plan._write import AUTO_CODEC, FilePlan
from stowax._report import Report, Tally
from stowax._stores._base import join
from stowax._tasks import run_all
from stowax._uncollected import uncollected
from stowax.errors import ProcessesError


async def write_part(staged: StagedItem, directory: str, operation: Operation) -> None:
    """Writes what this process holds of an item: data files and their chunk table.

    They are durable when this returns.  No other process is waited for, so one that
    fails holds nobody up; the item is complete when the primary has called
    `complete_items` with what all processes tell (`told_parts`).
    """
    store = operation.store
    name = f"{record_names(operation.update).part_prefix}{operation.processes.index}"
    is_shared = operation.processes.count > 1
    structure = await on_worker(_structure, staged) if is_shared else b""
    report, plan = operation.report, staged.layout.plan
    source: HostParts = staged.staging
    passed = None
    if report is not None and report.is_watched:
        passed = report.moved
        if report.names_leaves:
            source = _TellingParts(source, staged.layout, report)
    table, coded = await write_chunks(store, directory, plan, source, passed)
    staged = _settled(staged, coded)
    part = await on_worker(encode_part, table)
    await store.write(join(directory, name), [part], size_bytes=len(part))
    await store.sync([join(directory, name)])
    operation.parts[directory] = ItemPart(
        table=structure + part,
        files=frozenset({name, *table.files}),
        complete=functools.partial(_write_documents, staged, directory, operation),
    )


class _TellingParts:
    """Host memory of an item that tells of every leaf when all of it is written.

    Args:
        parts: Where the values are.
        layout: Of the item.
        report: Is told.
    """

    def __init__(self, parts: HostParts, layout: ItemLayout, report: Report) -> None:
        self._parts = parts
        self._files = layout.plan.files
        self._tally = Tally(
            report,
            [part for file in self._files for part in _leaf_parts(file)],
            lambda leaf: shown_name(layout.entries[leaf].path),
        )

    @property
    def parts(self) -> Sequence[np.ndarray | None]:
        return self._parts.parts

    async def staged(self, unit: int) -> None:
        await self._parts.staged(unit)

    def written(self, unit: int) -> None:
        self._parts.written(unit)
        self._tally.arrived(_leaf_parts(self._files[unit]))


def _leaf_parts(file: FilePlan) -> list[tuple[int, int]]:
    """What a file holds of leaves, by position, in bytes."""
    return [(chunk.leaf, chunk.array_bytes) for chunk in file.chunks]


def _settled(staged: StagedItem, coded: frozenset[int]) -> StagedItem:
    """The item as it was written, with the codec of leaves that samples decided on."""
    if not coded:
        return staged
    layout = staged.layout
    # As a rule a later save decides as this one did; then nothing is encoded again.
    known = layout.documents.get("settled")
    if known is None or known[0] != coded:
        entries = list(layout.entries)
        forms: dict[int, LeafForm] = {}  # Leaves that were alike still share theirs.
        for leaf in coded:
            form = entries[leaf].form
            if id(form) not in forms:
                forms[id(form)] = replace(form, codec=AUTO_CODEC)
            entries[leaf] = entries[leaf]._replace(form=forms[id(form)])
        known = coded, replace(layout, entries=tuple(entries), documents={})
        layout.documents["settled"] = known
    return replace(staged, layout=known[1])


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
            name,
            f.kind == "jax.Array" and (f.dtype, f.shape, f.chunk_shape, f.codec),
            f.custom and f.custom.typestr,
        )
        for _, name, f in staged.layout.entries
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
                "shapes, dtypes, shards or compression; all processes have to save "
                "the same tree in the same way"
            )
    counts = [
        math.prod(grid_counts(leaf.form.shape, leaf.form.chunk_shape))
        * (leaf.form.dtype is not None)
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
        record_names(operation.update),
        now_nsecs,
        staged.beside or Beside(rich_types=operation.settings.rich_types),
    )
    store = operation.store
    for name, data in completion.files.items():
        await store.write(join(directory, name), [data], size_bytes=len(data))
    await store.sync([join(directory, name) for name in completion.files])
    operation.manifests[directory] = completion.manifest, completion.covered


@uncollected()
def _completion(
    staged: StagedItem,
    directory: str,
    told: Sequence[bytes],
    names: RecordNames,
    now_nsecs: int,
    beside: Beside,
) -> _Completion:
    head_bytes = _STRUCTURE_BYTES if len(told) > 1 else 0
    parts = {
        f"{names.part_prefix}{i}": data[head_bytes:] for i, data in enumerate(told)
    }
    tables = tuple(map(decode_part, parts.values()))
    layout = staged.layout
    manifest = Manifest(root=layout.root, leaves=layout.entries, chunks=tables)
    if len(told) > 1:
        _check_alike(manifest, directory, [message[:head_bytes] for message in told])
    fixed = layout.documents.get((len(parts), beside))
    if fixed is None:
        fixed = _fixed_documents(layout, manifest, len(parts), beside)
        layout.documents[len(parts), beside] = fixed
    documents, digests = dict(fixed.documents), dict(fixed.digests)
    has_arrays = any(entry.form.dtype is not None for entry in layout.entries)
    if layout.use_ocdbt and has_arrays:
        databases = _databases(manifest, layout, now_nsecs)
        documents |= databases
        digests |= {name: digest(data) for name, data in databases.items()}
    root = encode_root(
        fixed.structure,
        documents=digests,
        parts={name: digest(data) for name, data in parts.items()},
    )
    data_files = (name for table in tables for name in table.files)
    return _Completion(
        files={**documents, names.manifest: root},
        manifest=digest(root),
        covered=frozenset([*documents, *parts, *data_files]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FixedDocuments:
    """What follows from a layout, so that a later save need not encode it again."""

    documents: Mapping[str, bytes]
    digests: Mapping[str, Digest]
    structure: str
    """Of the root of the manifest."""


def _fixed_documents(
    layout: ItemLayout, manifest: Manifest, process_count: int, beside: Beside
) -> _FixedDocuments:
    documents = encode_documents(
        manifest,
        process_count=process_count,
        # Orbax takes what stands there over into what it makes of a session.
        manifest_name=None if layout.is_update else MANIFEST,
        use_ocdbt=layout.use_ocdbt,
        use_zarr3=layout.zarr_version == 3,
        rich_types=beside.rich_types,
        array_metadata=layout.tells_orbax_of_arrays,
        custom_metadata=beside.custom_metadata,
    )
    if not layout.use_ocdbt:
        documents |= array_documents(manifest, layout.zarr_version)
    return _FixedDocuments(
        documents=documents,
        digests={name: digest(data) for name, data in documents.items()},
        structure=encode_structure(layout.root, layout.entries),
    )


def array_documents(manifest: Manifest, version: ZarrVersion) -> dict[str, bytes]:
    """The document of every array that is a directory, by path."""
    return {
        f"{array_prefix(name)}{DOCUMENT_NAMES[version]}": array_document(
            form.shape, form.dtype, form.chunk_shape, form.codec, version
        )
        for _, name, form in manifest.leaves
        if form.dtype is not None
    }


def _databases(
    manifest: Manifest, layout: ItemLayout, now_nsecs: int
) -> dict[str, bytes]:
    """The index of the item, or of what each process wrote of it, by path."""
    tables, version = manifest.chunks or (), layout.zarr_version
    if not layout.is_update:
        return encode_index("", index_entries(manifest, version, tables), now_nsecs)
    found: dict[str, bytes] = {}
    for process, table in enumerate(tables):
        prefix = f"{PROCESS_PREFIX}{process}/"
        files = tuple([name.removeprefix(prefix) for name in table.files])
        # Whoever merges them finds the documents in the first one.
        entries = index_entries(
            manifest,
            version,
            [replace(table, files=files)],
            documented=None if process == 0 else (),
        )
        if entries:
            found |= encode_index(prefix, entries, now_nsecs)
    return found


def encode_index(
    prefix: str, entries: Iterable[tuple[str, bytes | Reference]], now_nsecs: int
) -> dict[str, bytes]:
    """The files of a database, by path.

    Args:
        prefix: Where it begins; references in it are relative to that.
        entries: What it lists.
        now_nsecs: The time.
    """
    index, head = encode_database(
        entries,
        node_path="d/index",
        uuid=uuid.uuid4().bytes,
        commit_time_nsecs=now_nsecs,
    )
    return {f"{prefix}d/index": index, f"{prefix}{DATABASE}": head}


def index_entries(
    manifest: Manifest,
    version: ZarrVersion,
    tables: Sequence[ChunkTable],
    *,
    documented: Container[int] | None = None,
) -> list[tuple[str, bytes | Reference]]:
    """What OCDBT has to list: a document per array, a reference per chunk.

    Args:
        manifest: The item.
        version: Of the documents of arrays.
        tables: The chunks.
        documented: Leaves whose documents are listed; None: all.
    """
    trailer_bytes = TRAILER_BYTES if version == 3 else 0
    entries: list[tuple[str, bytes | Reference]] = []
    prefixes: list[str] = []
    chunks: list[_ChunkKeys] = []
    known: dict[int, _ChunkKeys] = {}
    for leaf, (_, name, form) in enumerate(manifest.leaves):
        prefix = array_prefix(name)
        keys = known.get(id(form))
        if keys is None:
            keys = known[id(form)] = _ChunkKeys(form, version)
        prefixes.append(prefix)
        chunks.append(keys)
        if keys.document is not None and (documented is None or leaf in documented):
            entries.append((f"{prefix}{DOCUMENT_NAMES[version]}", keys.document))
    for table in tables:
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
            reference = Reference(table.files[file], offset, length + trailer_bytes)
            entries.append((prefixes[leaf] + chunks[leaf][chunk], reference))
    return entries


class _ChunkKeys:
    """The document of the arrays of a form, and the keys of their chunks."""

    def __init__(self, form: LeafForm, version: ZarrVersion) -> None:
        self.document: bytes | None = None
        if form.dtype is not None:
            self.document = array_document(
                form.shape, form.dtype, form.chunk_shape, form.codec, version
            )
        self._version: ZarrVersion = version
        self._counts = grid_counts(form.shape, form.chunk_shape)
        self._first = chunk_key((0,) * len(self._counts), version)

    def __getitem__(self, chunk: int) -> str:
        if chunk == 0:
            return self._first
        return chunk_key(grid_index_of(chunk, self._counts), self._version)
