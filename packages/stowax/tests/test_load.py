"""What `load` and its siblings promise: what was asked for, or every reason why not."""

import asyncio
import concurrent.futures
import functools
import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as peer
from sample_trees import (
    Layer,
    Point,
    Variables,
    bits,
    differences,
    mesh,
    sharded_arrays,
    shardings,
)

import stowax
from stowax._digest import PIECE_BYTES
from stowax._runtime import default_runtime
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointableNotFoundError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DeadlineError,
    InvalidLayoutError,
    InvalidNameError,
    RunningLoopError,
    StowaxError,
    TreeError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.options import AsyncOptions, FileOptions, PyTreeOptions
from stowax.testing import MemoryStore, RecordingStore


def state():
    """A small state."""
    return {
        "layer": {"kernel": jax.device_put(bits("float32", (4, 6))), "bias": 1.5},
        "host": bits("int32", (3,)),
        "name": "text",
        "key": jax.random.key(0),
        "step": 3,
    }


@pytest.fixture
def saved(place):
    """A saved state; the path."""
    stowax.save(place / "checkpoint", state())
    return place / "checkpoint"


def target(**changes):
    """An abstract state, right but for the changes."""
    return {**state(), **changes}


class TestMismatch:
    @pytest.mark.parametrize(
        ("stored", "asked", "problems"),
        [
            (
                {"": 1.5},
                2.5,
                ["<root>: asked float, not stored", "'': stored float, not asked for"],
            ),
            (
                1.5,
                {"": 2.5},
                ["'': asked float, not stored", "<root>: stored float, not asked for"],
            ),
            ({"": 1.5}, {"": "text"}, ["'': asked string, stored float"]),
            (1.5, "text", ["<root>: asked string, stored float"]),
        ],
        ids=repr,
    )
    def test_empty_key_is_not_the_root(self, place, stored, asked, problems):
        """A leaf below the key "" is told from a tree that is a leaf: not near it."""
        stowax.save(place / "c", stored)

        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(place / "c", asked)

        assert [*caught.value.problems] == problems
        assert "rename" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            (
                {"host": np.zeros((2, 3), np.int32)},
                ["host: asked int32[2, 3], stored int32[3]; another number of axes"],
            ),
            (
                {"host": np.zeros(4, np.int32)},
                ["host: asked int32[4], stored int32[3]"],
            ),
            ({"extra": 1}, ["extra: asked int, not stored"]),
            ({"host": "text"}, ["host: asked string, stored int32[3]"]),
            ({"name": np.zeros(3)}, ["name: asked float64[3], stored string"]),
            ({"name": int}, ["name: asked int, stored string"]),
            ({"step": str}, ["step: asked string, stored int"]),
            (
                {"key": jax.random.key(0, impl="rbg")},
                ["key: asked key<rbg>[], stored key<fry>[]"],
            ),
            (
                {"key": np.zeros(2, np.uint32)},
                ["key: asked uint32[2], stored key<fry>[]"],
            ),
            (
                {"host": jax.random.key(0)},
                ["host: asked key<fry>[], stored int32[3]"],
            ),
            (
                {"layer": {"kernel": 1, "bias": {"deep": 1}}},
                [
                    "layer.bias.deep: asked int, not stored",
                    "layer.bias: stored float, not asked for",
                ],
            ),
        ],
    )
    def test_every_leaf_is_named(self, saved, changes, lines):
        """A leaf that does not fit is named, with what was asked and what is stored."""
        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(saved, target(**changes))

        for line in lines:
            assert any(problem.startswith(line) for problem in caught.value.problems)
        assert f"{saved}/state" in str(caught.value)
        assert isinstance(caught.value, ValueError)

    def test_missing_leaf(self, saved):
        """A stored leaf that is left out is a mismatch, too."""
        asked = target()
        del asked["host"], asked["layer"]["kernel"]

        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(saved, asked)

        assert caught.value.problems == (
            "host: stored int32[3], not asked for",
            "layer.kernel: stored float32[4, 6], not asked for",
        )

    def test_all_at_once(self, saved):
        """All mismatches are in one error, missing leaves before wrong ones."""
        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(saved, target(host=np.zeros(9), name=1, key=2))

        assert [line.split(":")[0] for line in caught.value.problems] == [
            "host",
            "key",
            "name",
        ]

    def test_near_name(self, saved):
        """A misspelt leaf comes with the stored one that was probably meant."""
        with pytest.raises(TreeMismatchError, match=r"near it is 'layer\.kernel'"):
            stowax.load(saved, target(layer={"kernal": 1, "bias": 1.0}))

    def test_long_lists_are_cut(self, place):
        """The message shows the first mismatches, the field `problems` has all."""
        stowax.save(place / "checkpoint", {"a": 1})

        with pytest.raises(TreeMismatchError, match="and 81 more") as caught:
            stowax.load(place / "checkpoint", dict.fromkeys(map(str, range(100)), 1))

        assert len(caught.value.problems) == 101

    def test_sharding_that_does_not_divide(self, saved):
        """A sharding that the shape cannot take is a mismatch of that leaf."""
        sharding = NamedSharding(mesh(8), P("x"))
        asked = jax.ShapeDtypeStruct((4, 6), np.float32, sharding=sharding)

        with pytest.raises(
            TreeMismatchError, match=r"kernel: .*float32.*cannot be placed"
        ):
            stowax.load(saved, target(layer={"kernel": asked, "bias": 1.0}))

    def test_leaf_that_asks_for_nothing(self, saved):
        """A leaf of the abstract state that no checkpoint can hold is named."""
        with pytest.raises(UnsupportedLeafError, match="'host'"):
            stowax.load(saved, target(host=object()))

    def test_root_that_does_not_fit(self, saved):
        """A leaf where a tree is stored, and the other way round, is a mismatch."""
        with pytest.raises(
            TreeMismatchError, match=r"<root>: +asked float64\[3\], not stored"
        ):
            stowax.load(saved, np.zeros(3))

    def test_nothing_is_changed(self, tmp_path):
        """A load that fails leaves the disk as it was."""
        stowax.save(tmp_path / "checkpoint", state())
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}

        with pytest.raises(TreeError):
            stowax.load(tmp_path / "checkpoint", target(host=1))

        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


