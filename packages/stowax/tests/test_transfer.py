"""Arrays come to the host and go to devices whole, sharing memory where they can."""

import concurrent.futures
import gc
import sys
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from sample_trees import JAX_DTYPES, OWN_DTYPES, bits, differences, mesh

from stowax._sharding import boxes_by_device
from stowax._transfer import (
    ALIGNMENT_BYTES,
    HostMemory,
    allocate,
    shards_here,
    to_default_device,
    to_devices,
    to_host,
)


@pytest.mark.parametrize("name", [*JAX_DTYPES, *OWN_DTYPES])
def test_there_and_back(name):
    """Every dtype keeps its bits on the way to a device and back."""
    host = bits(name, (3, 5))

    (found,) = to_host([to_default_device(host)])

    assert differences(host, found) == []


def test_host_arrays_pass():
    """An array that is on the host already is not copied."""
    host = np.arange(3)

    (found,) = to_host([host])

    assert found is host


def test_threads_see_every_shard_once():
    """Threads that ask for the shards of a new array at once are all told of eight.

    JAX alone tells some of them of fewer, or of some twice.
    """
    threads, together = 4, threading.Barrier(4)
    sharding = NamedSharding(mesh(8), P("x"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def ask(array):
        together.wait()
        return len(shards_here(array))

    try:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in range(20):
                array = jax.device_put(np.zeros(8), sharding)
                assert list(pool.map(ask, [array] * threads)) == [8] * threads
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 3), (1 << 16,)], ids=str)
@pytest.mark.parametrize("name", ["bool", "bfloat16", "float64", "int4"])
def test_allocate(shape, name):
    """Host memory is aligned for devices to adopt, contiguous and writable."""
    memory = allocate(shape, bits(name, ()).dtype)

    assert memory.shape == shape
    assert memory.ctypes.data % ALIGNMENT_BYTES == 0 or not memory.size
    assert memory.flags.c_contiguous
    assert memory.flags.writeable


def test_memory_is_adopted():
    """On CPU, a device takes the memory as it is."""
    memory = allocate((1024,), np.dtype(np.float32))
    memory[:] = 1

    array = to_default_device(memory)

    assert array.unsafe_buffer_pointer() == memory.ctypes.data


@pytest.mark.parametrize(
    "sharding",
    [
        lambda: NamedSharding(mesh(4, 2), P("x", "y")),
        lambda: NamedSharding(mesh(4, 2), P("y")),
        lambda: NamedSharding(mesh(8), P()),
        lambda: SingleDeviceSharding(jax.devices()[3]),
        lambda: SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host"),
    ],
)
def test_to_devices(sharding):
    """Parts become one array under its sharding, memory kind included."""
    sharding, host = sharding(), bits("int32", (8, 4))
    boxes = boxes_by_device(sharding, host.shape)
    parts = {
        box: host[tuple(map(slice, box.start, box.stop))] for box in boxes.values()
    }

    array = to_devices(host.shape, sharding, boxes, parts, host.dtype)

    assert array.sharding == sharding
    assert array.sharding.memory_kind == sharding.memory_kind
    assert np.asarray(array).tolist() == host.tolist()


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 40), max_size=3).map(tuple),
            st.sampled_from(["bool", "int8", "float32", "complex128", "bfloat16"]),
        ),
        max_size=40,
    )
)
def test_memory_of_many_arrays(asked):
    """Every array has aligned memory of its own, of its shape and dtype."""
    memory = HostMemory()

    taken = [memory.take(shape, jnp.dtype(dtype)) for shape, dtype in asked]
    for number, array in enumerate(taken):
        array.reshape(-1).view(np.uint8)[...] = number

    for number, (array, (shape, dtype)) in enumerate(zip(taken, asked, strict=True)):
        assert (array.shape, array.dtype) == (shape, jnp.dtype(dtype))
        assert not array.size or array.ctypes.data % ALIGNMENT_BYTES == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert (array.reshape(-1).view(np.uint8) == number).all()


def test_a_small_array_keeps_little_beside_it():
    """Whoever keeps one array of a tree does not keep the memory of all of them."""
    memory = HostMemory()
    small = [memory.take((1024,), np.dtype(np.uint8)) for _ in range(1000)]
    large = memory.take((1 << 20,), np.dtype(np.uint8))

    def kept_bytes(array):
        while isinstance(array.base, np.ndarray):
            array = array.base
        return array.nbytes

    assert max(kept_bytes(array) for array in small) <= (64 << 10) + ALIGNMENT_BYTES
    assert len({id(array.base) for array in small}) <= 1000 // 60
    assert kept_bytes(large) <= large.nbytes + ALIGNMENT_BYTES


@pytest.mark.parametrize("dtype", ["int4", "float32"])
def test_arrays_of_the_caller_keep_no_copy(dtype):
    """What the host was given of an array is let go with it."""
    arrays = [jnp.ones((512, 512), dtype) for _ in range(16)]
    jax.block_until_ready(arrays)
    tracemalloc.start()

    found = to_host(arrays)
    assert all(part.shape == (512, 512) for part in found)
    del found
    gc.collect()
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept_bytes < 1 << 20
