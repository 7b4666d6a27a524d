"""Arrays that are files: the same bits, verified once, and nobody else's to change."""

import mmap
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import JAX_DTYPES, bits, differences, mesh

import stowax as ocp
from stowax._mapped import CAN_MAP, allocate_pages, map_file

if not CAN_MAP:
    pytest.skip("this system cannot map files", allow_module_level=True)

MIB = 1 << 20
DATA = "state/d/data-0"


def loading(path, target=None, *, verify=True, as_numpy=True, **options):
    """Loads with mappings."""
    asked = ocp.options.ArrayOptions.Loading(
        memory_map=True, as_numpy=as_numpy, **options
    )
    with ocp.Context(
        array=ocp.options.ArrayOptions(loading=asked),
        integrity=ocp.options.IntegrityOptions(verify=verify),
    ):
        return ocp.load(path) if target is None else ocp.load(path, target)


def resident_kib(path):
    """By mapping of a file in this process, how much of it is in memory."""
    found = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_wanted = words[-1].startswith(str(path))
        elif is_wanted and words[0] == "Rss:":
            found.append(int(words[1]))
    return found


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.fixture
def path(tmp_path):
    """A checkpoint of an array in two chunks, and of what is no whole page."""
    state = {
        "w": np.arange(3 * MIB, dtype=np.float32),
        "odd": np.arange(MIB + 3, dtype=np.uint16),
        "small": np.arange(9),
    }
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = 6 * MIB
    with context:
        ocp.save(tmp_path / "c", state)
    return tmp_path / "c"


def expected():
    """What is in it."""
    return {
        "w": np.arange(3 * MIB, dtype=np.float32),
        "odd": np.arange(MIB + 3, dtype=np.uint16),
        "small": np.arange(9),
    }


@needs_linux
def test_what_is_large_is_mapped(path):
    """Every chunk above a MiB is one mapping, and what it shows is what was saved."""
    loaded = loading(path)

    assert len(resident_kib(path)) == 3
    assert differences(expected(), loaded) == []
    del loaded
    assert resident_kib(path) == []


@needs_linux
def test_nothing_is_read_before_it_is_used(path):
    """Without verification a load of large arrays reads none of them."""
    loaded = loading(path, verify=False)

    assert sum(resident_kib(path)) == 0
    assert differences(expected(), loaded) == []
    assert sum(resident_kib(path)) > 0


def test_what_a_program_writes_stays_its_own(path):
    """NumPy arrays can be written to; the checkpoint stays as it is."""
    loaded = loading(path)
    loaded["w"][:] = -1
    loaded["odd"][-1] = 7

    assert np.all(loaded["w"] == -1)
    assert differences(expected(), loading(path)) == []
    ocp.verify(path)


def test_donation(path):
    """A step that overwrites its input in place changes nothing on the disk."""
    step = jax.jit(lambda x: x * 0, donate_argnums=0)
    loaded = loading(path, as_numpy=False)
    jax.block_until_ready(step(loaded["w"]))

    assert differences(expected(), loading(path)) == []


def test_damage_is_found(path):
    """A flipped bit is found when the file is mapped, in its leaf."""
    content = bytearray((path / DATA).read_bytes())
    content[3 * MIB] ^= 1
    (path / DATA).write_bytes(content)

    with pytest.raises(ocp.errors.CorruptCheckpointError, match=r"leaf '(w|odd)'"):
        loading(path)


@pytest.mark.parametrize("size_bytes", [0, MIB, 8 * MIB])
def test_a_file_that_is_cut_short(path, size_bytes):
    """It is an error that names what is lost, and kills nobody."""
    with (path / DATA).open("r+b") as file:
        file.truncate(size_bytes)

    for verify in (True, False):
        with pytest.raises(ocp.errors.CorruptCheckpointError, match="it holds leaf"):
            loading(path, verify=verify)


def test_a_file_that_is_gone(path):
    """The same, when there is none."""
    (path / DATA).unlink()

    with pytest.raises(ocp.errors.CorruptCheckpointError, match="it holds leaf"):
        loading(path)