class TestPaths:
    def test_nothing_there(self, place):
        """A missing path is our error and Python's, with the path."""
        with pytest.raises(CheckpointNotFoundError) as caught:
            stowax.load(place / "nothing")

        assert isinstance(caught.value, FileNotFoundError)
        assert place / "nothing" in str(caught.value)

    def test_no_parent(self, place):
        """A missing directory above is said."""
        with pytest.raises(CheckpointNotFoundError, match="no directory"):
            stowax.load(place / "no/such")

    def test_file(self, tmp_path):
        """A file is no checkpoint."""
        (tmp_path / "file").write_text("text")

        with pytest.raises(InvalidLayoutError, match="is a file") as caught:
            stowax.load(tmp_path / "file")

        assert str(tmp_path / "file") in str(caught.value)

    def test_other_directory(self, tmp_path):
        """A directory that is no checkpoint is refused, with what it holds."""
        (tmp_path / "notes.txt").write_text("text")

        with pytest.raises(InvalidLayoutError, match=r"notes\.txt") as caught:
            stowax.load(tmp_path)

        assert isinstance(caught.value, ValueError)

    def test_directory_of_steps(self, tmp_path):
        """The directory above checkpoints is none itself; its names are shown."""
        stowax.save(tmp_path / "100", {"a": 1})
        stowax.save(tmp_path / "200", {"a": 1})

        with pytest.raises(InvalidLayoutError, match="100, 200"):
            stowax.load(tmp_path)

    def test_unknown_name(self, saved):
        """A name that is not stored is our error and Python's; it lists the names."""
        with pytest.raises(CheckpointableNotFoundError, match="'state'") as caught:
            stowax.load(saved, checkpointable_name="model")

        assert isinstance(caught.value, KeyError)
        assert "'model'" in str(caught.value)
        with pytest.raises(CheckpointableNotFoundError):
            stowax.load_checkpointables(saved, {"model": None})

    def test_several_trees(self, place):
        """With several trees and none called "state", the caller has to say which."""
        stowax.save_checkpointables(place / "a", {"one": {"x": 1}, "two": {"x": 2}})
        stowax.save_checkpointables(place / "b", {"state": {"x": 1}, "two": {"x": 2}})

        with pytest.raises(InvalidLayoutError, match="checkpointable_name"):
            stowax.load(place / "a")
        assert stowax.load(place / "a", checkpointable_name="two") == {"x": 2}
        assert stowax.load(place / "b") == {"x": 1}

    def test_path_of_the_item(self, saved):
        """With the name None, the path itself is the directory of a tree."""
        loaded = stowax.load(f"{saved}/state", checkpointable_name=None)

        assert differences(state(), loaded) == []


