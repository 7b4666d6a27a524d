"""Trees of arrays saved as safetensors, with the safetensors library as the reader."""

import asyncio
import concurrent.futures
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from sample_states import examples
from sample_trees import bits, differences, shardings

import stowax
from stowax._operation import Operation
from stowax._runtime import Runtime
from stowax._stores._local import LocalStore
from stowax.errors import (
    BackgroundSaveError,
    CheckpointExistsError,
    DeadlineError,
    InvalidLayoutError,
    InvalidMetadataError,
    KeyPathCollisionError,
    TreeError,
    UnsupportedLeafError,
    UnsupportedOptionError,
)
from stowax.testing import MemoryStore, RecordingStore, durability_faults

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "complex64"),
)
KIB = 1 << 10
MIB = 1 << 20


def context(**options):
    """A Context that saves safetensors."""
    return stowax.Context(checkpoint_layout="safetensors", **options)


def save(path, state, **arguments):
    """Saves a state as safetensors."""
    with context():
        stowax.save(path, state, **arguments)


def stored_as(dtype):
    """Options to store arrays in another dtype."""
    storage = stowax.options.ArrayOptions.Saving.StorageOptions(dtype=dtype)
    saving = stowax.options.ArrayOptions.Saving(storage_options=storage)
    return stowax.options.ArrayOptions(saving=saving)


def in_files_of(size_bytes):
    """A Context that saves safetensors into files of a size."""
    sizes = stowax.options.SafetensorsOptions(max_file_bytes=size_bytes)
    return context(safetensors=sizes)


def model():
    """Weights as a model has them, some of them on eight devices."""
    halves, both = shardings()["half"], shardings()["both"]
    return {
        "layers": [
            {"w": jax.device_put(bits("float32", (8, 16)), both)},
            {"w": jax.device_put(bits("float32", (8, 16)) + 1, halves)},
        ],
        "norm": jnp.asarray(bits("bfloat16", (8,))),
        "scale": np.float32(3),
        "empty": np.zeros((0, 4), np.int8),
    }


