"""Chunks are compressed on several workers, ahead of their file, within bounds."""

import asyncio
import concurrent.futures
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import bits, differences

import stowax
from stowax import _engine_encode
from stowax._box import Box, whole
from stowax._codecs._compression import CODECS
from stowax._engine_encode import Choices, encode_chunk, payloads_ahead
from stowax._loop import on_worker
from stowax._plan._write import AUTO, AUTO_EACH, ArrayLayout, plan_write
from stowax._runtime import Runtime
from stowax.options import ArrayOptions, FileOptions
from stowax.testing import MemoryStore

ZSTD = CODECS["zstd"]
CHUNK_BYTES = 64 << 10


class Watched:
    """Zstandard that counts who is in it, and may wait for company, or fail.

    Args:
        company: How many have to be in it at once before any goes on.
        fails_at: The number of the call that fails; 0: none.
    """

    limit_bytes = ZSTD.limit_bytes
    document = staticmethod(ZSTD.document)
    stored_bytes = staticmethod(ZSTD.stored_bytes)

    def __init__(self, *, company=1, fails_at=0):
        self.barrier = threading.Barrier(company)
        self.fails_at = fails_at
        # Guards what is below.
        self.lock = threading.Lock()
        self.calls = self.inside = 0

    def encode(self, payload, itemsize):
        """Compresses, in company."""
        with self:
            return ZSTD.encode(payload, itemsize)

    def decode_into(self, stored, out):
        """Decompresses, in company."""
        with self:
            ZSTD.decode_into(stored, out)

    def __enter__(self):
        with self.lock:
            self.calls += 1
            self.inside += 1
            is_bad = self.calls == self.fails_at
        self.barrier.wait(timeout=20)
        if is_bad:
            self.__exit__()
            raise ZeroDivisionError

    def __exit__(self, *error):
        with self.lock:
            self.inside -= 1


@pytest.fixture
def watch(monkeypatch):
    """Puts a watched codec in the place of the plain one."""

    def replace(**how):
        watched = Watched(**how)
        monkeypatch.setitem(CODECS, "zstd", watched)
        return watched

    return replace


@pytest.fixture(scope="module")
def runtime():
    """A loop with four workers."""
    runtime = Runtime()
    yield runtime
    runtime.close()


