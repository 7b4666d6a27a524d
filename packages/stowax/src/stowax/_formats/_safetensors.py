"""safetensors files: one, or several in a directory with an index of their own.

Such a checkpoint is one flat tree, whose keys are the names of the tensors.  Every
tensor is a chunk of its own, of which no checksum is known, so that what can be
verified is the form of the files: their headers, and that they are whole.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from stowax._box import Box
from stowax._chunk_index import ChunkRead
from stowax._codecs._json import as_object, as_typed, parse
from stowax._codecs._safetensors import (
    LENGTH_BYTES,
    Header,
    Tensor,
    decode_header,
    header_bytes,
)
from stowax._engine_read import ChunkSource
from stowax._formats._base import OpenCheckpoint, TreeItem
from stowax._keypath import Key, Node
from stowax._loop import on_worker
from stowax._manifest import LeafEntry, LeafForm, Manifest
from stowax._plan._tensor_files import STEM, file_names
from stowax._stores._base import Entry, Store, join, read_bytes
from stowax._tasks import run_all
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

SUFFIX = ".safetensors"

INDEX_SUFFIX = ".safetensors.index.json"
"""Of the document that says which tensor is in which file."""

_INDEX_LIMIT_BYTES = 100_000_000


class SafetensorsFormat:
    """Reads what the safetensors libraries of any framework wrote, and what we did."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "safetensors"

    @property
    def is_sealed(self) -> bool:
        """The format has no checksums."""
        return False

    async def recognises(self, store: Store, path: str) -> bool:
        """Whether it is a directory that holds such files, or a file: no other is one.

        The name of a file says nothing here: it may be that of a draft, see `resolve`.
        """
        entry = await store.stat(path)
        if entry is None:
            return False
        if not entry.is_directory:
            return True
        children = await store.list(path)
        return any(_is_tensors(child) for child in children)

    async def open(self, store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
        """Reads the headers.

        Raises:
            InvalidLayoutError: There are several checkpoints in the directory.
            CorruptCheckpointError: A file is damaged or missing.
            UnsupportedLeafError: Names every tensor of a dtype that JAX has not.
        """
        del verify
        metadata: dict[str, str] = {}
        _, headers = await _read_headers(store, path)
        for header in headers.values():
            metadata |= header.metadata
        return OpenCheckpoint(
            path=path,
            items={"": path},
            kinds={"": "tree"},
            custom_metadata=metadata,
        )


def is_whole_directory(children: Sequence[Entry]) -> bool:
    """Whether a directory has the files of one checkpoint, as we write it, alone."""
    if any(child.is_directory for child in children):
        return False
    names = sorted(child.name for child in children)
    if len(names) == 1:
        return names[0].endswith(SUFFIX)
    count = len(names) - 1
    return names == sorted([*file_names(count), f"{STEM}{INDEX_SUFFIX}"])


def _is_tensors(child: Entry) -> bool:
    return not child.is_directory and child.name.endswith(SUFFIX)


async def open_tree(store: Store, path: str) -> TreeItem:
    """Opens the tree of tensors; see `SafetensorsFormat.open`."""
    directory, headers = await _read_headers(store, path)
    manifest, places = await on_worker(_manifest, path, headers)
    source = ChunkSource(
        store, directory, manifest, verify=False, index=_Places(manifest, places)
    )
    return TreeItem(path=path, manifest=manifest, source=source)


class _Places:
    """Where tensors lie: a `ChunkIndex`."""

    def __init__(
        self, manifest: Manifest, places: Sequence[tuple[str, Tensor]]
    ) -> None:
        self._leaves = manifest.leaves
        self._places = places

    def locate(self, leaf: int, grid_index: tuple[int, ...], box: Box) -> ChunkRead:
        """The tensor, which is a single chunk."""
        del grid_index
        file, tensor = self._places[leaf]
        return ChunkRead(
            entry=self._leaves[leaf],
            box=box,
            file=file,
            offset_bytes=tensor.offset_bytes,
            length_bytes=tensor.size_bytes,
            decoder=None,
            sums=None,
        )


def _manifest(
    path: str, headers: Mapping[str, Header]
) -> tuple[Manifest, list[tuple[str, Tensor]]]:
    """The tree of all tensors, and where each of its leaves lies."""
    places: dict[str, tuple[str, Tensor]] = {}
    for file, header in headers.items():
        for name, tensor in header.tensors.items():
            if name in places:
                raise InvalidLayoutError(
                    f"{path}: both {places[name][0]} and {file} hold a tensor "
                    f"{name!r}; load one of the files, or write an index"
                )
            places[name] = file, tensor
    names = sorted(places)
    keys = tuple([Key("key", name) for name in names])
    forms: dict[tuple[str, tuple[int, ...]], LeafForm] = {}
    leaves: list[LeafEntry] = []
    for key, name in zip(keys, names, strict=True):
        _, (dtype, shape, _, _) = places[name]
        form = forms.get((dtype, shape))
        if form is None:
            form = LeafForm(
                kind="np.ndarray",
                dtype=dtype,
                shape=shape,
                chunk_shape=tuple(max(1, extent) for extent in shape),
            )
            forms[dtype, shape] = form
        leaves.append(LeafEntry((key,), name, form))
    root = Node(
        kind="dict",
        keys=keys,
        children=tuple([Node(kind="leaf", leaf=n) for n in range(len(names))]),
    )
    manifest = Manifest(root=root, leaves=tuple(leaves), is_flat=True)
    return manifest, [places[name] for name in names]


async def _read_headers(store: Store, path: str) -> tuple[str, dict[str, Header]]:
    """The directory of a checkpoint, and the headers of its files by their names."""
    entry = await store.stat(path)
    if entry is not None and not entry.is_directory:
        directory, name = posixpath.split(path)
        return directory, {name: await _read_header(store, path)}
    return path, await _read_directory(store, path)


async def _read_directory(store: Store, path: str) -> dict[str, Header]:
    names = [child.name for child in await store.list(path) if not child.is_directory]
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indices) > 1:
        raise InvalidLayoutError(
            f"{path} holds several checkpoints, {', '.join(indices)}; give each a "
            "directory of its own"
        )
    if not indices:
        files = [name for name in names if name.endswith(SUFFIX)]
        return await _read_all(store, path, files)
    where = join(path, indices[0])
    said = await _read_index(store, where)
    missing = sorted(set(said.values()).difference(names))
    if missing:
        raise CorruptCheckpointError(
            f"{where} names files that are not there: {', '.join(missing[:8])}."
        )
    headers = await _read_all(store, path, [*dict.fromkeys(said.values())])
    for name, file in said.items():
        if name not in headers[file].tensors:
            raise CorruptCheckpointError(
                f"{where}: tensor {name!r} is not in {file}, as it is said to be."
            )
    return headers