class TestPlacement:
    @pytest.mark.parametrize("written", ["rows", "both", "fused", "replicated", "two"])
    @pytest.mark.parametrize("read", ["columns", "swapped", "half", "rows"])
    def test_reshard(self, place, written, read):
        """An array is loaded onto any arrangement of devices."""
        array = sharded_arrays()[written]
        sharding = shardings()[read]
        asked = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        stowax.save(place / "checkpoint", {"w": array})
        loaded = stowax.load(place / "checkpoint", {"w": asked})["w"]

        assert loaded.sharding == sharding
        expected = jax.device_put(np.asarray(array), sharding)
        assert differences(expected, loaded, placement=True) == []

    @given(data=st.data())
    @settings(max_examples=25, deadline=None)
    def test_any_reshard(self, data):
        """Any array on any mesh is loaded bit for bit onto any other."""
        sides = [(8,), (4, 2), (2, 2), (2,), (2, 4), (2, 2, 2)]
        names = ["uint8", "int32", "bfloat16"]
        ndim = data.draw(st.integers(1, 3))
        shape = tuple(data.draw(st.sampled_from([8, 16, 24])) for _ in range(ndim))

        def sharding():
            side = mesh(*data.draw(st.sampled_from(sides)))
            axes = list(data.draw(st.permutations(side.axis_names)))
            spec = [
                axes.pop() if axes and data.draw(st.booleans()) else None
                for _ in range(ndim)
            ]
            return NamedSharding(side, P(*spec))

        host = bits(data.draw(st.sampled_from(names)), shape)
        array = jax.device_put(host, sharding())
        other = sharding()
        asked = jax.ShapeDtypeStruct(shape, array.dtype, sharding=other)
        with stowax.Context(file=FileOptions(store=MemoryStore())):
            stowax.save("/checkpoint", array)
            loaded = stowax.load("/checkpoint", asked)

        expected = jax.device_put(host, other)
        assert differences(expected, loaded, placement=True) == []

    def test_memory_kind(self, saved):
        """A sharding's memory kind is kept."""
        sharding = jax.sharding.SingleDeviceSharding(
            jax.devices()[2], memory_kind="pinned_host"
        )
        asked = jax.ShapeDtypeStruct((4, 6), np.float32, sharding=sharding)

        layer = {"kernel": asked, "bias": ...}
        loaded = stowax.load(saved, {**dict.fromkeys(state(), ...), "layer": layer})

        assert loaded["layer"]["kernel"].sharding.memory_kind == "pinned_host"

    def test_memory_kind_is_not_recorded(self, tmp_path):
        """Without a word an array comes to the usual memory, as it does from Orbax."""
        mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
        saved = NamedSharding(mesh, P("x"), memory_kind="pinned_host")
        stowax.save(tmp_path / "c", jax.device_put(np.arange(4), saved))

        for load in (stowax.load, peer.load):
            assert load(tmp_path / "c").sharding == saved.with_memory_kind("device")

    def test_uncommitted(self, saved):
        """Without a word about devices an array is free to move, as `jnp.zeros` is."""
        loaded = stowax.load(saved)["layer"]["kernel"]

        assert not loaded.committed
        other = jax.device_put(np.zeros((4, 6), np.float32), jax.devices()[3])
        assert (loaded + other).devices() == {jax.devices()[3]}

    def test_default_device(self, saved):
        """A default device of the calling thread is followed."""
        with jax.default_device(jax.devices()[4]):
            loaded = stowax.load(saved)["layer"]["kernel"]

        assert loaded.devices() == {jax.devices()[4]}

    def test_jax_as_numpy_and_back(self, place):
        """The target decides which kind of array comes back."""
        stowax.save(
            place / "checkpoint", {"j": jnp.arange(3), "n": np.ones(3, np.float32)}
        )

        loaded = stowax.load(
            place / "checkpoint",
            {"j": np.zeros(3, np.int32), "n": jax.ShapeDtypeStruct((3,), np.float32)},
        )

        assert type(loaded["j"]) is np.ndarray
        assert isinstance(loaded["n"], jax.Array)

    def test_arrays_are_the_callers(self, saved):
        """A loaded NumPy array is writable, and no other load sees what is written."""
        first, second = stowax.load(saved), stowax.load(saved)

        first["host"][:] = 0

        assert differences(state()["host"], second["host"]) == []


