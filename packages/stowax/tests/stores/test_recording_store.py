"""The log of a store, and what is read from it."""

import asyncio

import pytest

from stowax.testing._memory_store import MemoryStore
from stowax.testing._recording_store import RecordingStore, durability_faults

DRAFT, FINAL = "/runs/step.orbax-checkpoint-tmp-1", "/runs/step"


def test_calls_are_kept_in_order():
    """Each call is there with its paths, and ends before the next one begins."""
    store = RecordingStore(MemoryStore())

    async def scenario():
        await store.write("/runs/file", [b"abc"])
        await store.sync(["/runs/file", "/runs"])
        await store.delete("/runs")

    asyncio.run(scenario())
    write, sync, delete = store.calls
    assert (write.operation, write.paths) == ("write", ("/runs/file",))
    assert (sync.operation, sync.paths) == ("sync", ("/runs/file", "/runs"))
    assert (delete.operation, delete.paths) == ("delete", ("/runs",))
    assert write.began < write.ended < sync.began < sync.ended < delete.began


def test_failed_calls_are_not_kept():
    """A sync that failed made nothing durable."""
    store = RecordingStore(MemoryStore())
    with pytest.raises(FileNotFoundError):
        asyncio.run(store.sync(["/runs/file"]))
    assert store.calls == ()


def test_overlapping_calls_are_seen_to_overlap():
    """Of two calls at once neither is over before the other began."""
    store = RecordingStore(MemoryStore())

    async def scenario():
        await asyncio.gather(store.write("/a", [b"a"]), store.write("/b", [b"b"]))

    asyncio.run(scenario())
    first, second = store.calls
    assert first.began < second.began < first.ended
    assert second.began < second.ended


STEPS = [
    ("write", f"{DRAFT}/state/0"),
    ("write", f"{DRAFT}/document"),
    ("sync", f"{DRAFT}/state/0"),
    ("sync", f"{DRAFT}/document"),
    ("sync", f"{DRAFT}/state"),
    ("sync", DRAFT),
    ("publish", FINAL),
    ("sync", "/runs"),
]


def _faults(steps):
    store = RecordingStore(MemoryStore())

    async def scenario():
        for operation, path in steps:
            if operation == "write":
                await store.write(path, [b"abc"])
            elif operation == "sync":
                await store.sync([path])
            else:
                await store.publish(DRAFT, path, replace=False)

    asyncio.run(scenario())
    return durability_faults(store.calls)


def test_no_faults_when_all_is_synced_in_order():
    """Files, their directories, the publish, then the parent: nothing to say."""
    assert _faults(STEPS) == []


@pytest.mark.parametrize("missing", [2, 3, 4, 5, 7])
def test_every_missing_sync_is_a_fault(missing):
    """Leaving out any one of the syncs is noticed, and named."""
    (fault,) = _faults(STEPS[:missing] + STEPS[missing + 1 :])
    assert fault.startswith(f"{STEPS[missing][1]} was not synced")


def test_a_sync_before_the_last_change_is_a_fault():
    """A directory that got a name after its sync, and a parent synced too early."""
    early = [STEPS[0], ("sync", DRAFT), *STEPS[1:5], ("sync", "/runs"), STEPS[6]]
    assert _faults(early) == [
        f"{DRAFT} was not synced before {FINAL} was published",
        f"/runs was not synced after {FINAL} was published",
    ]


def test_a_link_after_the_sync_of_its_directory_is_a_fault():
    """What it names is durable, but the name is not."""
    store = RecordingStore(MemoryStore())

    async def scenario():
        await store.write("/runs/old/file", [b"abc"])
        await store.make_directory(DRAFT)
        await store.sync(["/runs/old/file", "/runs/old", DRAFT])
        await store.link("/runs/old/file", f"{DRAFT}/file")
        await store.publish(DRAFT, FINAL, replace=False)
        await store.sync(["/runs"])

    asyncio.run(scenario())
    assert durability_faults(store.calls) == [
        f"{DRAFT} was not synced before {FINAL} was published"
    ]


def test_is_as_remote_as_the_other():
    """It passes on what the other store says of itself."""
    assert RecordingStore(MemoryStore(is_remote=True)).is_remote
    assert not RecordingStore(MemoryStore()).is_remote
