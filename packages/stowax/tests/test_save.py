"""What `save` and its siblings promise: everything comes back, or nothing is left."""

import asyncio
import gc
import os
import threading

import jax
import numpy as np
import optax
import pytest
from sample_trees import (
    Layer,
    Nothing,
    Point,
    abstract,
    all_kinds,
    bits,
    differences,
    plain,
    shardings,
)

import stowax
from stowax import _deadline
from stowax.errors import (
    BackgroundSaveError,
    CheckpointExistsError,
    DeletedArrayError,
    HandlerError,
    InvalidNameError,
    KeyPathCollisionError,
    StowaxError,
    TreeError,
    UnsupportedLeafError,
)
from stowax.options import AsyncOptions, MemoryOptions

FAMILIES = [
    *("jax", "sharded", "keys", "numpy", "scalars", "strings", "bytes", "containers"),
]


def snapshot(directory):
    """Every file below a directory with its content, every directory as None."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def _type(value):
    """Names a case; its repr may hold an address, which differs between workers."""
    return type(value).__name__


class TestRoundTrip:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_a_target(self, place, family):
        """Everything comes back bit for bit, where it was, in plain containers."""
        state = all_kinds()[family]

        stowax.save(place / "checkpoint", state)
        loaded = stowax.load(place / "checkpoint")

        # Arrays that were on one device come back uncommitted, to any device.
        is_spread = family == "sharded"
        assert differences(plain(state), loaded, placement=is_spread) == []

    @pytest.mark.parametrize("family", FAMILIES)
    def test_with_an_abstract_state(self, place, family):
        """The result has the containers of the abstract state, and its placement."""
        state = all_kinds()[family]

        stowax.save(place / "checkpoint", state)
        loaded = stowax.load(place / "checkpoint", abstract(state))

        assert differences(state, loaded, placement=True) == []

    @pytest.mark.parametrize("family", FAMILIES)
    def test_with_the_state_itself(self, place, family):
        """A concrete state can serve as the abstract one."""
        state = all_kinds()[family]

        stowax.save(place / "checkpoint", state)
        loaded = stowax.load(place / "checkpoint", state)

        assert differences(state, loaded, placement=True) == []

    @pytest.mark.parametrize("family", FAMILIES)
    def test_with_metadata(self, place, family):
        """What `metadata` returns can be given to `load`."""
        state = all_kinds()[family]

        stowax.save(place / "checkpoint", state)
        described = stowax.metadata(place / "checkpoint")

        for target in (described, described.metadata):
            loaded = stowax.load(place / "checkpoint", target)
            assert differences(plain(state), loaded) == []

    @pytest.mark.parametrize(
        "state",
        [
            *({}, [], (), {"a": {}}, [[], {}], Nothing()),
            *(7, 2.5, "text", True, 1 + 2j, 2**70, b"bytes"),
        ],
        ids=repr,
    )
    def test_small_roots(self, place, state):
        """An empty container and a single value are states, too."""
        stowax.save(place / "checkpoint", state)

        assert differences(plain(state), stowax.load(place / "checkpoint")) == []
        loaded = stowax.load(place / "checkpoint", state)
        assert differences(state, loaded) == []

    @pytest.mark.parametrize("kind", ["jax", "numpy", "key"])
    def test_single_array(self, place, kind):
        """An array alone is a state."""
        state = {
            "jax": jax.device_put(bits("float32", (3, 5))),
            "numpy": bits("int64", (3, 5)),
            "key": jax.random.key(1),
        }[kind]

        stowax.save(place / "checkpoint", state)

        assert differences(state, stowax.load(place / "checkpoint")) == []
        assert differences(state, stowax.load(place / "checkpoint", state)) == []

    def test_64_bit_arrays(self, place):
        """In JAX's 64-bit mode, its 64-bit dtypes come back."""
        with jax.enable_x64(True):
            names = ("int64", "uint64", "float64", "complex128")
            state = {n: jax.device_put(bits(n, (4,))) for n in names}

            stowax.save(place / "checkpoint", state)
            loaded = stowax.load(place / "checkpoint")

            assert differences(state, loaded) == []

    def test_big_endian_arrays(self, place):
        """An array of the other byte order keeps its values; one may ask for it."""
        array = np.arange(6, dtype=">f8").reshape(2, 3)

        stowax.save(place / "checkpoint", {"a": array})

        loaded = stowax.load(place / "checkpoint")["a"]
        assert loaded.dtype == np.dtype("<f8")
        assert loaded.tolist() == array.tolist()
        asked = stowax.load(place / "checkpoint", {"a": np.empty((2, 3), ">f8")})["a"]
        assert asked.dtype == np.dtype(">f8")
        assert asked.tobytes() == array.tobytes()

    def test_optimizer_state(self, place):
        """An Optax state comes back in its own containers, empty ones included."""
        params = {"w": jax.device_put(bits("float32", (3, 2))), "b": np.zeros(2)}
        optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3), optax.identity())
        state = optimizer.init(params)

        stowax.save(place / "checkpoint", {"opt": state})

        loaded = stowax.load(place / "checkpoint", {"opt": state})["opt"]
        assert differences(state, loaded) == []
        assert jax.tree.structure(loaded) == jax.tree.structure(state)

    def test_chunks_of_a_large_array(self, place, monkeypatch):
        """An array above the limits is cut into chunks and files, and put together."""
        from stowax._plan import _chunk_shape, _write

        monkeypatch.setattr(_chunk_shape, "CHUNK_LIMIT_BYTES", 4096)
        monkeypatch.setattr(_write, "FILE_LIMIT_BYTES", 16384)
        state = {
            "whole": jax.device_put(bits("float32", (67, 129))),
            "host": bits("float64", (129, 7, 11)),
            "spread": jax.device_put(
                bits("float32", (8, 16, 64)),
                shardings()["both"],
            ),
        }

        stowax.save(place / "checkpoint", state)

        shapes = stowax.metadata(place / "checkpoint").metadata
        assert shapes["whole"].storage_metadata.chunk_shape[0] < 67
        assert differences(state, stowax.load(place / "checkpoint")) == []


