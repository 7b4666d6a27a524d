"""TensorStore behind its one door: reads the arrays of items that others wrote.

An item keeps its arrays in one OCDBT database or as plain directories of files, in
zarr2 or zarr3, with any chunks and codecs.  TensorStore does the work on threads of its
own; here its futures are awaited on the running loop, a bounded number at a time, and
data goes straight into the caller's memory.
"""

from __future__ import annotations

import asyncio
import pathlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import tensorstore as ts

from stowax._box import whole
from stowax._formats._base import ReadRequest
from stowax._manifest import LeafEntry
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
    """The arrays of one item, opened together and read in parts.

    `array_facts` comes first; `read` then answers requests by position of the leaf.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        leaves: Sequence[LeafEntry],
        *,
        use_ocdbt: bool,
        use_zarr3: bool,
        stores_fill_value: bool,
    ) -> None:
        """Opens nothing yet.

        Args:
            directory: The item.
            leaves: All leaves of the item; strings are passed over.
            use_ocdbt: Arrays lie in one database, and not as directories of files.
            use_zarr3: They are zarr3, and not zarr2.
            stores_fill_value: Every chunk was written.  Otherwise a chunk of zarr3
                that is missing was full of zeros (zarr2 never left one out).
        """
        self._directory = directory
        self._leaves = tuple(leaves)
        self._use_ocdbt = use_ocdbt
        self._driver = "zarr3" if use_zarr3 else "zarr"
        self._fills_missing = use_zarr3 and not stores_fill_value
        # A context of its own: nothing that was cached for another item, or for an
        # older checkpoint at the same path, is ever seen.
        self._context = ts.Context(
            {"cache_pool#database": {"total_bytes_limit": _DATABASE_CACHE_BYTES}}
        )
        self._arrays: dict[int, ts.TensorStore] = {}

    async def array_facts(self) -> tuple[LeafEntry, ...]:
        """Opens every array; returns the leaves with dtype, shape and chunk shape.

        Raises:
            CorruptCheckpointError: An array is missing or damaged, or is not what its
                leaf must be.
            InvalidLayoutError: TensorStore cannot read its dtype or codec.
            OSError: The system failed.
        """
        gate = asyncio.Semaphore(_CONCURRENT_OPENS)
        return tuple(
            await run_all(
                self._open(position, leaf, gate)
                for position, leaf in enumerate(self._leaves)
            )
        )

    async def read(self, requests: Sequence[ReadRequest]) -> None:
        """Fills every request.

        Raises:
            CorruptCheckpointError: Names the leaf and the item.
            OSError: The system failed.
        """
        gate = asyncio.Semaphore(_CONCURRENT_READS)
        await run_all(self._read(request, gate) for request in requests)

    async def _open(
        self, position: int, leaf: LeafEntry, gate: asyncio.Semaphore
    ) -> LeafEntry:
        if leaf.kind == "string":
            return leaf
        spec = {
            "driver": self._driver,
            "kvstore": self._kvstore(leaf.name),
            "fill_missing_data_reads": self._fills_missing,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
        }
        async with gate:
            array = await self._wait(
                leaf, ts.open(spec, read=True, open=True, context=self._context)
            )
        leaf = _with_facts(leaf, array, self._place(leaf))
        self._arrays[position] = array
        return leaf

    async def _read(self, request: ReadRequest, gate: asyncio.Semaphore) -> None:
        array = self._arrays[request.leaf]
        out = ts.array(request.out, context=self._context, copy=False, write=True)
        async with gate:
            part = array[request.box.within(whole(array.shape))]
            await self._wait(self._leaves[request.leaf], out.write(part).commit)

    def _kvstore(self, name: str) -> dict[str, Any]:
        if self._use_ocdbt:
            # Any name is a key of the database: it cannot lead out of the directory.
            return {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._directory}/"},
                "path": name,
                "cache_pool": "cache_pool#database",
            }
        if name.startswith("/") or {".", ".."}.intersection(name.split("/")):
            raise CorruptCheckpointError(
                f"{self._directory}: the leaf {name!r} would be read from outside of "
                "the checkpoint. Do not load it if you do not know who made it."
            )
        return {"driver": "file", "path": f"{self._directory}/{name}"}

    async def _wait(self, leaf: LeafEntry, future: ts.Future[_T]) -> _T:
        try:
            return await _finish(future)
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


def _with_facts(leaf: LeafEntry, array: ts.TensorStore, place: str) -> LeafEntry:
    """The leaf with what its array says, if they fit together."""
    dtype = array.dtype.name
    if array.dtype.numpy_dtype.hasobject:
        raise InvalidLayoutError(f"{place}: arrays of {dtype} cannot be loaded.")
    shape = tuple(array.shape)
    if leaf.kind == "scalar" and shape:
        raise CorruptCheckpointError(f"{place}: a scalar is stored with shape {shape}.")
    if leaf.prng_impl is not None and (dtype != "uint32" or not shape):
        raise CorruptCheckpointError(
            f"{place}: the data of PRNG keys is stored as {dtype}{list(shape)}, "
            "expected uint32[…, n]."
        )
    chunk_shape = array.chunk_layout.read_chunk.shape or (None,) * len(shape)
    return replace(
        leaf,
        dtype=dtype,
        shape=shape,
        chunk_shape=tuple(
            max(1, n if extent is None else extent)
            for extent, n in zip(chunk_shape, shape, strict=True)
        ),
    )


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
