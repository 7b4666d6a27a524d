"""Arrays that are asked for in another shape: padded with zeros, and cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import bits, differences, mesh, shardings

import stowax
from stowax._codecs._checksum import BLOCK_BYTES
from stowax.errors import TreeMismatchError
from stowax.options import ArrayOptions, FileOptions
from stowax.testing import MemoryStore, RecordingStore

PADS = ArrayOptions(loading=ArrayOptions.Loading(enable_padding_and_truncation=True))


def fitted(array, shape):
    """What padding and cutting mean: at the end of each axis, with zeros."""
    out = np.zeros(shape, array.dtype)
    common = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    out[common] = array[common]
    return out


def load(place, stored, asked):
    """Saves one leaf, and loads it in another shape."""
    stowax.save(place / "checkpoint", {"x": stored}, overwrite=True)
    with place.context(array=PADS):
        return stowax.load(place / "checkpoint", {"x": asked})["x"]


@pytest.mark.parametrize("kind", [np.zeros, jax.ShapeDtypeStruct])
@pytest.mark.parametrize("shape", [(10, 6), (2, 3), (10, 3), (0, 3), (4, 6), (1, 1)])
def test_padded_and_cut(place, kind, shape):
    """Both kinds of arrays are cut, or padded with zeros, at the end of every axis."""
    host = bits("int16", (4, 6))
    stored = host if kind is np.zeros else jax.device_put(host)

    loaded = load(place, stored, kind(shape, np.int16))

    assert isinstance(loaded, np.ndarray if kind is np.zeros else jax.Array)
    assert differences(fitted(host, shape), np.asarray(loaded)) == []


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_shape(data):
    """Any shape from any, onto any sharding, with any cast, is what NumPy makes."""
    ndim = data.draw(st.integers(0, 3))
    sizes = st.integers(0, 9).map(lambda n: n * 4)
    shape, other = (tuple(data.draw(sizes) for _ in range(ndim)) for _ in range(2))
    host = bits("int8", shape)
    stored = jax.device_put(host)
    if ndim and data.draw(st.booleans()):
        stored = jax.device_put(host, NamedSharding(mesh(4), P("x")))
    sharding = None
    if ndim and data.draw(st.booleans()):
        sharding = NamedSharding(
            mesh(2, 2), P(*data.draw(st.permutations("xy"))[:ndim])
        )
    dtype = data.draw(st.sampled_from([np.int8, np.float32, jnp.bfloat16]))
    asked = jax.ShapeDtypeStruct(other, dtype, sharding=sharding)

    with stowax.Context(file=FileOptions(store=MemoryStore()), array=PADS):
        stowax.save("/checkpoint", stored)
        loaded = stowax.load("/checkpoint", asked)

    expected = fitted(host, other).astype(dtype)
    assert differences(expected, np.asarray(loaded)) == []
    assert sharding is None or loaded.sharding == sharding


def test_keys(place):
    """PRNG keys are padded with keys of zeros."""
    keys = jax.random.split(jax.random.key(7), 3)

    longer = load(place, keys, jax.ShapeDtypeStruct((5,), keys.dtype))
    shorter = load(place, keys, jax.ShapeDtypeStruct((2,), keys.dtype))

    data = np.asarray(jax.random.key_data(keys))
    assert np.asarray(jax.random.key_data(longer)).tolist() == [
        *data.tolist(),
        [0, 0],
        [0, 0],
    ]
    assert differences(data[:2], np.asarray(jax.random.key_data(shorter))) == []


def test_recorded_sharding_that_does_not_divide(place):
    """Without a sharding the recorded one is taken if it divides the new shape."""
    stored = jax.device_put(bits("float32", (8, 16)), shardings()["both"])

    for shape, spread in (((4, 4), True), ((3, 4), False)):
        loaded = load(place, stored, jax.ShapeDtypeStruct(shape, np.float32))
        assert (loaded.sharding == shardings()["both"]) == spread


@pytest.mark.parametrize("asked", [np.zeros(24, np.int16), np.zeros((4, 6, 1)), 1, str])
def test_what_cannot_be_padded(place, asked):
    """The number of axes must be right, and a number is no array."""
    with pytest.raises(TreeMismatchError) as caught:
        load(place, bits("int16", (4, 6)), asked)

    assert "enable_padding_and_truncation" not in str(caught.value)


def test_not_unless_allowed(place):
    """Without the option another shape is a mismatch, which names the option."""
    stowax.save(place / "checkpoint", {"x": np.zeros((4, 6))})

    with pytest.raises(TreeMismatchError, match="enable_padding_and_truncation=True"):
        stowax.load(place / "checkpoint", {"x": np.zeros((4, 5))})


def test_only_what_is_needed_is_read():
    """Of an array that is cut, what is cut away is not read."""
    store = RecordingStore(MemoryStore())
    host = np.arange(4 << 20, dtype=np.float32).reshape(4, 1 << 20)
    array = jax.device_put(host, NamedSharding(mesh(4), P("x")))
    with stowax.Context(file=FileOptions(store=store), array=PADS):
        stowax.save("/checkpoint", array)
        count = len(store.calls)
        loaded = stowax.load("/checkpoint", np.zeros((2, 10), np.float32))

    assert loaded.tolist() == host[:2, :10].tolist()
    data = [call for call in store.calls[count:] if "/d/" in call.paths[0]]
    assert sum(call.size_bytes for call in data) == 2 * BLOCK_BYTES  # Of either row.
