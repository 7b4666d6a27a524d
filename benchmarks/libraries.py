"""The libraries that are compared, behind one face: save, load, metadata.

What is saved is durable when `save` returns: Stowax sees to it itself; after the others
every file is synced here, in the time that is measured.
"""

from __future__ import annotations

import abc
import asyncio
import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

Tree = Any

_SYNC_FILE_RANGE_WRITE = 2
_PIECE_BYTES = 4 << 20


def sync(path: Path) -> None:
    """Makes what others left in the page cache durable."""
    for file in [path, *path.rglob("*")]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def named(tree: Tree) -> dict[str, Any]:
    """The leaves by name, for libraries that know no trees."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def as_numpy(tree: Tree) -> Tree:
    """An abstract state that asks for NumPy arrays, and takes no memory."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree
    )


def bytes_of(leaf: Any) -> memoryview:
    """The bytes of an array, without a copy where the host has it."""
    return np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8).data


class Library(abc.ABC):
    """What is None, the library does not have."""

    save_async: Callable[[Path, Tree], Any] | None = None
    load_numpy: Callable[[Path, Tree], Any] | None = None
    metadata: Callable[[Path], Any] | None = None

    @abc.abstractmethod
    def save(self, path: Path, state: Tree) -> None:
        """Saves a tree of arrays, durably."""

    @abc.abstractmethod
    def load(self, path: Path, abstract: Tree) -> Tree:
        """Loads it as arrays of JAX, on the devices that the abstract tree names."""


class Raw(Library):
    """The disk itself: one file, written and synced by one thread."""

    def save(self, path: Path, state: Tree) -> None:
        """Writes the bytes of all leaves, one after the other."""
        path.mkdir()
        with (path / "data").open("wb", buffering=0) as file:
            for leaf in jax.tree.leaves(state):
                write_all(file.fileno(), bytes_of(leaf))
            os.fsync(file.fileno())

    def load(self, path: Path, abstract: Tree) -> Tree:
        """Reads the file into fresh memory, on one thread."""
        return read_file(path / "data", thread_count=1)


