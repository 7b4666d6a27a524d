"""A `Checkpointer` saves and restores all or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import stowax
from stowax import v0
from stowax.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    HandlerNotFoundError,
    InvalidArgumentError,
    InvalidLayoutError,
    InvalidMetadataError,
    TreeError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.testing import SimulatedCluster


def test_there_and_back(place):
    """In every store, with the tree and its types as they were."""
    tree = {"w": np.arange(6.0).reshape(2, 3), "pair": (1, "two"), "empty": {}}

    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place / "c", tree)
        restored = checkpointer.restore(place / "c")

    assert restored["w"].tolist() == tree["w"].tolist()
    assert (restored["pair"], restored["empty"]) == ((1, "two"), {})


@pytest.mark.parametrize("way", ["position", "object", "keyword", "keywords"])
def test_ways_to_give_arguments(tmp_path, way):
    """An object of arguments, or what makes one, by position or by name."""
    args = v0.args.PyTreeSave({"x": 1})
    with v0.PyTreeCheckpointer() as checkpointer:
        match way:
            case "position":
                checkpointer.save(tmp_path / "c", {"x": 1}, None)
            case "object":
                checkpointer.save(tmp_path / "c", args)
            case "keyword":
                checkpointer.save(tmp_path / "c", args=args)
            case "keywords":
                checkpointer.save(tmp_path / "c", item={"x": 1}, save_args=None)

        assert checkpointer.restore(tmp_path / "c") == {"x": 1}
        assert checkpointer.restore(tmp_path / "c", args=v0.args.PyTreeRestore()) == {
            "x": 1
        }


def test_something_is_there(tmp_path):
    """Without `force` it stays, and the error says how to replace it."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        with pytest.raises(CheckpointExistsError, match="`force=True`") as caught:
            checkpointer.save(tmp_path / "c", {"x": 2})

        assert isinstance(caught.value, ValueError)
        assert checkpointer.restore(tmp_path / "c") == {"x": 1}


def test_force(tmp_path):
    """With it, the new checkpoint takes the place of the old one."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        checkpointer.save(tmp_path / "c", {"y": 2}, force=True)

        assert checkpointer.restore(tmp_path / "c") == {"y": 2}


def test_force_keeps_the_old_one_until_then(tmp_path):
    """A save that fails takes nothing away, and leaves nothing behind."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        with pytest.raises(UnsupportedLeafError):
            checkpointer.save(tmp_path / "c", {"x": object()}, force=True)

        assert checkpointer.restore(tmp_path / "c") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_force_replaces_checkpoints_only(tmp_path):
    """A directory of other files is not deleted."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("years of work")

    with v0.PyTreeCheckpointer() as checkpointer, pytest.raises(ValueError):
        checkpointer.save(tmp_path / "c", {"x": 1}, force=True)

    assert (tmp_path / "c" / "thesis.tex").exists()


def test_force_is_a_flag(tmp_path):
    """A text that means no does not replace anything."""
    checkpointer = v0.PyTreeCheckpointer()
    with pytest.raises(InvalidArgumentError, match="force"):
        checkpointer.save(tmp_path / "c", {"x": 1}, force="no")


def test_nothing_is_there(tmp_path):
    """The error is the one that callers of the older API expect."""
    checkpointer = v0.PyTreeCheckpointer()
    with pytest.raises(CheckpointNotFoundError) as caught:
        checkpointer.restore(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        checkpointer.metadata(tmp_path / "c")

    assert isinstance(caught.value, FileNotFoundError)


def test_metadata_of_what_the_handler_cannot_read(tmp_path):
    """Of an item of another kind, or of several, all is known but the item."""
    given = {"epoch": 3}
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        args = v0.args.Composite(config=v0.args.JsonSave({"depth": 3}))
        checkpointer.save(tmp_path / "composite", args, custom_metadata=given)
    with v0.Checkpointer(v0.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "json", {"depth": 3}, custom_metadata=given)

    for path in (tmp_path / "composite", tmp_path / "json"):
        for checkpointer in (v0.PyTreeCheckpointer(), v0.StandardCheckpointer()):
            found = checkpointer.metadata(path)

            assert found.custom_metadata == given
            assert found.item_metadata is None
            assert "Json" in str(found.item_handlers)


@pytest.mark.parametrize("name", ["_METADATA", "stowax.manifest"])
def test_metadata_of_what_is_damaged(tmp_path, name):
    """What has lost a document is not taken for something of another kind."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": np.arange(3)})
        (tmp_path / "c" / name).unlink()

        with pytest.raises(CorruptCheckpointError, match=name):
            checkpointer.metadata(tmp_path / "c")


def test_no_such_item(tmp_path):
    """Where a tree is asked for and JSON lies, nothing is found."""
    with v0.Checkpointer(v0.JsonCheckpointHandler("config")) as checkpointer:
        checkpointer.save(tmp_path / "c", {"depth": 3})

    checkpointer = v0.PyTreeCheckpointer()
    with pytest.raises(FileNotFoundError, match="config"):
        checkpointer.restore(tmp_path / "c")
    checkpointer = v0.Checkpointer(v0.ProtoCheckpointHandler())
    with pytest.raises(FileNotFoundError, match="config"):
        checkpointer.restore(tmp_path / "c", args=v0.args.ProtoRestore(Duration))


