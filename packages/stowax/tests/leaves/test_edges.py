"""Leaves at the edge of what JAX, Python and Orbax agree on."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as peer

import stowax
from stowax.errors import (
    KeyPathCollisionError,
    LeafIndexError,
    TreeError,
    TreeMismatchError,
    UnsupportedLeafError,
)


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


@pytest.mark.parametrize(
    ("leaf", "advice"),
    [
        (np.array(["2026-01-01"], "M8[D]"), r"\.view\('int64'\)"),
        (np.timedelta64(3, "s"), r"\.view\('int64'\)"),
        (np.array(["text"]), r"\.tolist\(\)"),
        (np.array([b"text"]), r"\.tolist\(\)"),
        (np.array(["text"], np.dtypes.StringDType()), r"\.tolist\(\)"),
        (np.array([None]), r"\.tolist\(\)"),
        (np.zeros(2, "i4,f4"), r"array\[name\] for name"),
        (np.longdouble(1), "float64"),
        (np.zeros(2, np.clongdouble), "complex128"),
        (np.zeros(2, "V3"), "convert to one of"),
        (np.zeros(3, jax.dtypes.float0), "no values"),
        (bytearray(b"text"), r"bytes\(value\)"),
        ({1, 2}, "list"),
        (len, r"eqx\.filter\(model, eqx\.is_array\)"),
        (jax.ShapeDtypeStruct((1,), np.float32), "no elements"),
        (stowax.PLACEHOLDER, r"stowax\.PLACEHOLDER.*not loaded"),
        (object(), "leaf_handlers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusal_says_what_to_do(tmp_path, leaf, advice):
    """A leaf that cannot be saved is named, with what to save in its place."""
    with pytest.raises(UnsupportedLeafError, match=rf"leaf 'a\.x': .*{advice}"):
        stowax.save(tmp_path / "c", {"a": {"x": leaf}})

    assert list(tmp_path.iterdir()) == []


def save_parts(path, state):
    """Saves a tree as one of several checkpointables."""
    stowax.save_checkpointables(path, {"other": {"x": 1}, "model": state})


@pytest.mark.parametrize("save", [stowax.save, stowax.save_async, save_parts])
def test_all_unsupported_leaves_are_listed(tmp_path, save):
    """One error names every leaf that cannot be saved, whatever it lacks."""
    state = {
        "fine": 1,
        "activation": jax.nn.relu,
        "names": np.array(["a"]),
        "deep": [{"set": {1}}],
    }

    with pytest.raises(UnsupportedLeafError, match="3 leaves") as caught:
        save(tmp_path / "c", state)

    listed = [problem.partition(":")[0] for problem in caught.value.problems]
    assert listed == ["leaf 'activation'", "leaf 'deep.0.set'", "leaf 'names'"]
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert list(tmp_path.iterdir()) == []


def test_long_lists_are_cut(tmp_path):
    """The message stays readable; the error has them all."""
    with pytest.raises(UnsupportedLeafError, match="and 80 more") as caught:
        stowax.save(tmp_path / "c", [len] * 100)

    assert len(caught.value.problems) == 100


def test_all_unsupported_targets_are_listed(tmp_path):
    """One error names every leaf of an abstract state that asks for nothing."""
    stowax.save(tmp_path / "c", {"a": 1, "b": 2, "c": 3})

    with pytest.raises(UnsupportedLeafError, match=r"'a'(.|\n)*'c'") as caught:
        stowax.load(tmp_path / "c", {"a": len, "b": int, "c": {1}})

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, -(7**9000), 1 << 200_000], ids=int.bit_length
)
def test_integers_of_any_size(tmp_path, value):
    """An integer beyond 64 bits, or 4300 digits, comes back; Orbax sees it in hex."""
    stowax.save(tmp_path / "c", {"n": value})

    assert stowax.load(tmp_path / "c") == {"n": value}
    assert stowax.load(tmp_path / "c", {"n": int}) == {"n": value}
    assert stowax.load(tmp_path / "c", {"n": 0}) == {"n": value}
    assert stowax.metadata(tmp_path / "c").metadata == {"n": 0}
    assert int(peer.load(tmp_path / "c")["n"], 0) == value


@pytest.mark.parametrize("target", [float, np.zeros((), np.int64), str, b"", True])
def test_large_integers_are_nothing_else(tmp_path, target):
    """Asked for as anything but an integer, one beyond 64 bits does not fit."""
    stowax.save(tmp_path / "c", {"n": 2**64})

    with pytest.raises(TreeMismatchError, match="stored int of more than 64 bits"):
        stowax.load(tmp_path / "c", {"n": target})


def test_small_integer_fits_a_large_one(tmp_path):
    """An integer is one type, however many bits the saved and the live one have."""
    stowax.save(tmp_path / "c", {"n": 3})

    assert stowax.load(tmp_path / "c", {"n": 2**64}) == {"n": 3}


def test_bytes_of_any_reader(tmp_path):
    """Bytes are an array of uint8 to others, and such an array can be bytes to us."""
    stowax.save(tmp_path / "ours", {"b": b"abc", "empty": b""})
    peer.save(tmp_path / "theirs", {"b": np.frombuffer(b"abc", np.uint8)})

    found = peer.load(tmp_path / "ours")
    assert found["b"].tolist() == [97, 98, 99]
    assert found["empty"].shape == (0,)
    asked = stowax.load(tmp_path / "ours", {"b": np.zeros(3, np.uint8), "empty": bytes})
    assert asked["b"].tolist() == [97, 98, 99]
    assert stowax.load(tmp_path / "theirs", {"b": bytes}) == {"b": b"abc"}


def test_slices_of_bytes(tmp_path):
    """A slice of bytes is bytes, and one of them is a number, as in NumPy."""
    stowax.save(tmp_path / "c", {"b": b"abc", "n": 2**70})

    assert stowax.load_leaf(tmp_path / "c", "b") == b"abc"
    assert stowax.load_leaf(tmp_path / "c", "b", index=np.s_[1:]) == b"bc"
    assert stowax.load_leaf(tmp_path / "c", "b", index=0) == np.uint8(97)
    with pytest.raises(LeafIndexError, match="no slices"):
        stowax.load_leaf(tmp_path / "c", "n", index=0)


@pytest.mark.parametrize("stored", ["text", 3, np.zeros(3), np.zeros((2, 2), np.uint8)])
def test_bytes_of_nothing_else(tmp_path, stored):
    """What is no array of uint8 with one axis is not made bytes."""
    stowax.save(tmp_path / "c", {"x": stored})

    with pytest.raises(TreeMismatchError, match="x: asked bytes"):
        stowax.load(tmp_path / "c", {"x": bytes})


@pytest.mark.parametrize("key", ["a~", "~", "a~2/b"])
@pytest.mark.parametrize("value", ["text", 2**64], ids=["str", "int"])
def test_text_under_a_name_that_orbax_cannot_look_up(tmp_path, key, value):
    """It is None to Orbax, which loads all other leaves; to us it is what it was."""
    stowax.save(tmp_path / "c", {key: value, "other": "there"})

    assert stowax.load(tmp_path / "c") == {key: value, "other": "there"}
    assert peer.load(tmp_path / "c") == {key: None, "other": "there"}
    assert peer.load(tmp_path / "c", {key: "", "other": ""})["other"] == "there"
    assert peer.metadata(tmp_path / "c").metadata == {key: None, "other": "string"}


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