def named(tree):
    """The tensors of a tree, by name, in host memory."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in found
    }


def read(path):
    """What the library finds in a file or in the files that an index names."""
    if path.is_file():
        return safetensors.numpy.load_file(path)
    (index,) = path.glob("*.index.json")
    files = json.loads(index.read_text())["weight_map"]
    tensors = {}
    for name, file in files.items():
        with safetensors.safe_open(path / file, "numpy") as opened:
            tensors[name] = opened.get_tensor(name)
    return tensors


class TestOneFile:
    """A path that ends in `.safetensors` becomes a file."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype(self, tmp_path, dtype):
        """Bits are those of the array, whatever they mean."""
        array = bits(dtype, (3, 5))
        path = tmp_path / "model.safetensors"
        save(path, {"w": array})

        # Its parts for NumPy and Flax lack some dtypes; what is below them has all.
        ((name, found),) = safetensors.deserialize(path.read_bytes())
        assert (name, found["shape"]) == ("w", [3, 5])
        assert bytes(found["data"]) == array.tobytes()
        assert differences({"w": array}, stowax.load(path)) == []

    @pytest.mark.parametrize("name", list(shardings()))
    def test_every_sharding(self, tmp_path, name):
        """A tensor is one run of bytes, wherever its parts lie."""
        array = bits("float32", (8, 16))
        path = tmp_path / "m.safetensors"
        save(path, {"w": jax.device_put(array, shardings()[name])})

        assert differences({"w": array}, safetensors.numpy.load_file(path)) == []

    def test_a_model(self, tmp_path):
        """Keys, fields and positions make the names; what has no tensor has none."""
        state = model() | {"none": None, "nothing": {}}
        path = tmp_path / "m.safetensors"
        save(path, state)

        found = jax.tree.map(np.asarray, safetensors.flax.load_file(path))
        assert differences(named(state), found) == []
        assert differences(state, stowax.load(path, state)) == []

    def test_large_tensors_of_many_parts(self, tmp_path):
        """Pieces are cut across the parts on any axis."""
        array = np.arange(3 * MIB, dtype=np.float32).reshape(1, 1024, 3 * 1024)
        over = jax.make_mesh((2, 4), ("x", "y"))
        spec = jax.P(None, "x", "y")
        path = tmp_path / "m.safetensors"
        save(path, {"w": jax.device_put(array, jax.NamedSharding(over, spec))})

        assert (safetensors.numpy.load_file(path)["w"] == array).all()

    def test_another_dtype(self, tmp_path):
        """Arrays are converted on their way, as in any save."""
        array = jax.device_put(bits("float32", (8, 16)), shardings()["both"])
        path = tmp_path / "m.safetensors"
        with context(array=stored_as(jnp.bfloat16)):
            stowax.save(path, {"w": array})

        found = safetensors.flax.load_file(path)["w"]
        assert found.dtype == jnp.bfloat16
        expected = np.asarray(array).astype(jnp.bfloat16)
        assert differences({"w": expected}, {"w": np.asarray(found)}) == []

    def test_texts(self, tmp_path):
        """Custom metadata is what the format calls metadata."""
        path = tmp_path / "m.safetensors"
        save(path, model(), custom_metadata={"format": "pt", "größe": "重み"})

        with safetensors.safe_open(path, "numpy") as opened:
            assert opened.metadata() == {"format": "pt", "größe": "重み"}
        found = stowax.metadata(path).custom_metadata
        assert found == {"format": "pt", "größe": "重み"}

    def test_the_same_bytes_again(self, tmp_path):
        """What was loaded without a target is saved as the file that it came from."""
        one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
        save(one, model(), custom_metadata={"a": "b"})
        save(two, stowax.load(one), custom_metadata={"a": "b"})

        assert one.read_bytes() == two.read_bytes()

    def test_tensors_are_aligned(self, tmp_path):
        """Every tensor begins at a multiple of its elements, for those who map it."""
        path = tmp_path / "m.safetensors"
        save(
            path, {"a": np.zeros(3, np.int8), "b": np.zeros(3), "c": np.zeros(1, "i2")}
        )

        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        for name, itemsize in (("a", 1), ("b", 8), ("c", 2)):
            assert (begin + header[name]["data_offsets"][0]) % itemsize == 0

    def test_nothing(self, tmp_path):
        """A state without tensors is a file without tensors."""
        path = tmp_path / "m.safetensors"
        save(path, {})

        assert safetensors.numpy.load_file(path) == {}
        assert stowax.load(path) == {}


ARRAYS = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3).map(tuple)
).map(lambda form: bits(*form))
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="./"), max_size=4)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        ARRAYS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
        max_leaves=5,
    ),
    max_size=4,
)


@given(state=TREES, size_bytes=st.integers(1, 60))
@examples(50)
def test_any_tree_there_and_back(tmp_path_factory, state, size_bytes):
    """Whatever the tree and the files: each tensor is in one, as it was."""
    path = tmp_path_factory.mktemp("any") / "c"
    with in_files_of(size_bytes):
        try:
            stowax.save(path, state)
        except KeyPathCollisionError:
            return  # `{"": {"": x}}` and the like.

    expected = named(state)
    found = [
        entry
        for file in path.glob("*.safetensors")
        for entry in safetensors.deserialize(file.read_bytes())
    ]
    assert sorted(name for name, _ in found) == sorted(expected)
    for name, tensor in found:
        assert tensor["shape"] == list(expected[name].shape)
        assert bytes(tensor["data"]) == expected[name].tobytes()
    assert differences(state, stowax.load(path, state)) == []


