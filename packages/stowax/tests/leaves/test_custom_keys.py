"""Typed PRNG keys of implementations that JAX does not ship."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import define_prng_impl

import stowax
from stowax.errors import TreeMismatchError
from stowax.options import ArrayOptions

COUNTER = define_prng_impl(
    key_shape=(3,),
    seed=lambda seed: jnp.full((3,), seed, jnp.uint32),
    split=lambda key, shape: jnp.broadcast_to(key, (*shape, 3)),
    random_bits=lambda key, width, shape: jnp.zeros(shape, f"uint{width}"),
    fold_in=lambda key, data: key + data,
    name="counter",
    tag="cnt",
)


@pytest.fixture
def saved(place):
    """A saved batch of two such keys; the path."""
    stowax.save(place / "c", {"key": keys(1, 2)})
    return place / "c"


def keys(*seeds):
    """Keys of the implementation above."""
    return jax.vmap(lambda seed: jax.random.key(seed, impl=COUNTER))(jnp.array(seeds))


def data(found):
    """The numbers behind keys."""
    return np.asarray(jax.random.key_data(found)).tolist()


@pytest.mark.parametrize("is_abstract", [True, False])
def test_asked_for_with_such_a_key(saved, is_abstract):
    """What has their dtype brings them back."""
    target = keys(0, 0)
    if is_abstract:
        target = jax.ShapeDtypeStruct(target.shape, target.dtype)

    found = stowax.load(saved, {"key": target})["key"]

    assert found.dtype == target.dtype
    assert data(found) == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("target", [None, {"key": jax.Array}], ids=["all", "type"])
def test_not_asked_for_with_such_a_key(saved, target):
    """The error names leaf, implementation and ways out, both of which work."""
    with pytest.raises(TreeMismatchError) as caught:
        stowax.load(saved, target)

    (problem,) = caught.value.problems
    assert problem.startswith("key: ")
    assert "no PRNG implementation 'cnt'" in problem
    assert "jax.random.key(0, impl=...)" in problem
    assert "uint32[2, 3], as `stowax.metadata(path)` shows" in problem


def test_metadata_can_be_loaded(saved):
    """Metadata shows the key data, and asks for exactly that."""
    shown = stowax.metadata(saved)

    found = stowax.load(saved, shown)["key"]

    assert (shown.metadata["key"].shape, shown.metadata["key"].dtype) == (
        (2, 3),
        "uint32",
    )
    assert isinstance(found, jax.Array)
    assert found.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_key_data_as_numpy(saved, place):
    """NumPy gets the key data, asked for by leaf or by option."""
    target = {"key": np.zeros((2, 3), np.uint32)}
    assert stowax.load(saved, target)["key"].tolist() == [[1, 1, 1], [2, 2, 2]]

    options = ArrayOptions(loading=ArrayOptions.Loading(as_numpy=True))
    with place.context(array=options):
        abstract = jax.ShapeDtypeStruct((2,), keys(0).dtype)
        for target in (None, {"key": abstract}, stowax.metadata(saved)):
            found = stowax.load(saved, target)["key"]
            assert isinstance(found, np.ndarray)
            assert found.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_numbers_are_no_keys_of_jax(place):
    """Keys that JAX ships are never taken for numbers, nor for other keys."""
    stowax.save(place / "c", {"key": jax.random.key(0)})

    for target in (np.zeros(2, np.uint32), jax.random.key(0, impl=COUNTER)):
        with pytest.raises(TreeMismatchError):
            stowax.load(place / "c", {"key": target})
