"""How arrays are written: each option of saving does what it says, or is refused."""

import contextlib
import os
import pathlib
import stat
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from sample_trees import Layer, Point, bits, differences, sharded_arrays

import stowax
from stowax._stores._base import walk
from stowax.errors import StowaxError, UnsupportedOptionError
from stowax.options import ArrayOptions, CheckpointablesOptions, FileOptions
from stowax.testing import MemoryStore

StorageOptions = ArrayOptions.Saving.StorageOptions


def asking(place, storage=None, **saving):
    """A Context that asks for something about the saving of arrays."""
    options = ArrayOptions.Saving(storage_options=storage or StorageOptions(), **saving)
    return place.context(array=ArrayOptions(saving=options))


def saved_and_loaded(place, state, context):
    """What comes back without an abstract state."""
    with context:
        stowax.save(place / "checkpoint", state)
    return stowax.load(place / "checkpoint")


def chunks(place):
    """Chunk shape of every leaf that has one."""
    shown = stowax.metadata(place / "checkpoint").metadata
    return {name: leaf.storage_metadata.chunk_shape for name, leaf in shown.items()}


def files(place, directory):
    """Size of every file below a directory of the checkpoint."""
    store = place.store or stowax._stores._open.open_store(place.directory)
    path = f"{place / 'checkpoint'}/{directory}"
    found = stowax._runtime.default_runtime().run(walk(store, path))
    return {p: entry.size_bytes for p, entry in found if not entry.is_directory}


def test_dtype_of_arrays_and_numbers(place):
    """Arrays and numbers are stored in the dtype asked for; nothing else changes."""
    state = {
        "jax": jax.device_put(np.arange(6, dtype=np.float32).reshape(2, 3) / 3),
        "numpy": np.arange(4, dtype=np.float32) / 3,
        "int": 7,
        "bool": True,
        "empty": jnp.zeros((0, 2)),
        "key": jax.random.key(1),
        "text": "text",
        "none": None,
    }

    loaded = saved_and_loaded(
        place, state, asking(place, StorageOptions(dtype="bfloat16"))
    )

    half = np.dtype("bfloat16")
    expected = {
        **state,
        "jax": jax.device_put(np.asarray(state["jax"]).astype(half)),
        "numpy": state["numpy"].astype(half),
        "int": 7.0,
        "bool": 1.0,
        "empty": jnp.zeros((0, 2), half),
    }
    assert differences(expected, loaded) == []


@pytest.mark.parametrize("name", ["rows", "both", "columns"])
def test_dtype_of_shards(place, name):
    """Shards are converted one by one; an abstract state may ask for the old dtype."""
    array = sharded_arrays()[name]
    target = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

    saved_and_loaded(
        place, {"w": array}, asking(place, StorageOptions(dtype=jnp.bfloat16))
    )
    loaded = stowax.load(place / "checkpoint", {"w": target})

    expected = np.asarray(array).astype(jnp.bfloat16).astype(array.dtype)
    expected = {"w": jax.device_put(expected, array.sharding)}
    assert differences(expected, loaded, placement=True) == []


def test_lossy_dtypes_are_warned_of_once(place):
    """One warning lists the leaves that lose range or kind, and no others."""
    state = {"a": {"w": np.ones(2, np.float32)}, "b": np.ones(2, np.int8), "c": 300}

    with pytest.warns(UserWarning, match="lose values of 2 leaves") as caught:
        loaded = saved_and_loaded(
            place, state, asking(place, StorageOptions(dtype=np.int8))
        )

    (warning,) = caught
    assert "a.w: float32 to int8 drops fractions" in str(warning.message)
    assert "c: int64 to int8 cannot hold" in str(warning.message)
    assert loaded["c"] == 300 - 256


