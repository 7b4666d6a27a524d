"""What can be known of a checkpoint without loading it."""

import dataclasses
import datetime as dt

import jax
import numpy as np
import pytest
from sample_trees import Layer, Nothing, bits, differences, shardings

import stowax
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    UnsupportedOptionError,
)
from stowax.handlers import JsonHandler, PyTreeHandler
from stowax.options import CheckpointablesOptions


def test_tree(place):
    """Every leaf is described: arrays by shape and dtype, numbers by their zero."""
    sharding = shardings()["both"]
    state = {
        "w": jax.device_put(bits("bfloat16", (8, 16)), sharding),
        "host": bits("int64", (2, 0)),
        "numbers": (3, 2.5, True, 1j),
        "text": "some text",
        "nothing": [None, {}, Nothing()],
        "layer": Layer(1, 2),
    }
    stowax.save(place / "checkpoint", state)

    found = stowax.metadata(place / "checkpoint").metadata

    assert found["w"].shape == (8, 16)
    assert found["w"].dtype == jax.numpy.bfloat16
    assert found["w"].sharding == sharding
    assert found["w"].storage_metadata.chunk_shape == (2, 8)
    assert found["w"].storage_metadata.write_shape == (2, 8)
    assert found["host"].shape == (2, 0)
    assert found["host"].dtype == np.int64
    assert "sharding" not in {f.name for f in dataclasses.fields(found["host"])}
    assert repr(found["numbers"]) == "(0, 0.0, False, 0j)"
    assert found["text"] == "string"
    assert found["nothing"] == [None, {}, None]
    assert found["layer"] == {"kernel": 0, "bias": 0}


def test_prng_keys(place):
    """Typed PRNG keys are described as keys."""
    keys = jax.random.wrap_key_data(bits("uint32", (5, 2)), impl="threefry2x32")
    stowax.save(place / "checkpoint", {"k": keys})

    found = stowax.metadata(place / "checkpoint").metadata["k"]

    assert (found.shape, found.dtype) == ((5,), keys.dtype)


def test_leaves_may_be_changed(place):
    """`dataclasses.replace` makes another abstract leaf of a metadata leaf."""
    stowax.save(place / "checkpoint", {"w": jax.device_put(bits("float32", (3,)))})
    found = stowax.metadata(place / "checkpoint").metadata

    asked = {"w": dataclasses.replace(found["w"], dtype=np.dtype("float16"))}
    with pytest.warns(UserWarning, match="float32 to float16"):
        loaded = stowax.load(place / "checkpoint", asked)

    assert loaded["w"].dtype == np.float16


def test_facts_of_the_checkpoint(place):
    """Path, times and the user's metadata are known."""
    before = dt.datetime.now(dt.UTC)
    stowax.save(place / "checkpoint", {"a": 1}, custom_metadata={"note": "kept"})
    after = dt.datetime.now(dt.UTC)

    found = stowax.metadata(place / "checkpoint")

    assert str(found.path) == place / "checkpoint"
    second = dt.timedelta(seconds=1)
    assert before - second < found.init_timestamp <= found.commit_timestamp
    assert found.commit_timestamp < after + second
    assert found.custom_metadata == {"note": "kept"}
    assert "note" in repr(found)


class Counter:
    """Saves itself, as a tree or as a file of its own."""

    def __init__(self, count=0, *, as_tree=True):
        self.count, self.as_tree = count, as_tree

    async def save(self, directory):
        if self.as_tree:
            return await PyTreeHandler().save(directory, {"count": self.count})

        async def write():
            (await directory.await_creation() / "count").write_text(str(self.count))

        return write()

    async def load(self, directory):
        async def read():
            self.count = int((directory / "count").read_text())

        return read()


class Told:
    """What `Teller` serves."""


class Teller:
    """A handler whose metadata are what the test says."""

    def __init__(self, answer):
        self.answer = answer

    async def save(self, directory, checkpointable):
        async def write():
            (await directory.await_creation() / "file").write_text("told")

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            return (directory / "file").read_text(), abstract_checkpointable

        return read()

    async def metadata(self, directory):
        assert (directory / "file").read_text() == "told"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Told)

    def is_abstract_handleable(self, abstract_checkpointable):
        return abstract_checkpointable is None or abstract_checkpointable == self.answer