class TestArguments:
    def test_names(self, place):
        """Several checkpointables are saved and found by their names."""
        parts = {"model": {"w": np.ones(2)}, "step": 3, "größe": "text"}

        stowax.save_checkpointables(place / "checkpoint", parts)

        loaded = stowax.load_checkpointables(place / "checkpoint")
        assert differences(parts, loaded) == []
        named = stowax.load(place / "checkpoint", checkpointable_name="step")
        assert named == 3

    def test_name_of_the_state(self, place):
        """`save` takes a name for its only checkpointable, `load` finds it anyway."""
        stowax.save(place / "checkpoint", {"a": 1}, checkpointable_name="params")

        assert stowax.load(place / "checkpoint") == {"a": 1}
        assert list(stowax.load_checkpointables(place / "checkpoint")) == ["params"]

    def test_no_checkpointables(self, place):
        """A checkpoint of nothing is one."""
        stowax.save_checkpointables(place / "checkpoint", {})

        assert stowax.load_checkpointables(place / "checkpoint") == {}

    def test_custom_metadata(self, place):
        """JSON values are kept with the checkpoint."""
        custom = {"lr": 0.1, "tags": ["a", "ü"], "deep": {"none": None}}

        stowax.save(place / "checkpoint", {"a": 1}, custom_metadata=custom)

        assert stowax.metadata(place / "checkpoint").custom_metadata == custom

    @pytest.mark.parametrize("custom", [3, ["a"], {1: 2}, {"a": object()}], ids=_type)
    def test_bad_custom_metadata(self, tmp_path, custom):
        """Metadata that is no JSON object is refused before anything is written."""
        with pytest.raises(TypeError):
            stowax.save(tmp_path / "checkpoint", {"a": 1}, custom_metadata=custom)

        assert snapshot(tmp_path) == {}

    def test_overwrite(self, place):
        """With `overwrite=True` the new checkpoint takes the place of the old one."""
        stowax.save(place / "checkpoint", {"a": 1, "b": 2})

        stowax.save(place / "checkpoint", {"a": 3}, overwrite=True)

        assert stowax.load(place / "checkpoint") == {"a": 3}

    def test_parents_are_made(self, place):
        """Missing directories above the path are made."""
        stowax.save(place / "some/where/below", {"a": 1})

        assert stowax.load(place / "some/where/below") == {"a": 1}

    def test_relative_path(self, tmp_path, monkeypatch):
        """A relative path is one below the working directory at the time."""
        monkeypatch.chdir(tmp_path)

        stowax.save("checkpoint", {"a": 1})

        assert stowax.load(tmp_path / "checkpoint") == {"a": 1}

    def test_nothing_else_is_left(self, tmp_path):
        """After a save there is the checkpoint, and nothing beside it."""
        stowax.save(tmp_path / "checkpoint", {"a": 1})
        stowax.save(tmp_path / "checkpoint", {"a": 2}, overwrite=True)

        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


