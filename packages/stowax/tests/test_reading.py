"""What a load takes beside its result stays within a budget, whatever is wanted."""

import asyncio
import threading
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.layout import Format, Layout
from sample_trees import differences, mesh

import stowax
from stowax import _item_read
from stowax._leaves import _jax_array
from stowax._loop import on_worker
from stowax._plan import _chunk_shape
from stowax._plan._cast import convert_into
from stowax._runtime import Runtime
from stowax.testing import MemoryStore, RecordingStore

MIB = 1 << 20


@pytest.fixture
def runtime():
    """A runtime of the test's own, whose budgets nobody else uses."""
    made = Runtime()
    yield made
    made.close()


@pytest.fixture(scope="module")
def store():
    """Arrays of several MiB, and many small ones, in one checkpoint in memory."""
    made = MemoryStore()
    rng = np.random.default_rng(0)
    state = {
        "wide": rng.integers(0, 1 << 30, (9, 300_001), np.int32),
        "deep": rng.random((3, 5, 7, 11_003), np.float32),
        "long": rng.integers(0, 255, 5 * MIB + 17, np.uint8),
        "small": {f"{i}": rng.random(900) for i in range(600)},
    }
    with stowax.Context(file=stowax.options.FileOptions(store=made)):
        stowax.save("/c", state)
    return made, state


def context(runtime, store, limit_bytes=None):
    """A Context with a reading limit."""
    memory = stowax.options.MemoryOptions(read_concurrent_bytes=limit_bytes)
    file = stowax.options.FileOptions(store=store)
    return stowax.Context(runtime=runtime, memory=memory, file=file)


def spread(array):
    """An array asked for in columns, over eight devices, padded where it must be."""
    sharding = jax.NamedSharding(mesh(8), jax.P(None, "x"))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


@pytest.mark.parametrize("limit_bytes", [1, 5 * MIB, None])
def test_scratch_stays_within_the_limit(runtime, store, limit_bytes):
    """However little there may be; one piece at a time is always possible."""
    memory, state = store
    rng = np.random.default_rng(1)
    columns = rng.integers(0, 1 << 30, (9, 300_000), np.int32)

    with context(runtime, memory, limit_bytes):
        stowax.save("/columns", {"w": columns}, overwrite=True)
        whole = stowax.load("/c")
        shards = stowax.load("/columns", {"w": spread(columns)})

    assert differences(state, whole) == []
    assert (np.asarray(shards["w"]) == columns).all()
    assert runtime.reading_budget.taken_bytes == 0
    peak_bytes = runtime.reading_budget.peak_bytes
    assert 0 < peak_bytes <= max(limit_bytes or 48 * MIB, 4 * MIB)