def test_losing_precision_is_what_was_asked_for(place):
    """Fewer digits are no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved_and_loaded(
            place,
            {"w": np.ones(2, np.float32), "n": 3},
            asking(place, StorageOptions(dtype="bfloat16")),
        )


def test_conversion_takes_no_second_copy(tmp_path):
    """A large array is converted chunk by chunk."""
    state = {"w": np.ones((64, 1 << 18), np.float32)}
    storage = StorageOptions(dtype="bfloat16", chunk_byte_size=1 << 20)
    context = stowax.Context(
        array=ArrayOptions(saving=ArrayOptions.Saving(storage_options=storage))
    )
    with context:
        stowax.save(tmp_path / "warm", {"w": state["w"][:1, :1]})
        tracemalloc.start()
        try:
            stowax.save(tmp_path / "checkpoint", state)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak_bytes < 16 << 20 < state["w"].nbytes // 2


def test_who_is_asked_for_options(place):
    """The creator sees every leaf once, of any kind, with its key path as in JAX."""
    state = {
        "layers": [Layer(kernel=jnp.ones(2), bias=np.zeros(3))],
        "point": Point(x=1, y="text"),
        "empty": {},
        "key": jax.random.key(0),
    }
    seen = []

    def creator(key, value):
        seen.append((key, value))

    saved_and_loaded(
        place, state, asking(place, scoped_storage_options_creator=creator)
    )

    expected = jax.tree_util.tree_flatten_with_path(state)[0]
    assert [key for key, _ in seen] == [path for path, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(seen, expected, strict=True))
    assert seen[0][0] == (DictKey("key"),)
    assert seen[1][0] == (DictKey("layers"), SequenceKey(0), GetAttrKey("kernel"))


def test_own_options_come_before_general_ones(place):
    """What a leaf's own options leave open is taken from those of all leaves."""
    own = {
        "silent": None,
        "empty": StorageOptions(),
        "dtype": StorageOptions(dtype=jnp.bfloat16),
        "chunk": StorageOptions(chunk_byte_size=8),
        "axes": StorageOptions(shard_axes=()),
    }
    state = {name: np.ones((4, 6), np.float32) for name in own}

    loaded = saved_and_loaded(
        place,
        state,
        asking(
            place,
            StorageOptions(dtype="float32", shard_axes=(0,), chunk_byte_size=96),
            scoped_storage_options_creator=lambda key, value: own[key[0].key],
        ),
    )

    assert {name: str(leaf.dtype) for name, leaf in loaded.items()} == {
        **dict.fromkeys(own, "float32"),
        "dtype": "bfloat16",
    }
    assert chunks(place) == {
        **dict.fromkeys(own, (1, 6)),
        "chunk": (1, 2),
        "axes": (4, 6),
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [({"dtype": "int8"}, "must be an ArrayOptions.Saving.StorageOptions"), (7, "7")],
)
def test_wrong_answer_of_the_creator(place, answer, message):
    """An answer of another kind is refused, with the leaf that it was for."""
    context = asking(place, scoped_storage_options_creator=lambda key, value: answer)

    with context, pytest.raises(UnsupportedOptionError, match=message) as caught:
        stowax.save(place / "checkpoint", {"a": {"w": np.ones(2)}})

    assert "leaf 'a.w'" in str(caught.value)
    assert is_nothing_left(place)