async def _read_index(store: Store, where: str) -> dict[str, str]:
    """The file of every tensor, by its name."""
    data = await read_bytes(store, where, limit_bytes=_INDEX_LIMIT_BYTES)
    document = as_object(await on_worker(parse, data, where), where)
    files = as_object(document.get("weight_map"), f"{where}, key 'weight_map'")
    for name, file in files.items():
        at = f"{where}, tensor {name!r:.80}"
        if posixpath.basename(as_typed(file, str, "a file name", at)) != file:
            raise CorruptCheckpointError(
                f"{at}: {file!r:.80} is no file of the directory."
            )
    return files


async def _read_all(store: Store, path: str, files: Sequence[str]) -> dict[str, Header]:
    headers = await run_all(_read_header(store, join(path, file)) for file in files)
    return dict(zip(files, headers, strict=True))


async def _read_header(store: Store, path: str) -> Header:
    entry = await store.stat(path)
    file_bytes = 0 if entry is None else entry.size_bytes
    start = bytearray(min(LENGTH_BYTES, file_bytes))
    if start:
        await store.read_into(path, 0, start)
    size_bytes = header_bytes(bytes(start), file_bytes=file_bytes, where=path)
    data = bytearray(size_bytes)
    await store.read_into(path, LENGTH_BYTES, data)
    return await on_worker(
        decode_header, bytes(data), file_bytes=file_bytes, where=path
    )
