"""What `save_async` keeps in memory stays within a budget that all saves share."""

import asyncio
import contextvars
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import differences

import stowax
from stowax._box import whole
from stowax._budget import Budget
from stowax._loop import on_worker
from stowax._plan._write import ArrayLayout, plan_write
from stowax._runtime import Runtime
from stowax._staging import Staging
from stowax.errors import DeadlineError
from stowax.testing import MemoryStore

KIB = 1 << 10


class HeldStore(MemoryStore):
    """Writes data files only while its gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.failure = None

    async def write(self, path, pieces, *, size_bytes=None):
        if "/data-" in path:
            self.waiting.release()
            await on_worker(self.gate.wait)
            if self.failure is not None:
                raise self.failure
        await super().write(path, pieces, size_bytes=size_bytes)


@pytest.fixture
def runtime():
    """A runtime of the test's own, whose budgets nobody else uses."""
    made = Runtime(worker_count=8)
    yield made
    made.close()


@pytest.fixture
def store():
    """A store that is opened at last, whatever happens."""
    made = HeldStore()
    yield made
    made.gate.set()


def context(runtime, store, limit_bytes=None, is_first=None, **options):
    """A Context with a staging limit; what hangs, fails."""
    options.setdefault("asynchronous", stowax.options.AsyncOptions(timeout_secs=30))
    memory = stowax.options.MemoryOptions(
        write_concurrent_bytes=limit_bytes, is_prioritized_key_fn=is_first
    )
    file = stowax.options.FileOptions(store=store)
    return stowax.Context(runtime=runtime, memory=memory, file=file, **options)


def in_thread(call):
    """Starts a call; returns a function that waits for it and has its result."""
    results = []

    def run():
        try:
            results.append((call(), None))
        except BaseException as error:  # noqa: BLE001 it is for who joins
            results.append((None, error))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=[run])
    thread.start()

    def join():
        thread.join(60)
        assert not thread.is_alive()
        result, error = results[0]
        if error is not None:
            raise error
        return result

    join.has_ended = lambda: not thread.is_alive()
    return join


async def read_whole(store, path):
    """The bytes of a file."""
    entry = await store.stat(path)
    data = bytearray(entry.size_bytes)
    await store.read_into(path, 0, data)
    return bytes(data)


def host_state(count=8, size_bytes=64 * KIB):
    """Arrays of NumPy, which a save in the background has to copy."""
    return {f"{i}": np.full(size_bytes, i, np.uint8) for i in range(count)}


def test_what_fits_is_staged_at_once(runtime, store):
    """The save returns with nothing written, and gives all back when it is."""
    with context(runtime, store, 1 << 20):
        response = stowax.save_async("/c", host_state())
        taken_bytes = runtime.staging_budget.taken_bytes
        store.gate.set()
        response.result()

    assert taken_bytes == 8 * 64 * KIB
    assert runtime.staging_budget.taken_bytes == 0


def test_arrays_of_jax_take_nothing(runtime, store):
    """On the CPU they are written from where they are."""
    state = {"a": jnp.zeros(1 << 16), "b": jax.random.key(0)}

    with context(runtime, store, 1):
        response = stowax.save_async("/c", state)
        store.gate.set()
        response.result()

    assert runtime.staging_budget.peak_bytes == 0


def test_a_blocking_save_borrows(runtime, store):
    """Nobody can change host arrays meanwhile, so they are not copied."""
    store.gate.set()

    with context(runtime, store, 1):
        stowax.save("/c", host_state())

    assert runtime.staging_budget.peak_bytes == 0


def test_what_does_not_fit_is_waited_for(runtime, store):
    """The save returns when its last leaf is staged; later changes do not count."""
    state = host_state()
    expected = {name: leaf.copy() for name, leaf in state.items()}

    with context(runtime, store, 256 * KIB):
        saving = in_thread(lambda: stowax.save_async("/c", state))
        store.waiting.acquire(timeout=60)
        early = saving.has_ended()
        store.gate.set()
        response = saving()
        for leaf in state.values():
            leaf[:] = 0xFF
        response.result()
        found = stowax.load("/c")

    assert not early
    assert differences(expected, found) == []
    assert 0 < runtime.staging_budget.peak_bytes <= 256 * KIB
    assert runtime.staging_budget.taken_bytes == 0


