"""Arrays on an accelerator; skipped where JAX has none.

    JAX_PLATFORMS=cuda,cpu python -m pytest packages/stowax/tests/test_accelerator.py

What holds on a CPU because host memory is shared holds here because it is copied.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import stowax as ocp
from stowax._runtime import Runtime

if jax.default_backend() == "cpu":
    pytest.skip("JAX has no accelerator here", allow_module_level=True)

DTYPES = (
    "bool",
    "int8",
    "uint32",
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int4",
    "complex64",
)


@pytest.fixture
def accelerator():
    """The first accelerator."""
    return jax.devices()[0]


@pytest.fixture
def host():
    """A device whose memory is the host's."""
    return jax.devices("cpu")[0]


def bits(array):
    """The bytes of an array, so that no NaN or dtype hides a difference."""
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, accelerator, dtype):
    """Every dtype comes back onto the accelerator bit for bit, without a target."""
    array = (jnp.arange(24) % 2).reshape(4, 6).astype(dtype)
    ocp.save(tmp_path / "c", {"w": array})

    loaded = ocp.load(tmp_path / "c")["w"]

    assert (loaded.dtype, loaded.devices()) == (array.dtype, {accelerator})
    assert bits(loaded) == bits(array)


def test_donated_at_once(tmp_path):
    """A step that overwrites its state just after `save_async` changes no save."""
    step = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    state = jnp.arange(1 << 22, dtype=jnp.float32)
    expected = bits(state)

    response = ocp.save_async(tmp_path / "c", {"w": state})
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    response.result()

    assert bits(ocp.load(tmp_path / "c")["w"]) == expected


def test_deleted_at_once(tmp_path):
    """An array that is deleted just after `save_async` is saved."""
    state = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = bits(state)

    response = ocp.save_async(tmp_path / "c", {"w": state})
    state.delete()
    response.result()

    assert bits(ocp.load(tmp_path / "c")["w"]) == expected


def test_still_being_computed(tmp_path):
    """An array that the accelerator has not finished yet is waited for."""
    square = jnp.ones((2048, 2048), jnp.float32)
    result = square
    for _ in range(30):
        result = jnp.tanh(result @ square)
    ocp.save(tmp_path / "c", {"w": result})

    assert bits(ocp.load(tmp_path / "c")["w"]) == bits(result)


def test_between_devices(tmp_path, accelerator, host):
    """What was saved on one platform loads onto the other, where the target says so."""
    here = jax.device_put(jnp.arange(1000.0), accelerator)
    there = jax.device_put(np.arange(1000.0, dtype=np.float32), host)
    ocp.save(tmp_path / "c", {"here": here, "there": there})

    loaded = ocp.load(
        tmp_path / "c",
        {
            "here": jax.ShapeDtypeStruct(
                (1000,), jnp.float32, sharding=SingleDeviceSharding(host)
            ),
            "there": jax.ShapeDtypeStruct(
                (1000,), jnp.float32, sharding=SingleDeviceSharding(accelerator)
            ),
        },
    )

    assert loaded["here"].devices() == {host}
    assert loaded["there"].devices() == {accelerator}
    assert bits(loaded["here"]) == bits(loaded["there"]) == bits(here)


def test_without_target_on_the_default_device(tmp_path, accelerator, host):
    """Without a target the array of one device is on the default one, uncommitted."""
    there = jax.device_put(np.arange(8, dtype=np.float32), host)
    ocp.save(tmp_path / "c", {"w": there})

    loaded = ocp.load(tmp_path / "c")["w"]

    assert (loaded.devices(), loaded.committed) == ({accelerator}, False)


def test_default_device_of_the_caller(tmp_path, host):
    """The default device is the one in scope where `load` is called."""
    ocp.save(tmp_path / "c", {"w": jnp.arange(8.0)})

    with jax.default_device(host):
        loaded = ocp.load(tmp_path / "c")["w"]

    assert loaded.devices() == {host}


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_memory_kind(tmp_path, accelerator, kind):
    """Arrays are saved from, and loaded into, the memory that the sharding names."""
    sharding = SingleDeviceSharding(accelerator, memory_kind=kind)
    array = jax.device_put(np.arange(4096, dtype=np.float32), sharding)
    ocp.save(tmp_path / "c", {"w": array})

    target = jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=sharding)
    loaded = ocp.load(tmp_path / "c", {"w": target})["w"]

    assert loaded.sharding.memory_kind == kind
    assert bits(loaded) == bits(array)