def test_metadata_are_abstract(place):
    """What is known of all checkpointables can be asked for as it is.

    Trees too that an object wrote that saves itself; what only the object can load
    comes back as the description that was given.
    """
    teller = Teller({"length": 4})
    options = CheckpointablesOptions.create_with_handlers(teller, config=JsonHandler)
    parts = {
        "state": {"w": bits("float32", (3,)), "n": (1, "text")},
        "counter": Counter(3),
        "own": Counter(4, as_tree=False),
        "told": Told(),
        "config": {"depth": 3},
    }
    with place.context(checkpointables=options):
        stowax.save_checkpointables(place / "checkpoint", parts)

        found = stowax.checkpointables_metadata(place / "checkpoint")
        loaded = stowax.load_checkpointables(place / "checkpoint", found)
        again = stowax.load_checkpointables(place / "checkpoint", found.metadata)

    assert found.metadata["counter"] == {"count": 0}
    assert found.metadata["told"] == {"length": 4}
    assert found.metadata["config"] is None
    opaque = found.metadata["own"]
    assert isinstance(opaque, stowax.OpaqueCheckpointable)
    assert opaque.files == ("count",)
    assert opaque.typestr.endswith("StatefulCheckpointableHandler")

    assert differences(parts["state"], loaded["state"]) == []
    assert loaded["counter"] == {"count": 3}
    assert loaded["own"] == opaque
    assert loaded["told"] == ("told", {"length": 4})
    assert loaded["config"] == {"depth": 3}
    assert again.keys() == loaded.keys()


def test_unknown_handler(place):
    """Where the handler is missing, its item is described, and loads as described."""
    options = CheckpointablesOptions.create_with_handlers(Teller("x"))
    with place.context(checkpointables=options):
        parts = {"told": Told(), "state": {"x": 1}}
        stowax.save_checkpointables(place / "checkpoint", parts)

    found = stowax.checkpointables_metadata(place / "checkpoint")
    loaded = stowax.load_checkpointables(place / "checkpoint", found)

    opaque = found.metadata["told"]
    assert (opaque.path, opaque.files) == (place / "checkpoint/told", ("file",))
    assert opaque.typestr == f"{__name__}.Teller"
    assert loaded == {"told": opaque, "state": {"x": 1}}
    with place.context(checkpointables=options):  # Meanwhile there is a handler.
        loaded = stowax.load_checkpointables(place / "checkpoint", found)
    assert loaded["told"] == ("told", None)


def test_handler_that_cannot_tell(place):
    """A handler may say that it cannot tell; any other failure is one."""
    for answer in (NotImplementedError(), RuntimeError("broken")):
        options = CheckpointablesOptions.create_with_handlers(Teller(answer))
        path = place / type(answer).__name__
        with place.context(checkpointables=options):
            stowax.save_checkpointables(path, {"told": Told()})
            if isinstance(answer, NotImplementedError):
                found = stowax.checkpointables_metadata(path).metadata
                assert isinstance(found["told"], stowax.OpaqueCheckpointable)
                continue
            with pytest.raises(RuntimeError, match="broken") as caught:
                stowax.checkpointables_metadata(path)
            assert "'told'" in caught.value.__notes__[0]


def test_all_checkpointables(place):
    """All are described by name; None where only the value itself would tell."""
    options = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
    with place.context(checkpointables=options):
        parts = {"model": {"w": 1}, "config": {"a": 1}}
        stowax.save_checkpointables(place / "checkpoint", parts)

    found = stowax.checkpointables_metadata(place / "checkpoint")

    assert found.metadata == {"model": {"w": 0}, "config": None}


def test_item(place):
    """With the name None the path is the directory of a tree."""
    stowax.save(place / "checkpoint", {"a": 1})

    found = stowax.metadata(place / "checkpoint/state", None)

    assert found.metadata == {"a": 0}


