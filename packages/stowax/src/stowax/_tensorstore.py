"""TensorStore behind its one door: reads the arrays of items that others wrote.

An item keeps its arrays in one OCDBT database or as plain directories of files, in
zarr2 or zarr3, with any chunks and codecs.  TensorStore does the work on threads of its
own; here its futures are awaited on the running loop, a bounded number at a time, and
data goes straight into the caller's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import tensorstore as ts

from stowax._box import whole
from stowax._budget import Scratch
from stowax._codecs._zarr import DOCUMENT_NAMES, ZarrVersion
from stowax._codecs._zarr_read import Describer
from stowax._formats._base import Arrived, ReadRequest
from stowax._keypath import array_prefix
from stowax._loop import on_worker
from stowax._manifest import NO_ARRAY_KINDS, LeafEntry
from stowax._stores._base import no_file
from stowax._tasks import run_all
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

_T = TypeVar("_T")

_CONCURRENT_OPENS = 128
_CONCURRENT_READS = 16
"""Each read may decode several chunks at once: more would only cost memory."""

_DATABASE_CACHE_BYTES = 100_000_000
"""Holds the nodes of the database, so that its tree is read once for all arrays."""

_NOT_DAMAGE = (
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNKNOWN",
)
"""TensorStore's words for failures of the system.  All others, and messages that begin
with no such word, mean content that is missing or makes no sense."""


class TensorStoreSource:
    """The arrays of one item: described by their documents, opened when they are read.

    `read` answers requests by position of the leaf.  Unless the leaves are described
    already, `array_facts` comes first.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        leaves: Sequence[LeafEntry],
        *,
        use_ocdbt: bool,
        use_zarr3: bool,
        fills_missing: bool = False,
    ) -> None:
        """Opens nothing yet.

        Args:
            directory: The item.
            leaves: All leaves of the item; strings are passed over.
            use_ocdbt: Arrays lie in one database, and not as directories of files.
            use_zarr3: They are zarr3, and not zarr2.
            fills_missing: A chunk that is missing has the fill value of its array;
                otherwise it is damage.
        """
        self._directory = directory
        self._leaves = tuple(leaves)
        self._use_ocdbt = use_ocdbt
        self._version: ZarrVersion = 3 if use_zarr3 else 2
        self._fills_missing = fills_missing
        # A context of its own: nothing that was cached for another item, or for an
        # older checkpoint at the same path, is ever seen.
        self._context = ts.Context(
            {"cache_pool#database": {"total_bytes_limit": _DATABASE_CACHE_BYTES}}
        )
        self._arrays: dict[int, ts.TensorStore] = {}
        self._is_checked = False
        """Whether all files of the database are files; see `_check_files_below`."""

    async def array_facts(self) -> tuple[LeafEntry, ...]:
        """Returns the leaves with dtype, shape and chunk shape; opens no array.

        Raises:
            CorruptCheckpointError: The document of an array is missing or damaged, or
                does not describe what its leaf must be.
            InvalidLayoutError: Arrays of its dtype cannot be loaded.
            OSError: The system failed.
        """
        self._leaves = await on_worker(self._described)
        return self._leaves

    async def read(
        self,
        requests: Sequence[ReadRequest],
        scratch: Scratch,
        arrived: Arrived | None = None,
    ) -> None:
        """Opens the arrays that are asked for, and fills every request.

        Raises:
            CorruptCheckpointError: Names the leaf and the item.
            InvalidLayoutError: TensorStore cannot read its codec.
            OSError: The system failed.
        """
        if self._use_ocdbt and not self._is_checked:
            await on_worker(_check_files_below, self._directory)
            self._is_checked = True
        wanted = {request.leaf for request in requests} - self._arrays.keys()
        gate = asyncio.Semaphore(_CONCURRENT_OPENS)
        await run_all(self._open(position, gate) for position in sorted(wanted))
        gate = asyncio.Semaphore(_CONCURRENT_READS)

        async def read(request: ReadRequest) -> None:
            await self._read(request, gate, scratch)
            if arrived is not None:
                arrived([(request.leaf, request.out.nbytes)])

        await run_all(read(request) for request in requests)

    def _described(self) -> tuple[LeafEntry, ...]:
        """The leaves with what their documents say, read all at once.

        On a worker: to await each would cost more than to read it.
        """
        arrays = [leaf for leaf in self._leaves if leaf.form.kind not in NO_ARRAY_KINDS]
        if not arrays:
            return self._leaves
        prefixes = [self._prefix(leaf.name) for leaf in arrays]
        name = DOCUMENT_NAMES[self._version]
        if self._use_ocdbt:
            _check_files_below(self._directory)
            self._is_checked = True
        else:
            for prefix in prefixes:
                _check_file(self._directory / prefix / name)
        with self._at(arrays[0]):
            documents = ts.KvStore.open(self._kvstore(""), context=self._context)
            store = documents.result()
        reads = [store.read(f"{array_prefix(prefix)}{name}") for prefix in prefixes]
        describer = Describer(self._version)
        found = (
            self._with_document(leaf, read, describer)
            for leaf, read in zip(arrays, reads, strict=True)
        )
        return tuple(
            leaf if leaf.form.kind in NO_ARRAY_KINDS else next(found)
            for leaf in self._leaves
        )

    def _with_document(
        self,
        leaf: LeafEntry,
        read: ts.Future[ts.KvStore.ReadResult],
        describer: Describer,
    ) -> LeafEntry:
        with self._at(leaf):
            result = read.result()
        data = bytes(result.value) if result.state == "value" else None
        return describer.describe(leaf, data, self._place(leaf))

    async def _open(self, position: int, gate: asyncio.Semaphore) -> None:
        leaf = self._leaves[position]
        prefix = self._prefix(leaf.name)
        if not self._use_ocdbt:
            await on_worker(_check_files_below, self._directory / prefix)
        spec = {
            "driver": "zarr3" if self._version == 3 else "zarr",
            "kvstore": self._kvstore(prefix),
            "fill_missing_data_reads": self._fills_missing,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
        }
        async with gate:
            with self._at(leaf):
                array = await _finish(
                    ts.open(spec, read=True, open=True, context=self._context)
                )
        found = array.dtype.name, tuple(array.shape)
        if found != (leaf.form.dtype, leaf.form.shape):
            raise CorruptCheckpointError(
                f"{self._place(leaf)}: it was {leaf.form.dtype}"
                f"{list(leaf.form.shape)}, and is {found[0]}{list(found[1])} now: "
                "somebody is writing to it"
            )
        self._arrays[position] = array

    async def _read(
        self, request: ReadRequest, gate: asyncio.Semaphore, scratch: Scratch
    ) -> None:
        array = self._arrays[request.leaf]
        out = ts.array(request.out, context=self._context, copy=False, write=True)
        # About what TensorStore holds meanwhile: chunks as they are read and decoded.
        async with gate, scratch.hold(request.out.nbytes):
            part = array[request.box.within(whole(array.shape))]
            with self._at(self._leaves[request.leaf]):
                await _finish(out.write(part).commit)

    def _prefix(self, name: str) -> str:
        """Where the array of a leaf lies in the item."""
        # Any name is a key of a database: it cannot lead out of the directory.
        leads_out = name.startswith("/") or {".", ".."}.intersection(name.split("/"))
        if leads_out and not self._use_ocdbt:
            raise CorruptCheckpointError(
                f"{self._directory}: the leaf {name!r} would be read from outside of "
                "the checkpoint. Do not load it if you do not know who made it."
            )
        return name

    def _kvstore(self, prefix: str) -> dict[str, Any]:
        if self._use_ocdbt:
            return {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._directory}/"},
                "path": prefix,
                "cache_pool": "cache_pool#database",
            }
        return {"driver": "file", "path": f"{self._directory}/{prefix}"}

    @contextlib.contextmanager
    def _at(self, leaf: LeafEntry) -> Generator[None]:
        """Says in our words, and with the leaf's name, what TensorStore raises."""
        try:
            yield
        except NotImplementedError as error:
            raise InvalidLayoutError(
                f"{self._place(leaf)}: TensorStore cannot read it: {_plain(error)}"
            ) from error
        except ValueError as error:
            message = f"{self._place(leaf)}: {_plain(error)}"
            if str(error).startswith(_NOT_DAMAGE):
                raise OSError(message) from error
            raise CorruptCheckpointError(message) from error

    def _place(self, leaf: LeafEntry) -> str:
        return f"leaf {leaf.name!r} of {self._directory}"


def _check_files_below(directory: pathlib.Path) -> None:
    """Refuses what TensorStore would wait for without end, such as a named pipe.

    Raises:
        CorruptCheckpointError: Names it.
    """
    seen: set[tuple[int, int]] = set()  # A link may lead back to where we came from.
    ahead = [os.fspath(directory)]
    while ahead:
        here = ahead.pop()
        # What is missing is TensorStore's to say.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(here)
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        ahead.append(entry.path)
                    elif not entry.is_file():  # Or a link that leads nowhere.
                        _check_file(pathlib.Path(entry.path))


def _check_file(path: pathlib.Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise no_file(str(path))


async def _finish(future: ts.Future[_T]) -> _T:
    """The result, once TensorStore has ended its work; also for one who is cancelled.

    Awaiting the future itself would end at once then, while TensorStore went on to
    write into the caller's memory, and to call back into a loop that may be closed.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end(_: object) -> None:
        # On a thread of TensorStore.
        loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(end)
    cancelled: asyncio.CancelledError | None = None
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


def _plain(error: Exception) -> str:
    """TensorStore's message without the machine-readable part at its end."""
    return re.split(r" \[(?:tensorstore_|source )", str(error))[0]