def test_a_checkpoint_that_is_replaced_or_deleted(path):
    """Arrays that are alive keep what they show."""
    first = loading(path)
    ocp.save(path, {"w": np.zeros(3 * MIB, np.float32)}, overwrite=True)
    second = loading(path)
    ocp.delete(path)

    assert differences(expected(), first) == []
    assert not second["w"].any()


@needs_linux
def test_the_system_refuses(path, monkeypatch):
    """What the system says is told, with the way out."""
    monkeypatch.setattr("stowax._mapped._MAP_FIXED", 1 << 30)

    with pytest.raises(ocp.errors.HostMemoryError, match="memory_map"):
        loading(path)


@pytest.mark.parametrize("name", JAX_DTYPES)
def test_dtypes(tmp_path, name):
    """Every dtype, onto devices and as NumPy."""
    values = bits(name, (1025, 2048))
    ocp.save(tmp_path / "c", {"w": values, "j": jnp.asarray(values)})

    found = loading(tmp_path / "c", as_numpy=False), loading(tmp_path / "c")

    assert differences(found[1], jax.tree.map(np.asarray, found[0])) == []
    assert found[1]["w"].tobytes() == values.tobytes()


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_chunks_onto_any_mesh(data, tmp_path_factory):
    """Whether pages fit or not, all bits arrive, converted, spread or as they are."""
    path = tmp_path_factory.mktemp("mapped") / "c"
    rows = 8 * data.draw(st.integers(1, 40))
    columns = data.draw(st.sampled_from([4096, 8192, 10_001, 65_536]))
    chunk_bytes = data.draw(st.sampled_from([MIB, 3 * MIB, 64 * MIB]))
    dtype = data.draw(st.sampled_from(["uint8", "float32"]))
    values = np.arange(rows * columns, dtype=np.uint32).astype(dtype)
    values = values.reshape(rows, columns)
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = chunk_bytes
    with context:
        ocp.save(path, {"w": values})

    device_count = data.draw(st.sampled_from([1, 2, 8]))
    target = jax.ShapeDtypeStruct(
        values.shape,
        data.draw(st.sampled_from([dtype, "float32"])),
        sharding=jax.NamedSharding(mesh(device_count), jax.P("x")),
    )
    spread = loading(path, {"w": target})["w"]

    assert spread.sharding == target.sharding
    assert np.array_equal(spread, values.astype(target.dtype))
    assert np.array_equal(loading(path)["w"], values)


def test_only_whole_pages(tmp_path):
    """A mapping never reaches into memory that belongs to another chunk."""
    page = mmap.PAGESIZE
    (tmp_path / "file").write_bytes(bytes(range(256)) * (page // 64))
    memory = allocate_pages((3 * page + 9,), np.dtype(np.uint8))

    def mapped(offset_bytes, begin, end, *, is_end=False):
        part = memory[begin:end]
        return map_file(
            tmp_path / "file", offset_bytes, part, is_end=is_end, reads_ahead=True
        )

    assert not mapped(0, 0, page + 9)
    assert not mapped(0, 9, page + 9)
    assert not mapped(64, 0, page)
    assert not memory.any()
    assert mapped(page, 0, page)
    assert mapped(0, 2 * page, 3 * page + 9, is_end=True)
    assert bytes(memory[: page + 9]) == bytes(range(256)) * (page // 256) + bytes(9)
    assert bytes(memory[-9:]) == bytes(range(9))


def test_where_there_is_nothing_to_map(tmp_path):
    """In memory, and compressed, all is read as ever."""
    state = {"w": np.arange(3 * MIB, dtype=np.float32)}
    store = ocp.testing.MemoryStore()
    context = ocp.Context(file=ocp.options.FileOptions(store=store))
    context.array.loading.memory_map = True
    compressed = ocp.Context()
    compressed.array.saving.use_compression = True

    with context:
        ocp.save("/c", state)
        in_memory = ocp.load("/c")
    with compressed:
        ocp.save(tmp_path / "c", state)

    assert differences(state, in_memory) == []
    assert differences(state, loading(tmp_path / "c")) == []
