"""What a session of partial saves promises: it grows, and becomes one checkpoint."""

import asyncio
import concurrent.futures
import json
import os
import shutil
import threading
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import bits, differences, mesh

import stowax
from stowax import partial, training
from stowax._codecs._item_manifest import decode_part
from stowax._runtime import Runtime
from stowax._session_records import FINALIZED, parse_update, session_of
from stowax.errors import (
    BackgroundSaveError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    InvalidArgumentError,
    InvalidLayoutError,
    InvalidNameError,
    KeyPathCollisionError,
    PartialSaveReplacementError,
    SaveError,
    SaveInProgressError,
    UnsupportedOptionError,
)
from stowax.handlers import JsonHandler, PyTreeHandler
from stowax.options import (
    ArrayOptions,
    AsyncOptions,
    CheckpointablesOptions,
    FileOptions,
)
from stowax.testing import MemoryStore, RecordingStore, durability_faults


class State(NamedTuple):
    params: object
    step: object


def encoder():
    """One part of a model: arrays of JAX and NumPy, numbers, texts."""
    sharded = jax.device_put(bits("float32", (8, 4), 1), NamedSharding(mesh(4), P("x")))
    return {"w": sharded, "b": np.arange(5), "name": "encoder", "layers": [1, 2.5]}


def decoder():
    """Another part."""
    return {"w": jnp.ones((300, 200), jnp.bfloat16), "key": jax.random.key(3)}


def names(store, path):
    """Names in a directory; nothing, if there is none."""
    if asyncio.run(store.stat(path)) is None:
        return []
    return [entry.name for entry in asyncio.run(store.list(path))]


def test_grows(place):
    """What several calls saved is one checkpoint, with the types of its containers."""
    path = place / "checkpoint"
    state = State({"encoder": encoder(), "decoder": decoder()}, 7)

    partial.save(path, State({"encoder": encoder()}, None))
    partial.save(path, State({"decoder": decoder()}, 7))
    partial.finalize(path)

    assert differences(state, stowax.load(path, state)) == []
    with place.context(
        pytree=stowax.options.PyTreeOptions(
            loading=stowax.options.PyTreeOptions.Loading(container_types=[State])
        )
    ):
        assert isinstance(stowax.load(path), State)
    stowax.verify(path)
    assert stowax.metadata(path).metadata["params"]["decoder"]["w"].shape == (300, 200)


def test_nothing_is_there_before(place):
    """Until it is finalized nothing can be loaded, from neither path."""
    path = place / "checkpoint"
    partial.save(path, encoder())

    with pytest.raises(CheckpointNotFoundError, match="partial_save"):
        stowax.load(path)
    with pytest.raises(InvalidLayoutError, match=r"partial\.finalize"):
        stowax.load(f"{path}.partial_save")


def test_nothing_is_left(place):
    """Afterwards there is the checkpoint, and nothing else."""
    store = place.store or stowax._stores._local.LocalStore()
    partial.save(place / "checkpoint", {"a": 1})
    partial.save(place / "checkpoint", {"b": 1}, replace=True)

    partial.finalize(place / "checkpoint")

    assert names(store, place.directory) == ["checkpoint"]


def test_the_same_structure_as_a_checkpoint(place):
    """How a checkpoint was laid out last does not matter to a session."""
    store = place.store or stowax._stores._local.LocalStore()
    stowax.save(place / "other", {"a": np.arange(3)})
    partial.save(place / "checkpoint", {"a": np.arange(3)})

    session = session_of(str(place / "checkpoint"))
    (update,) = names(store, session)
    assert "ocdbt.process_0" in names(store, f"{session}/{update}/state")


def test_gaps_are_zeros_where_nothing_was_replaced(tmp_path):
    """Only where chunks were replaced, what lies between others is not compared."""
    partial.save(tmp_path / "c", {"a": np.arange(3)})
    partial.save(tmp_path / "c", {"b": np.arange(3), "c": np.arange(4)})
    partial.finalize(tmp_path / "c")
    partial.save(tmp_path / "c", {"c": 1}, replace=True)
    partial.finalize(tmp_path / "c")

    tables = [decode_part(p.read_bytes()) for p in tmp_path.rglob("stowax.chunks.*")]
    assert sorted(table.has_remains for table in tables) == [False, False, True]


def test_giving_up(place):
    """A session is deleted by its path, and then is not there."""
    path = place / "checkpoint"
    partial.save(path, {"a": 1})

    assert stowax.delete(f"{path}.partial_save")
    with pytest.raises(CheckpointNotFoundError):
        partial.finalize(path)
    partial.save(path, {"b": 2})
    partial.finalize(path)
    assert stowax.load(path) == {"b": 2}


def test_the_path_of_the_session(place):
    """`finalize` takes the path of the session, too."""
    partial.save(place / "checkpoint", {"a": 1})

    partial.finalize(f"{place / 'checkpoint'}.partial_save")

    assert stowax.load(place / "checkpoint") == {"a": 1}