def compressed(runtime, store, compression, state):
    """Saves a state to "/c"."""
    made = context(runtime, store)
    made.array.saving.storage_options.compression = compression
    with made:
        stowax.save("/c", state)


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
@pytest.mark.parametrize("limit_bytes", [1, 12 * MIB, None])
def test_what_is_decoded_stays_within_the_limit(runtime, limit_bytes, compression):
    """Compressed chunks that are wanted in parts count with what they decode to."""
    memory = MemoryStore()
    sizes = {"large": 8 * MIB, **{f"{i}": MIB // 8 for i in range(9)}}
    state = {
        name: np.arange(size, dtype=np.int32).reshape(8, -1) % 1000
        for name, size in sizes.items()
    }
    compressed(runtime, memory, compression, state)
    columns = {name: spread(array) for name, array in state.items()}

    with context(runtime, memory, limit_bytes):
        found = stowax.load("/c", columns)

    for name, array in state.items():
        assert (np.asarray(found[name]) == array).all()
    assert runtime.reading_budget.taken_bytes == 0
    peak_bytes = runtime.reading_budget.peak_bytes
    assert 4 * MIB < peak_bytes <= max(limit_bytes or 48 * MIB, 8 * MIB)


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_small_chunks_are_decoded_within_the_limit(runtime, compression):
    """So do those that are read together."""
    memory = MemoryStore()
    zeros = np.zeros((8, 24 << 10), np.int32)
    state = {f"{i}": zeros for i in range(4)}
    compressed(runtime, memory, compression, state)

    with context(runtime, memory, 1):
        stowax.load("/c", {name: spread(array) for name, array in state.items()})

    assert zeros.nbytes < runtime.reading_budget.peak_bytes < 2 * zeros.nbytes


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_large_compressed_chunks(runtime, monkeypatch, compression):
    """A chunk larger than the budget loads: older versions wrote such with zstd."""
    memory = MemoryStore()
    state = {"w": np.arange(8 * MIB).reshape(16, -1)}
    with monkeypatch.context() as patch:
        patch.setattr(_chunk_shape, "CODED_CHUNK_LIMIT_BYTES", 64 * MIB)
        compressed(runtime, memory, compression, state)

    with context(runtime, memory):
        whole = stowax.load("/c")
        row = stowax.load_leaf("/c", "w", index=np.s_[3])

    assert differences(state, whole) == []
    assert (row == state["w"][3]).all()
    assert 64 * MIB < runtime.reading_budget.peak_bytes <= 128 * MIB


def test_whole_arrays_need_no_scratch(runtime, store):
    """A large array that is wanted as it is stored is read into its own memory."""
    memory, state = store

    with context(runtime, memory):
        found = stowax.load_leaf("/c", "wide")

    assert (found == state["wide"]).all()
    assert runtime.reading_budget.peak_bytes == 0


def test_one_array_is_read_by_several_at_once(runtime):
    """However few arrays there are, the disk has several reads to do."""

    class Together(MemoryStore):
        """Answers the first reads of array data when there are four."""

        def __init__(self):
            super().__init__()
            self.waiting = asyncio.Event()
            self.count = 0

        async def read_into(self, path, offset_bytes, buffer):
            if "data-" in path:
                self.count += 1
                if self.count == 4:
                    self.waiting.set()
                await asyncio.wait_for(self.waiting.wait(), 20)
            await super().read_into(path, offset_bytes, buffer)

    memory, array = Together(), np.arange(4 * MIB)
    with context(runtime, memory):
        stowax.save("/c", {"w": array})
        found = stowax.load("/c")

    assert (found["w"] == array).all()


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_slice_of_a_large_leaf(store, data):
    """Piece by piece, blocks verified, exactly what was asked for comes together."""
    memory, state = store
    name = data.draw(st.sampled_from(["wide", "deep", "long"]))
    array = state[name]
    ends = [
        sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        for n in array.shape
    ]
    index = tuple(slice(a, b) for a, b in ends)

    with stowax.Context(file=stowax.options.FileOptions(store=memory)):
        found = stowax.load_leaf("/c", name, index=index)

    assert differences(array[index], found) == []


def test_a_row_costs_its_blocks(store):
    """Of a large leaf only the blocks that hold something wanted are read."""
    memory, state = store
    recording = RecordingStore(memory)

    with stowax.Context(file=stowax.options.FileOptions(store=recording)):
        found = stowax.load_leaf("/c", "wide", index=np.s_[3])

    reads = [
        call
        for call in recording.calls
        if call.operation == "read_into" and "/d/" in call.paths[0]
    ]
    assert (found == state["wide"][3]).all()
    row_bytes = state["wide"][3].nbytes
    assert sum(call.size_bytes for call in reads) <= row_bytes + 2 * MIB


def bfloat16(state):
    """The same state, asked for in another dtype."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), state)


@pytest.fixture
def floats():
    """Leaves of a MiB, in a checkpoint in memory."""
    made = MemoryStore()
    rng = np.random.default_rng(0)
    state = {f"{i:02}": rng.random(MIB // 4, np.float32) for i in range(60)}
    with stowax.Context(file=stowax.options.FileOptions(store=made)):
        stowax.save("/c", state)
    return made, state


@pytest.mark.parametrize("limit_bytes", [1, 5 * MIB, None])
def test_what_is_converted_stays_within_the_limit(runtime, floats, limit_bytes):
    """What is read in one dtype to become another is let go wave by wave."""
    memory, state = floats

    with context(runtime, memory, limit_bytes):
        tracemalloc.start()
        found = stowax.load("/c", bfloat16(state))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    for name, array in state.items():
        assert (np.asarray(found[name]) == array.astype(jnp.bfloat16)).all()
    result_bytes = sum(array.nbytes for array in found.values())
    # Half of the limit, one leaf at least; a piece of the file; names, and plans.
    passing_bytes = max(MIB, (limit_bytes or 48 * MIB) // 2)
    assert peak_bytes < result_bytes + passing_bytes + 4 * MIB + 2 * MIB
    assert runtime.passing_budget.taken_bytes == 0
    assert runtime.passing_budget.peak_bytes <= max(MIB, (limit_bytes or 48 * MIB) // 2)


def test_loads_that_convert_wait_for_each_other(runtime, floats):
    """Several items of one load, and several loads, get through any limit."""
    memory, state = floats
    items = {"a": state, "b": state}

    with context(runtime, memory, 1):
        stowax.save_checkpointables("/both", items)
        asked = {name: bfloat16(state) for name in items}
        loading = [stowax.load_checkpointables_async("/both", asked) for _ in range(3)]
        loaded = [response.result() for response in loading]

    for found in loaded:
        for name in items:
            same = np.asarray(found[name]["07"]) == state["07"].astype(jnp.bfloat16)
            assert same.all()
    assert runtime.passing_budget.peak_bytes == MIB
    assert runtime.passing_budget.taken_bytes == 0


def test_a_load_that_fails_gives_back_what_it_held(runtime, floats, tmp_path):
    """Damage in a later wave ends the load, and no other waits for its memory."""
    _, state = floats
    stowax.save(tmp_path / "c", state)
    file = max(tmp_path.glob("c/**/d/*"), key=lambda file: file.stat().st_size)
    with file.open("r+b") as data:
        data.seek(file.stat().st_size * 3 // 5 + 100_000)
        data.write(b"damage")

    memory = stowax.options.MemoryOptions(read_concurrent_bytes=4 * MIB)
    corrupt = pytest.raises(stowax.errors.CorruptCheckpointError)
    with stowax.Context(runtime=runtime, memory=memory), corrupt:
        stowax.load(tmp_path / "c", bfloat16(state))

    assert runtime.passing_budget.peak_bytes == 2 * MIB
    assert runtime.passing_budget.taken_bytes == 0
    assert runtime.reading_budget.taken_bytes == 0


def test_a_slice_that_is_kept_is_not_passed_on(runtime, store):
    """What an index leaves of a leaf is read into the memory that is returned."""
    memory, state = store

    with context(runtime, memory):
        row = stowax.load_leaf("/c", "wide", index=np.s_[3])
        assert runtime.passing_budget.peak_bytes == 0
        asked = jax.ShapeDtypeStruct(row.shape, np.float32)
        cast = stowax.load_leaf("/c", "wide", abstract_leaf=asked, index=np.s_[3])

    assert (row == state["wide"][3]).all()
    assert cast.dtype == np.float32
    assert runtime.passing_budget.peak_bytes == row.nbytes


def test_what_is_padded_is_passed_on(runtime):
    """What is read is copied into an array of another shape."""
    memory = MemoryStore()
    state = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}
    loading = stowax.options.ArrayOptions.Loading(enable_padding_and_truncation=True)
    padding = context(runtime, memory)
    padding.array.loading = loading

    with padding:
        stowax.save("/c", state)
        found = stowax.load("/c", {"w": np.zeros((5, 4), np.float32)})

    assert (found["w"][:3] == state["w"]).all()
    assert runtime.passing_budget.peak_bytes == state["w"].nbytes


def test_items_that_convert_come_one_after_the_other(runtime):
    """None takes memory that is to pass on before it is its turn."""
    memory = MemoryStore()
    state = {f"{i:02}": {"w": np.full(MIB // 4, i, np.float32)} for i in range(16)}

    with context(runtime, memory, 1):
        stowax.save_checkpointables("/c", state)
        asked = {name: bfloat16(item) for name, item in state.items()}
        tracemalloc.start()
        found = stowax.load_checkpointables("/c", asked)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    result_bytes = sum(item["w"].nbytes for item in found.values())
    assert peak_bytes < result_bytes + 5 * MIB


def test_reading_and_passing_on_share_the_limit(runtime):
    """Chunks, and what comes of them, are in memory at the same time."""
    memory = MemoryStore()
    rng = np.random.default_rng(0)
    state = {f"{i}": rng.integers(0, 1 << 24, (9, 100_000), np.int32) for i in range(4)}
    compressed(runtime, memory, "zstd", state)
    asked = {
        name: jax.ShapeDtypeStruct(a.shape, np.float32, sharding=spread(a).sharding)
        for name, a in state.items()
    }
    gauge = runtime.reading_budget.ledger.gauge()

    with context(runtime, memory, 16 * MIB):
        found = stowax.load("/c", asked)

    for name, array in state.items():
        assert (np.asarray(found[name]) == array).all()
    assert runtime.passing_budget.peak_bytes == 2 * state["0"].nbytes
    assert 13 * MIB <= gauge.peak_bytes <= 16 * MIB


def test_what_is_passed_on_is_let_go(runtime):
    """Small arrays that stay keep nothing of those that were converted beside them."""
    memory = MemoryStore()
    state: dict[str, object] = {}
    asked: dict[str, object] = {}
    for i in range(400):
        state[f"{i:03}a"] = asked[f"{i:03}a"] = np.arange(8)
        state[f"{i:03}b"] = np.zeros(1000, np.float32)
        asked[f"{i:03}b"] = np.zeros(1000, jnp.bfloat16)

    with context(runtime, memory):
        stowax.save("/c", state)
        found = stowax.load("/c", asked)
    staying = [array for name, array in found.items() if name.endswith("a")]
    del found

    kept = {}
    for array in staying:
        while isinstance(array.base, np.ndarray):
            array = array.base
        kept[id(array)] = array.nbytes
    assert sum(kept.values()) <= 2 * (64 << 10)


def test_a_conversion_takes_little_memory():
    """A large array is converted piece by piece, into the memory of the result."""
    array, out = np.ones((4 * MIB,), np.int8), np.empty((4 * MIB,), np.float64)
    tracemalloc.start()

    convert_into(out, array)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (out == 1).all()
    assert peak_bytes < 2 * MIB


def test_what_stays_is_not_held_up(runtime):
    """It is read at once, and keeps nobody waiting for memory that is passed on."""
    memory, held = Slow(), []
    converted = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    made = context(runtime, memory, 2)
    with made:
        stowax.save("/c", {"a": np.ones(8, np.float32), "big": np.arange(MIB)})
        loading = stowax.load_async("/c", {"a": converted, "big": np.arange(MIB)})
        memory.begun.wait(20)
        held.append(runtime.passing_budget.taken_bytes)
        memory.may_end.set()
        loaded = loading.result()

    assert held == [0]
    assert (loaded["big"] == np.arange(MIB)).all()
    assert runtime.passing_budget.peak_bytes == 32


def test_values_of_taught_types_are_not_looked_into(runtime):
    """Only arrays are waited for: a value may look like a tree that JAX cannot sort."""
    memory = MemoryStore()

    class Odd(BoxHandler):
        def want(self, target, facts):
            return np.empty(3, jnp.bfloat16)

        def place(self, stored, facts, target):
            return {"stored": stored, 1: 2}

    made = context(runtime, memory)
    made.pytree.leaf_handlers = (Odd(),)
    with made:
        stowax.save("/c", {"w": Boxed(np.ones(3, np.float32))})
        found = stowax.load("/c", {"w": Boxed(None)})["w"]

    assert found["stored"].dtype == jnp.bfloat16


def test_the_deadline_names_the_wait(runtime, floats):
    """Who waits for memory of others is not told that the disk is slow."""
    memory, state = floats
    made = context(runtime, memory)
    made.asynchronous.timeout_secs = 0.2
    runtime.passing_budget.take(1 << 30, limit_bytes=1)

    loads = [
        lambda: stowax.load("/c", bfloat16(state)),
        lambda: stowax.load_leaf("/c", "07", abstract_leaf=bfloat16(state)["07"]),
    ]
    for load in loads:
        waiting = pytest.raises(stowax.errors.DeadlineError, match="waiting for memory")
        with made, waiting:
            load()


class Boxed:
    """A value of a taught type: an array in a box."""

    def __init__(self, array):
        self.array = array


class BoxHandler:
    """Stores the array; what it makes of it is a copy, made after `then`."""

    typestr = "test.Boxed"

    def __init__(self, then=lambda: None):
        self.then = then

    def accepts(self, value):
        """A box."""
        return isinstance(value, Boxed)

    def describe(self, value):
        """Nothing."""

    def stage(self, value):
        """What is in the box."""
        return value.array

    def accepts_target(self, target):
        """A box, or the class."""
        return target is Boxed or isinstance(target, Boxed)

    def want(self, target, facts):
        """As it is stored."""

    def place(self, stored, facts, target):
        """A box with a copy."""
        self.then()
        return Boxed(np.array(stored))


def test_a_load_within_a_load(runtime, floats):
    """A handler that loads what it needs waits for nothing that its own load holds."""
    memory, state = floats
    names: list[str] = []

    def load_another():
        names.extend(stowax.load("/c", bfloat16(state)))

    made = context(runtime, memory, 2 * MIB)
    made.pytree.leaf_handlers = (BoxHandler(load_another),)
    made.asynchronous.timeout_secs = 60
    with made:
        stowax.save("/boxes", {"w": Boxed(np.arange(MIB))})
        found = stowax.load("/boxes")["w"]

    assert (found.array == np.arange(MIB)).all()
    assert names == list(state)
    assert runtime.passing_budget.taken_bytes == 0


def test_values_of_taught_types_are_passed_on(runtime):
    """Nobody knows what of the array that was read such a value keeps."""
    memory = MemoryStore()
    made = context(runtime, memory, 2 * MIB)
    made.pytree.leaf_handlers = (BoxHandler(),)

    with made:
        stowax.save("/c", {f"{i}": Boxed(np.arange(MIB // 8)) for i in range(8)})
        stowax.load("/c")

    assert runtime.passing_budget.peak_bytes == MIB


class Slow(MemoryStore):
    """Takes its time to read arrays, and counts the reads that go on."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.begun = threading.Event()
        self.may_end = threading.Event()

    async def read_into(self, path, offset_bytes, buffer):
        """As any store, on a worker, which cannot be stopped."""
        if "data-" in path:
            self.count += 1
            self.begun.set()
            try:
                await on_worker(self.may_end.wait, 20)
            finally:
                self.count -= 1
        await super().read_into(path, offset_bytes, buffer)


LOADS = {
    "load": lambda asked: stowax.load("/c", {"w": asked}),
    "the directory of a tree": lambda asked: stowax.load(
        "/c/state", {"w": asked}, checkpointable_name=None
    ),
    "load_leaf": lambda asked: stowax.load_leaf("/c", "w", abstract_leaf=asked),
    "load_checkpointables": lambda asked: stowax.load_checkpointables(
        "/c", {"state": {"w": asked}}
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_load_that_is_given_up_ends_first(runtime, name):
    """Nothing reads any more when it raises, and until then its memory is held."""
    memory = Slow()
    made = context(runtime, memory)
    with made:
        stowax.save("/c", {"w": np.ones(4 * MIB, np.float32)})
    made.asynchronous.timeout_secs = 0.2
    held: list[int] = []

    def end():
        memory.begun.wait(20)
        time.sleep(0.6)  # Beyond the deadline.
        held.append(runtime.passing_budget.taken_bytes)
        memory.may_end.set()

    ending = threading.Thread(target=end)
    ending.start()
    with made, pytest.raises(stowax.errors.DeadlineError):
        LOADS[name](jax.ShapeDtypeStruct((4 * MIB,), jnp.bfloat16))
    assert memory.count == 0
    ending.join()

    assert held == [16 * MIB]
    assert runtime.passing_budget.taken_bytes == 0


def column_major():
    """Another layout than the usual one, on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return Format(Layout((1, 0)), sharding)


@pytest.mark.parametrize("dtype", ["int4", "float32"])
def test_what_jax_has_in_a_form_of_its_own_is_passed_on(runtime, dtype):
    """Elements of less than a byte, and other layouts, do not stay what was read."""
    memory = MemoryStore()
    shape = (1024, 1024) if dtype == "int4" else (512, 512)
    state = {f"{i}": jnp.ones(shape, dtype) for i in range(8)}
    place = None if dtype == "int4" else column_major()
    asked = jax.ShapeDtypeStruct(shape, state["0"].dtype, sharding=place)

    with context(runtime, memory, 4 * MIB):
        stowax.save("/c", state)
        found = stowax.load("/c", dict.fromkeys(state, asked))

    assert all(bool((found[name] == state[name]).all()) for name in state)
    assert runtime.passing_budget.peak_bytes == 2 * MIB


@pytest.mark.parametrize(
    ("shape", "dtype", "bytes_each"),
    [
        ((1024,), "float32", 4096),
        ((1024,), "bfloat16", 4096 + 2048),
        ((2048,), "float32", 4096 + 8192),
    ],
)
def test_onto_devices_with_memory_of_their_own(
    runtime, monkeypatch, shape, dtype, bytes_each
):
    """There, all memory of the host is passed on, and held until all has arrived."""
    memory, held = MemoryStore(), []

    def settle(values):
        held.append(runtime.passing_budget.taken_bytes)
        jax.block_until_ready(values)

    monkeypatch.setattr(_jax_array, "default_shares_host_memory", lambda: False)
    monkeypatch.setattr(_item_read, "settle", settle)
    state = {f"{i}": jnp.arange(1024, dtype=jnp.float32) for i in range(6)}
    made = context(runtime, memory, 6 * bytes_each)
    made.array.loading.enable_padding_and_truncation = True

    with made:
        stowax.save("/c", state)
        asked = jax.ShapeDtypeStruct(shape, dtype)
        found = stowax.load("/c", dict.fromkeys(state, asked))

    for name, array in state.items():
        assert (found[name][:1024] == array.astype(dtype)).all()
    assert held == [3 * bytes_each] * 2
    assert runtime.passing_budget.peak_bytes == 3 * bytes_each


def test_items_are_read_side_by_side(runtime):
    """The second is being read when the first is waited for."""

    class Meeting(MemoryStore):
        """Answers the first read of each item when there is one of both."""

        def __init__(self):
            super().__init__()
            self.met = asyncio.Event()
            self.items: set[str] = set()

        async def read_into(self, path, offset_bytes, buffer):
            if "data-" in path:
                self.items.add(path.split("/")[2])
                if len(self.items) == 2:
                    self.met.set()
                await asyncio.wait_for(self.met.wait(), 20)
            await super().read_into(path, offset_bytes, buffer)

    memory, state = Meeting(), {"w": np.arange(MIB)}
    with context(runtime, memory):
        stowax.save_checkpointables("/c", {"a": state, "b": state})
        found = stowax.load_checkpointables("/c")

    assert (found["b"]["w"] == state["w"]).all()
