"""Reading as NumPy, on a machine without any device."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_trees import bits, differences, shardings

import stowax
from stowax.arrays import NumpyMetadata
from stowax.errors import TreeMismatchError
from stowax.options import ArrayOptions

AS_NUMPY = ArrayOptions(loading=ArrayOptions.Loading(as_numpy=True))


@pytest.fixture
def saved(place):
    """A saved state; the path."""
    state = {
        "w": jax.device_put(bits("bfloat16", (8, 16)), shardings()["both"]),
        "host": bits("int64", (3,)),
        "keys": jax.random.split(jax.random.key(1), 3),
        "step": 3,
        "name": "text",
    }
    stowax.save(place / "checkpoint", state)
    return place / "checkpoint"


def test_without_a_target(place, saved):
    """Everything comes back as NumPy, PRNG keys as their data; numbers stay numbers."""
    with place.context(array=AS_NUMPY):
        loaded = stowax.load(saved)

    data = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), 3)))
    expected = {
        "w": bits("bfloat16", (8, 16)),
        "host": bits("int64", (3,)),
        "keys": data,
        "step": 3,
        "name": "text",
    }
    assert differences(expected, loaded) == []


def test_abstract_states(place, saved):
    """What asks for no device gets NumPy; what has a sharding is put there."""
    keys = jax.random.split(jax.random.key(0), 3)
    sharding = shardings()["rows"]
    asked = {
        "w": jax.ShapeDtypeStruct((8, 16), np.float32, sharding=sharding),
        "host": jax.Array,
        "keys": jax.ShapeDtypeStruct(keys.shape, keys.dtype),
        "step": jax.ShapeDtypeStruct((), np.float32),
        "name": str,
    }

    with place.context(array=AS_NUMPY):
        loaded = stowax.load(saved, asked)
        live = stowax.load(saved, {**asked, "keys": keys})["keys"]

    assert loaded["w"].sharding == sharding
    assert type(loaded["host"]) is type(loaded["step"]) is np.ndarray
    assert (loaded["step"].dtype, loaded["step"].shape) == (np.float32, ())
    assert (loaded["keys"].dtype, loaded["keys"].shape) == (np.uint32, (3, 2))
    assert live.dtype == keys.dtype


def test_mismatches(place, saved):
    """Shapes and kinds of keys are compared as ever."""
    other = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="rbg"), 3))
    with place.context(array=AS_NUMPY), pytest.raises(TreeMismatchError) as caught:
        stowax.load(
            saved,
            {
                **dict.fromkeys(("host", "name", "step"), ...),
                "w": jax.ShapeDtypeStruct((8, 15), jnp.bfloat16),
                "keys": other,
            },
        )

    assert caught.value.problems == (
        "keys: asked key<rbg>[3], stored key<fry>[3]",
        "w: asked bfloat16[8, 15], stored bfloat16[8, 16]",
    )


def test_metadata(place, saved):
    """Metadata describe what would come back."""
    with place.context(array=AS_NUMPY):
        found = stowax.metadata(saved).metadata
        loaded = stowax.load(saved, found)

    assert isinstance(found["w"], NumpyMetadata)
    assert (found["keys"].shape, found["keys"].dtype) == ((3, 2), np.uint32)
    assert type(loaded["w"]) is np.ndarray


PROGRAM = """
    import jax
    import numpy as np
    import stowax

    context = stowax.Context()
    context.array.loading.as_numpy = True
    with context:
        loaded = stowax.load(PATH)
        assert type(loaded["w"]) is np.ndarray, loaded
        assert loaded["keys"].dtype == np.uint32
        key = jax.eval_shape(lambda: jax.random.key(0)).dtype
        asked = {
            **dict.fromkeys(loaded, ...),
            "w": jax.ShapeDtypeStruct((8, 16), np.float32),
            "keys": jax.ShapeDtypeStruct((3,), key),
        }
        assert not stowax.preview_load(PATH, asked).problems
        assert stowax.load(PATH, asked)["w"].dtype == np.float32
        assert stowax.load_async(PATH).result()["w"].shape == (8, 16)
        assert stowax.load_checkpointables(PATH)["state"]["step"] == 3
        assert stowax.load_leaf(PATH, "w", index=np.s_[1, :3]).shape == (3,)
        assert stowax.metadata(PATH).metadata["w"].shape == (8, 16)
        assert stowax.checkpointables_metadata(PATH).metadata["state"]["step"] == 0
    try:
        jax.devices()
    except RuntimeError:
        print("no device was there")
"""


@pytest.mark.parametrize("writer", ["stowax", "orbax"])
def test_no_backend(tmp_path, writer):
    """Nothing of it needs a device: not a read, not a look, not a slice."""
    library = stowax
    if writer == "orbax":
        library = pytest.importorskip("orbax.checkpoint").v1
    state = {
        "w": jax.device_put(bits("bfloat16", (8, 16)), shardings()["both"]),
        "keys": jax.random.split(jax.random.key(1), 3),
        "host": np.arange(3),
        "step": 3,
        "name": "text",
    }
    library.save(tmp_path / "checkpoint", state)
    program = f"PATH = {str(tmp_path / 'checkpoint')!r}\n" + textwrap.dedent(PROGRAM)

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "no device was there\n"
