"""What operations cost, counted: calls of the store, bytes, planning, memory."""

import collections
import math
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import stowax
from stowax._box import whole
from stowax._codecs._checksum import BLOCK_BYTES
from stowax._runtime import Runtime
from stowax._sharding import boxes_by_device
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster

MIB = 1 << 20
SPECS = [P("x", "y"), P("y", "x"), P("x"), P(None, "x"), P(None, ("x", "y")), P()]
SAVE_COUNT = 1000 if os.environ.get("STOWAX_SOAK") else 200


def counted(store, call):
    """How often each method of a store is called, and for how many bytes of arrays."""
    before = len(store.calls)
    with stowax.Context(file=stowax.options.FileOptions(store=store)):
        call()
    calls = store.calls[before:]
    data = [c for c in calls if c.operation == "read_into" and "data-" in c.paths[0]]
    counts = collections.Counter(call.operation for call in calls)
    return counts, sum(call.size_bytes for call in data)


def small_leaves(count):
    """A tree of arrays of 1 KiB."""
    return {f"{i}": np.full(256, i, np.float32) for i in range(count)}


@pytest.mark.parametrize("call", ["save", "load", "metadata"])
def test_calls_do_not_grow_with_the_leaves(call):
    """A thousand small leaves are as many calls of the store as ten."""
    found = []
    for count in (10, 1000):
        store, state = RecordingStore(MemoryStore()), small_leaves(count)
        calls, _ = counted(store, lambda state=state: stowax.save("/c", state))
        if call != "save":
            operation = getattr(stowax, call)
            calls, _ = counted(store, lambda operation=operation: operation("/c"))
        found.append(calls)

    assert found[0] == found[1]
    assert found[0].total() < 60


def test_metadata_reads_no_array():
    """Names, shapes and dtypes come from few documents, whatever the size."""
    store = RecordingStore(MemoryStore())
    counted(store, lambda: stowax.save("/c", small_leaves(1000)))

    calls, data_bytes = counted(store, lambda: stowax.metadata("/c"))

    assert data_bytes == 0
    assert calls["read_into"] <= 6


def test_a_load_reads_every_byte_once():
    """Small leaves together, large ones in pieces: nothing twice, few calls."""
    store = RecordingStore(MemoryStore())
    state = small_leaves(2000) | {"large": np.zeros(8 * MIB, np.uint8)}
    counted(store, lambda: stowax.save("/c", state))

    calls, data_bytes = counted(store, lambda: stowax.load("/c"))

    needed_bytes = sum(leaf.nbytes for leaf in state.values())
    assert needed_bytes <= data_bytes < 1.07 * needed_bytes  # Trailers, and padding.
    assert calls["read_into"] <= 12


def test_small_leaves_far_apart():
    """What lies between two of them is not read."""
    store = RecordingStore(MemoryStore())
    counted(store, lambda: stowax.save("/c", small_leaves(2000)))
    target = dict.fromkeys(small_leaves(2000), stowax.PLACEHOLDER)
    target |= {"0": np.ndarray, "1500": np.ndarray}

    _, data_bytes = counted(store, lambda: stowax.load("/c", target))

    assert data_bytes == 2 * 1024