class TestRefusals:
    @pytest.mark.parametrize("save", [stowax.save, stowax.save_async])
    def test_existing_path(self, tmp_path, save):
        """What is at the path stays, whatever it is; the error names the way out."""
        stowax.save(tmp_path / "checkpoint", {"a": 1})
        (tmp_path / "file").write_text("mine")
        (tmp_path / "empty").mkdir()
        before = snapshot(tmp_path)

        for name in ("checkpoint", "file", "empty"):
            with pytest.raises(CheckpointExistsError, match="overwrite=True") as caught:
                save(tmp_path / name, {"a": 2})
            assert isinstance(caught.value, ValueError)
            assert isinstance(caught.value, FileExistsError)
            assert str(tmp_path / name) in str(caught.value)

        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("leaf", [len, object(), {1, 2}, bytearray(3)], ids=_type)
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_unsupported_leaf(self, tmp_path, leaf, overwrite):
        """A leaf that no checkpoint can hold is named, and nothing is written."""
        stowax.save(tmp_path / "old", {"a": 1})
        before = snapshot(tmp_path)
        state = {"fine": 1, "layers": [{"bad": leaf}]}

        with pytest.raises(UnsupportedLeafError, match=r"layers\.0\.bad") as caught:
            stowax.save(
                tmp_path / ("old" if overwrite else "new"), state, overwrite=overwrite
            )

        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, TypeError)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        ("state", "names"),
        [
            ({"a.b": 1, "a": {"b": 2}}, ["'a.b'"]),
            ({1: 1, "1": 2}, ["'1'"]),
            ({"": 1, "/": 2}, ["['']", "['/']"]),
            ({"x": "s", "x/y": "t"}, ["'x'", "'x/y'"]),
            ({"a": {}, "b": {"c.d": {}, "c": {"d": ()}}}, ["'b.c.d'"]),
        ],
    )
    def test_colliding_names(self, tmp_path, state, names):
        """Two leaves that would get one name are both named, and nothing is written."""
        with pytest.raises(KeyPathCollisionError) as caught:
            stowax.save(tmp_path / "checkpoint", state)

        assert isinstance(caught.value, ValueError)
        assert all(name in str(caught.value) for name in names)
        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize(
        "name",
        [
            *("", ".", "..", "a/b", "a\\b", "a\0b", "metrics", "AUTO", "stowax.json"),
            *("orbax.checkpoint", "_CHECKPOINT_METADATA", "x.orbax-checkpoint-tmp-1"),
            *("commit_success.txt", 3, None, "n" * 256, "é" * 128, "\ud800"),
        ],
        ids=lambda name: repr(name)[:40],
    )
    def test_bad_names(self, tmp_path, name):
        """Names that would clash with files or leave the directory are refused."""
        with pytest.raises(InvalidNameError, match="checkpointable name") as caught:
            stowax.save_checkpointables(tmp_path / "checkpoint", {name: 1})

        assert isinstance(caught.value, ValueError)
        assert repr(name) in str(caught.value)
        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize("name", [["a"], 3, None, b"state"], ids=repr)
    def test_name_of_the_wrong_type(self, tmp_path, name):
        """A name that is no string is refused, even one that no dict could have."""
        for save in (stowax.save, stowax.save_async):
            with pytest.raises(InvalidNameError, match="is no string"):
                save(tmp_path / "checkpoint", {"a": 1}, checkpointable_name=name)

        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize("given", [None, [], 3, "x"], ids=repr)
    def test_checkpointables_that_are_no_dict(self, tmp_path, given):
        """What names no checkpointables is refused, before anything is written."""
        for save in (stowax.save_checkpointables, stowax.save_checkpointables_async):
            with pytest.raises(InvalidNameError, match=r"`checkpointables` is .* dict"):
                save(tmp_path / "checkpoint", given)

        assert snapshot(tmp_path) == {}

    def test_longest_name(self, place):
        """A name may be as long as a file system allows."""
        stowax.save_checkpointables(place / "checkpoint", {"n" * 255: {"a": 1}})

        assert stowax.load(place / "checkpoint") == {"a": 1}

    def test_module_is_no_checkpointable(self, tmp_path):
        """A module with functions `save` and `load` is no object that saves itself."""
        with pytest.raises(UnsupportedLeafError, match="module"):
            stowax.save(tmp_path / "checkpoint", np)

    @pytest.mark.parametrize("path", ["", "a\0b", "x.orbax-checkpoint-tmp-1"])
    def test_bad_paths(self, tmp_path, monkeypatch, path):
        """A path that no checkpoint can have is refused."""
        monkeypatch.chdir(tmp_path)

        with pytest.raises(InvalidNameError):
            stowax.save(path, {"a": 1})

        assert snapshot(tmp_path) == {}

    def test_none_as_state(self, tmp_path):
        """None as a whole state is refused; inside a tree it is fine."""
        with pytest.raises((TreeError, HandlerError)) as caught:
            stowax.save(tmp_path / "checkpoint", None)

        assert isinstance(caught.value, ValueError)
        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize(
        "leaf",
        ["\ud800", np.array([object()]), np.array(["text"])],
        ids=_type,
    )
    def test_value_out_of_bounds(self, tmp_path, leaf):
        """A value of a known kind that has no form on disk is refused by its name."""
        with pytest.raises(UnsupportedLeafError) as caught:
            stowax.save(tmp_path / "checkpoint", {"deep": [leaf]})

        assert "deep.0" in "".join((str(caught.value), *caught.value.__notes__))
        assert snapshot(tmp_path) == {}

    def test_tracer(self, tmp_path):
        """A tracer has no value to save; the error says so by the leaf's name."""

        @jax.jit
        def save(x):
            stowax.save(tmp_path / "checkpoint", {"x": x})

        with pytest.raises(UnsupportedLeafError, match="'x'"):
            save(1.0)

        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize("others", [{}, {"f": print}])
    def test_deleted_array(self, tmp_path, others):
        """An array that was deleted or donated cannot be saved, and nothing is left."""
        array = jax.device_put(np.ones(3))
        array.delete()

        with pytest.raises(DeletedArrayError, match=r"'x'.*deleted or donated"):
            stowax.save(tmp_path / "checkpoint", {"x": array, **others})

        assert snapshot(tmp_path) == {}

    def test_parent_is_a_file(self, tmp_path, caplog):
        """A path below a file cannot be saved to; the file stays."""
        (tmp_path / "file").write_text("mine")

        with pytest.raises(OSError, match="file"):
            stowax.save(tmp_path / "file/checkpoint", {"a": 1})

        assert caplog.records == []  # There is no draft that could not be removed.
        assert (tmp_path / "file").read_text() == "mine"