@pytest.mark.parametrize("pin", [True, False, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_however_it_comes_to_the_host(tmp_path, accelerator, dtype, pin):
    """Through page-locked memory or without: the same bits, of any layout."""
    array = jax.device_put((jnp.arange(96) % 2).reshape(8, 12).astype(dtype))
    state = {
        "w": array,
        "transposed": array.T,
        "empty": array[:0],
        "one": array[3, 4],
        "pinned": jax.device_put(
            array, SingleDeviceSharding(accelerator, memory_kind="pinned_host")
        ),
    }
    saving = ocp.options.ArrayOptions.Saving(enable_pinned_host_transfer=pin)

    with ocp.Context(array=ocp.options.ArrayOptions(saving=saving)):
        ocp.save_async(tmp_path / "c", state).result()

    loaded = ocp.load(tmp_path / "c")
    assert {k: bits(v) for k, v in loaded.items()} == {
        k: bits(v) for k, v in state.items()
    }


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_donation_after_a_background_save(tmp_path, accelerator, kind):
    """What is overwritten in place after `save_async` was saved as it was before."""
    sharding = SingleDeviceSharding(accelerator, memory_kind=kind)
    state = {f"{i}": jax.device_put(np.full(1 << 20, i), sharding) for i in range(8)}
    donate = jax.jit(lambda x: x * 0 - 1, donate_argnums=0, out_shardings=sharding)

    response = ocp.save_async(tmp_path / "c", state)
    changed = jax.tree.map(donate, state)
    jax.block_until_ready(changed)
    response.result()

    loaded = ocp.load(tmp_path / "c")
    assert all(np.all(np.asarray(loaded[f"{i}"]) == i) for i in range(8))


def test_more_than_there_is_of_page_locked_memory(tmp_path):
    """When page-locked memory runs out, ordinary memory is used."""
    script = f"""
import jax, jax.numpy as jnp, numpy as np, stowax as ocp
state = {{str(i): jnp.full(1 << 26, i, jnp.float32) for i in range(8)}}
ocp.save_async({str(tmp_path / "c")!r}, state).result()
loaded = ocp.load({str(tmp_path / "c")!r})
assert all(bool((loaded[name] == array).all()) for name, array in state.items())
"""
    environment = os.environ | {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_named_sharding(tmp_path, accelerator):
    """A sharding over a mesh is recorded, and is the one that metadata asks for."""
    mesh = Mesh(np.array([accelerator]).reshape(1, 1), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    array = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), sharding)
    ocp.save(tmp_path / "c", {"w": array})

    loaded = ocp.load(tmp_path / "c", ocp.metadata(tmp_path / "c").metadata)["w"]

    assert loaded.sharding == sharding
    assert bits(loaded) == bits(array)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys(tmp_path, impl):
    """Typed keys come back with their implementation, and give the same numbers."""
    key = jax.random.key(7, impl=impl)
    ocp.save(tmp_path / "c", {"key": key})

    loaded = ocp.load(tmp_path / "c")["key"]

    assert loaded.dtype == key.dtype
    assert bits(jax.random.normal(loaded, 16)) == bits(jax.random.normal(key, 16))


def test_host_memory_of_a_load(tmp_path):
    """Arrays go to the accelerator wave by wave: the host never has the whole state."""
    mib = 1 << 20
    state = {f"{i:02}": jnp.full(mib, i, jnp.float32) for i in range(40)}
    runtime = Runtime()

    with ocp.Context(runtime=runtime):
        ocp.save(tmp_path / "c", state)
        loaded = ocp.load(tmp_path / "c", state)
        without_target = ocp.load(tmp_path / "c")
    runtime.close()

    for found in (loaded, without_target):
        assert all(bits(found[name]) == bits(state[name]) for name in state)
    assert 4 * mib <= runtime.passing_budget.peak_bytes <= 24 * mib
    assert runtime.passing_budget.taken_bytes == 0


def test_numpy_read_touches_no_device(tmp_path):
    """A read as NumPy makes no array of JAX."""
    ocp.save(tmp_path / "c", {"w": jnp.arange(1000.0)})
    before = len(jax.live_arrays())
    as_numpy = ocp.options.ArrayOptions.Loading(as_numpy=True)
    options = ocp.options.ArrayOptions(loading=as_numpy)

    with ocp.Context(array=options):
        loaded = ocp.load(tmp_path / "c")["w"]

    assert isinstance(loaded, np.ndarray)
    assert len(jax.live_arrays()) == before
