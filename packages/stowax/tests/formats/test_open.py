"""What opening an item costs the loop that it is opened on."""

import asyncio
import sys

import pytest
from golden_cases import GOLDEN

import stowax
from stowax._formats._detect import open_checkpoint, open_tree
from stowax._stores._local import LocalStore

DECODERS = {
    "_check_leaves",
    "_tree_item",
    "decode_documents",
    "decode_part",
    "decode_root",
    "digest",
    "unseal",
}
"""What takes time that grows with the number of leaves."""


@pytest.mark.parametrize("writer", ["stowax", "orbax"])
def test_documents_are_decoded_off_the_loop(tmp_path, writer):
    """However many leaves an item has, other operations go on while it is opened."""
    path = GOLDEN / "v1_basic/checkpoint"
    if writer == "stowax":
        path = tmp_path / "checkpoint"
        stowax.save(path, {"a": 1, "b": "text"})
    called = set()

    async def scenario():
        store = LocalStore()
        found = await open_checkpoint(store, str(path), verify=True)
        # The root says little: it is the item that may be large.
        sys.setprofile(lambda frame, event, _: called.add(frame.f_code.co_name))
        item = found.items["state"]
        return await open_tree(store, item, found.guest_files, verify=True)

    try:
        opened = asyncio.run(scenario())
    finally:
        sys.setprofile(None)

    assert opened.manifest.leaves
    assert "open_tree" in called
    assert called & DECODERS == set()