def test_what_is_compressed_to_little_is_shared_out():
    """Small chunks that decode to many MiB are read for several workers."""
    store = RecordingStore(MemoryStore())
    state = {f"{i}": np.zeros(512 << 10, np.uint8) for i in range(64)}
    context = stowax.Context()
    context.array.saving.use_compression = True
    context.file.store = store
    with context:
        stowax.save("/c", state)

    calls, data_bytes = counted(store, lambda: stowax.load("/c"))

    assert data_bytes < 64 << 10
    assert calls["read_into"] >= 8  # Of 4 MiB each.


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_bytes_that_a_process_reads(data):
    """From any mesh onto any mesh: what is needed, in whole blocks of checksums.

    Where it lies in runs of a MiB or more, that is at most a fifth more than needed.
    """
    shapes = [(16, 1 << 19), (8, 1_200_000), (6000, 160), (800, 128)]
    shape = data.draw(st.sampled_from(shapes))
    saved, asked = (data.draw(st.sampled_from(SPECS)) for _ in range(2))
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    pad = [-size % 8 for size in shape]
    shape = tuple(size + more for size, more in zip(shape, pad, strict=True))
    host = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    memory = MemoryStore()
    with stowax.Context(file=stowax.options.FileOptions(store=memory)):
        array = jax.device_put(host, NamedSharding(mesh, saved))
        stowax.save("/c", {"w": array})
    target = jax.ShapeDtypeStruct(
        shape, np.float32, sharding=NamedSharding(mesh, asked)
    )
    needed = boxes_by_device(target.sharding, shape)
    chunk_boxes = {*boxes_by_device(array.sharding, shape).values()}

    with SimulatedCluster(8) as cluster:
        stores = [RecordingStore(memory) for _ in cluster.runtimes]

        def load(index):
            file = stowax.options.FileOptions(store=stores[index])
            with stowax.Context(runtime=cluster.runtimes[index], file=file):
                loaded = stowax.load("/c", {"w": target})["w"]
            return np.asarray(loaded.addressable_data(0))

        loaded = cluster.run(load)

    for device, store, part in zip(jax.devices(), stores, loaded, strict=True):
        box = needed[device]
        read_bytes = sum(
            call.size_bytes for call in store.calls if "data-" in call.paths[0]
        )
        run_bytes = [
            _run_bytes(common.shape, chunk.shape)
            for chunk in chunk_boxes
            if (common := box.intersect(chunk)) is not None
        ]
        assert np.array_equal(part, host[box.within(whole(shape))])
        if min(run_bytes) >= MIB:
            assert read_bytes <= 1.2 * part.nbytes
        else:
            run_count = part.nbytes / min(run_bytes)
            assert read_bytes <= part.nbytes + 2 * BLOCK_BYTES * run_count


def _run_bytes(common, chunk):
    """Of a part of a matrix, what lies together in its chunk."""
    rows, columns = common
    return 4 * (rows * columns if columns == chunk[1] else columns)


def test_a_structure_is_planned_once(tmp_path):
    """A later save of the same structure plans nothing, and encodes no documents."""
    # Of a shape that no other test has: documents of arrays are kept by the process.
    state = {"a": jnp.ones((3, 1237)), "b": [np.arange(5), 7]}
    planning = {"plan_write", "choose_chunk_shape", "array_document", "to_json"}
    names = collections.Counter()

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_name in planning:
            names[frame.f_code.co_name] += 1

    runtime = Runtime()
    threading.setprofile(profile)  # For the workers, which start after this line.
    sys.setprofile(profile)
    try:
        with stowax.Context(runtime=runtime):
            stowax.save(tmp_path / "first", state)
            first = set(names)
            names.clear()
            stowax.save(tmp_path / "second", jax.tree.map(lambda leaf: leaf + 1, state))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        runtime.close()

    assert first == planning
    assert names.total() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_many_saves_and_loads_do_not_grow(tmp_path):
    """A hundred more of them take less than a MB more."""
    script = f"""
import gc, shutil, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
import stowax as ocp

def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

leaf = {{"w": jnp.arange(1000.0), "n": np.arange(9), "s": "text", "step": 7}}
state = {{str(i): leaf for i in range(9)}}
for count in range({SAVE_COUNT} + 60):
    if count == 60:
        before_bytes = resident_bytes()
    path = Path({str(tmp_path)!r}) / str(count)
    ocp.save_async(path, state).result()
    ocp.load(path)
    shutil.rmtree(path)
print(resident_bytes() - before_bytes)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 1_000_000 * SAVE_COUNT / 100