class TestAsync:
    def test_values_may_change_at_once(self, place):
        """What is saved are the values at the time of the call."""
        host = np.arange(1000.0)
        device = jax.device_put(np.arange(1000, dtype=np.float32))
        tree = {"host": host, "device": device, "list": [1, 2]}

        response = stowax.save_async(place / "checkpoint", tree)
        host[:] = -1
        device.delete()
        tree["list"].append(3)
        tree.clear()
        response.result()

        loaded = stowax.load(place / "checkpoint")
        assert loaded["host"].tolist() == list(range(1000))
        assert np.asarray(loaded["device"]).tolist() == list(range(1000))
        assert loaded["list"] == [1, 2]

    def test_arrays_may_be_donated_at_once(self, place):
        """A donated buffer is not overwritten under the save."""
        step = jax.jit(lambda x: x + 1, donate_argnums=0)
        array = jax.device_put(np.zeros(4096, np.float32))
        array = step(array)  # Compiled.
        responses = []
        for number in range(4):
            path = place / f"checkpoint_{number}"
            responses.append(stowax.save_async(path, {"x": array}))
            array = step(array)

        for number, response in enumerate(responses):
            response.result()
            loaded = stowax.load(place / f"checkpoint_{number}")["x"]
            assert np.asarray(loaded).tolist() == [number + 1.0] * 4096

    def test_memory_is_given_back(self, place):
        """When the save is over, nothing of ours holds the caller's arrays."""
        import weakref

        array = np.arange(10.0)
        watched = weakref.ref(array)

        response = stowax.save_async(place / "checkpoint", {"x": array})
        response.result()
        del array
        gc.collect()

        assert watched() is None

    def test_borrowed_arrays(self, place):
        """A user who promises not to change host arrays saves the copy."""
        array = np.arange(10.0)
        memory = MemoryOptions(deepcopy_host_arrays=False)

        with place.context(memory=memory):
            stowax.save_async(place / "checkpoint", {"x": array}).result()

        assert stowax.load(place / "checkpoint")["x"].tolist() == array.tolist()

    def test_nothing_is_visible_before_the_end(self, place):
        """Once `result` returns, the checkpoint is there; `save_async` gives None."""
        response = stowax.save_async(place / "checkpoint", {"x": 1})

        assert response.result() is None
        assert stowax.load(place / "checkpoint") == {"x": 1}

    def test_several_at_once(self, place):
        """Saves to different paths may overlap."""
        responses = [
            stowax.save_async(place / f"checkpoint_{i}", {"x": np.full(100, i)})
            for i in range(8)
        ]

        for number, response in enumerate(responses):
            response.result()
            loaded = stowax.load(place / f"checkpoint_{number}")["x"]
            assert loaded.tolist() == [number] * 100

    def test_two_to_one_path(self, place):
        """Of two saves to one path that overlap one wins, and the other says so."""
        saves = [
            lambda i=i: stowax.save_async(
                place / "checkpoint", {"x": np.full(10, i)}
            ).result()
            for i in range(2)
        ]
        outcomes = [None, None]

        def run(i):
            try:
                with place.context():
                    saves[i]()
            except CheckpointExistsError as error:
                outcomes[i] = error

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        winners = [i for i in range(2) if outcomes[i] is None]
        assert len(winners) == 1
        loaded = stowax.load(place / "checkpoint")["x"]
        assert loaded.tolist() == [winners[0]] * 10

    def test_failure_is_raised_by_result(self, place):
        """What goes wrong in the background is raised by `result`."""

        class Failing:
            async def save(self, directory):
                async def write():
                    raise OSError("the bucket is gone")

                return write()

            async def load(self, directory):
                raise NotImplementedError

        response = stowax.save_checkpointables_async(
            place / "checkpoint", {"x": Failing()}
        )

        with pytest.raises(OSError, match="the bucket is gone") as caught:
            response.result()
        assert place / "checkpoint" in "".join(caught.value.__notes__)

    def test_failure_is_raised_by_the_next_save(self, tmp_path):
        """A failure that nobody asked for stops the next save before it begins."""
        failed = threading.Event()

        class Failing:
            async def save(self, directory):
                async def write():
                    failed.set()
                    raise OSError("no space")

                return write()

            async def load(self, directory):
                raise NotImplementedError

        stowax.save_checkpointables_async(tmp_path / "first", {"x": Failing()})
        assert failed.wait(10)
        stowax._runtime.default_runtime().finish()

        with pytest.raises(BackgroundSaveError, match="no space") as caught:
            stowax.save(tmp_path / "second", {"x": 1})

        assert isinstance(caught.value.__cause__, OSError)
        assert snapshot(tmp_path) == {}
        stowax.save(tmp_path / "second", {"x": 1})

    def test_inside_a_running_loop(self, place):
        """In a notebook, whose cells run inside a loop, everything works."""

        async def cell():
            stowax.save(place / "a", {"x": 1})
            response = stowax.save_async(place / "b", {"x": 2})
            response.result()
            stowax.metadata(place / "a")
            return stowax.load(place / "a"), stowax.load_async(place / "b").result()

        assert asyncio.run(cell()) == ({"x": 1}, {"x": 2})

    def test_callback_after_publishing(self, place):
        """The callback runs once the checkpoint can be loaded."""
        seen = []

        def note():
            seen.append(os.path.exists(place / "checkpoint") or place.store)

        options = AsyncOptions(post_finalization_callback=note)
        with place.context(asynchronous=options):
            stowax.save_async(place / "checkpoint", {"x": 1}).result()

        assert len(seen) == 1
        assert seen[0]

    def test_callback_may_load(self, place):
        """The callback may block, and load what was saved."""
        seen = []

        def look():
            seen.append(stowax.load(place / "checkpoint"))

        options = AsyncOptions(post_finalization_callback=look, timeout_secs=5)
        with place.context(asynchronous=options):
            stowax.save_async(place / "checkpoint", {"x": 1}).result()

        assert seen == [{"x": 1}]

    def test_callback_that_fails(self, place, caplog):
        """What the callback raises is logged; the save has succeeded."""

        def fail():
            raise ArithmeticError("the pager is off")

        options = AsyncOptions(post_finalization_callback=fail)
        with place.context(asynchronous=options):
            stowax.save(place / "checkpoint", {"x": 1})

        assert stowax.load(place / "checkpoint") == {"x": 1}
        assert "the pager is off" in caplog.text

    def test_custom_metadata_may_change_at_once(self, place):
        """Metadata is copied before the call returns, at every depth."""
        custom = {"tags": ["a"]}
        gate = threading.Event()

        class Waiting:
            async def save(self, directory):
                async def write():
                    gate.wait()

                return write()

            async def load(self, directory):
                raise NotImplementedError

        response = stowax.save_checkpointables_async(
            place / "checkpoint",
            {"x": Waiting(), "state": {"a": 1}},
            custom_metadata=custom,
        )
        custom["tags"].append("b")
        custom["more"] = 1
        gate.set()
        response.result()

        found = stowax.metadata(place / "checkpoint").custom_metadata
        assert found == {"tags": ["a"]}

    def test_deadline(self, tmp_path, monkeypatch):
        """A save that takes too long ends in our error, and leaves nothing."""
        monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)
        release = threading.Event()

        class Slow:
            async def save(self, directory):
                async def write():
                    await asyncio.get_running_loop().run_in_executor(None, release.wait)

                return write()

            async def load(self, directory):
                raise NotImplementedError

        with stowax.Context(asynchronous=AsyncOptions(timeout_secs=1)):
            response = stowax.save_checkpointables_async(
                tmp_path / "checkpoint", {"x": Slow()}
            )
        with pytest.raises(TimeoutError, match="timeout_secs") as caught:
            response.result()
        release.set()
        stowax._runtime.default_runtime().finish()

        assert isinstance(caught.value, StowaxError)
        assert snapshot(tmp_path) == {}


def test_keys_of_mixed_types(place):
    """A dict whose keys JAX cannot sort is no trouble; keys keep their types."""
    state = {"b": 1, 2: 2, True: 3, None: 4}

    stowax.save(place / "checkpoint", state)

    assert stowax.load(place / "checkpoint") == state
    assert stowax.load(place / "checkpoint", state) == state


def test_subclasses_of_leaves(place):
    """A subclass of a number or string comes back as its plain base."""

    class Number(int): ...

    class Text(str):
        __slots__ = ()

    state = {"n": Number(3), "t": Text("t"), "point": Point(1, Layer(2, 3))}

    stowax.save(place / "checkpoint", state)

    loaded = stowax.load(place / "checkpoint")
    assert type(loaded["n"]) is int
    assert type(loaded["t"]) is str
    assert loaded["point"] == {"x": 1, "y": {"kernel": 2, "bias": 3}}