class TestCasting:
    def load(self, place, stored, dtype):
        """Saves, asks for a dtype, and returns array and warnings."""
        stowax.save(place / "checkpoint", {"x": stored, "y": stored}, overwrite=True)
        asked = jax.ShapeDtypeStruct(stored.shape, dtype)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = stowax.load(place / "checkpoint", {"x": asked, "y": asked})
        return loaded["x"], [str(w.message) for w in caught]

    @pytest.mark.parametrize(
        ("stored", "asked", "word"),
        [
            ("float32", "int16", "drops fractions"),
            ("int32", "int8", "cannot hold values beyond -128 to 127"),
            ("int8", "uint8", "cannot hold values beyond 0 to 255"),
            ("float32", "float16", "cannot hold values beyond"),
            ("bfloat16", "float8_e4m3fn", "cannot hold values beyond -448 to 448"),
            ("complex64", "float32", "drops imaginary parts"),
            ("float32", "bool", "keeps only whether a value is zero"),
            ("int32", "int4", "cannot hold values beyond -8 to 7"),
        ],
    )
    def test_losing_range_or_kind(self, place, stored, asked, word):
        """The dtype is obeyed, and one warning lists the leaves that lose by it."""
        array = np.array([0, 1, 2, 3]).astype(jnp.dtype(stored))

        loaded, caught = self.load(place, jax.device_put(array), jnp.dtype(asked))

        assert loaded.dtype == jnp.dtype(asked)
        (message,) = caught
        assert f"x: {stored} to {asked} {word}" in message
        assert f"y: {stored} to {asked} {word}" in message

    @pytest.mark.parametrize(
        ("stored", "asked"),
        [
            ("float32", "float32"),
            ("float32", "bfloat16"),
            ("bfloat16", "float32"),
            ("int8", "int32"),
            ("uint8", "int16"),
            ("int32", "float32"),
            ("bool", "float32"),
            ("bool", "int8"),
            ("float32", "complex64"),
            ("float8_e4m3fn", "bfloat16"),
            ("int4", "int8"),
        ],
    )
    def test_losing_at_most_precision(self, place, stored, asked):
        """The dtype is obeyed without a word; values are those of NumPy's cast."""
        array = np.array([0, 1, 2, 3]).astype(jnp.dtype(stored))

        loaded, caught = self.load(place, jax.device_put(array), jnp.dtype(asked))

        assert caught == []
        assert differences(jax.device_put(array.astype(asked)), loaded) == []

    def test_numpy(self, place):
        """A NumPy target casts as well."""
        stowax.save(place / "checkpoint", {"x": np.arange(3)})

        loaded = stowax.load(place / "checkpoint", {"x": np.zeros(3, np.float64)})

        assert loaded["x"].dtype == np.float64
        assert loaded["x"].tolist() == [0, 1, 2]

    @pytest.mark.parametrize(
        ("stored", "asked", "expected"),
        [(3, float, 3.0), (3, 0.0, 3.0), (True, int, 1), (2.0, complex, 2 + 0j)],
    )
    def test_numbers(self, place, stored, asked, expected):
        """A type, or a number of it, converts a number."""
        stowax.save(place / "checkpoint", {"x": stored})

        loaded = stowax.load(place / "checkpoint", {"x": asked})["x"]

        assert (type(loaded), loaded) == (type(expected), expected)

    def test_number_from_array(self, place):
        """A 0-d array comes back as a number if one is asked for, and back."""
        stowax.save(place / "checkpoint", {"x": np.array(3), "y": 4})

        asked = {"x": int, "y": np.zeros((), np.int64)}
        loaded = stowax.load(place / "checkpoint", asked)

        assert differences({"x": 3, "y": np.array(4)}, loaded) == []


