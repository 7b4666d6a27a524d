"""A stored leaf takes the form of the live one, or does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stowax.adapters import (
    abstract_leaf,
    form_of,
    note_of,
    place_leaf,
    storable_leaf,
    stored_form,
)
from stowax.errors import UnsupportedLeafError

ABSTRACT = jax.ShapeDtypeStruct((2, 3), "bfloat16")


@pytest.fixture
def spread():
    """A sharding over all devices."""
    mesh = jax.make_mesh((8,), ("data",))
    return jax.NamedSharding(mesh, jax.P("data"))


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (None, "None"),
        (True, "bool"),
        ("text", "str"),
        (1.5, "float"),
        (np.float32(1), "float32[]"),
        (np.ones((2, 3), np.int8), "int8[2, 3]"),
        (ABSTRACT, "bfloat16[2, 3]"),
        (jax.random.key(0, impl="rbg"), "key<rbg>[]"),
        (jax.random.split(jax.random.key(0), 2), "key<threefry2x32>[2]"),
    ],
)
def test_form_says_everything_that_must_agree(leaf, text):
    """Kind, dtype or implementation, and shape, as they are shown in messages."""
    assert str(form_of(leaf)) == text


def test_abstract_key_has_the_form_of_the_key():
    """A key that was never made is compared like one that was."""
    key = jax.random.key(0, impl="rbg")
    assert form_of(jax.eval_shape(lambda: key)) == form_of(key)


def test_object_has_no_form():
    """What no checkpoint can hold is refused by the name of its type."""
    with pytest.raises(UnsupportedLeafError, match="set is no array"):
        form_of({1})


@pytest.mark.parametrize(
    ("live", "stored", "expected"),
    [
        (np.ones(2), np.zeros(2), True),
        (np.ones(2), np.ones(3), False),
        (np.ones(2), np.ones(2, np.float32), False),
        (0, np.int32(7), True),
        (np.uint8(7), 0, True),
        (0.5, jnp.bfloat16(2), True),
        (0, np.float32(7), False),
        (0, np.ones(1, np.int32), False),
        (0, True, False),
        (0, 0.5, False),
        (None, 0, False),
        (None, None, True),
        (jax.random.key(0), jax.random.key(1), True),
        (jax.random.key(0), jax.random.key(0, impl="rbg"), False),
        (jax.random.key(0), jax.random.key_data(jax.random.key(0)), False),
    ],
)
def test_what_fits(live, stored, expected):
    """Equal forms fit, and numbers fit scalar arrays of the same kind of number."""
    assert form_of(live).fits(form_of(stored)) is expected


@pytest.mark.parametrize(
    "leaf",
    [
        None,
        True,
        3,
        "text",
        np.float32(1),
        np.ones(3, np.int8),
        jnp.ones(3),
        jax.random.key(0, impl="rbg"),
    ],
)
def test_note_tells_what_the_tree_does_not(leaf):
    """Of what is stored, with the note, the form of the live leaf is known again."""
    assert stored_form(storable_leaf(leaf), note_of(leaf)) == form_of(leaf)


def test_key_is_known_by_its_words_too():
    """Metadata of the words that keys are made of say how many keys there are."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 5)
    words = jax.random.key_data(keys)
    assert stored_form(words, note_of(keys)) == form_of(keys)


@pytest.mark.parametrize("leaf", [True, np.float32(1), np.bool_(True)])
def test_scalars_are_stored_as_arrays(leaf):
    """Orbax reads arrays; NumPy scalars and truth values are none."""
    stored = storable_leaf(leaf)
    assert type(stored) is np.ndarray
    assert stored == leaf


@pytest.mark.parametrize(
    ("live", "loaded"),
    [
        (None, None),
        (0, np.array(7, np.int32)),
        (False, np.array(True)),
        ("", "text"),
        (np.float32(0), np.array(7, np.float32)),
        (np.zeros(2), np.ones(2)),
        (jnp.zeros(2), np.ones(2, np.float32)),
    ],
)
def test_placed_leaf_is_what_the_live_one_is(live, loaded):
    """Type, dtype and shape are those of the live leaf, the value is the stored one."""
    placed = place_leaf(live, loaded, {})

    assert type(placed) is type(live)
    assert form_of(placed) == form_of(live)
    assert np.array_equal(np.asarray(placed), np.asarray(loaded))


def test_placed_array_is_a_copy():
    """A NumPy array that is loaded is the caller's to change."""
    loaded = np.ones(2)
    assert not np.shares_memory(place_leaf(np.zeros(2), loaded, {}), loaded)


def test_uncommitted_stays_uncommitted(spread):
    """A fresh counter still goes where sharded arrays are."""
    live = jnp.zeros((), jnp.int32)

    asked = abstract_leaf(live, live)
    placed = place_leaf(live, np.array(7, np.int32), {})

    assert isinstance(asked, np.ndarray)
    assert not placed.committed
    sharded = jax.device_put(jnp.ones(8), spread)
    assert jax.jit(jnp.add)(sharded, placed).tolist() == [8] * 8


def test_uncommitted_key_stays_uncommitted():
    """Keys are loaded through a sharding, and freed of it."""
    live = jax.random.key(0, impl="rbg")
    loaded = jax.device_put(jax.random.key(3, impl="rbg"), jax.devices()[1])

    placed = place_leaf(live, loaded, {})

    assert not placed.committed
    assert form_of(placed) == form_of(live)
    assert (jax.random.key_data(placed) == jax.random.key_data(loaded)).all()


def test_sharding_is_that_of_the_live_leaf(spread):
    """A number and an array on another mesh go where the live leaf is."""
    live = jax.device_put(jnp.zeros(8), spread)
    elsewhere = jax.device_put(jnp.arange(8.0), jax.devices()[1])

    assert abstract_leaf(live, live).sharding == spread
    assert place_leaf(live, elsewhere, {}).sharding == spread


def test_abstract_leaf_is_asked_for_as_it_is(spread):
    """Who gives an abstract leaf has said all there is to ask."""
    live = jax.ShapeDtypeStruct((8,), "float32", sharding=spread)
    assert abstract_leaf(live, live) is live


@pytest.mark.parametrize("weak", [True, False])
def test_weak_type_is_the_stored_one(weak):
    """Whether a scalar is weakly typed decides later dtypes, so it is kept."""
    stored = jnp.asarray(2.0) if weak else jnp.float32(2)
    assert stored.weak_type is weak

    placed = place_leaf(jnp.float32(0), np.asarray(stored), note_of(stored))

    assert placed.weak_type is weak
    assert placed.dtype == jnp.float32