def test_no_data_is_read(tmp_path):
    """Looking needs no data files."""
    stowax.save(tmp_path / "checkpoint", {"a": np.ones(3)})
    (tmp_path / "checkpoint/state/d/data-0").unlink()

    assert stowax.metadata(tmp_path / "checkpoint").metadata["a"].shape == (3,)


@pytest.mark.parametrize(
    "look", [stowax.metadata, stowax.checkpointables_metadata], ids=["one", "all"]
)
def test_errors(tmp_path, look):
    """The errors are those of a load."""
    stowax.save(tmp_path / "checkpoint", {"a": 1})
    manifest = tmp_path / "checkpoint/state/stowax.manifest"
    manifest.write_bytes(manifest.read_bytes().replace(b'"a"', b'"b"'))

    with pytest.raises(CheckpointNotFoundError):
        look(tmp_path / "nothing")
    with pytest.raises(InvalidLayoutError):
        look(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=str(manifest)):
        look(tmp_path / "checkpoint")


def test_is_orbax_checkpoint(place):
    """It answers for anything that may be at a path, and never raises."""
    stowax.save(place / "checkpoint", {"a": 1})

    assert stowax.is_orbax_checkpoint(place / "checkpoint")
    for other in (place.directory, place / "no", place / "checkpoint/stowax.json"):
        assert not stowax.is_orbax_checkpoint(other)


class Exchanging(LocalStore):
    """Exchanges two checkpoints when some document of one is read again."""

    def __init__(self, path, other, name, count):
        super().__init__()
        self.path, self.other, self.name = path, other, name
        self.left = count
        self.is_done = False

    async def read_into(self, path, offset_bytes, buffer):
        await super().read_into(path, offset_bytes, buffer)
        self.left -= path.endswith(f"/{self.name}")
        if self.left == 0 and not self.is_done:
            self.is_done = True
            self.path.rename(self.path.with_name("old"))
            self.other.rename(self.path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["stowax.json", "stowax.manifest"])
@pytest.mark.parametrize(
    "look",
    [
        lambda path: stowax.metadata(path).metadata,
        lambda path: stowax.checkpointables_metadata(path).metadata,
        lambda path: stowax.checkpointables_metadata(path).custom_metadata,
        lambda path: str(stowax.preview_load(path)),
        lambda path: stowax.load_leaf(path, "n"),
        lambda path: stowax.verify(path).checkpointables,
        stowax.is_orbax_checkpoint,
    ],
    ids=["metadata", "all", "custom", "preview", "leaf", "verify", "is_checkpoint"],
)
def test_replaced_while_looking(tmp_path, look, name, count, verify):
    """Facts under an overwrite are those of the old checkpoint or of the new one."""
    states = [{"w": np.zeros(3), "n": 1}, {"v": np.zeros((2, 2)), "n": 2}]
    answers = []
    for number, state in enumerate(states):
        note = {"number": number}
        stowax.save(tmp_path / "c", state, custom_metadata=note, overwrite=True)
        answers.append(look(tmp_path / "c"))
        stowax.save(tmp_path / str(number), state, custom_metadata=note)
    stowax.delete(tmp_path / "c")
    (tmp_path / "0").rename(tmp_path / "c")
    store = Exchanging(tmp_path / "c", tmp_path / "1", name, count)
    context = stowax.Context(
        file=stowax.options.FileOptions(store=store),
        integrity=stowax.options.IntegrityOptions(verify=verify),
    )

    with context:
        found = look(tmp_path / "c")

    assert found in answers


@pytest.mark.parametrize(
    "look",
    [
        *(stowax.metadata, stowax.checkpointables_metadata),
        *(stowax.preview_load, stowax.verify),
    ],
)
def test_options_that_a_load_refuses(tmp_path, look):
    """A look is refused where the load would be, with the same words."""
    stowax.save(tmp_path / "c", {"w": 1})
    context = stowax.Context()
    context.multiprocessing.primary_host = 1

    with context, pytest.raises(UnsupportedOptionError, match="primary_host"):
        look(tmp_path / "c")
