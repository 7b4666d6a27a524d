"""Leaves at the edge of what JAX, Python and Orbax agree on."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as peer

import stowax
from stowax.errors import KeyPathCollisionError, TreeError, UnsupportedLeafError


class Color(str, enum.Enum):  # noqa: UP042 `StrEnum` has another `str`
    """A string whose `str` is something else."""

    RED = "red"


def test_string_subclass_keeps_its_text(tmp_path):
    """What is stored of a string is its text, not what `str` makes of its class."""
    stowax.save(tmp_path / "c", {"color": Color.RED})

    assert stowax.load(tmp_path / "c") == {"color": "red"}


def test_string_subclass_as_key_has_one_name(tmp_path):
    """A key is called the same in our records and in those of Orbax."""
    tree = {Color.RED: 1}

    stowax.save(tmp_path / "c", tree)

    assert stowax.load(tmp_path / "c", {Color.RED: int}) == tree
    assert stowax.load(tmp_path / "c") == peer.load(tmp_path / "c")


@pytest.mark.parametrize("key", ["/", "a/", "a//"])
def test_orbax_loads_keys_that_end_in_a_slash(tmp_path, key):
    """TensorStore adds no second slash to such a name, so neither do we."""
    tree = {"q": {key: np.arange(3.0)}}

    stowax.save(tmp_path / "c", tree)

    np.testing.assert_array_equal(peer.load(tmp_path / "c")["q"][key], tree["q"][key])


def test_names_that_differ_by_a_last_slash_collide(tmp_path):
    """Two arrays that TensorStore would take for one are refused."""
    with pytest.raises(KeyPathCollisionError, match=r"'a'.*'a/'"):
        stowax.save(tmp_path / "c", {"a": np.ones(1), "a/": np.ones(2)})


def test_64_bits_without_x64_are_reported(tmp_path):
    """What JAX would cut to 32 bits without a word is one warning, with the leaf."""
    stowax.save(tmp_path / "c", {"count": np.int64(2**40)})

    with pytest.warns(UserWarning, match="count: int64 to int32"):
        stowax.load(tmp_path / "c", {"count": jax.ShapeDtypeStruct((), np.int64)})


def test_metadata_leaf_takes_a_class_as_dtype(tmp_path):
    """`dataclasses.replace` on a metadata leaf chooses what to load it as."""
    stowax.save(tmp_path / "c", {"x": np.arange(3, dtype=np.float32)})
    leaf = stowax.metadata(tmp_path / "c").metadata["x"]

    loaded = stowax.load(
        tmp_path / "c", {"x": dataclasses.replace(leaf, dtype=np.float64)}
    )

    assert loaded["x"].dtype == np.float64


def test_none_in_a_target_means_as_stored(tmp_path):
    """A target may leave shape and dtype to the checkpoint."""

    @dataclasses.dataclass(frozen=True)
    class AsStored:
        shape: None = None
        dtype: None = None

    stowax.save(tmp_path / "c", {"x": jnp.arange(3), "key": jax.random.key(1)})

    loaded = stowax.load(tmp_path / "c", {"x": AsStored(), "key": AsStored()})

    assert loaded["x"].tolist() == [0, 1, 2]
    assert loaded["key"] == jax.random.key(1)


def test_masked_array_is_refused(tmp_path):
    """A mask cannot be stored, and hidden values are not made visible in silence."""
    masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])

    with pytest.raises(UnsupportedLeafError, match=r"'x'.*lose its mask"):
        stowax.save(tmp_path / "c", {"x": masked})

    assert list(tmp_path.iterdir()) == []


def test_leaf_is_named_in_the_message(tmp_path):
    """The text of the error, not only a note beside it, says which leaf it was."""
    with pytest.raises(UnsupportedLeafError, match=r"leaf 'a\.0'"):
        stowax.save(tmp_path / "c", {"a": [np.array(["text"])]})


def test_endless_tree_is_refused(tmp_path):
    """A tree that contains itself is an error of ours, and nothing is written."""
    tree = []
    tree.append(tree)

    with pytest.raises(TreeError, match="nested too deeply"):
        stowax.save(tmp_path / "c", tree)

    assert list(tmp_path.iterdir()) == []