def test_saves_to_different_paths_share_it(runtime, store):
    """Together two saves in flight take no more than one may."""
    first, second = host_state(4), host_state(4)

    with context(runtime, store, 300 * KIB):
        one = stowax.save_async("/one", first)
        other = in_thread(lambda: stowax.save_async("/other", second))
        store.waiting.acquire(timeout=60)
        is_waiting = not other.has_ended()
        store.gate.set()
        one.result()
        other().result()
        found = stowax.load("/one"), stowax.load("/other")

    assert is_waiting
    assert differences((first, second), found) == []
    assert runtime.staging_budget.peak_bytes <= 300 * KIB
    assert runtime.staging_budget.taken_bytes == 0


def test_a_leaf_that_is_larger_than_the_budget(runtime, store):
    """It is staged alone, however small the budget is."""
    store.gate.set()
    state = {"a": np.arange(9), "large": np.arange(100_000), "z": np.arange(7)}

    with context(runtime, store, 1):
        stowax.save_async("/c", state).result()
        found = stowax.load("/c")

    assert differences(state, found) == []
    assert runtime.staging_budget.peak_bytes == state["large"].nbytes


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_state_under_any_budget(data):
    """Bit for bit, whatever is staged when, for one item or several."""
    sizes = data.draw(st.lists(st.integers(0, 5000), max_size=12))
    limit_bytes = data.draw(st.integers(1, 20_000))
    file_bytes = data.draw(st.sampled_from([0, 1000, 4000]))
    early = data.draw(st.sets(st.sampled_from([f"{i}" for i in range(12)])))
    rng = np.random.default_rng(0)
    items = {
        name: {
            f"{i}": rng.integers(0, 255, size, np.uint8) for i, size in enumerate(sizes)
        }
        for name in ("one", "other")
    }
    expected = jax.tree.map(np.copy, items)
    runtime, store = Runtime(), MemoryStore()
    array = stowax.options.ArrayOptions()
    array.saving.ocdbt_target_data_file_size = file_bytes

    def is_first(path):
        return path[0].key in early

    with context(runtime, store, limit_bytes, is_first, array=array):
        response = stowax.save_checkpointables_async("/c", items)
        for leaf in jax.tree.leaves(items):
            leaf[...] = 0
        response.result()
        found = stowax.load_checkpointables("/c")
    runtime.close()

    assert differences(expected, found) == []
    largest = max(sizes, default=0)
    assert runtime.staging_budget.peak_bytes <= max(limit_bytes, largest)
    assert runtime.staging_budget.taken_bytes == 0


@pytest.mark.parametrize("limit_bytes", [128 * KIB, None])
def test_leaves_that_are_written_first(runtime, store, limit_bytes):
    """What the caller prefers lies before the rest, in order, whatever fits."""
    state = {"params": host_state(4), "step": np.full(9, 7), "z": np.full(5, 8)}
    store.gate.set()

    def is_first(path):
        return path[0].key != "params"

    with context(runtime, store, limit_bytes, is_first):
        stowax.save_async("/c", state).result()
        found = stowax.load("/c")

    with context(runtime, store):
        first = asyncio.run(read_whole(store, "/c/state/d/data-0"))
    assert first.startswith(state["step"].tobytes())
    assert 0 < first.index(state["z"].tobytes()) < KIB
    assert differences(state, found) == []


def test_what_is_written_first_may_change(runtime, store):
    """A later save of the same structure follows the answers that it gets."""
    state = {"a": np.full(100, 1, np.uint8), "b": np.full(100, 2, np.uint8)}
    store.gate.set()
    begin = {}

    for name in ("a", "b", "a"):
        with context(runtime, store, is_first=lambda path, n=name: path[0].key == n):
            stowax.save(f"/{len(begin)}", state)
            data = asyncio.run(read_whole(store, f"/{len(begin)}/state/d/data-0"))
            begin[len(begin)] = data[0]

    assert [*begin.values()] == [1, 2, 1]