class TestErrors:
    def test_there_is_no_session(self, place):
        with pytest.raises(FileNotFoundError, match=r"partial\.save") as caught:
            partial.finalize(place / "checkpoint")
        assert caught.type is CheckpointNotFoundError

    def test_there_is_a_checkpoint(self, place):
        """Neither a save nor a finalization touches it, or the session."""
        path = place / "checkpoint"
        partial.save(path, {"a": 1})
        stowax.save(path, {"b": 2})

        for call in (
            lambda: partial.save(path, {"c": 3}),
            lambda: partial.finalize(path),
        ):
            with pytest.raises(FileExistsError, match="session at") as caught:
                call()
            assert caught.type is CheckpointExistsError
        assert stowax.load(path) == {"b": 2}

        stowax.delete(path)
        partial.finalize(path)
        assert stowax.load(path) == {"a": 1}

    def test_no_session_is_begun_on_a_checkpoint(self, place):
        """The error says how to change what is there."""
        stowax.save(place / "checkpoint", {"b": 2})

        for call in (
            lambda: partial.save(place / "checkpoint", {"c": 3}),
            lambda: partial.finalize(place / "checkpoint"),
        ):
            with pytest.raises(CheckpointExistsError, match="replace=True"):
                call()

    def test_again(self, place):
        """A second finalization finds a checkpoint, as Orbax says, and leaves it."""
        partial.save(place / "checkpoint", {"a": 1})
        partial.finalize(place / "checkpoint")

        with pytest.raises(CheckpointExistsError):
            partial.finalize(place / "checkpoint")
        assert stowax.load(place / "checkpoint") == {"a": 1}

    def test_a_leaf_twice(self, place):
        """Every leaf that is there is named, with the one that is in the way."""
        path = place / "checkpoint"
        partial.save(path, {"a": {"b": 1}, "c": {"d": 2}, "e": 3})

        with pytest.raises(PartialSaveReplacementError) as caught:
            partial.save(path, {"a": {"b": {"z": 1}}, "c": 4, "e": 5, "f": 6})

        message = str(caught.value)
        assert "leaf 'a.b.z' of 'state', because of 'a.b'" in message
        assert "leaf 'c' of 'state', because of 'c.d'" in message
        assert "leaf 'e' of 'state'\n" in message
        assert "'f'" not in message
        assert "replace=True" in message
        partial.finalize(path)
        assert stowax.load(path) == {"a": {"b": 1}, "c": {"d": 2}, "e": 3}

    def test_two_names_that_are_one(self, place):
        """Leaves of two calls may collide like those of one."""
        partial.save(place / "checkpoint", {"a": {"b": np.arange(2)}})

        with pytest.raises(KeyPathCollisionError, match=r"a\.b"):
            partial.save(place / "checkpoint", {"a.b": np.arange(3)})

    def test_an_item_that_is_no_tree(self, place):
        """What is there as a whole is not added to."""
        json_item = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
        with place.context(checkpointables=json_item):
            path = place / "checkpoint"
            partial.save_checkpointables(path, {"config": {"a": 1}})
            with pytest.raises(PartialSaveReplacementError, match=r"'config'.*a whole"):
                partial.save_checkpointables(path, {"config": {"b": 1}})
            partial.save_checkpointables(path, {"config": {"b": 1}}, replace=True)
            partial.finalize(path)
            assert stowax.load_checkpointables(path) == {"config": {"b": 1}}

    def test_a_tree_on_an_object_that_saved_itself(self, place):
        """It is not made smaller by what was meant to be added to it."""

        class Guest:
            async def save(self, directory):
                writing = await PyTreeHandler().save(directory, {"x": 1, "y": 2})

                async def write():
                    path = await directory.await_creation()
                    (path / "notes.txt").write_text("notes")
                    await writing

                return write()

            async def load(self, directory): ...

        path = place / "checkpoint"
        stowax.save_checkpointables(path, {"guest": Guest()})
        with pytest.raises(InvalidLayoutError, match="holds more than a tree"):
            partial.save_checkpointables(path, {"guest": {"x": 3}}, replace=True)
        assert stowax.load(path, checkpointable_name="guest") == {"x": 1, "y": 2}

    def test_a_checkpoint_without_a_state(self, place):
        """Which of its trees is meant, nobody guesses."""
        path = place / "checkpoint"
        stowax.save_checkpointables(path, {"model": {"w": 1, "b": 2}})

        with pytest.raises(
            InvalidLayoutError, match=r"\['model'\].*save_checkpointables"
        ):
            partial.save(path, {"b": 3}, replace=True)
        partial.save_checkpointables(path, {"model": {"b": 3}}, replace=True)
        partial.finalize(path)
        assert stowax.load(path) == {"w": 1, "b": 3}

    def test_directories_in_each_other(self, place):
        """Arrays of two calls that cannot be directories of one item are refused."""
        saving = ArrayOptions.Saving(use_ocdbt=False)
        with place.context(array=ArrayOptions(saving=saving)):
            partial.save(place / "checkpoint", {"a": np.arange(3)})
            with pytest.raises(InvalidNameError, match="lies within that of 'a'"):
                partial.save(place / "checkpoint", {"a/b": np.arange(3)})

    def test_a_save_to_the_path_is_under_way(self):
        """The finalization does not race with it."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            partial.save("/c", {"a": 1})
            response = stowax.save_async("/c", {"big": np.zeros(100_000)})
            with pytest.raises(SaveInProgressError):
                partial.finalize("/c")
            store.go_on.set()
            response.result()

    def test_what_orbax_has_begun_to_delete(self, tmp_path):
        """No session begins from a checkpoint of which a part may be gone."""
        path = tmp_path / "c"
        stowax.save_checkpointables(path, {"a": {"x": 1}, "state": {"y": 2}})
        (path / "_CHECKPOINT_DELETION").write_text(
            json.dumps({"checkpointable_name": "a"})
        )

        with pytest.raises(InvalidLayoutError, match="begun to delete 'a'"):
            partial.save(path, {"y": 3}, replace=True)

    def test_two_texts_in_one_place(self, place):
        """Names of texts that Orbax would put into one place are found in time."""
        partial.save(place / "checkpoint", {"a/b": "one"})

        with pytest.raises(KeyPathCollisionError, match="_strings"):
            partial.save(place / "checkpoint", {"a": "two"})
        partial.save(place / "checkpoint", {"a": np.arange(3)})

    def test_a_call_that_fails_leaves_nothing(self, tmp_path):
        """Neither for us nor for Orbax there is a sign of it."""
        partial.save(tmp_path / "c", {"a": 1})
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(stowax.errors.TreeError):
            partial.save(tmp_path / "c", {"b": object()}, replace=True)

        assert sorted(tmp_path.rglob("*")) == before

    def test_what_is_no_flag(self, place):
        with pytest.raises(InvalidArgumentError, match="replace"):
            partial.save(place / "checkpoint", {"a": 1}, replace=None)

    def test_a_name_of_a_session(self, place):
        with pytest.raises(InvalidNameError, match=r"\.partial_save"):
            partial.save(place / "checkpoint.partial_save", {"a": 1})

    def test_a_name_that_is_too_long(self, tmp_path):
        """The names of updates are longer than that of the checkpoint."""
        longest = "c" * (255 - len(".partial_save.pending__") - 20 - 32)
        partial.save(tmp_path / longest, {"a": 1})
        partial.finalize(tmp_path / longest)
        with pytest.raises(InvalidNameError, match="longer name"):
            partial.save(tmp_path / f"{longest}c", {"a": 1})

    def test_what_cannot_be_saved(self, place):
        """Nothing is begun by a save that fails."""
        with pytest.raises(stowax.errors.TreeError, match="'a'"):
            partial.save(place / "checkpoint", {"a": object()})
        with pytest.raises(CheckpointNotFoundError):
            partial.finalize(place / "checkpoint")


class TestReplace:
    def test_in_classes_that_are_like_dicts(self, place):
        """What is loaded without a class, as dicts, can be saved back in part."""
        path = place / "checkpoint"
        stowax.save(path, {"model": OrderedDict(body=State(1, 2), head=[3])})
        head = stowax.load(path)["model"]["head"]
        partial.save(
            path, {"model": {"head": [*head, 4], "body": {"step": 5}}}, replace=True
        )
        partial.finalize(path)

        loaded = stowax.load(path)["model"]
        assert loaded == {"body": {"params": 1, "step": 5}, "head": [3, 4]}

    def test_leaves_and_subtrees(self, place):
        """What is named is replaced, in the order of the calls; the rest stays."""
        path = place / "checkpoint"
        partial.save(path, {"a": {"x": 1, "y": 2}, "opt": (1, {"mu": 2}), "b": 3})
        partial.save(path, {"a": {"x": 4}, "opt": [5], "c": 6}, replace=True)
        partial.save(path, {"a": {"x": 7}, "b": {"z": 8}}, replace=True)
        partial.finalize(path)

        assert stowax.load(path) == {
            "a": {"x": 7, "y": 2},
            "b": {"z": 8},
            "c": 6,
            "opt": [5],
        }
        stowax.verify(path)

    def test_arrays(self, place):
        """Of arrays that were replaced nothing is found any more."""
        path = place / "checkpoint"
        partial.save(path, {"a": np.arange(5), "b": np.ones((3, 2)), "c": np.zeros(9)})
        partial.save(path, {"a": np.arange(9.0), "c": {"d": "text"}}, replace=True)
        partial.finalize(path)

        loaded = stowax.load(path)
        expected = {"a": np.arange(9.0), "b": np.ones((3, 2)), "c": {"d": "text"}}
        assert differences(expected, loaded) == []
        stowax.verify(path)

    def test_what_is_published_stays_until_then(self, place):
        """A session begins from a checkpoint, which is whole until it is replaced."""
        path = place / "checkpoint"
        before = {"encoder": encoder(), "decoder": decoder()}
        stowax.save(path, before, custom_metadata={"epoch": 1, "tags": {"a": 1}})
        partial.save(
            path,
            {"decoder": {"w": np.arange(3)}},
            replace=True,
            custom_metadata={"epoch": 2, "tags": {"b": 2}},
        )
        partial.save(path, {"head": 1.5})

        assert differences(before, stowax.load(path, before)) == []
        partial.finalize(path)

        after = {"encoder": encoder(), "decoder": decoder(), "head": 1.5}
        after["decoder"]["w"] = np.arange(3)
        assert differences(after, stowax.load(path, after)) == []
        assert stowax.checkpointables_metadata(path).custom_metadata == {
            "epoch": 2,
            "tags": {"a": 1, "b": 2},
        }
        stowax.verify(path)

    def test_nothing_is_written_that_is_there(self):
        """Data files are linked: what is written is what is new, and documents."""
        big = np.arange(1 << 20, dtype=np.float32)
        store = RecordingStore(MemoryStore())
        with stowax.Context(file=FileOptions(store=store)):
            stowax.save("/c", {"big": big, "small": 1})
            before = len(store.calls)
            partial.save("/c", {"small": 2}, replace=True)
            partial.finalize("/c")

            assert stowax.load("/c")["small"] == 2
            assert np.array_equal(stowax.load("/c")["big"], big)

        calls = [call for call in store.calls if call.began >= before]
        sizes = {
            path: asyncio.run(store.stat(path)).size_bytes
            for call in calls
            if call.operation == "write"
            for path in call.paths
            if asyncio.run(store.stat(path)) is not None
        }
        assert sum(sizes.values()) < 20_000

    def test_again_and_again(self, place):
        """Sessions on what sessions have made: leftovers do not matter."""
        path = place / "checkpoint"
        stowax.save(path, {"a": np.arange(4), "b": np.arange(4)})
        for number in range(3):
            partial.save(path, {"a": np.full(4, number)}, replace=True)
            partial.finalize(path)
            stowax.verify(path)

        item = f"{path}/state"
        store = place.store or stowax._stores._local.LocalStore()
        # Of what is there no more, nothing is kept.
        tables = [name for name in names(store, item) if ".chunks." in name]
        assert tables == ["stowax.chunks.0", "stowax.chunks.1"]
        assert stowax.load(path)["a"].tolist() == [2, 2, 2, 2]
        assert stowax.load(path)["b"].tolist() == [0, 1, 2, 3]

    def test_what_it_began_from_is_gone(self, place):
        """If somebody replaced the checkpoint meanwhile, nothing is mixed with it."""
        path = place / "checkpoint"
        stowax.save(path, {"a": 1, "b": 1})
        partial.save(path, {"a": 2}, replace=True)
        stowax.save(path, {"c": 3}, overwrite=True)

        for call in (
            lambda: partial.finalize(path),
            lambda: partial.save(path, {"d": 1}),
        ):
            with pytest.raises(SaveError, match="began from a checkpoint"):
                call()
        assert stowax.load(path) == {"c": 3}

    def test_other_items_stay(self, place):
        """Of a checkpoint of several, what is not named is linked as it is."""
        path = place / "checkpoint"
        json_item = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
        with place.context(checkpointables=json_item):
            stowax.save_checkpointables(
                path, {"model": {"w": 1}, "config": {"a": 1}, "opt": {"mu": [1, 2]}}
            )
            partial.save_checkpointables(path, {"model": {"w": 2}}, replace=True)
            partial.finalize(path)

            assert stowax.load_checkpointables(path) == {
                "model": {"w": 2},
                "config": {"a": 1},
                "opt": {"mu": [1, 2]},
            }
        assert not stowax.verify(path).unvouched

    def test_an_object_that_saves_itself(self, place):
        """An item with files of a guest is replaced as a whole, tree and files."""

        class Guest:
            def __init__(self, number):
                self.number = number

            async def save(self, directory):
                tree = {"x": np.full(3, self.number), f"only_{self.number}": 1}
                writing = await PyTreeHandler().save(directory, tree)

                async def write():
                    path = await directory.await_creation()
                    (path / "notes.txt").write_text(str(self.number))
                    await writing

                return write()

            async def load(self, directory):
                async def read():
                    self.number = int((directory / "notes.txt").read_text())

                return read()

        path = place / "checkpoint"
        partial.save_checkpointables(path, {"guest": Guest(1)})
        partial.save_checkpointables(path, {"guest": Guest(2)}, replace=True)
        partial.finalize(path)

        guest = Guest(0)
        stowax.load_checkpointables(path, {"guest": guest})
        assert guest.number == 2
        tree = stowax.load(path, checkpointable_name="guest")
        assert tree.keys() == {"x", "only_2"}
        stowax.verify(path)

    def test_a_step_of_a_training_run(self, tmp_path):
        """A step keeps its metrics, and stays a step."""
        with training.Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, {"a": 1, "b": 2}, metrics={"loss": 0.5})
            partial.save(tmp_path / "1", {"a": 3}, replace=True)
            partial.finalize(tmp_path / "1")

        with training.Checkpointer(tmp_path) as checkpointer:
            assert checkpointer.load(1) == {"a": 3, "b": 2}
            assert checkpointer.latest.metrics == {"loss": 0.5}
        assert (tmp_path / "1" / "state" / "commit_success.txt").exists()
        stowax.verify(tmp_path / "1")

    def test_what_no_session_begins_from(self, tmp_path):
        """One tree as it is, and a file, are not changed in place."""
        context = stowax.Context(checkpoint_layout="safetensors")
        with context:
            stowax.save(tmp_path / "m.safetensors", {"w": np.arange(3)})

        with pytest.raises(InvalidLayoutError, match="load it, and save it"):
            partial.save(tmp_path / "m.safetensors", {"w": 1}, replace=True)


def test_custom_metadata(place):
    """That of all calls is united; what is said later counts."""
    path = place / "checkpoint"
    partial.save(path, {"a": 1}, custom_metadata={"x": 1, "deep": {"a": 1, "b": [1]}})
    partial.save(path, {"b": 1})
    partial.save(path, {"c": 1}, custom_metadata={"x": 2, "deep": {"b": [2]}, "y": 3})
    partial.finalize(path)

    assert stowax.checkpointables_metadata(path).custom_metadata == {
        "x": 2,
        "deep": {"a": 1, "b": [2]},
        "y": 3,
    }


def test_timestamps(place):
    """It began with its first save, and was committed at its end."""
    partial.save(place / "checkpoint", {"a": 1})
    partial.save(place / "checkpoint", {"b": 1})
    partial.finalize(place / "checkpoint")

    metadata = stowax.checkpointables_metadata(place / "checkpoint")
    assert metadata.init_timestamp_nsecs < metadata.commit_timestamp_nsecs


@pytest.mark.parametrize(
    "saving",
    [
        ArrayOptions.Saving(use_ocdbt=False),
        ArrayOptions.Saving(use_zarr3=False),
        ArrayOptions.Saving(use_ocdbt=False, use_zarr3=False),
        ArrayOptions.Saving(use_compression=True),
        ArrayOptions.Saving(
            storage_options=ArrayOptions.Saving.StorageOptions(chunk_byte_size=100)
        ),
    ],
)
def test_ways_to_store_arrays(place, saving):
    """Sessions know every way, and refuse two of them in one item."""
    path = place / "checkpoint"
    arrays = ArrayOptions(saving=saving)
    with place.context(array=arrays):
        partial.save(path, {"a": np.arange(200.0), "b": np.arange(300)})
        partial.save(path, {"b": np.arange(40), "c": np.arange(50)}, replace=True)
    for other in (
        ArrayOptions.Saving(use_ocdbt=not saving.use_ocdbt, use_zarr3=saving.use_zarr3),
        ArrayOptions.Saving(use_ocdbt=saving.use_ocdbt, use_zarr3=not saving.use_zarr3),
    ):
        with (
            place.context(array=ArrayOptions(saving=other)),
            pytest.raises(UnsupportedOptionError, match=r"use_(ocdbt|zarr3) is"),
        ):
            partial.save(path, {"d": np.arange(3)})
    with place.context(array=arrays):
        partial.finalize(path)

    expected = {"a": np.arange(200.0), "b": np.arange(40), "c": np.arange(50)}
    assert differences(expected, stowax.load(path)) == []
    stowax.verify(path)


class PausedStore(RecordingStore):
    """Waits, when it writes a file of some size, until it may go on."""

    def __init__(self, store, pause_bytes):
        super().__init__(store)
        self.pause_bytes = pause_bytes
        self.go_on = threading.Event()
        self.error = None

    async def write(self, path, pieces, *, size_bytes=None):
        if size_bytes is not None and size_bytes >= self.pause_bytes:
            await asyncio.to_thread(self.go_on.wait, 30)
            if self.error is not None:
                raise self.error
        await super().write(path, pieces, size_bytes=size_bytes)


class TestInTheBackground:
    def test_calls_take_effect_in_order(self):
        """A later save appears after an earlier one that takes longer."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            first = partial.save_async("/c", {"big": np.zeros(100_000), "x": 1})
            second = partial.save_async("/c", {"y": 2})
            third = partial.save_async("/c", {"x": 3}, replace=True)
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            assert not list(filter(parse_update, names(store, session_of("/c"))))
            store.go_on.set()
            partial.finalize("/c")

            for response in (first, second, third):
                response.result(timeout=0)
            loaded = stowax.load("/c")
        assert (loaded["x"], loaded["y"]) == (3, 2)

    def test_values_may_change_at_once(self):
        """As with any save, the call returns when the values are safe."""
        weights = np.arange(4)
        with stowax.Context(file=FileOptions(store=MemoryStore())):
            response = partial.save_async("/c", {"w": weights})
            weights[:] = 0
            response.result()
            partial.finalize("/c")
            assert stowax.load("/c")["w"].tolist() == [0, 1, 2, 3]

    def test_a_leaf_that_is_under_way(self):
        """What an earlier call is saving counts as saved."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            response = partial.save_async("/c", {"big": np.zeros(100_000), "x": 1})
            with pytest.raises(PartialSaveReplacementError, match="'x'"):
                partial.save_async("/c", {"x": 2})
            store.go_on.set()
            response.result()

    def test_one_that_fails_hinders_no_other(self):
        """The session goes on without it, and its leaves may be saved again."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            failing = partial.save_async("/c", {"big": np.zeros(100_000), "x": 1})
            other = partial.save_async("/c", {"y": 2})
            store.error = OSError("full")
            store.go_on.set()
            with pytest.raises(OSError, match="full"):
                failing.result()
            other.result()
            partial.save("/c", {"x": 3})
            partial.finalize("/c")
            assert stowax.load("/c") == {"x": 3, "y": 2}

    def test_a_failure_that_nobody_asked_for(self):
        """`finalize` raises it, once, and finalizes nothing."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            partial.save("/c", {"y": 2})
            partial.save_async("/c", {"big": np.zeros(100_000)})
            store.error = OSError("full")
            store.go_on.set()
            with pytest.raises(BackgroundSaveError, match="full"):
                partial.finalize("/c")
            assert not stowax.is_orbax_checkpoint("/c")
            partial.finalize("/c")
            assert stowax.load("/c") == {"y": 2}

    def test_on_a_checkpoint_that_was_to_be_changed(self):
        """Without the earlier call, a call that adds begins no session by itself."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            stowax.save("/c", {"a": 1})
            first = partial.save_async("/c", {"a": np.zeros(100_000)}, replace=True)
            second = partial.save_async("/c", {"c": 2})
            store.error = OSError("full")
            store.go_on.set()
            for response in (first, second):
                with pytest.raises((OSError, CheckpointExistsError)):
                    response.result()
            with pytest.raises(CheckpointExistsError):
                partial.finalize("/c")
            assert stowax.load("/c") == {"a": 1}

    def test_on_a_checkpoint(self):
        """A call that adds knows what an earlier one has begun from."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            stowax.save("/c", {"a": 1, "b": 1})
            first = partial.save_async("/c", {"a": np.zeros(100_000)}, replace=True)
            second = partial.save_async("/c", {"c": 2})
            with pytest.raises(PartialSaveReplacementError, match="'b'"):
                partial.save_async("/c", {"b": 2})
            store.go_on.set()
            first.result()
            second.result()
            partial.finalize("/c")
            assert stowax.load("/c").keys() == {"a", "b", "c"}


class TestSeveralPrograms:
    """Programs know of each other only by what is on disk."""

    def test_a_save_while_another_one_finalizes(self, caplog):
        """It is in the checkpoint, or it is still there: nothing is lost."""

        class Busy(RecordingStore):
            other = None

            async def publish(self, draft, final, *, replace):
                if final == "/c" and self.other is not None:
                    await asyncio.to_thread(self.other)
                await super().publish(draft, final, replace=replace)

        store, runtime = MemoryStore(), Runtime()
        busy = Busy(store)

        def save_as_another():
            with stowax.Context(runtime=runtime, file=FileOptions(store=store)):
                partial.save("/c", {"b": 2})

        busy.other = save_as_another
        with stowax.Context(file=FileOptions(store=busy)):
            partial.save("/c", {"a": 1})
            partial.finalize("/c")
            assert "saved to while it was finalized" in caplog.text
            assert stowax.load("/c") == {"a": 1}
            stowax.delete("/c")
            busy.other = None
            partial.finalize("/c")
            assert stowax.load("/c") == {"b": 2}
        runtime.close()

    def test_a_checkpoint_that_is_replaced_meanwhile(self):
        """What a session began from is replaced while it is finalized: nothing is."""
        store, runtime = MemoryStore(), Runtime()

        class Busy(RecordingStore):
            async def write(self, path, pieces, **given):
                if path.endswith("/commit_success.txt"):
                    await asyncio.to_thread(save_as_another)
                await super().write(path, pieces, **given)

        def save_as_another():
            with stowax.Context(runtime=runtime, file=FileOptions(store=store)):
                stowax.save("/c", {"x": 1}, overwrite=True)

        with stowax.Context(file=FileOptions(store=store)):
            stowax.save("/c", {"a": 1})
            partial.save("/c", {"a": 2}, replace=True)
        with (
            stowax.Context(file=FileOptions(store=Busy(store))),
            pytest.raises(SaveError, match="was replaced while"),
        ):
            partial.finalize("/c")
        runtime.close()
        with stowax.Context(file=FileOptions(store=store)):
            assert stowax.load("/c") == {"x": 1}

    def test_another_session_that_begins_meanwhile(self):
        """What was saved to no checkpoint is not united with one that has appeared."""
        store, runtime = MemoryStore(), Runtime()

        class Busy(RecordingStore):
            async def write(self, path, pieces, **given):
                if path.endswith("/_CHECKPOINT_METADATA"):
                    await asyncio.to_thread(save_as_another)
                await super().write(path, pieces, **given)

        def save_as_another():
            with stowax.Context(runtime=runtime, file=FileOptions(store=store)):
                stowax.save("/c", {"x": 1}, overwrite=True)
                partial.save("/c", {"x": 2}, replace=True)

        with (
            stowax.Context(file=FileOptions(store=Busy(store))),
            pytest.raises(CheckpointExistsError),
        ):
            partial.save("/c", {"a": 2})
        runtime.close()
        with stowax.Context(file=FileOptions(store=store)):
            partial.finalize("/c")
            assert stowax.load("/c") == {"x": 2}

    def test_a_save_whose_draft_is_taken_away(self):
        """It fails, and does not say that it has saved what is gone."""

        class Robbed(RecordingStore):
            async def write(self, path, pieces, **given):
                if path.endswith("/_CHECKPOINT_METADATA") and ".partial_save/" in path:
                    await self.delete(session_of("/c"))
                await super().write(path, pieces, **given)

        with stowax.Context(file=FileOptions(store=Robbed(MemoryStore()))):
            with pytest.raises(SaveError, match="are gone"):
                partial.save("/c", {"a": np.arange(3)})
            with pytest.raises(CheckpointNotFoundError):
                partial.finalize("/c")

    def test_a_checkpoint_that_appears_meanwhile(self):
        """A save to a session does not end beside a checkpoint of somebody else."""
        store = PausedStore(MemoryStore(), 100_000)
        with stowax.Context(file=FileOptions(store=store)):
            response = partial.save_async("/c", {"big": np.zeros(100_000)})
            stowax.save("/c", {"x": 1})
            store.go_on.set()
            with pytest.raises(CheckpointExistsError):
                response.result()
            assert stowax.load("/c") == {"x": 1}


def test_threads(tmp_path):
    """Saves of several threads to one session do not hinder each other."""
    stowax.save(tmp_path / "c", {"base": 1})

    def save(number):
        partial.save(tmp_path / "c", {f"k{number}": number}, replace=True)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(12)))
    partial.finalize(tmp_path / "c")

    loaded = stowax.load(tmp_path / "c")
    assert loaded == {"base": 1} | {f"k{number}": number for number in range(12)}


def test_a_callback_may_save_to_the_next_session(place):
    """The callback of a finalization comes when it is over."""
    path = place / "checkpoint"

    def go_on():
        partial.save(path, {"b": 2}, replace=True)

    options = AsyncOptions(post_finalization_callback=go_on, timeout_secs=30)
    with place.context(asynchronous=options):
        partial.save(path, {"a": 1})
        partial.finalize(path)
    partial.finalize(path)

    assert stowax.load(path) == {"a": 1, "b": 2}


def test_many_calls_read_what_is_there_once():
    """A save to a session with many updates reads none of them again."""
    store = RecordingStore(MemoryStore())
    reads = []
    with stowax.Context(file=FileOptions(store=store)):
        for number in range(12):
            before = len(store.calls)
            partial.save("/c", {f"k{number}": np.arange(number)})
            calls = store.calls[before:]
            reads.append(sum(call.operation == "read_into" for call in calls))

    assert len(set(reads[1:])) == 1


def test_everything_is_durable_before_it_appears(place):
    """Updates and the checkpoint are synced before they are published."""
    recording = RecordingStore(place.store or stowax._stores._local.LocalStore())
    with stowax.Context(file=FileOptions(store=recording)):
        stowax.save(place / "checkpoint", {"a": np.arange(4), "b": "text"})
        partial.save(place / "checkpoint", {"a": encoder()}, replace=True)
        partial.save(place / "checkpoint", {"c": decoder()})
        partial.finalize(place / "checkpoint")

    assert durability_faults(recording.calls) == []


def test_the_end_of_a_session_that_is_missing(place):
    """After a crash between the checkpoint and the end of its session: the end comes.

    By another finalization, or with the next save.
    """
    store = place.store or stowax._stores._local.LocalStore()

    class Dying(RecordingStore):
        async def publish(self, draft, final, *, replace):
            if draft.endswith(".partial_save"):
                raise OSError("died")
            await super().publish(draft, final, replace=replace)

    path = place / "checkpoint"
    with stowax.Context(file=FileOptions(store=Dying(store))):
        partial.save(path, {"a": 1})
        with pytest.raises(OSError, match="died"):
            partial.finalize(path)
    assert FINALIZED in names(store, session_of(str(path)))
    assert stowax.load(path) == {"a": 1}
    partial.finalize(path)
    assert names(store, place.directory) == ["checkpoint"]

    stowax.delete(path)
    with stowax.Context(file=FileOptions(store=Dying(store))):
        partial.save(path, {"a": 1})
        with pytest.raises(OSError, match="died"):
            partial.finalize(path)
    stowax.delete(path)  # With what the session was.
    assert names(store, place.directory) == []
    stowax.save(path, {"a": 1})

    with stowax.Context(file=FileOptions(store=Dying(store))):
        partial.save(path, {"a": 2}, replace=True)
        with pytest.raises(OSError, match="died"):
            partial.finalize(path)
    assert stowax.load(path) == {"a": 2}
    partial.save(path, {"b": 3}, replace=True)
    partial.finalize(path)
    assert stowax.load(path) == {"a": 2, "b": 3}
    assert names(store, place.directory) == ["checkpoint"]


class TestDamage:
    """What is damaged in a session is not made into a checkpoint without a word."""

    def test_a_record(self, tmp_path):
        partial.save(tmp_path / "c", {"a": np.arange(3)})
        (record,) = tmp_path.rglob("stowax.update.*")
        record.write_bytes(record.read_bytes().replace(b"1", b"2"))

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="update"):
            partial.finalize(tmp_path / "c")

    def test_no_record(self, tmp_path):
        partial.save(tmp_path / "c", {"a": np.arange(3)})
        (update,) = (tmp_path / "c.partial_save").iterdir()
        for name in ("orbax.checkpoint", f"stowax.update.{update.name[-32:]}"):
            (update / name).unlink()

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="neither"):
            partial.finalize(tmp_path / "c")

    def test_a_manifest(self, tmp_path):
        partial.save(tmp_path / "c", {"a": np.arange(3)})
        (manifest,) = tmp_path.rglob("stowax.manifest.*")
        manifest.write_bytes(manifest.read_bytes()[:-9])

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="manifest"):
            partial.finalize(tmp_path / "c")

    def test_an_item_that_is_missing(self, tmp_path):
        partial.save_checkpointables(tmp_path / "c", {"m": {"a": 1}, "o": {"b": 1}})
        (item,) = tmp_path.rglob("o")
        shutil.rmtree(item)

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="missing"):
            partial.finalize(tmp_path / "c")

    def test_a_file_of_a_guest_that_is_missing(self, tmp_path):
        """Nobody vouches for a checkpoint from which a file was lost on the way."""
        json_item = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
        with stowax.Context(checkpointables=json_item):
            stowax.save_checkpointables(tmp_path / "c", {"config": {}, "m": {"a": 1}})
            partial.save_checkpointables(tmp_path / "c", {"m": {"a": 2}}, replace=True)
            for file in (tmp_path / "c" / "config").iterdir():
                file.unlink()
            with pytest.raises(stowax.errors.CorruptCheckpointError, match="missing"):
                partial.finalize(tmp_path / "c")

    def test_a_record_that_is_missing(self, tmp_path):
        """An update of ours without its record is not taken for one of Orbax."""
        partial.save(tmp_path / "c", {"a": np.arange(3)})
        (record,) = tmp_path.rglob("stowax.update.*")
        record.unlink()

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="neither"):
            partial.finalize(tmp_path / "c")

    @pytest.mark.parametrize("is_cut", [False, True])
    def test_a_data_file_that_is_not_whole(self, tmp_path, is_cut):
        """A good checkpoint is not replaced by one that cannot be loaded."""
        stowax.save(tmp_path / "c", {"a": np.arange(5)})
        partial.save(tmp_path / "c", {"a": np.full(3000, 7.0)}, replace=True)
        (data,) = (tmp_path / "c.partial_save").rglob("data-0")
        if is_cut:
            os.truncate(data, 10)
        else:
            data.unlink()

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="data-0"):
            partial.finalize(tmp_path / "c")
        assert stowax.load(tmp_path / "c")["a"].tolist() == [0, 1, 2, 3, 4]

    def test_data(self, tmp_path):
        """A flipped bit in an array is found when it is loaded, as always."""
        partial.save(tmp_path / "c", {"a": np.arange(3)})
        (data,) = tmp_path.rglob("data-0")
        content = bytearray(data.read_bytes())
        content[3] ^= 1
        data.write_bytes(content)
        partial.finalize(tmp_path / "c")

        with pytest.raises(stowax.errors.CorruptCheckpointError, match="'a'"):
            stowax.load(tmp_path / "c")
        with pytest.raises(stowax.errors.DamageError, match="'a'"):
            stowax.verify(tmp_path / "c")


def test_drafts_of_saves_that_died_do_not_matter(tmp_path):
    """They are no part of the session, and go with it."""
    partial.save(tmp_path / "c", {"a": 1})
    draft = tmp_path / "c.partial_save" / f"{'ab' * 16}.orbax-checkpoint-tmp"
    (draft / "state").mkdir(parents=True)

    partial.save(tmp_path / "c", {"b": 1})
    partial.finalize(tmp_path / "c")

    assert stowax.load(tmp_path / "c") == {"a": 1, "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_order_does_not_depend_on_the_clock(tmp_path):
    """A later save comes after an earlier one, also if the clock goes back."""
    clock = iter(range(1 << 60, 0, -(10**9)))
    runtime = stowax._runtime.Runtime(clock_nsecs=lambda: next(clock))
    with stowax.Context(runtime=runtime):
        for number in range(4):
            partial.save(tmp_path / "c", {"a": number}, replace=True)
        partial.finalize(tmp_path / "c")
    runtime.close()

    assert stowax.load(tmp_path / "c") == {"a": 3}


def test_the_callback_is_called_once(place):
    """`post_finalization_callback` hears of the checkpoint, not of its parts."""
    heard = []
    options = stowax.options.AsyncOptions(
        post_finalization_callback=lambda: heard.append(1)
    )
    with place.context(asynchronous=options):
        partial.save(place / "checkpoint", {"a": 1})
        partial.save(place / "checkpoint", {"b": 1})
        assert heard == []
        partial.finalize(place / "checkpoint")
    assert heard == [1]


def test_events(place):
    """Each call tells how it began and ended; a save to a session, by its path."""
    heard = []
    with stowax.events.subscribe(heard.append):
        partial.save(place / "checkpoint", {"a": np.arange(3)})
        partial.finalize(place / "checkpoint")

    path = str(place / "checkpoint")
    told = [(e.kind, e.path) for e in heard if e.kind in ("started", "published")]
    assert told == [
        ("started", f"{path}.partial_save"),
        ("published", f"{path}.partial_save"),
        ("started", path),
        ("published", path),
    ]


def test_permissions(tmp_path):
    """The checkpoint has the permissions that were asked for."""
    with stowax.Context(file=FileOptions(path_permission_mode=0o750)):
        partial.save(tmp_path / "c", {"a": 1})
        partial.finalize(tmp_path / "c")

    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o750


def test_guard_for_orbax(tmp_path):
    """A session that replaces has a directory at which Orbax stops at once."""
    partial.save(tmp_path / "c", {"a": 1})
    assert not list(tmp_path.rglob("finalize-with-stowax"))
    partial.save(tmp_path / "c", {"a": 2}, replace=True)

    (guard,) = tmp_path.rglob("finalize-with-stowax")
    first = min((tmp_path / "c.partial_save").iterdir())
    assert guard.parent == first
    with pytest.raises(json.JSONDecodeError):
        json.loads((guard / "_METADATA").read_text())


def test_guard_for_orbax_on_a_checkpoint(tmp_path):
    """A session that began from a checkpoint has it, should that be deleted."""
    stowax.save(tmp_path / "c", {"a": 1})
    partial.save(tmp_path / "c", {"b": 2}, replace=True)

    assert list(tmp_path.rglob("finalize-with-stowax"))
