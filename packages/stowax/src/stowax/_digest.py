"""Files of any size, piece by piece: never more than one piece of one is in memory.

For files that others wrote, whose size nobody limits.  The arrays have a way of their
own, the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

from stowax._loop import on_worker
from stowax._manifest import Digest
from stowax._stores._base import Store, missing

PIECE_BYTES = 4 << 20
"""Large enough that hashing, not the calls around it, takes the time."""


async def read_pieces(store: Store, path: str) -> AsyncGenerator[memoryview]:
    """The bytes of a file in order; a piece is valid until the next is asked for.

    Raises:
        FileNotFoundError: No file is at the path.
        CorruptCheckpointError: It is no file, or shrank meanwhile.
    """
    entry = await store.stat(path)
    if entry is None:
        raise missing(path)
    buffer = memoryview(bytearray(min(entry.size_bytes, PIECE_BYTES)))
    if not buffer:
        # A directory or a pipe looks empty, too; only a read tells.
        await store.read_into(path, 0, buffer)
    for offset_bytes in range(0, entry.size_bytes, PIECE_BYTES):
        piece = buffer[: entry.size_bytes - offset_bytes]
        await store.read_into(path, offset_bytes, piece)
        yield piece


async def digest_file(store: Store, path: str) -> Digest:
    """The digest of a whole file, read piece by piece and summed on the workers.

    Raises:
        FileNotFoundError: No file is at the path.
        CorruptCheckpointError: It is no file, or shrank meanwhile.
    """
    sum_, size_bytes = hashlib.sha256(), 0
    async for piece in read_pieces(store, path):
        await on_worker(sum_.update, piece)
        size_bytes += len(piece)
    return Digest(size_bytes=size_bytes, sha256=sum_.hexdigest())