def test_failing_creator(place):
    """What the creator raises comes out as it is, with the leaf noted."""

    def creator(key, value):
        raise ZeroDivisionError

    with (
        asking(place, scoped_storage_options_creator=creator),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        stowax.save(place / "checkpoint", {"w": np.ones(2)})

    assert "at leaf w" in caught.value.__notes__
    assert is_nothing_left(place)


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (StorageOptions(chunk_byte_size=7), ["n: a chunk of at most 7 bytes", "w: "]),
        (StorageOptions(chunk_byte_size=0), ["n: ", "v: ", "w: "]),
        (StorageOptions(chunk_byte_size=-8), ["n: ", "v: ", "w: "]),
        (
            StorageOptions(shard_axes=(1,)),
            ["n: shard_axes (1,) of an array of 0", "v: "],
        ),
        (StorageOptions(shard_axes=(-1,)), ["n: ", "v: ", "w: "]),
        (StorageOptions(shard_axes=0), ["n: ", "v: ", "w: "]),
        (StorageOptions(shard_axes=(True,)), ["n: ", "v: ", "w: "]),
        (StorageOptions(dtype="datetime64[s]"), ["n: dtype 'datetime64[s]'", "v: "]),
        (StorageOptions(dtype="no such"), ["n: dtype 'no such' cannot", "v: ", "w: "]),
        (StorageOptions(dtype=np.longdouble), ["n: ", "v: ", "w: "]),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(place, storage, expected):
    """What cannot be done is one error with all leaves, before anything is written."""
    state = {"w": np.ones((2, 3)), "v": np.ones(4, np.int32), "n": 1, "s": "text"}

    with asking(place, storage), pytest.raises(UnsupportedOptionError) as caught:
        stowax.save(place / "checkpoint", state)

    assert [line for line in expected if f"  {line}" not in str(caught.value)] == []
    assert "  s: " not in str(caught.value)
    assert "scoped_storage_options_creator" in str(caught.value)
    assert is_nothing_left(place)


def test_chunks_within_the_limit(place):
    """No chunk is larger than the limit, in the dtype that is stored."""
    state = {
        "w": np.ones((64, 64), np.float32),
        "v": np.ones((1000,), np.int32),
        "s": sharded_arrays()["rows"],
    }
    storage = StorageOptions(dtype=np.float32, chunk_byte_size=256)

    loaded = saved_and_loaded(place, state, asking(place, storage))

    assert chunks(place) == {"w": (8, 8), "v": (63,), "s": (1, 16)}
    assert differences(state["s"], loaded["s"]) == []
    assert (loaded["v"] == state["v"]).all()


def test_axes_of_chunks(place):
    """Along the axes that are named a chunk holds one element."""
    state = {"w": bits("float32", (4, 6)), "v": sharded_arrays()["rows"]}

    loaded = saved_and_loaded(
        place, state, asking(place, StorageOptions(shard_axes=(1,)))
    )

    assert {name: chunk[1] for name, chunk in chunks(place).items()} == {"w": 1, "v": 1}
    assert differences(state, loaded) == []


def test_size_of_data_files(place):
    """Data files stay within the size asked for, and chunks too."""
    state = {
        f"w{i}": bits("float32", (n,), i) for i, n in enumerate([10, 900, 33, 250])
    }

    loaded = saved_and_loaded(
        place, state, asking(place, ocdbt_target_data_file_size=1000)
    )

    sizes = [n for path, n in files(place, "state/d").items() if "/data-" in path]
    assert len(sizes) > 4
    assert max(sizes) <= 1000 + 4
    assert differences(state, loaded) == []


def test_negative_size_of_data_files(place):
    """A size below 0 is refused."""
    with (
        asking(place, ocdbt_target_data_file_size=-1),
        pytest.raises(
            UnsupportedOptionError, match="ocdbt_target_data_file_size is -1"
        ),
    ):
        stowax.save(place / "checkpoint", {"w": np.ones(2)})

    assert is_nothing_left(place)


@pytest.mark.parametrize("is_on", [True, False])
def test_recording_of_shardings(place, is_on):
    """Without `_sharding`, an array comes back on no device in particular."""
    array = sharded_arrays()["both"]

    loaded = saved_and_loaded(
        place, {"w": array}, asking(place, enable_write_sharding_file=is_on)
    )

    names = {path.rpartition("/")[2] for path in files(place, "state")}
    assert ("_sharding" in names) == is_on
    assert (loaded["w"].sharding == array.sharding) == is_on
    assert differences(np.asarray(array), np.asarray(loaded["w"])) == []


def test_no_array_metadata(place):
    """Without `array_metadatas` we still know PRNG keys, by our own manifest."""
    state = {"key": jax.random.key(3), "w": jnp.ones(3)}

    loaded = saved_and_loaded(place, state, asking(place, array_metadata_store=None))

    assert [path for path in files(place, "state") if "array_metadatas" in path] == []
    assert differences(state, loaded) == []


@contextlib.contextmanager
def umask(mask):
    """The umask of this process."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o777])
def test_permission_mode(tmp_path, mode, overwrite):
    """The directory of the checkpoint has the bits asked for; its parents do not."""
    path = tmp_path / "new" / "checkpoint"
    context = stowax.Context(file=FileOptions(path_permission_mode=mode))

    with umask(0o027), context:
        if overwrite:
            with stowax.Context():
                stowax.save(path, {"w": 1})
        stowax.save(path, {"w": 2}, overwrite=overwrite)

    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert stat.S_IMODE((path / "state").stat().st_mode) == 0o750
    assert stowax.load(path) == {"w": 2}


def test_permission_mode_from_the_beginning(tmp_path):
    """A save under way is not open to anybody else."""
    path = tmp_path / "checkpoint"
    seen = []

    class Looking:
        async def save(self, directory):
            async def write():
                draft = (await directory.await_creation()).parent
                seen.append(stat.S_IMODE(os.stat(draft).st_mode))

            return write()

        async def load(self, directory):
            raise NotImplementedError

    context = stowax.Context(file=FileOptions(path_permission_mode=0o700))
    with umask(0), context:
        stowax.save_checkpointables(path, {"a": Looking()})

    assert seen == [0o700]


def test_permission_mode_without_directories():
    """A store whose directories have no permissions refuses the option."""
    file = FileOptions(store=MemoryStore(), path_permission_mode=0o700)

    with (
        stowax.Context(file=file),
        pytest.raises(
            UnsupportedOptionError, match=r"path_permission_mode is 0o700.*memory"
        ),
    ):
        stowax.save("/runs/checkpoint", {"w": 1})


class OwnPath(type(epath.Path("/"))):
    """A class of paths as users have them."""


class Noting:
    """A handler that notes the classes of the paths that it gets."""

    def __init__(self):
        self.seen = []

    async def save(self, directory, checkpointable):
        async def write():
            self.seen += [type(directory.path), type(await directory.await_creation())]
            (directory.path / "note").write_text(checkpointable)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        self.seen.append(type(directory))

        async def read():
            return (directory / "note").read_text()

        return read()

    async def metadata(self, directory):
        self.seen.append(type(directory))
        return "a note"

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, str)

    def is_abstract_handleable(self, abstract_checkpointable):
        return True


@pytest.mark.parametrize("cls", [OwnPath, pathlib.Path])
def test_class_of_paths(place, cls):
    """Handlers of users get paths of the class asked for, wherever they get one."""
    noting = Noting()
    context = place.context(
        checkpointables=CheckpointablesOptions.create_with_handlers(note=noting)
    )
    context.file.path_class = cls

    with context:
        stowax.save_checkpointables(
            place / "checkpoint", {"note": "text", "x": {"y": 1}}
        )
        loaded = stowax.load_checkpointables(place / "checkpoint")
        stowax.checkpointables_metadata(place / "checkpoint")

    assert loaded == {"note": "text", "x": {"y": 1}}
    assert set(noting.seen) == {type(cls("/"))}
    assert len(noting.seen) == 4


def test_handler_with_options_of_its_own(place):
    """A `PyTreeHandler` with a Context follows it, also inside another save."""
    own = stowax.Context()
    own.array.saving.storage_options.dtype = "bfloat16"
    handler = stowax.handlers.PyTreeHandler(context=own)

    with place.context(
        checkpointables=CheckpointablesOptions.create_with_handlers(small=handler)
    ):
        stowax.save_checkpointables(
            place / "checkpoint",
            {name: {"w": np.ones(2, np.float32)} for name in ("small", "large")},
        )
        loaded = stowax.load_checkpointables(place / "checkpoint")

    assert str(loaded["small"]["w"].dtype) == "bfloat16"
    assert str(loaded["large"]["w"].dtype) == "float32"


def test_handler_alone_refuses_what_is_not_built(tmp_path):
    """A `PyTreeHandler` used alone passes over no option in silence either."""
    import asyncio

    own = stowax.Context()
    own.atomicity.mode = "commit_file"

    async def save():
        handler = stowax.handlers.PyTreeHandler(context=own)
        await (await handler.save(tmp_path / "item", {"w": 1}))

    with pytest.raises(UnsupportedOptionError, match="atomicity"):
        asyncio.run(save())


def is_nothing_left(place):
    """Whether a save that was refused has left nothing, not even a draft."""
    try:
        found = stowax._runtime.default_runtime().run(
            (place.store or stowax._stores._open.open_store("/")).list(place.directory)
        )
    except FileNotFoundError:
        return True
    return found == ()


def test_refusals_are_errors_of_ours(place):
    """Whoever catches the root of our errors, or ValueError, catches these."""
    with (
        asking(place, StorageOptions(shard_axes=(9,))),
        pytest.raises(StowaxError) as caught,
    ):
        stowax.save(place / "checkpoint", {"w": np.ones(2)})

    assert isinstance(caught.value, ValueError)
