"""What holds for digests of whole files."""

import asyncio
import hashlib

import pytest

from stowax._digest import PIECE_BYTES, digest_file, read_pieces
from stowax._manifest import Digest
from stowax.testing import MemoryStore


@pytest.mark.parametrize(
    "size_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES]
)
def test_digest_is_that_of_the_whole_file(size_bytes):
    """However many pieces it takes, the result is what `sha256sum` says."""
    content = bytes(range(251)) * (size_bytes // 251 + 1)
    content = content[:size_bytes]
    store = MemoryStore()

    async def scenario():
        await store.write("/file", [content])
        return await digest_file(store, "/file")

    assert asyncio.run(scenario()) == Digest(
        size_bytes=size_bytes, sha256=hashlib.sha256(content).hexdigest()
    )


def test_no_piece_is_larger_than_the_limit():
    """Memory is bounded whatever the size of the file."""
    store = MemoryStore()

    async def scenario():
        await store.write("/file", [bytes(2 * PIECE_BYTES + 5)])
        return [len(piece) async for piece in read_pieces(store, "/file")]

    assert asyncio.run(scenario()) == [PIECE_BYTES, PIECE_BYTES, 5]


def test_missing_file_has_no_digest():
    """It is an error that names the path."""
    with pytest.raises(FileNotFoundError, match="/nothing"):
        asyncio.run(digest_file(MemoryStore(), "/nothing"))
