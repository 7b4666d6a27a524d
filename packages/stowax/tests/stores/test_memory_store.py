"""The model of durability: what a power cut leaves of a memory store."""

import asyncio
import threading

from stowax._stores._base import read_bytes
from stowax.testing._memory_store import MemoryStore

DRAFT, FINAL = "/runs/step.orbax-checkpoint-tmp-1", "/runs/step"


def _content(store, path):
    return asyncio.run(read_bytes(store, path, limit_bytes=100))


def test_nothing_is_durable_unasked():
    """What was never synced is gone."""
    store = MemoryStore()
    asyncio.run(store.write("/runs/file", [b"abc"]))
    assert asyncio.run(store.durable_view().list("/")) == ()


def test_a_name_without_its_bytes_is_an_empty_file():
    """A directory that was synced without its file keeps the bare name."""
    store = MemoryStore()
    asyncio.run(store.write("/runs/file", [b"abc"]))
    asyncio.run(store.sync(["/runs"]))
    assert _content(store.durable_view(), "/runs/file") == b""


def test_bytes_without_their_name_are_gone():
    """A file that was synced without its directory cannot be found."""
    store = MemoryStore()
    asyncio.run(store.write("/runs/file", [b"abc"]))
    asyncio.run(store.sync(["/runs/file"]))
    assert asyncio.run(store.durable_view().list("/runs")) == ()


def test_sync_includes_directories_made_above():
    """Parents that the store had to make become durable with their child."""
    store = MemoryStore()
    asyncio.run(store.write("/a/b/c/file", [b"abc"]))
    asyncio.run(store.sync(["/a/b/c/file", "/a/b/c"]))
    assert _content(store.durable_view(), "/a/b/c/file") == b"abc"


def test_publish_is_durable_after_the_parent():
    """Between the publish and the sync of the parent a power cut takes it back."""
    store = MemoryStore()

    async def scenario():
        await store.write(f"{DRAFT}/file", [b"new"])
        await store.sync([f"{DRAFT}/file", DRAFT, "/runs"])
        await store.publish(DRAFT, FINAL, replace=False)

    asyncio.run(scenario())
    assert _content(store.durable_view(), f"{DRAFT}/file") == b"new"
    asyncio.run(store.sync(["/runs"]))
    assert _content(store.durable_view(), f"{FINAL}/file") == b"new"
    assert asyncio.run(store.durable_view().stat(DRAFT)) is None


def test_replacing_is_durable_before_the_old_one_goes():
    """A power cut right after a replacement does not bring back a deleted tree."""
    store = MemoryStore()

    async def scenario():
        for path, content in ((FINAL, b"old"), (DRAFT, b"new")):
            await store.write(f"{path}/file", [content])
            await store.sync([f"{path}/file", path, "/runs"])
        await store.publish(DRAFT, FINAL, replace=True)

    asyncio.run(scenario())
    assert _content(store.durable_view(), f"{FINAL}/file") == b"new"


def test_several_loops_share_one_store():
    """Simulated processes, each on its own loop and thread, see one disk."""
    store = MemoryStore()

    def process(index):
        asyncio.run(store.write(f"/runs/{index}/file", [b"%d" % index]))

    threads = [threading.Thread(target=process, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [_content(store, f"/runs/{index}/file") for index in range(8)] == [
        b"%d" % index for index in range(8)
    ]


def test_may_say_that_it_is_remote():
    """It says of itself what it was told to; so does what a power cut leaves."""
    assert not MemoryStore().is_remote
    assert MemoryStore(is_remote=True).is_remote
    assert MemoryStore(is_remote=True).durable_view().is_remote