class TestDirectories:
    """Any other path becomes a directory."""

    def test_one_file(self, tmp_path):
        """What fits into one file needs no index."""
        save(tmp_path / "c", model())

        assert [file.name for file in (tmp_path / "c").iterdir()] == [
            "model.safetensors"
        ]
        assert differences(model(), stowax.load(tmp_path / "c", model())) == []

    def test_several_files(self, tmp_path):
        """Files have the names that hubs know, and the index says what is where."""
        with in_files_of(600):
            stowax.save(tmp_path / "c", model(), custom_metadata={"format": "pt"})

        assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
        expected = named(model())
        index = tmp_path / "c" / "model.safetensors.index.json"
        size_bytes = sum(array.nbytes for array in expected.values())
        assert json.loads(index.read_text())["metadata"] == {"total_size": size_bytes}
        assert read(tmp_path / "c").keys() == expected.keys()
        assert differences(model(), stowax.load(tmp_path / "c", model())) == []
        assert stowax.metadata(tmp_path / "c").custom_metadata == {"format": "pt"}

    def test_size_of_files(self, tmp_path):
        """No file has more tensors than fit, but a tensor is never cut."""
        state = {f"{n}": np.full(100, n, np.uint8) for n in range(6)}
        state["3"] = np.zeros(500, np.uint8)
        with in_files_of(200):
            stowax.save(tmp_path / "c", state)

        found = [
            sorted(safetensors.numpy.load_file(file))
            for file in sorted((tmp_path / "c").glob("*.safetensors"))
        ]
        assert found == [["0", "1"], ["2"], ["3"], ["4", "5"]]

    def test_a_file_is_not_cut(self, tmp_path):
        """The size is of files in a directory."""
        with in_files_of(1):
            stowax.save(tmp_path / "m.safetensors", model())

        assert differences(named(model()), stowax.load(tmp_path / "m.safetensors")) == (
            []
        )