class EarlyRaw(Raw):
    """Four files side by side, each on its way to the disk while it is written."""

    def save(self, path: Path, state: Tree) -> None:
        """Writes every fourth leaf to each file."""
        path.mkdir()
        leaves = jax.tree.leaves(state)
        parts = [leaves[i::4] for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            files = [path / f"data{i}" for i in range(4)]
            list(pool.map(self._write, files, parts))

    def load(self, path: Path, abstract: Tree) -> Tree:
        """Reads the four files side by side."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(read_file, sorted(path.iterdir())))

    @staticmethod
    def _write(path: Path, leaves: Sequence[Any]) -> None:
        libc = ctypes.CDLL(None)
        with path.open("wb", buffering=0) as file:
            offset_bytes = 0
            for leaf in leaves:
                data = bytes_of(leaf)
                for start in range(0, len(data), _PIECE_BYTES):
                    piece = data[start : start + _PIECE_BYTES]
                    write_all(file.fileno(), piece)
                    libc.sync_file_range(
                        file.fileno(),
                        ctypes.c_longlong(offset_bytes),
                        ctypes.c_longlong(len(piece)),
                        _SYNC_FILE_RANGE_WRITE,
                    )
                    offset_bytes += len(piece)
            os.fsync(file.fileno())


def write_all(descriptor: int, data: memoryview) -> None:
    """Writes everything; one call takes 2 GiB at most."""
    while data:
        data = data[os.write(descriptor, data) :]


def read_file(path: Path, thread_count: int = 1) -> np.ndarray:
    """Reads a file into fresh memory, in as many pieces as there are threads."""
    size_bytes = path.stat().st_size
    buffer = np.empty(size_bytes, np.uint8)
    bounds = [size_bytes * i // thread_count for i in range(thread_count + 1)]
    descriptor = os.open(path, os.O_RDONLY)

    def read(begin: int, end: int) -> None:
        view = memoryview(buffer)[begin:end]
        while view and (count := os.preadv(descriptor, [view], begin)):
            view, begin = view[count:], begin + count

    try:
        if thread_count == 1:
            read(0, size_bytes)
        else:
            with ThreadPoolExecutor(thread_count) as pool:
                list(pool.map(read, bounds[:-1], bounds[1:]))
    finally:
        os.close(descriptor)
    return buffer


class Stowax(Library):
    """This library with its defaults: checksums on, synced."""

    def __init__(self) -> None:
        import stowax

        self._ocp = stowax
        self.save_async = stowax.save_async
        self.metadata = stowax.metadata

    def save(self, path: Path, state: Tree) -> None:
        """`stowax.save`."""
        self._ocp.save(path, state)

    def load(self, path: Path, abstract: Tree) -> Tree:
        """`stowax.load` with an abstract state."""
        return self._ocp.load(path, abstract)

    def load_numpy(self, path: Path, abstract: Tree) -> Tree:
        """The same with NumPy arrays in the abstract state."""
        return self._ocp.load(path, as_numpy(abstract))


class Orbax(Library):
    """Orbax v1.

    Args:
        compresses: Its default; without, arrays are stored as they are.
    """

    def __init__(self, *, compresses: bool = True) -> None:
        from orbax.checkpoint import v1

        self._ocp = v1
        self._compresses = compresses
        self.metadata = v1.metadata

    def save(self, path: Path, state: Tree) -> None:
        """`save`, and a sync of every file."""
        with self._context():
            self._ocp.save(path, state)
        sync(path)

    def save_async(self, path: Path, state: Tree) -> Any:
        """`save_async`; nobody syncs."""
        with self._context():
            return self._ocp.save_async(path, state)

    def load(self, path: Path, abstract: Tree) -> Tree:
        """`load` with an abstract state."""
        return self._ocp.load(path, abstract)

    def load_numpy(self, path: Path, abstract: Tree) -> Tree:
        """The same with NumPy arrays in the abstract state."""
        return self._ocp.load(path, as_numpy(abstract))

    def _context(self) -> Any:
        context = self._ocp.Context()
        context.array.saving.use_compression = self._compresses
        return context


class Safetensors(Library):
    """The safetensors library; it has no trees, shardings or checksums."""

    def save(self, path: Path, state: Tree) -> None:
        """One file, and its sync."""
        from safetensors.numpy import save_file

        path.mkdir()
        leaves = named(state).items()
        save_file({name: np.asarray(leaf) for name, leaf in leaves}, path / "data")
        sync(path)

    def load(self, path: Path, abstract: Tree) -> Tree:
        """NumPy, brought to the devices."""
        return place(self.load_numpy(path, abstract), abstract)

    def load_numpy(self, path: Path, abstract: Tree) -> Tree:
        """All arrays of the file."""
        from safetensors.numpy import load_file

        return load_file(path / "data")

    def metadata(self, path: Path) -> Any:
        """Names, shapes and dtypes from the header."""
        from safetensors import safe_open

        with safe_open(path / "data", framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 no mapping


class Msgpack(Library):
    """Flax's msgpack serialization of a tree."""

    def save(self, path: Path, state: Tree) -> None:
        """One file, and its sync."""
        from flax import serialization

        path.mkdir()
        encoded = serialization.msgpack_serialize(jax.tree.map(np.asarray, state))
        (path / "data").write_bytes(encoded)
        sync(path)

    def load(self, path: Path, abstract: Tree) -> Tree:
        """NumPy, brought to the devices."""
        return place(named(self.load_numpy(path, abstract)), abstract)

    def load_numpy(self, path: Path, abstract: Tree) -> Tree:
        """Decodes the file."""
        from flax import serialization

        return serialization.msgpack_restore((path / "data").read_bytes())


class TensorStore(Library):
    """TensorStore by hand: zarr3 arrays in one OCDBT database, one transaction."""

    def save(self, path: Path, state: Tree) -> None:
        """One transaction, and a sync of every file."""
        path.mkdir()
        asyncio.run(self._save(path, named(state)))
        sync(path)

    def load(self, path: Path, abstract: Tree) -> Tree:
        """NumPy, brought to the devices."""
        return place(self.load_numpy(path, abstract), abstract)

    def load_numpy(self, path: Path, abstract: Tree) -> Tree:
        """All arrays, side by side."""
        return asyncio.run(self._load(path, named(abstract)))

    async def _save(self, path: Path, leaves: dict[str, Any]) -> None:
        import tensorstore as ts

        transaction = ts.Transaction()
        context = ts.Context()

        async def write(name: str, leaf: Any) -> None:
            array = await ts.open(
                self._spec(path, name),
                create=True,
                dtype=ts.dtype(leaf.dtype.name),
                shape=leaf.shape,
                chunk_layout=ts.ChunkLayout(chunk_shape=leaf.shape),
                transaction=transaction,
                context=context,
            )
            await array.write(
                np.asarray(leaf), can_reference_source_data_indefinitely=True
            )

        await asyncio.gather(*(write(*item) for item in leaves.items()))
        await transaction.commit_async()

    async def _load(self, path: Path, leaves: dict[str, Any]) -> Tree:
        import tensorstore as ts

        context = ts.Context()

        async def read(name: str) -> np.ndarray:
            array = await ts.open(self._spec(path, name), open=True, context=context)
            return await array.read()

        values = await asyncio.gather(*(read(name) for name in leaves))
        return dict(zip(leaves, values, strict=True))

    @staticmethod
    def _spec(path: Path, name: str) -> dict[str, Any]:
        kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": f"{name}/"}
        return {"driver": "zarr3", "kvstore": kvstore}


def place(leaves: dict[str, np.ndarray], abstract: Tree) -> Tree:
    """Brings arrays to the devices that the abstract tree names."""
    return {
        name: jax.device_put(leaves[name], leaf.sharding)
        for name, leaf in named(abstract).items()
    }


LIBRARIES: dict[str, Callable[[], Library]] = {
    "raw": Raw,
    "raw, 4 files": EarlyRaw,
    "stowax": Stowax,
    "orbax": Orbax,
    "orbax, uncompressed": lambda: Orbax(compresses=False),
    "safetensors": Safetensors,
    "flax msgpack": Msgpack,
    "tensorstore": TensorStore,
}