def planned(*layouts):
    """The plan of arrays, given by size in bytes and codec, and their memory."""
    arrays = [
        np.resize(np.arange(size // 3 + 1, dtype=np.uint8), size) for size, _ in layouts
    ]
    plan = plan_write(
        {
            i: ArrayLayout(
                shape=array.shape,
                dtype=array.dtype,
                parts=((whole(array.shape), (0,)),),
                codec=codec,
                chunk_limit_bytes=CHUNK_BYTES,
            )
            for i, (array, (_, codec)) in enumerate(zip(arrays, layouts, strict=True))
        },
        process_index=0,
        data_directory="d/",
    )
    return plan, arrays, Choices(plan, arrays)


async def payloads(plan, parts, choices):
    """What workers get that ask for all, one after the other."""
    found = []
    for file in plan.files:
        async with payloads_ahead(file, parts, choices) as given:
            found += await on_worker(list, given)
    return found


def compressing(store, *, chunk_byte_size=CHUNK_BYTES, **saving):
    """A Context that compresses, in small chunks."""
    storage = ArrayOptions.Saving.StorageOptions(
        compression="zstd", chunk_byte_size=chunk_byte_size
    )
    saving = ArrayOptions.Saving(storage_options=storage, **saving)
    return stowax.Context(
        array=ArrayOptions(saving=saving), file=FileOptions(store=store)
    )


@given(
    layouts=st.lists(
        st.tuples(
            st.integers(1, 40 * CHUNK_BYTES),
            st.sampled_from([None, "zstd", "blosc", AUTO, AUTO_EACH]),
        ),
        max_size=6,
    ),
    ahead_bytes=st.sampled_from([1, CHUNK_BYTES, 3 * CHUNK_BYTES, 1 << 30]),
)
@settings(deadline=None, max_examples=60)
def test_all_in_order(runtime, layouts, ahead_bytes):
    """Whatever the chunks and the limit, each payload comes once, in order."""
    plan, parts, choices = planned(*layouts)
    chunks = [chunk for file in plan.files for chunk in file.chunks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_engine_encode, "AHEAD_BYTES", ahead_bytes)
        found = runtime.run(payloads(plan, parts, choices))

    expected = [encode_chunk(c, parts[c.part], choices.codec_of(c)) for c in chunks]
    assert found == expected


def test_several_at_once(watch):
    """Four workers compress the chunks of one array at the same time."""
    watched = watch(company=4)
    state = {"w": np.arange(16 * CHUNK_BYTES, dtype=np.uint8)}

    with compressing(MemoryStore()):
        stowax.save("/checkpoint", state)

    assert watched.calls == 16


def test_several_are_decoded_at_once(watch):
    """Four workers decode the chunks of one array at the same time, and load them."""
    store = MemoryStore()
    state = {"w": np.zeros(16 << 20, np.uint8)}
    with compressing(store, chunk_byte_size=2 << 20):
        stowax.save("/checkpoint", state)
        watch(company=4)

        assert differences(state, stowax.load("/checkpoint")) == []


@pytest.mark.parametrize(
    ("ahead_bytes", "expected"),
    [(1, 2), (2 * CHUNK_BYTES, 2), (5 * CHUNK_BYTES, 5)],
)
def test_no_further_ahead(runtime, watch, monkeypatch, ahead_bytes, expected):
    """The chunk that is asked for and those ahead stay within the limit, or are two."""
    monkeypatch.setattr(_engine_encode, "AHEAD_BYTES", ahead_bytes)
    watched = watch()
    plan, *rest = planned((16 * CHUNK_BYTES, "zstd"))
    (file,) = plan.files
    executor = concurrent.futures.ThreadPoolExecutor(8)

    with executor:
        ahead = _engine_encode._Ahead(file.chunks, *rest, executor)
        for taken, _ in enumerate(ahead, 1):
            concurrent.futures.wait([job.payload for job in ahead._jobs])
            assert watched.calls == min(16, taken - 1 + expected)
            assert len(ahead._jobs) <= expected


@pytest.mark.parametrize("codec", ["zstd", None])
def test_no_more_chunks_ahead(codec):
    """However small chunks are, and if they take nothing at all, few are ahead."""
    plan, *rest = planned(*[(100, codec)] * 500, (100, "zstd"))
    (file,) = plan.files
    executor = concurrent.futures.ThreadPoolExecutor(1)

    with executor:
        ahead = _engine_encode._Ahead(file.chunks, *rest, executor)
        counts = [len(ahead._jobs) for _ in ahead]

    assert max(counts) == _engine_encode._AHEAD_COUNT
    assert len(counts) == 501


def test_small_chunks_are_not_handed_over(runtime, watch):
    """What is compressed in less time than it takes to ask, the writer compresses."""
    plan, *rest = planned(*[(1000, "zstd")] * 20)
    (file,) = plan.files
    watch()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.shutdown()  # Refuses all work.

    assert len(list(_engine_encode._Ahead(file.chunks, *rest, executor))) == 20


def test_nobody_waits_for_the_last_worker(watch):
    """More files than workers are written, though each could wait for a worker."""
    watched = watch()
    store = MemoryStore()
    state = {f"w{i}": np.full(8 * CHUNK_BYTES, i, np.uint8) for i in range(16)}

    with compressing(store, ocdbt_target_data_file_size=8 * CHUNK_BYTES):
        stowax.save("/checkpoint", state)

        assert watched.calls == 16 * 8
        assert differences(state, stowax.load("/checkpoint")) == []


@pytest.mark.parametrize("fails_at", [1, 2, 9])
def test_a_chunk_that_fails(watch, monkeypatch, fails_at):
    """A codec's failure is that of the save, and leaves nobody at work."""
    monkeypatch.setattr(_engine_encode, "AHEAD_BYTES", 4 * CHUNK_BYTES)
    watched = watch(fails_at=fails_at)
    state = {"w": np.zeros(64 * CHUNK_BYTES, np.uint8)}

    with compressing(MemoryStore()), pytest.raises(ZeroDivisionError):
        stowax.save("/checkpoint", state)

    assert watched.inside == 0
    assert watched.calls < 64


class Held(Watched):
    """Holds whoever compresses another chunk than the first, but for the writer."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.is_held = threading.Event()
        self.writer = None

    def encode(self, payload, itemsize):
        """Compresses, when it may."""
        with self:
            if payload[0] != FIRST and threading.current_thread() is not self.writer:
                self.is_held.set()
                assert self.gate.wait(timeout=20)
            return ZSTD.encode(payload, itemsize)


class FullStore(MemoryStore):
    """Takes the first piece of a data file only; a little later, lets go of others."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    async def write(self, path, pieces, *, size_bytes=None):
        def take_first():
            self.held.writer = threading.current_thread()
            next(iter(pieces))
            assert self.held.is_held.wait(timeout=20)

        if "/data-" in path:
            await on_worker(take_first)
            asyncio.get_running_loop().call_later(0.2, self.held.gate.set)
            raise OSError(28, "No space left on device", path)
        await super().write(path, pieces, size_bytes=size_bytes)


FIRST = 7


def test_a_store_that_fails(monkeypatch):
    """When a save has failed, nobody reads the caller's arrays any more."""
    held = Held()
    monkeypatch.setitem(CODECS, "zstd", held)
    monkeypatch.setattr(_engine_encode, "AHEAD_BYTES", 8 * CHUNK_BYTES)
    state = bits("uint8", (64, CHUNK_BYTES))
    state[:, 0] = FIRST + 1
    state[0, 0] = FIRST

    with compressing(FullStore(held)), pytest.raises(OSError, match="No space left"):
        stowax.save("/checkpoint", {"w": state})

    assert held.inside == 0
    assert 1 < held.calls < 64


def test_a_choice_needs_the_first_file_only():
    """A leaf is chosen for when some of it is staged, by what is in its first file."""
    half = 1 << 20
    layout = ArrayLayout(
        shape=(2 * half,),
        dtype=np.dtype("u1"),
        parts=((Box((0,), (half,)), (0,)), (Box((half,), (2 * half,)), (0,))),
        codec=AUTO,
    )
    plan = plan_write(
        {0: layout}, process_index=0, data_directory="d/", file_limit_bytes=half
    )
    first, second = (file.chunks[0] for file in plan.files)

    choices = Choices(plan, [np.zeros(half, np.uint8), None])

    assert choices.codec_of(first) == "blosc"
    assert choices.codec_of(second) == "blosc"
    assert choices.coded() == {0}
