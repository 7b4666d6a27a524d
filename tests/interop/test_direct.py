"""What Orbax writes is read by its own index, without TensorStore, and exactly.

A store in memory is no directory, and TensorStore reads directories only: what is
loaded from there was read without it.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from orbax_options import orbax_context
from sample_states import examples
from sample_trees import JAX_DTYPES, NUMPY_DTYPES, bits, differences, mesh, shardings

import stowax
from stowax.options import FileOptions
from stowax.testing import MemoryStore, RecordingStore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@st.composite
def arrays(draw):
    """Arrays that Orbax can save: NumPy and JAX, spread over devices or not."""
    seed = draw(st.integers(0, 99))
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    match draw(st.sampled_from(["numpy", "jax", "sharded"])):
        case "numpy":
            return bits(draw(st.sampled_from(NUMPY_DTYPES)), shape, seed)
        case "jax":
            name = draw(st.sampled_from(JAX_DTYPES))
            return jax.device_put(bits(name, shape, seed))
        case _:
            name = draw(st.sampled_from(JAX_DTYPES))
            sharding = draw(st.sampled_from([*shardings().values()]))
            return jax.device_put(bits(name, (8, 16), seed), sharding)


def saving():
    """Ways to store arrays in a database."""
    return st.fixed_dictionaries(
        {
            "use_zarr3": st.booleans(),
            "use_compression": st.booleans(),
            "use_replica_parallel": st.booleans(),
            "enable_replica_parallel_separate_folder": st.booleans(),
        },
        optional={
            "chunk_byte_size": st.sampled_from([16, 24, 100]),
            "ocdbt_target_data_file_size": st.sampled_from([0, 1000]),
        },
    )


def copied(path):
    """The checkpoint in memory, at "/c"."""
    store = RecordingStore(MemoryStore())
    files = {f: f.read_bytes() for f in Path(path).rglob("*") if f.is_file()}

    async def copy():
        for file, data in files.items():
            await store.write(f"/c/{file.relative_to(path).as_posix()}", [data])

    asyncio.run(copy())
    return store


def load_from(store, *args):
    """Loads what `copied` made."""
    with stowax.Context(file=FileOptions(store=store)):
        return stowax.load("/c", *args)


@given(state=st.lists(arrays(), min_size=1, max_size=5), options=saving())
@examples(15)
def test_all_that_orbax_writes_is_read_without_tensorstore(state, options):
    """Any arrays, however they are stored in a database; and resharded."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        with orbax_context(options):
            v1.save(path, state)

        expected = v1.load(path)
        store = copied(path)

    assert differences(expected, load_from(store)) == []
    turned = NamedSharding(mesh(2, 4), P("y", "x"))
    target = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=turned)
        if a.shape == (8, 16) and isinstance(a, jax.Array)
        else a
        for a in state
    ]
    found = load_from(store, target)
    assert differences([*map(np.asarray, state)], [*map(np.asarray, found)]) == []


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """500 arrays of 10,000 bytes, and of 100, as Orbax saves them by default."""
    path = tmp_path_factory.mktemp("many") / "c"
    state = {
        f"w{i:03}": jax.device_put(bits("float32", (2500 if i % 2 else 25,), i))
        for i in range(500)
    }
    v1.save(path, state)
    return path, state


def test_files_and_reads_are_few(many):
    """Documents and index are read once, and then every byte of the arrays at most."""
    path, state = many
    store = copied(path)
    before = len(store.calls)

    found = load_from(store)

    assert differences(state, found) == []
    calls = store.calls[before:]
    reads = [call for call in calls if call.operation == "read_into"]
    files = [call.paths[0] for call in reads if "/ocdbt.process_0/d/" in call.paths[0]]
    size_bytes = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert len(files) <= 3
    assert len(reads) - len(files) <= 8
    assert len(calls) <= 40
    assert sum(call.size_bytes for call in reads) <= size_bytes


def test_metadata_is_one_read_of_the_index(many):
    """Looking at 500 arrays opens none, and reads as many files as for one."""
    path, _ = many
    store = copied(path)
    before = len(store.calls)

    with stowax.Context(file=FileOptions(store=store)):
        found = stowax.metadata("/c").metadata

    assert [a.shape for a in found.values()] == [(25,), (2500,)] * 250
    calls = store.calls[before:]
    reads = [call.paths[0] for call in calls if call.operation == "read_into"]
    assert len(reads) <= 8
    assert len(calls) <= 40
    assert not [name for name in reads if "/ocdbt.process_0/d/" in name]


def test_tensorstore_is_not_even_imported(many):
    """A program that loads what Orbax wrote by default never imports TensorStore."""
    path, state = many
    program = (
        "import sys, stowax\n"
        f"found = stowax.load({str(path)!r})\n"
        "print(len(found), float(found['w003'].sum()), 'tensorstore' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["500", str(float(state["w003"].sum())), "False"]