class TestRefused:
    """What would be lost is refused, by name, before anything is touched."""

    def test_what_is_no_tensor(self, tmp_path):
        """All such leaves at once."""
        state = {
            "w": np.ones(2),
            "n": 7,
            "s": "text",
            "b": b"bytes",
            "key": jax.random.key(0),
            "small": jnp.ones(2, jnp.int4),
            "__metadata__": np.ones(2),
        }
        with pytest.raises(UnsupportedLeafError) as caught:
            save(tmp_path / "m.safetensors", state)

        told = str(caught.value)
        for name in ("n", "s", "b", "key", "small", "__metadata__"):
            assert f"leaf '{name}'" in told
        assert "leaf 'w'" not in told
        assert "key_data" in told
        assert list(tmp_path.iterdir()) == []

    def test_types_of_the_program(self, tmp_path):
        """Nothing says what a stored form stood for."""

        class Handler:
            typestr = "pair"

            def accepts(self, value):
                return isinstance(value, complex)

            def describe(self, value):
                return None

            def stage(self, value):
                return np.array([value.real, value.imag])

            def accepts_target(self, target):
                return False

            def want(self, target, facts):
                return None

            def place(self, stored, facts, target):
                return stored

        trees = stowax.options.PyTreeOptions(leaf_handlers=(Handler(),))
        with (
            context(pytree=trees),
            pytest.raises(UnsupportedLeafError, match="leaf 'z': is a pair"),
        ):
            stowax.save(tmp_path / "m.safetensors", {"z": 1j})

    def test_two_leaves_of_one_name(self, tmp_path):
        """`a.b` is the name of two of them."""
        state = {"a": {"b": np.ones(1)}, "a.b": np.ones(1)}
        with pytest.raises(KeyPathCollisionError, match=r"'a\.b'"):
            save(tmp_path / "m.safetensors", state)

    def test_no_state(self, tmp_path):
        """None is none."""
        with pytest.raises(TreeError):
            save(tmp_path / "m.safetensors", None)

    def test_metadata_that_is_no_text(self, tmp_path):
        """The keys are named."""
        with pytest.raises(InvalidMetadataError, match=r"'n', 'd'.*json\.dumps"):
            save(
                tmp_path / "m.safetensors",
                model(),
                custom_metadata={"n": 1, "t": "x", "d": {}},
            )
        assert list(tmp_path.iterdir()) == []

    def test_metadata_that_no_file_can_hold(self, tmp_path):
        """Half of a surrogate pair, in a key or in a value."""
        for texts in ({"a": "\ud800"}, {"\ud800": "a"}):
            with pytest.raises(InvalidMetadataError, match="surrogate"):
                save(tmp_path / "m.safetensors", model(), custom_metadata=texts)

    def test_names_of_checkpointables(self, tmp_path):
        """There is one tree, and nowhere to keep its name."""
        for checkpointables in ({"model": {}}, {"state": {}, "more": {}}, {}, 5):
            with context(), pytest.raises(UnsupportedOptionError, match="one tree"):
                stowax.save_checkpointables(tmp_path / "c", checkpointables)
        assert list(tmp_path.iterdir()) == []

    def test_where_they_are_not_written(self, tmp_path):
        """Steps of a training run, and handlers alone, are of another kind."""
        match = "Context.checkpoint_layout is SAFETENSORS"
        with context() as options:
            checkpointer = stowax.training.Checkpointer(
                tmp_path / "run", context=options
            )
            with pytest.raises(UnsupportedOptionError, match=match):
                checkpointer.save(1, {"w": np.ones(2)})
            checkpointer.close()
            handler = stowax.handlers.PyTreeHandler()
            with pytest.raises(UnsupportedOptionError, match=match):
                asyncio.run(handler.save(tmp_path / "item", {"w": np.ones(2)}))

    def test_permissions_of_a_file(self, tmp_path):
        """The option is about directories."""
        file = stowax.options.FileOptions(path_permission_mode=0o700)
        with context(file=file):
            with pytest.raises(UnsupportedOptionError, match="will be a file"):
                stowax.save(tmp_path / "m.safetensors", model())
            stowax.save(tmp_path / "c", model())
        assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700

    def test_other_options(self, tmp_path):
        """What any save refuses is refused here, too."""
        atomicity = stowax.options.AtomicityOptions(mode="commit_file")
        with (
            context(atomicity=atomicity),
            pytest.raises(UnsupportedOptionError, match=r"atomicity\.mode"),
        ):
            stowax.save(tmp_path / "c", model())

    def test_a_header_that_no_reader_takes(self, tmp_path, monkeypatch):
        """A directory of several files is the way out."""
        limit = "stowax._codecs._safetensors.HEADER_LIMIT_BYTES"
        monkeypatch.setattr(limit, 200)
        with pytest.raises(TreeError, match="max_file_bytes"):
            save(tmp_path / "m.safetensors", model())
        with in_files_of(1):
            stowax.save(tmp_path / "c", model())
        assert read(tmp_path / "c").keys() == named(model()).keys()