def test_unfinished(tmp_path):
    """A draft is no checkpoint, whole as it may look."""
    draft = tmp_path / "c.orbax-checkpoint-tmp-1"
    item = tmp_path / "d.orbax-checkpoint-tmp"
    stowax.save(tmp_path / "c", {"x": 1})
    (tmp_path / "c").rename(draft)
    v0.PyTreeCheckpointHandler().save(item, {"x": 1})

    for path in (draft, item):
        for checkpointer in (
            v0.PyTreeCheckpointer(),
            v0.Checkpointer(v0.CompositeCheckpointHandler()),
        ):
            with pytest.raises(InvalidLayoutError, match="unfinished"):
                checkpointer.restore(path)


def test_damage(tmp_path):
    """Of a single item at the path, too, every byte is verified."""
    with v0.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": np.arange(1000)})
        (data,) = (p for p in (tmp_path / "c" / "d").iterdir() if p.name != "index")
        content = bytearray(data.read_bytes())
        content[100] ^= 1
        data.write_bytes(content)

        with pytest.raises(CorruptCheckpointError, match="w"):
            checkpointer.restore(tmp_path / "c")


@pytest.mark.parametrize("name", ["stowax.manifest", "stowax.json", "_METADATA"])
def test_lost_document(tmp_path, name):
    """A document that is gone is missed, if it vouches for anything."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": np.arange(3)})
        (tmp_path / "c" / name).unlink()

        report = stowax.errors.DamageError
        with pytest.raises((report, CorruptCheckpointError)):
            stowax.verify(tmp_path / "c")
        if name == "stowax.manifest":
            with pytest.raises(CorruptCheckpointError, match="missing"):
                checkpointer.restore(tmp_path / "c")


def test_edited_json(tmp_path):
    """So is JSON that somebody has edited."""
    with v0.Checkpointer(v0.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", {"depth": 3})
        (tmp_path / "c" / "metadata").write_text('{"depth": 4}')

        with pytest.raises(CorruptCheckpointError):
            checkpointer.restore(tmp_path / "c")


def test_custom_metadata_is_json(tmp_path):
    """What is none is refused before anything is written."""
    checkpointer = v0.PyTreeCheckpointer()
    with pytest.raises(InvalidMetadataError):
        checkpointer.save(tmp_path / "c", {"x": 1}, custom_metadata={"f": print})
    args = v0.args.PyTreeSave({"x": 1}, custom_metadata={"f": print})
    with pytest.raises(InvalidMetadataError):
        checkpointer.save(tmp_path / "c", args)

    assert list(tmp_path.iterdir()) == []


def test_custom_metadata_of_a_tree(tmp_path):
    """That of a tree stands beside that of the checkpoint, and each save has its own.

    A training loop saves one structure again and again, whose documents are kept.
    """
    with v0.PyTreeCheckpointer() as checkpointer:
        for step in (1, 2):
            args = v0.args.PyTreeSave({"x": step}, custom_metadata={"step": step})
            path = tmp_path / str(step)
            checkpointer.save(path, args, custom_metadata={"run": "a"})
            found = checkpointer.metadata(path)

            assert found.custom_metadata == {"run": "a"}
            assert found.item_metadata.custom_metadata == {"step": step}


def test_of_whom_the_handler_knows_nothing(tmp_path):
    """Arguments that no handler takes are refused with what to do."""
    with pytest.raises(HandlerNotFoundError, match="register_with_handler"):
        v0.args.get_registered_handler_cls(v0.args.CheckpointArgs())
    with pytest.raises(TypeError):
        v0.args.get_registered_handler_cls(3)
    with pytest.raises(ValueError):
        v0.args.register_with_handler(v0.JsonCheckpointHandler)
    with pytest.raises(TypeError):
        v0.args.register_with_handler(v0.JsonCheckpointHandler, for_save=True)(int)


@pytest.mark.parametrize("item", [None, 3, jnp.ones(2), {"a": "text"}, {"a": object()}])
def test_standard_state(tmp_path, item):
    """The standard handler takes trees of arrays and numbers alone."""
    checkpointer = v0.Checkpointer(v0.StandardCheckpointHandler())
    with pytest.raises(ValueError):
        checkpointer.save(tmp_path / "c", args=v0.args.StandardSave(item))

    assert list(tmp_path.iterdir()) == []


def test_metadata_is_no_state(tmp_path):
    """The metadata of a tree holds no values to save."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": 1})
        found = checkpointer.metadata(tmp_path / "c").item_metadata

    for args in (v0.args.PyTreeSave, v0.args.StandardSave):
        with pytest.raises(ValueError, match="TreeMetadata"):
            args(found)