def test_a_failing_preference_names_the_leaf(runtime, store):
    """What the function raises is told with the leaf that it was asked of."""
    store.gate.set()

    def is_first(path):
        raise ZeroDivisionError

    with (
        context(runtime, store, is_first=is_first),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        stowax.save("/c", {"w": np.zeros(3)})

    assert any("at leaf w" in note for note in caught.value.__notes__)


def test_a_failure_ends_the_wait(runtime, store):
    """A save that cannot be written does not wait for room that never comes."""
    store.failure = OSError("the disk is full")
    store.gate.set()

    with context(runtime, store, 100 * KIB):
        response = stowax.save_async("/c", host_state())
        with pytest.raises(OSError, match="disk is full"):
            response.result()

    assert runtime.staging_budget.taken_bytes == 0


def test_a_failure_to_stage_gives_all_back():
    """What cannot be brought to the host takes nothing of the budget."""
    array = np.zeros(100, np.uint8)
    layout = ArrayLayout(
        shape=(100,), dtype=array.dtype, parts=((whole((100,)), (0,)),)
    )
    plan = plan_write({0: layout}, process_index=0, data_directory="d/")
    budget = Budget()

    def fetch(parts):
        raise MemoryError(str(parts))

    staging = Staging(plan.parts, plan.needs, fetch, [100], budget, 1000)
    with pytest.raises(MemoryError):
        asyncio.run(staging.stage_first())

    assert (budget.peak_bytes, budget.taken_bytes) == (100, 0)


def test_a_warning_that_is_an_error_takes_nothing(runtime, store):
    """A save that a filter of warnings refuses leaves the budget as it was."""
    array = stowax.options.ArrayOptions()
    array.saving.storage_options.dtype = np.int8
    store.gate.set()

    # Warnings are errors in all tests.
    with (
        context(runtime, store, 1 << 20, array=array),
        pytest.raises(UserWarning, match="lose values"),
    ):
        stowax.save_async("/c", {"w": np.full(9, 1e9)})

    assert runtime.staging_budget.taken_bytes == 0


def test_the_wait_has_a_deadline(runtime, store):
    """Who waits for room too long is told, and nothing stays taken."""
    in_time = stowax.options.AsyncOptions(timeout_secs=0.3)

    with context(runtime, store, 300 * KIB):
        one = stowax.save_async("/one", host_state(4))
    with (
        context(runtime, store, 300 * KIB, asynchronous=in_time),
        pytest.raises(DeadlineError, match="staging state"),
    ):
        stowax.save_async("/other", host_state(4))
    store.gate.set()
    one.result()

    assert runtime.staging_budget.taken_bytes == 0


@pytest.mark.parametrize("limits", [(None, 200), (200, None), (200, 900), (900, 200)])
def test_the_lower_limit_counts(runtime, store, limits):
    """Both limits that Orbax has for a save are limits of the one staging area."""
    write_kib, transfer_kib = limits
    memory = stowax.options.MemoryOptions(
        write_concurrent_bytes=write_kib and write_kib * KIB,
        transfer_concurrent_bytes=transfer_kib and transfer_kib * KIB,
    )
    file = stowax.options.FileOptions(store=store)
    store.gate.set()

    in_time = stowax.options.AsyncOptions(timeout_secs=30)
    with stowax.Context(
        runtime=runtime, memory=memory, file=file, asynchronous=in_time
    ):
        stowax.save_async("/c", host_state()).result()

    assert 0 < runtime.staging_budget.peak_bytes <= 200 * KIB


def test_the_default_follows_the_memory_that_is_left(store):
    """Without an option, half of what the process may still take is used."""
    runtime = Runtime(worker_count=8, spare_memory_bytes=lambda: 600 * KIB)
    surge = stowax.options.MemoryOptions(expected_surge_bytes=200 * KIB)
    file = stowax.options.FileOptions(store=store)
    store.gate.set()

    with stowax.Context(runtime=runtime, file=file):
        stowax.save_async("/c", host_state()).result()
    first_bytes = runtime.staging_budget.peak_bytes
    runtime.close()
    runtime = Runtime(worker_count=8, spare_memory_bytes=lambda: 600 * KIB)
    with stowax.Context(runtime=runtime, file=file, memory=surge):
        stowax.save_async("/d", host_state()).result()
    runtime.close()

    assert 200 * KIB < first_bytes <= 300 * KIB
    assert runtime.staging_budget.peak_bytes <= 200 * KIB


def test_copies_of_packed_arrays_count(runtime):
    """JAX has elements of less than a byte in a form of its own, on any device."""
    state = {f"{i}": jnp.ones((512, 512), jnp.int4) for i in range(8)}
    memory = stowax.options.MemoryOptions(write_concurrent_bytes=512 * KIB)

    file = stowax.options.FileOptions(store=MemoryStore())
    with stowax.Context(runtime=runtime, memory=memory, file=file):
        stowax.save_async("/c", state).result()
        loaded = stowax.load("/c")

    assert all(bool((loaded[name] == state[name]).all()) for name in state)
    # One at least, which is written before the next is staged or not.
    assert 256 * KIB <= runtime.staging_budget.peak_bytes <= 512 * KIB
