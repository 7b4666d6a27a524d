"""One leaf alone, and slices of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import bits, differences, mesh, shardings

import stowax
from stowax._codecs._checksum import BLOCK_BYTES
from stowax.errors import (
    CorruptCheckpointError,
    InvalidNameError,
    LeafIndexError,
    LeafNotFoundError,
    TreeMismatchError,
)
from stowax.options import FileOptions
from stowax.testing import MemoryStore, RecordingStore

HOST = bits("float32", (8, 16))


@pytest.fixture
def saved(place):
    """A saved state; the path."""
    state = {
        "w": jax.device_put(HOST, shardings()["both"]),
        "params": {"dense": {"kernel": bits("int16", (4, 3, 2)), "bias": 1.5}},
        "name": "text",
        "keys": jax.random.split(jax.random.key(1), 3),
    }
    stowax.save(place / "checkpoint", state)
    return place / "checkpoint"


def test_whole(saved):
    """A leaf comes as `load` would bring it."""
    loaded = stowax.load(saved)

    for name, leaf in (("w", loaded["w"]), ("name", "text"), ("keys", loaded["keys"])):
        alone = stowax.load_leaf(saved, name)
        assert differences(leaf, alone, placement=True) == []
    assert stowax.load_leaf(saved, "params.dense.bias") == 1.5


@pytest.mark.parametrize(
    "index", [np.s_[1], np.s_[2:5, 3:], np.s_[..., -1], np.s_[-3:, 2], np.s_[3:3], ...]
)
def test_slice(saved, index):
    """A slice has the elements and the shape that NumPy's has."""
    loaded = stowax.load_leaf(saved, "w", index=index)

    assert isinstance(loaded, jax.Array)
    assert differences(HOST[index], np.asarray(loaded)) == []
    kernel = stowax.load_leaf(saved, "params.dense.kernel", index=index)
    assert differences(bits("int16", (4, 3, 2))[index], kernel) == []


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_slice(data):
    """Any slice of any array, however it was spread, onto any sharding, is right."""
    shape = data.draw(
        st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=3).map(tuple)
    )
    host = bits("uint16", shape)
    spec = data.draw(st.permutations(["x", *[None] * (len(shape) - 1)]))
    stored = data.draw(
        st.sampled_from([host, jax.device_put(host, NamedSharding(mesh(4), P(*spec)))])
    )
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, slice) and p.step not in (None, 1) for p in parts):
        return
    expected = np.asarray(host[index])
    target = data.draw(st.sampled_from([None, "numpy", "sharded"]))
    asked = None if target is None else np.zeros(expected.shape, np.uint16)
    if target == "sharded":
        fits = expected.ndim and expected.shape[0] % 2 == 0
        sharding = NamedSharding(mesh(2), P("x") if fits else P())
        asked = jax.ShapeDtypeStruct(expected.shape, np.float32, sharding=sharding)
        expected = expected.astype(np.float32)

    with stowax.Context(file=FileOptions(store=MemoryStore())):
        stowax.save("/checkpoint", {"x": stored})
        loaded = stowax.load_leaf("/checkpoint", "x", index=index, abstract_leaf=asked)

    assert differences(expected, np.asarray(loaded)) == []
    assert target != "sharded" or loaded.sharding == asked.sharding


def test_keys(saved):
    """The index of PRNG keys counts keys."""
    keys = stowax.load(saved)["keys"]

    one = stowax.load_leaf(saved, "keys", index=1)
    two = stowax.load_leaf(saved, "keys", index=np.s_[-2:])

    assert (one.shape, one.dtype) == ((), keys.dtype)
    assert jax.random.key_data(two).tolist() == jax.random.key_data(keys[1:]).tolist()
    with pytest.raises(LeafIndexError, match="2 indices"):
        stowax.load_leaf(saved, "keys", index=(0, 0))


def test_abstract_leaf(saved):
    """An abstract leaf says what to make of it, in the shape of the slice."""
    asked = jax.ShapeDtypeStruct((16,), jnp.bfloat16, sharding=shardings()["rows"])

    loaded = stowax.load_leaf(saved, "w", index=3, abstract_leaf=asked)

    assert (loaded.dtype, loaded.sharding) == (jnp.bfloat16, shardings()["rows"])
    assert (
        type(stowax.load_leaf(saved, "w", index=(0, 0), abstract_leaf=float)) is float
    )
    with pytest.raises(TreeMismatchError, match=r"w: asked float32\[8, 16\]"):
        stowax.load_leaf(saved, "w", index=3, abstract_leaf=HOST)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("params.dense.kernal", "near it is 'params.dense.kernel'"),
        ("params.dense", "it is a container, with 'params.dense.bias' in it"),
        (
            "zzz",
            "it has 'keys', 'name', 'params.dense.bias', 'params.dense.kernel', 'w'",
        ),
    ],
)
def test_no_such_leaf(saved, name, hint):
    """A name that is not there comes with the one that was probably meant."""
    with pytest.raises(LeafNotFoundError, match=hint) as caught:
        stowax.load_leaf(saved, name)

    assert isinstance(caught.value, KeyError)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [3, None, ["w"], ("params", "w")])