def test_standard_target_of_another_tree(tmp_path):
    """A target with other leaves is refused, and both are named."""
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"w": jnp.ones(2)})
        with pytest.raises(TreeMismatchError, match="v"):
            checkpointer.restore(tmp_path / "c", {"v": jnp.ones(2)})
        target = {"v": jax.ShapeDtypeStruct((2,), jnp.float32)}
        with pytest.raises(TreeMismatchError, match="v"):
            checkpointer.restore(tmp_path / "c", target)
        with pytest.raises(TreeError, match="w"):
            checkpointer.restore(tmp_path / "c", {"w": jnp.ones(3)})


@pytest.mark.parametrize("item", [{"a": 1}, "text", None])
def test_array_of_another_kind(tmp_path, item):
    """The handler of arrays takes one array, or a number."""
    checkpointer = v0.Checkpointer(v0.ArrayCheckpointHandler())
    with pytest.raises(TypeError):
        checkpointer.save(tmp_path / "c", args=v0.args.ArraySave(item))


def test_random_keys_of_another_kind(tmp_path):
    """The handlers of random keys take such alone."""
    checkpointer = v0.Checkpointer(v0.JaxRandomKeyCheckpointHandler())
    with pytest.raises(TypeError):
        checkpointer.save(tmp_path / "c", args=v0.args.JaxRandomKeySave(np.ones(2)))
    checkpointer = v0.Checkpointer(v0.NumpyRandomKeyCheckpointHandler())
    with pytest.raises(TypeError):
        checkpointer.save(tmp_path / "c", args=v0.args.NumpyRandomKeySave([1]))


def test_random_keys_of_other_kinds(tmp_path):
    """Keys of every implementation, and generators with numbers beyond 64 bits."""
    key = jax.random.key(7, impl="rbg")
    state = np.random.default_rng(7).bit_generator.state
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        args = v0.args.Composite(
            key=v0.args.JaxRandomKeySave(key),
            generator=v0.args.NumpyRandomKeySave(state),
        )
        checkpointer.save(tmp_path / "c", args)
        restored = checkpointer.restore(tmp_path / "c")

    assert restored.key.dtype == key.dtype
    assert restored.key == key
    assert restored.generator == state


def test_close(tmp_path):
    """A checkpointer closes its handler."""

    class Handler(v0.JsonCheckpointHandler):
        closed = 0

        def close(self):
            self.closed += 1

    handler = Handler()
    with v0.Checkpointer(handler) as checkpointer:
        assert checkpointer.handler is handler

    assert handler.closed == 1


def test_handlers_alone(tmp_path):
    """A handler writes a directory as it is, and reads it; there is no draft."""
    items = [
        (v0.PyTreeCheckpointHandler(), {"x": 1}),
        (v0.StandardCheckpointHandler(), {"x": 1}),
        (v0.JsonCheckpointHandler(), {"x": 1}),
        (v0.ArrayCheckpointHandler(), 3),
    ]
    for handler, item in items:
        directory = tmp_path / type(handler).__name__
        handler.save(directory, item)

        assert handler.restore(directory) == item


def test_random_key_alone(tmp_path):
    """So does one whose item is two."""
    state = np.random.RandomState(7).get_state()
    handler = v0.NumpyRandomKeyCheckpointHandler()

    handler.save(tmp_path / "c", args=v0.args.NumpyRandomKeySave(state))

    assert (handler.restore(tmp_path / "c")[1] == state[1]).all()


def test_several_processes(tmp_path):
    """All processes save one checkpoint together, and each restores it."""

    def save(index):
        with stowax.Context(runtime=cluster.runtimes[index]):
            with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
                args = v0.args.Composite(
                    state=v0.args.PyTreeSave({"x": np.arange(3)}),
                    config=v0.args.JsonSave({"depth": 3}),
                )
                checkpointer.save(tmp_path / "composite", args)
                restored = checkpointer.restore(tmp_path / "composite")
            with v0.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "direct", {"y": 2})
                again = checkpointer.restore(tmp_path / "direct")
            return restored.state["x"].tolist(), restored.config, again

    with SimulatedCluster(3) as cluster:
        assert cluster.run(save) == [([0, 1, 2], {"depth": 3}, {"y": 2})] * 3


def test_a_process_with_bad_arguments(tmp_path):
    """No process waits for one that cannot take part."""

    def save(index):
        item = {"x": 1} if index else {"x": object()}
        with stowax.Context(runtime=cluster.runtimes[index]):
            try:
                v0.PyTreeCheckpointer().save(tmp_path / "c", item)
            except stowax.errors.StowaxError as error:
                return type(error).__name__

    with SimulatedCluster(2) as cluster:
        assert cluster.run(save) == ["UnsupportedLeafError"] * 2
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_there_on_demand():
    """`stowax.v0` is an attribute, too; other names that are not there stay so."""
    assert stowax.v0 is v0
    with pytest.raises(AttributeError, match="v1"):
        _ = stowax.v1