class TestInPlaceOfAnother:
    """What is at the path stays until the new one takes its place."""

    @pytest.mark.parametrize("name", ["m.safetensors", "c"])
    def test_only_if_asked_for(self, tmp_path, name):
        """And then the new one is all there is."""
        path = tmp_path / name
        with in_files_of(500):
            stowax.save(path, model())
        with pytest.raises(CheckpointExistsError, match="overwrite=True"):
            save(path, {"v": np.ones(3)})
        assert differences(model(), stowax.load(path, model())) == []

        save(path, {"v": np.ones(3)}, overwrite=True)

        assert list(stowax.load(path)) == ["v"]
        assert [child.name for child in tmp_path.iterdir()] == [name]

    def test_one_kind_in_place_of_the_other(self, tmp_path):
        """A tree in place of a file, and a file in place of a tree."""
        path = tmp_path / "m.safetensors"
        save(path, {"w": np.ones(3)})
        stowax.save(path, {"n": 1}, overwrite=True)
        assert stowax.load(path) == {"n": 1}
        save(path, {"w": np.ones(2)}, overwrite=True)
        assert stowax.load(path)["w"].tolist() == [1, 1]

    def test_never_other_models(self, tmp_path):
        """A directory of several models, or of such directories, is no checkpoint."""
        for name in ("a.safetensors", "b.safetensors"):
            save(tmp_path / "files" / name, {"w": np.ones(2)})
            with in_files_of(1):
                stowax.save(tmp_path / "one", {"w": np.ones(2)}, overwrite=True)
            (tmp_path / "one").rename(tmp_path / f"one-{name}")
        (tmp_path / "directories").mkdir()
        for name in ("a.safetensors", "b.safetensors"):
            (tmp_path / f"one-{name}").rename(tmp_path / "directories" / name)

        with in_files_of(1):
            stowax.save(tmp_path / "single" / "a.safetensors.d", {"w": np.ones(2)})
        (tmp_path / "single" / "a.safetensors.d").rename(
            tmp_path / "single" / "a.safetensors"
        )
        assert (tmp_path / "single" / "a.safetensors").is_dir()
        with pytest.raises(CheckpointExistsError, match="not replaced"):
            save(tmp_path / "single", {"w": np.ones(2)}, overwrite=True)

        for name in ("files", "directories"):
            with pytest.raises(CheckpointExistsError, match="not replaced"):
                save(tmp_path / name, {"w": np.ones(2)}, overwrite=True)
            with pytest.raises(InvalidLayoutError):
                stowax.delete(tmp_path / name)
            assert len(list((tmp_path / name).iterdir())) == 2
        with pytest.raises(InvalidLayoutError, match="no checkpoint"):
            stowax.load(tmp_path / "directories")

    def test_never_other_files(self, tmp_path):
        """A directory with more in it than tensors is not replaced."""
        save(tmp_path / "c", model())
        (tmp_path / "c" / "config.json").write_text("{}")

        with pytest.raises(CheckpointExistsError, match="not replaced"):
            save(tmp_path / "c", {"w": np.ones(2)}, overwrite=True)
        assert differences(model(), stowax.load(tmp_path / "c", model())) == []

    @pytest.mark.parametrize("name", ["m.safetensors", "c"])
    def test_a_save_that_fails(self, tmp_path, name):
        """It leaves what was there, and nothing of its own."""
        path = tmp_path / name
        save(path, model())

        class FullStore(LocalStore):
            async def write(self, path, pieces, *, size_bytes=None):
                async def some():
                    async for piece in pieces:
                        yield piece
                        raise OSError(28, "No space left on device", path)

                await super().write(path, some(), size_bytes=size_bytes)

        file = stowax.options.FileOptions(store=FullStore())
        with context(file=file), pytest.raises(OSError, match="No space left"):
            stowax.save(path, {"w": np.ones(MIB)}, overwrite=True)

        assert differences(model(), stowax.load(path, model())) == []
        assert [child.name for child in tmp_path.iterdir()] == [name]


class TestDurability:
    """All or nothing, also when the power is cut."""

    @pytest.mark.parametrize("name", ["m.safetensors", "c"])
    def test_synced_before_it_is_published(self, name):
        """A power cut after the save takes nothing of it."""
        memory = MemoryStore()
        recording = RecordingStore(memory)
        file = stowax.options.FileOptions(store=recording)
        with context(
            file=file,
            safetensors=stowax.options.SafetensorsOptions(max_file_bytes=600),
        ):
            stowax.save(f"/models/{name}", model())

        assert durability_faults(recording.calls) == []
        left = stowax.options.FileOptions(store=memory.durable_view())
        with stowax.Context(file=left):
            assert differences(model(), stowax.load(f"/models/{name}", model())) == []

    def test_a_file_is_written_once(self, tmp_path):
        """One write, one sync of it, one rename: nothing is copied."""
        recording = RecordingStore(LocalStore())
        file = stowax.options.FileOptions(store=recording)
        with context(file=file):
            stowax.save(tmp_path / "m.safetensors", model())

        counts = {}
        for call in recording.calls:
            counts[call.operation] = counts.get(call.operation, 0) + 1
        assert counts["write"] == counts["publish"] == 1
        assert counts["sync"] == 2  # The file, and the name of it.
        assert "make_directory" not in counts