def test_what_is_no_name(saved, name):
    """A name that is no string is refused."""
    with pytest.raises(InvalidNameError, match="the name of a leaf is a string"):
        stowax.load_leaf(saved, name)


def test_bad_index(saved):
    """An index that is none names the leaf."""
    with pytest.raises(LeafIndexError, match=r"leaf 'w': 9 is out of range"):
        stowax.load_leaf(saved, "w", index=9)
    with pytest.raises(LeafIndexError, match="'name' is a string"):
        stowax.load_leaf(saved, "name", index=0)


def test_a_tree_that_is_a_leaf(place):
    """The root has the empty name."""
    stowax.save(place / "checkpoint", np.arange(5))

    assert stowax.load_leaf(place / "checkpoint", "", index=2) == 2


class TestWhatIsRead:
    MIB = 1 << 20

    @pytest.fixture
    def store(self):
        """A store with an array of 4 x 16 MiB, and its log."""
        store = RecordingStore(MemoryStore())
        with stowax.Context(file=FileOptions(store=store)):
            host = np.arange(16 * self.MIB, dtype=np.uint32).reshape(4, -1)
            array = jax.device_put(host, NamedSharding(mesh(4), P("x")))
            stowax.save("/checkpoint", {"w": array, "other": np.ones(self.MIB)})
            yield store

    def load(self, store, index):
        """A slice, and the bytes of data that were read for it."""
        count = len(store.calls)
        loaded = stowax.load_leaf("/checkpoint", "w", index=index)
        data = [call for call in store.calls[count:] if "/d/" in call.paths[0]]
        return np.asarray(loaded), sum(call.size_bytes for call in data)

    def test_of_one_chunk(self, store):
        """Of a large chunk the blocks are read that the slice lies in."""
        row = 4 * self.MIB

        loaded, read_bytes = self.load(store, np.s_[2, 5:9])
        assert loaded.tolist() == [2 * row + i for i in range(5, 9)]
        assert read_bytes == BLOCK_BYTES

        # Four bytes per element: the slice lies on both sides of a border.
        middle = self.MIB // 2
        loaded, read_bytes = self.load(store, np.s_[0, middle - 1 : middle + 1])
        assert loaded.tolist() == [middle - 1, middle]
        assert read_bytes == 2 * BLOCK_BYTES

        loaded, read_bytes = self.load(store, np.s_[3, -1:])
        assert loaded.tolist() == [4 * row - 1]
        assert read_bytes == BLOCK_BYTES

    def test_of_several_chunks(self, store):
        """Of every chunk that it touches."""
        loaded, read_bytes = self.load(store, np.s_[1:3, :3])

        assert loaded.tolist() == [
            [4 * self.MIB * row + i for i in range(3)] for row in (1, 2)
        ]
        assert read_bytes == 2 * BLOCK_BYTES

    def test_it_is_verified(self, tmp_path):
        """Bytes that are read are compared with their checksums, others are not."""
        host = np.arange(self.MIB, dtype=np.uint32)  # Of 4 MiB.
        stowax.save(tmp_path / "checkpoint", {"w": host})
        (data,) = (tmp_path / "checkpoint/state/d").glob("data-*")
        damaged = bytearray(data.read_bytes())
        damaged[2 * BLOCK_BYTES + 7] ^= 1
        data.write_bytes(damaged)
        block = BLOCK_BYTES // 4

        for n in (0, 1, 3):
            loaded = stowax.load_leaf(
                tmp_path / "checkpoint", "w", index=np.s_[n * block : (n + 1) * block]
            )
            assert loaded[0] == n * block
        with pytest.raises(CorruptCheckpointError, match="block 2 of 32"):
            stowax.load_leaf(tmp_path / "checkpoint", "w", index=3 * block - 1)


def test_named(place):
    """It finds the tree as `load` does."""
    stowax.save_checkpointables(place / "c", {"one": {"x": 1}, "two": {"x": 2}})

    assert stowax.load_leaf(place / "c", "x", checkpointable_name="two") == 2
    assert stowax.load_leaf(place / "c/one", "x", checkpointable_name=None) == 1
