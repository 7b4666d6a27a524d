"""Handlers without a checkpointer: they write and read a directory as it is."""

import asyncio

import numpy as np
import pytest

import stowax
from stowax import v0
from stowax.errors import (
    CheckpointNotFoundError,
    HandlerError,
    UnsupportedLeafError,
)
from stowax.testing import SimulatedCluster
from stowax.v0._handler_types import handler_type, register_handler_type


class CountHandler(v0.CheckpointHandler):
    """A guest that counts what is done with it."""

    def __init__(self):
        self.closed = 0

    def save(self, directory, args):
        (directory / "item").write_text(str(args.item))

    def restore(self, directory, args=None):
        return (directory / "item").read_text()

    def finalize(self, directory):
        (directory / "last").write_text("done")

    def close(self):
        self.closed += 1


class Count(v0.args.CheckpointArgs):
    """Its arguments."""

    def __init__(self, item=None):
        self.item = item


v0.args.register_with_handler(CountHandler, for_save=True, for_restore=True)(Count)


def test_in_the_background(tmp_path):
    """`async_save` gives futures of the rest of the work."""
    handler = v0.PyTreeCheckpointHandler()
    tree = {"w": np.ones(3)}

    async def begin():
        args = v0.args.PyTreeSave(tree)
        return await handler.async_save(tmp_path / "c", args=args)

    (future,) = asyncio.run(begin())
    tree["w"][:] = 0
    future.result()

    assert handler.restore(tmp_path / "c")["w"].tolist() == [1, 1, 1]


def test_metadata(tmp_path):
    """A handler tells of a directory what it can."""
    trees, json = v0.StandardCheckpointHandler(), v0.JsonCheckpointHandler()
    trees.save(tmp_path / "t", {"x": 1})
    json.save(tmp_path / "j", {"x": 1})

    assert trees.metadata(tmp_path / "t")["x"].dtype == np.int64
    assert json.metadata(tmp_path / "j") is None
    with pytest.raises(CheckpointNotFoundError):
        trees.metadata(tmp_path / "none")


def test_metadata_of_items(tmp_path):
    """A composite tells of the checkpoint as well."""
    handler = v0.CompositeCheckpointHandler(state=v0.PyTreeCheckpointHandler())
    args = v0.args.Composite(state=v0.args.PyTreeSave({"x": 1}))
    v0.Checkpointer(handler).save(tmp_path / "c", args, custom_metadata={"run": 1})

    found = handler.metadata(tmp_path / "c")

    assert found.custom_metadata == {"run": 1}
    assert found.item_metadata.state["x"].dtype == np.int64
    with pytest.raises(FileNotFoundError):
        handler.metadata(tmp_path / "none")


def test_guests_within(tmp_path):
    """A composite alone saves by guests, and lets them finish when it is told to."""
    guest = CountHandler()
    handler = v0.CompositeCheckpointHandler(guest=guest)

    handler.save(tmp_path / "c", args=v0.args.Composite(guest=Count(3)))
    is_finished = (tmp_path / "c" / "guest" / "last").exists()
    handler.finalize(tmp_path / "c")
    restored = handler.restore(tmp_path / "c", args=v0.args.Composite(guest=Count()))
    handler.close()

    assert not is_finished
    assert (tmp_path / "c" / "guest" / "last").exists()
    assert restored.guest == "3"
    assert guest.closed == 1


def test_guests_deep_within(tmp_path):
    """In a checkpointer they finish their items however deep these are."""
    inner = v0.CompositeCheckpointHandler(guest=CountHandler())
    checkpointer = v0.Checkpointer(v0.CompositeCheckpointHandler(inner=inner))

    args = v0.args.Composite(inner=v0.args.Composite(guest=Count(3)))
    checkpointer.save(tmp_path / "c", args)

    assert (tmp_path / "c" / "inner" / "guest" / "last").exists()
    assert stowax.verify(tmp_path / "c").unvouched == ()


def test_items_within_any_store():
    """Where no guest has anything to finish, the store need not be a directory."""
    handler = v0.CompositeCheckpointHandler(inner=v0.CompositeCheckpointHandler())
    file = stowax.options.FileOptions(store=stowax.testing.MemoryStore())
    args = v0.args.Composite(inner=v0.args.Composite(x=v0.args.JsonSave({"a": 1})))
    asked = v0.args.Composite(inner=v0.args.Composite(x=v0.args.JsonRestore()))

    with stowax.Context(file=file), v0.Checkpointer(handler) as checkpointer:
        checkpointer.save("/runs/c", args)

        assert checkpointer.restore("/runs/c", asked).inner.x == {"a": 1}


def test_closed_once():
    """A handler of several items is closed once."""
    guest = CountHandler()

    v0.Checkpointer(v0.CompositeCheckpointHandler(a=guest, b=guest)).close()

    assert guest.closed == 1


def test_several_processes(tmp_path):
    """All processes call it, and it is written once; a failure is told to all."""

    def save(index):
        handler = v0.NumpyRandomKeyCheckpointHandler()
        state = np.random.RandomState(7).get_state()
        trees = v0.PyTreeCheckpointHandler()
        with stowax.Context(runtime=cluster.runtimes[index]):
            handler.save(tmp_path / "k", args=v0.args.NumpyRandomKeySave(state))
            restored = handler.restore(
                tmp_path / "k", args=v0.args.NumpyRandomKeyRestore()
            )
            with pytest.raises(UnsupportedLeafError):
                trees.save(tmp_path / "t", {"x": 1 if index else object()})
        return restored[0]

    with SimulatedCluster(2) as cluster:
        assert cluster.run(save) == ["MT19937"] * 2


def test_one_name_for_one_class():
    """A type string stands for one class; one that was made again takes its place."""
    known = handler_type(v0.JsonCheckpointHandler.typestr())

    class Other(v0.CheckpointHandler):
        @classmethod
        def typestr(cls):
            return v0.JsonCheckpointHandler.typestr()

    with pytest.raises(HandlerError, match="typestr"):
        register_handler_type(Other)
    assert handler_type(v0.JsonCheckpointHandler.typestr()) is known
    moved = known.typestr().replace("checkpoint._src", "checkpoint.v0._src")
    assert handler_type(moved) is known
    register_handler_type(CountHandler)
    again = type("CountHandler", (CountHandler,), {"__module__": __name__})
    register_handler_type(again)
    assert handler_type(f"{__name__}.CountHandler") is again


def test_futures():
    """They give what came of the work, or raise what it failed with."""

    async def fail():
        raise OSError("disk on fire")

    async def succeed():
        return 7

    kind = v0.future.CommitFutureAwaitingContractedSignals
    failed, done = kind(fail(), name="failing"), kind(succeed())

    assert done.result(timeout=60) == 7
    with pytest.raises(OSError, match="fire"):
        v0.future.ChainedFuture([done, failed], lambda: None).result(timeout=60)


def test_structure():
    """Nobody tells it any more."""
    assert v0.PyTreeCheckpointer().structure("/no/such/path") is None