class TestInTheBackground:
    """`save_async` returns when the values are safe."""

    def test_values_may_change(self, tmp_path):
        """Host arrays are copied, unless the caller leaves them alone."""
        array = np.zeros(3)
        with context():
            response = stowax.save_async(tmp_path / "m.safetensors", {"w": array})
            array[:] = 1
            response.result()

        found = stowax.load(tmp_path / "m.safetensors")["w"]
        assert found.tolist() == [0, 0, 0]

    def test_told_when_it_is_there(self, tmp_path):
        """The callback finds the checkpoint."""
        path, found = tmp_path / "m.safetensors", []
        after = stowax.options.AsyncOptions(
            post_finalization_callback=lambda: found.append(stowax.load(path))
        )
        with context(asynchronous=after):
            stowax.save_async(path, {"w": np.ones(2)}).result()

        assert found[0]["w"].tolist() == [1, 1]

    def test_one_save_to_a_path_at_a_time(self, tmp_path):
        """A second one is refused while the first is under way."""
        store = GatedStore()
        file = stowax.options.FileOptions(store=store)
        with context(file=file):
            response = stowax.save_async("/m.safetensors", {"w": np.ones(2)})
            with pytest.raises(stowax.errors.SaveInProgressError):
                stowax.save("/m.safetensors", {"w": np.ones(2)})
            store.gate.set()
            response.result()

    def test_too_late(self, tmp_path):
        """A save that takes too long ends with nothing, and says where it was."""
        store = GatedStore()
        file = stowax.options.FileOptions(store=store)
        in_time = stowax.options.AsyncOptions(timeout_secs=0.2)
        with context(file=file, asynchronous=in_time), pytest.raises(DeadlineError):
            stowax.save("/m.safetensors", {"w": np.ones(2)})

        assert asyncio.run(store.list("/")) == ()

    def test_an_earlier_failure(self, runtime):
        """Who did not ask for the result of a save hears of it in the next."""
        store = GatedStore(failure=OSError(28, "No space left on device"))
        file = stowax.options.FileOptions(store=store)
        with context(file=file, runtime=runtime):
            stowax.save_async("/a.safetensors", {"w": np.ones(2)})
            store.gate.set()
            runtime.finish()
            with pytest.raises(BackgroundSaveError, match="No space left"):
                stowax.save("/b.safetensors", {"w": np.ones(2)})

    def test_interrupted_before_it_is_written(self, runtime, monkeypatch):
        """Nothing stays taken of the memory for it, and no draft."""
        file = stowax.options.FileOptions(store=MemoryStore())

        submit, begun = Operation.submit, []

        def interrupted(self, coroutine):
            begun.append(coroutine)
            if len(begun) == 1:  # What is lent; nothing.
                return submit(self, coroutine)
            coroutine.close()
            raise KeyboardInterrupt

        monkeypatch.setattr(Operation, "submit", interrupted)
        with context(file=file, runtime=runtime), pytest.raises(KeyboardInterrupt):
            stowax.save_async("/m.safetensors", {"w": np.ones(2)})

        assert runtime.staging_budget.peak_bytes > 0
        assert runtime.staging_budget.taken_bytes == 0
        assert asyncio.run(file.store.list("/")) == ()

    def test_interrupted(self, runtime, monkeypatch):
        """Who is interrupted while it stages leaves nothing."""
        file = stowax.options.FileOptions(store=MemoryStore())
        memory = stowax.options.MemoryOptions(write_concurrent_bytes=KIB)
        state = {f"{n}": np.zeros(KIB, np.uint8) for n in range(4)}
        staged = []

        def to_host(arrays, *, pin):
            staged.append(arrays)
            if len(staged) == 3:
                raise KeyboardInterrupt
            return arrays

        monkeypatch.setattr("stowax._tree_values.to_host", to_host)
        with (
            context(file=file, memory=memory, runtime=runtime),
            pytest.raises(KeyboardInterrupt),
        ):
            stowax.save_async("/m.safetensors", state)

        assert asyncio.run(file.store.list("/")) == ()
        assert runtime.staging_budget.taken_bytes == 0