class TestPart:
    def test_placeholder(self, saved):
        """A placeholder stays, and stands for all that is below it."""
        asked = {**dict.fromkeys(state(), stowax.PLACEHOLDER), "step": int}

        loaded = stowax.load(saved, asked)

        assert loaded == {**dict.fromkeys(state(), stowax.PLACEHOLDER), "step": 3}

    def test_placeholder_reads_nothing(self, tmp_path):
        """What is left out is not read: its data may be gone."""
        stowax.save(tmp_path / "checkpoint", {"a": np.ones(3), "b": "text"})
        (tmp_path / "checkpoint/state/d/data-0").unlink()

        loaded = stowax.load(tmp_path / "checkpoint", {"a": ..., "b": str})

        assert loaded == {"a": ..., "b": "text"}

    def test_partial_load(self, place, saved):
        """With `partial_load`, stored leaves may be left out; none may be added."""
        options = PyTreeOptions(loading=PyTreeOptions.Loading(partial_load=True))
        with place.context(pytree=options):
            loaded = stowax.load(saved, {"step": int, "layer": {"bias": float}})
            with pytest.raises(TreeMismatchError, match="extra: asked int, not stored"):
                stowax.load(saved, {"step": int, "extra": int})

        assert loaded == {"step": 3, "layer": {"bias": 1.5}}


def test_containers_are_the_targets(place):
    """Keys decide, not containers: a dict may be loaded as a dataclass and back."""
    stowax.save(place / "checkpoint", {"a": Layer(1, 2), "b": [3, 4], 5: Point(6, 7)})

    loaded = stowax.load(
        place / "checkpoint",
        {"a": Variables(kernel=0, bias=0), "b": (0, 0), "5": {"x": 0, "y": 0}},
    )

    assert loaded == {
        "a": Variables(kernel=1, bias=2),
        "b": (3, 4),
        "5": {"x": 6, "y": 7},
    }


def test_load_async(place):
    """`load_async` gives the same, and raises by `result`."""
    stowax.save(place / "checkpoint", state())

    loaded = stowax.load_async(place / "checkpoint").result()
    several = stowax.load_checkpointables_async(place / "checkpoint").result()
    failing = stowax.load_async(place / "nothing")

    assert differences(state(), loaded) == []
    assert differences({"state": state()}, several) == []
    with pytest.raises(CheckpointNotFoundError):
        failing.result()


def test_every_error_is_ours(place):
    """One class catches all of it."""
    for path in ("nothing", "no/such"):
        with pytest.raises(StowaxError):
            stowax.load(place / path)


@pytest.mark.parametrize(
    "call",
    [
        stowax.load,
        stowax.load_checkpointables,
        stowax.metadata,
        stowax.checkpointables_metadata,
        stowax.is_orbax_checkpoint,
    ],
    ids=lambda call: call.__name__,
)
def test_refused_where_it_could_not_go_on(tmp_path, call):
    """In a callback of `on_complete` a blocking call is refused at once."""
    stowax.save(tmp_path / "checkpoint", {"a": 1})
    outcome = concurrent.futures.Future()

    def callback(_):
        try:
            outcome.set_result(call(tmp_path / "checkpoint"))
        except StowaxError as error:
            outcome.set_exception(error)

    async def on_the_loop():
        callback(None)

    with stowax.Context(asynchronous=AsyncOptions(timeout_secs=5)):
        default_runtime().run(on_the_loop())

    with pytest.raises(RunningLoopError, match="another thread"):
        outcome.result()