class GatedStore(MemoryStore):
    """Begins to write, or fails to, when the gate is open."""

    def __init__(self, failure=None):
        super().__init__()
        self.gate = threading.Event()
        self.failure = failure

    async def write(self, path, pieces, *, size_bytes=None):
        await wait_for(self.gate)
        if self.failure is not None:
            raise self.failure
        await super().write(path, pieces, size_bytes=size_bytes)


async def wait_for(event):
    """Waits for an event of threads, and stops when it is cancelled."""
    loop, opened = asyncio.get_running_loop(), asyncio.Event()

    def wait():
        event.wait(20)
        loop.call_soon_threadsafe(opened.set)

    threading.Thread(target=wait, daemon=True).start()
    await opened.wait()


@pytest.fixture
def runtime():
    """A runtime of this test's own."""
    runtime = Runtime(worker_count=4)
    yield runtime
    runtime.close()


class TestMemory:
    """A model is never in host memory as a whole, unless there is room for it."""

    @pytest.mark.parametrize("name", ["m.safetensors", "c"])
    def test_within_the_budget(self, runtime, name):
        """Of a single file, too, one tensor is written while another is staged."""
        state = {f"{n}": np.full(64 * KIB, n, np.uint8) for n in range(20)}
        memory = stowax.options.MemoryOptions(write_concurrent_bytes=128 * KIB)
        store = MemoryStore()
        file = stowax.options.FileOptions(store=store)
        sizes = stowax.options.SafetensorsOptions(max_file_bytes=256 * KIB)
        with context(runtime=runtime, memory=memory, file=file, safetensors=sizes):
            stowax.save_async(f"/models/{name}", state).result()
            loaded = stowax.load(f"/models/{name}")

        assert differences(state, loaded) == []
        assert 64 * KIB <= runtime.staging_budget.peak_bytes <= 128 * KIB
        assert runtime.staging_budget.taken_bytes == 0

    def test_several_saves_share_it(self, runtime):
        """Saves that wait for each other's memory all come to their end."""
        memory = stowax.options.MemoryOptions(write_concurrent_bytes=64 * KIB)
        file = stowax.options.FileOptions(store=MemoryStore())
        state = {f"{n}": np.full(32 * KIB, n, np.uint8) for n in range(10)}

        def save_one(number, layout):
            with stowax.Context(
                runtime=runtime, memory=memory, file=file, checkpoint_layout=layout
            ):
                stowax.save_async(f"/{number}", state).result()

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            layouts = ["safetensors", "orbax"] * 3
            list(pool.map(save_one, range(6), layouts))

        assert runtime.staging_budget.peak_bytes <= 64 * KIB

    def test_nothing_where_arrays_are_borrowed(self, runtime, tmp_path):
        """Who waits lends its arrays."""
        with context(runtime=runtime):
            stowax.save(tmp_path / "m.safetensors", {"w": np.ones(MIB)})

        assert runtime.staging_budget.peak_bytes == 0


def test_events(tmp_path):
    """Bytes and leaves are told as in any save."""
    heard = []
    state = {"a": np.zeros(MIB, np.uint8), "b": np.zeros(10, np.uint8)}
    state["empty"] = np.zeros((0, 3))
    with stowax.events.subscribe(heard.append, leaves=True), context():
        stowax.save(tmp_path / "m.safetensors", state)

    kinds = [event.kind for event in heard]
    assert (kinds[0], kinds[-1]) == ("started", "published")
    assert heard[-1].done_bytes == heard[-1].total_bytes == MIB + 10
    assert heard[-1].file_bytes == (tmp_path / "m.safetensors").stat().st_size
    leaves = {e.leaf: e.done_bytes for e in heard if e.kind == "leaf"}
    assert leaves == {"a": MIB, "b": 10}


def test_what_loses_range_is_told(tmp_path):
    """One warning lists the leaves."""
    told = pytest.warns(UserWarning, match="w: float64 to int8")
    with context(array=stored_as(np.int8)), told:
        stowax.save(tmp_path / "m.safetensors", {"w": np.ones(3)})