def test_deadline(place):
    """What takes too long is given up, whether values or facts are asked for."""
    stowax.save(place / "checkpoint", {"a": 1})

    with place.context(asynchronous=AsyncOptions(timeout_secs=0)):
        for call in (stowax.load, stowax.metadata, stowax.checkpointables_metadata):
            with pytest.raises(DeadlineError, match="timeout_secs"):
                call(place / "checkpoint")


class Blob:
    """A guest with one large file."""

    def __init__(self, content=b""):
        self.content = content

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            (path / "blob").write_bytes(self.content)

        return write()

    async def load(self, directory):
        async def read():
            self.content = (directory / "blob").read_bytes()

        return read()


def test_guests_files_come_in_pieces():
    """A guest's file is verified and handed over piece by piece, whatever its size."""
    store = RecordingStore(MemoryStore())
    content = np.random.default_rng(0).bytes(PIECE_BYTES * 2 + 5)
    blob = Blob()
    with stowax.Context(file=FileOptions(store=store)):
        stowax.save_checkpointables("/runs/checkpoint", {"blob": Blob(content)})
        count = len(store.calls)
        stowax.load_checkpointables("/runs/checkpoint", {"blob": blob})

    assert blob.content == content
    calls = [c.operation for c in store.calls[count:] if "blob/blob" in str(c.paths)]
    # Once to compare it with its checksum, once to copy it to where the guest looks.
    assert calls.count("read_into") == 2 * 3


def test_damaged_guests_file(tmp_path):
    """A guest is never given a file that is not what it wrote."""
    stowax.save_checkpointables(tmp_path / "checkpoint", {"blob": Blob(b"abc")})
    file = tmp_path / "checkpoint/blob/blob"

    for damage in (lambda: file.write_bytes(b"abd"), file.unlink):
        damage()
        with pytest.raises(CorruptCheckpointError, match=str(file)):
            stowax.load_checkpointables(tmp_path / "checkpoint", {"blob": Blob()})


class Replaced(RecordingStore):
    """Exchanges two checkpoints once one part of the data has been read."""

    def __init__(self, path, other):
        super().__init__(LocalStore())
        self.path, self.other = path, other
        self.read_count = 0
        self.replaced = asyncio.Event()

    async def read_into(self, path, offset_bytes, buffer):
        self.read_count += "/d/" in path
        is_first = "/d/" in path and self.read_count == 1
        if self.read_count > 1:
            await self.replaced.wait()
        await super().read_into(path, offset_bytes, buffer)
        if is_first:
            self.path.rename(self.path.with_name("old"))
            self.other.rename(self.path)
            self.replaced.set()


@pytest.mark.parametrize("verify", [True, False])
def test_replaced_while_loading(tmp_path, verify):
    """A load that overlaps with an overwrite gives one checkpoint, not parts of two."""
    # Large enough to be read one by one.
    old = {"a": np.zeros(200_000), "b": np.zeros(200_000)}
    new = {"a": np.ones(200_000), "b": np.ones(200_000)}
    stowax.save(tmp_path / "checkpoint", old)
    stowax.save(tmp_path / "other", new)
    store = Replaced(tmp_path / "checkpoint", tmp_path / "other")
    context = stowax.Context(
        file=stowax.options.FileOptions(store=store),
        integrity=stowax.options.IntegrityOptions(verify=verify),
    )

    with context:
        loaded = stowax.load(tmp_path / "checkpoint")

    assert store.replaced.is_set()
    np.testing.assert_array_equal(loaded["a"], new["a"])
    np.testing.assert_array_equal(loaded["b"], new["b"])


class Cell:
    """Holds one number, and is loaded in place if the stored one is below a limit."""

    def __init__(self, number, limit=100):
        self.number, self.limit = number, limit

    async def save(self, directory):
        tree = {"number": self.number}
        return await stowax.handlers.PyTreeHandler().save(directory, tree)

    async def load(self, directory):
        rest = await stowax.handlers.PyTreeHandler().load(directory)
        number = (await rest)["number"]
        if number >= self.limit:
            raise ValueError("does not fit")

        async def assign():
            self.number = number

        return assign()


def test_nothing_is_loaded_into_when_one_does_not_fit(tmp_path):
    """All objects have compared what is stored before the first one is changed."""
    stowax.save_checkpointables(tmp_path / "c", {"a": Cell(1), "b": Cell(2)})
    fits, does_not = Cell(0), Cell(0, limit=2)

    with pytest.raises(ValueError, match="does not fit"):
        stowax.load_checkpointables(tmp_path / "c", {"a": fits, "b": does_not})

    assert (fits.number, does_not.number) == (0, 0)


def test_options_of_a_load_under_way_stay(tmp_path):
    """An option that is assigned after `load_async` does not reach it."""
    stowax.save(tmp_path / "c", {"w": np.arange(3), "n": 1})

    for _ in range(20):
        context = stowax.Context()
        context.pytree.loading.partial_load = True
        with context:
            response = stowax.load_async(
                tmp_path / "c" / "state", {"n": int}, checkpointable_name=None
            )
        context.pytree.loading.partial_load = False
        assert response.result() == {"n": 1}


@pytest.mark.parametrize("name", [["state"], 3, b"state"], ids=repr)
def test_name_of_the_wrong_type(place, name):
    """A tree is named by a string."""
    stowax.save(place / "c", {"a": 1})

    for call in (
        stowax.load,
        stowax.metadata,
        stowax.preview_load,
        functools.partial(stowax.load_leaf, name="a"),
    ):
        with pytest.raises(InvalidNameError, match="`checkpointable_name` is"):
            call(place / "c", checkpointable_name=name)


@pytest.mark.parametrize("asked", [[], 3, "x"], ids=repr)
def test_abstract_checkpointables_that_are_no_dict(place, asked):
    """What is to be loaded stands in a dict."""
    stowax.save(place / "c", {"a": 1})

    with pytest.raises(InvalidNameError, match=r"abstract_checkpointables. is .* dict"):
        stowax.load_checkpointables(place / "c", asked)


def test_checkpoint_taken_for_a_tree(tmp_path):
    """None as a name of a whole checkpoint comes with what was probably meant."""
    stowax.save(tmp_path / "c", {"a": 1})

    for call in (stowax.load, stowax.metadata, stowax.preview_load):
        with pytest.raises(InvalidLayoutError, match="leave `checkpointable_name` at"):
            call(tmp_path / "c", checkpointable_name=None)


@pytest.mark.parametrize(
    "call",
    [
        stowax.load,
        stowax.load_checkpointables,
        stowax.metadata,
        stowax.preview_load,
        functools.partial(stowax.load_leaf, name="a"),
    ],
)
def test_error_says_what_it_was_for(place, call):
    """Every door notes in an error which operation it belongs to, and where."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        call(place / "nothing")

    assert any(
        note.startswith("in the ") and str(place / "nothing") in note
        for note in caught.value.__notes__
    )


def test_on_a_runtime_that_is_closed(tmp_path, recwarn):
    """A load that cannot begin in the background leaves nothing that waits to."""
    stowax.save(tmp_path / "c", {"a": 1})
    runtime = stowax._runtime.Runtime()
    runtime.close()

    with stowax.Context(runtime=runtime), pytest.raises(RuntimeError, match="closed"):
        stowax.load_async(tmp_path / "c")
    gc.collect()

    assert [str(warning.message) for warning in recwarn] == []


class Wrapping:
    """Makes of whatever stops it an error of its own."""

    async def save(self, directory):
        return await stowax.handlers.PyTreeHandler().save(directory, {"a": 1})

    async def load(self, directory):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise LookupError("stopped") from error


def test_handler_that_hides_the_deadline(tmp_path):
    """A load that is given up says so, whatever a handler makes of its end."""
    stowax.save_checkpointables(tmp_path / "c", {"x": Wrapping()})

    options = AsyncOptions(timeout_secs=0.2)
    with stowax.Context(asynchronous=options), pytest.raises(DeadlineError):
        stowax.load_checkpointables(tmp_path / "c", {"x": Wrapping()})
