"""Handlers of users, with and without arguments of their own."""

import asyncio
import dataclasses
import threading

import numpy as np
import pytest

import stowax
from stowax import v0
from stowax.errors import CorruptCheckpointError, HandlerError
from stowax.testing import SimulatedCluster
from stowax.v0._legacy import LegacyArgs


class TextHandler:
    """What programs have written before there were arguments; not even derived."""

    def save(self, directory, item, end="."):
        (directory / "text").write_text(item + end)

    def restore(self, directory, item=None):
        return (directory / "text").read_text()


class WordsHandler(v0.CheckpointHandler):
    """One with arguments, that finishes what was written, and says what there is."""

    def save(self, directory, args):
        (directory / "words").write_text(" ".join(args.item))

    def restore(self, directory, args=None):
        return (directory / "words").read_text().split()

    def metadata(self, directory):
        return {"size": len((directory / "words").read_text())}

    def finalize(self, directory):
        count = len((directory / "words").read_text().split())
        (directory / "count").write_text(str(count))


@v0.args.register_with_handler(WordsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Words(v0.args.CheckpointArgs):
    item: list | None = None


def test_without_arguments(tmp_path):
    """It is given what the call was given, by position and by name."""
    with v0.Checkpointer(TextHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", "one")
        checkpointer.save(tmp_path / "b", item="two", end="!")

        assert checkpointer.restore(tmp_path / "a") == "one."
        assert checkpointer.restore(tmp_path / "b", None) == "two!"
        found = checkpointer.metadata(tmp_path / "a")
    assert found.item_handlers == f"{__name__}.TextHandler"
    assert found.item_metadata is None


def test_arguments_of_others(tmp_path):
    """One without arguments of its own is given an object of any class as `args`."""

    class Handler(TextHandler):
        def save(self, directory, args):
            super().save(directory, args.item)

        def restore(self, directory, args=None):
            return super().restore(directory), args.item

    with v0.Checkpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=v0.args.JsonSave("one"))
        restored = checkpointer.restore(tmp_path / "c", args=v0.args.JsonRestore("x"))

    assert restored == ("one.", "x")


def test_with_arguments(tmp_path):
    """It is given an object of its class, alone and among other items."""
    with v0.Checkpointer(WordsHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=Words(["a", "b"]))
        checkpointer.save(tmp_path / "b", ["c"])

        assert checkpointer.restore(tmp_path / "a") == ["a", "b"]
        assert checkpointer.restore(tmp_path / "b") == ["c"]
        assert checkpointer.metadata(tmp_path / "b").item_metadata == {"size": 1}
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", v0.args.Composite(words=Words(["d"])))

        assert checkpointer.restore(tmp_path / "c").words == ["d"]


def test_the_least_of_a_handler(tmp_path):
    """Two methods are enough, also for one with arguments."""

    class Handler:
        def save(self, directory, args):
            (directory / "number").write_text(str(args.item))

        def restore(self, directory, args=None):
            return int((directory / "number").read_text())

    @v0.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Number(v0.args.CheckpointArgs):
        item: int = 0

    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", v0.args.Composite(n=Number(3)))
        found = checkpointer.metadata(tmp_path / "c")

        assert checkpointer.restore(tmp_path / "c").n == 3
    assert found.item_metadata.n is None
    assert found.item_handlers["n"] == f"{__name__}.{Handler.__qualname__}"


def test_without_arguments_among_others(tmp_path):
    """In a composite it is named with its item."""
    handler = v0.CompositeCheckpointHandler("state", text=TextHandler())
    with v0.Checkpointer(handler) as checkpointer:
        text = LegacyArgs("one")
        args = v0.args.Composite(text=text, state=v0.args.PyTreeSave({"x": 1}))
        checkpointer.save(tmp_path / "c", args)
        args = v0.args.Composite(text=LegacyArgs())

        assert checkpointer.restore(tmp_path / "c", args).text == "one."


def test_finalize(tmp_path):
    """What it adds when all is written is part of the checkpoint, and verified."""
    with v0.Checkpointer(WordsHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=Words(["a", "b"]))
        assert (tmp_path / "c" / "count").read_text() == "2"
        assert stowax.verify(tmp_path / "c").unvouched == ()

        (tmp_path / "c" / "count").write_text("3")
        with pytest.raises(CorruptCheckpointError, match="count"):
            checkpointer.restore(tmp_path / "c")


def test_finalize_fails(tmp_path):
    """Then nothing is published."""

    class Handler(WordsHandler):
        def finalize(self, directory):
            raise OSError("disk on fire")

    with (
        v0.Checkpointer(Handler()) as checkpointer,
        pytest.raises(OSError, match="fire") as caught,
    ):
        checkpointer.save(tmp_path / "c", args=Words(["a"]))

    assert any("finalizing" in note for note in caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_finalize_in_one_process(tmp_path):
    """One process finalizes, when all have written."""
    found = []

    class Handler(v0.CheckpointHandler):
        def __init__(self, index):
            self.index = index

        def save(self, directory, item):
            (directory / str(self.index)).write_text(item)

        def restore(self, directory):
            return sorted(path.name for path in directory.iterdir())

        def finalize(self, directory):
            found.append((self.index, self.restore(directory)))

    def save(index):
        with stowax.Context(runtime=cluster.runtimes[index]):
            v0.Checkpointer(Handler(index)).save(tmp_path / "c", "text")

    with SimulatedCluster(3) as cluster:
        cluster.run(save)

    assert found == [(0, ["0", "1", "2"])]


def test_finalize_needs_a_directory():
    """Where there are no files to finish, it is refused."""
    context = stowax.Context(
        file=stowax.options.FileOptions(store=stowax.testing.MemoryStore())
    )
    checkpointer = v0.Checkpointer(WordsHandler())
    with context, pytest.raises(HandlerError, match="finalize"):
        checkpointer.save("/runs/c", args=Words(["a"]))


def test_any_store(place):
    """Otherwise it saves to any store, and restores from it."""
    with v0.Checkpointer(TextHandler()) as checkpointer:
        checkpointer.save(place / "c", "one")

        assert checkpointer.restore(place / "c") == "one."


def test_a_loop_of_its_own(tmp_path):
    """It may run loops, as blocking code does."""

    class Handler(TextHandler):
        def save(self, directory, item, end="."):
            asyncio.run(asyncio.sleep(0))
            super().save(directory, item, end)

        def restore(self, directory, item=None):
            asyncio.run(asyncio.sleep(0))
            return super().restore(directory)

    async def cell():  # Of a notebook, where a loop runs already.
        with v0.Checkpointer(Handler()) as checkpointer:
            checkpointer.save(tmp_path / "c", "one")
            return checkpointer.restore(tmp_path / "c")

    assert asyncio.run(cell()) == "one."


def test_the_thread_of_the_caller(tmp_path):
    """It is called where the checkpointer is called, and restores there."""
    threads = []

    class Handler(TextHandler):
        def save(self, directory, item, end="."):
            threads.append(threading.current_thread())
            super().save(directory, item, end)

        def restore(self, directory, item=None):
            threads.append(threading.current_thread())
            return super().restore(directory)

    with v0.Checkpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "c", "one")
        checkpointer.restore(tmp_path / "c")

    assert threads == [threading.current_thread()] * 2


class Told:
    """A future that remembers that it was waited for, and fails if it is told to."""

    def __init__(self, error=None):
        self.error = error
        self.is_waited_for = False

    def result(self, timeout=None):
        del timeout
        self.is_waited_for = True
        if self.error is not None:
            raise self.error


def test_futures(tmp_path):
    """All of them are waited for, nested as they may be, also if one fails."""

    class Handler(TextHandler):
        async def async_save(self, directory, item, futures=None):
            self.save(directory, item)
            return futures

    ended, failed = [Told(), Told()], [Told(OSError("disk on fire")), Told()]
    with v0.AsyncCheckpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", "one", [None, [ended[0]], ended[1]])
        assert checkpointer.restore(tmp_path / "a") == "one."
        checkpointer.save(tmp_path / "b", "two", failed)
        with pytest.raises(OSError, match="fire"):
            checkpointer.wait_until_finished()

    assert all(future.is_waited_for for future in ended + failed)
    assert not (tmp_path / "b").exists()


def test_failure(tmp_path):
    """What it raises comes as it is, with the place; nothing is published."""

    class Handler(TextHandler):
        def save(self, directory, item, end="."):
            super().save(directory, item, end)
            raise OSError("disk on fire")

    with (
        v0.Checkpointer(Handler()) as checkpointer,
        pytest.raises(OSError, match="fire"),
    ):
        checkpointer.save(tmp_path / "c", "one")

    assert list(tmp_path.iterdir()) == []


def test_derived_from_ours(tmp_path):
    """One that changes how ours saves is a guest, and may use it inside."""

    class Handler(v0.PyTreeCheckpointHandler):
        def save(self, directory, args):
            super().save(directory, args=v0.args.PyTreeSave({"inner": args.item}))

        def restore(self, directory, args=None):
            return super().restore(directory)["inner"]

    v0.args.register_with_handler(Handler, for_save=True, for_restore=True)(
        dataclasses.make_dataclass(
            "Args", [("item", object, None)], bases=(v0.args.CheckpointArgs,)
        )
    )
    with v0.Checkpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "c", {"x": np.arange(3)})

        assert checkpointer.restore(tmp_path / "c")["x"].tolist() == [0, 1, 2]
    assert stowax.load(tmp_path / "c")["inner"]["x"].tolist() == [0, 1, 2]


def test_derived_and_named(tmp_path):
    """One that changes nothing of that takes our arguments, and has its name."""

    class Handler(v0.JsonCheckpointHandler):
        def __init__(self):
            super().__init__("config")

    with v0.Checkpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=v0.args.JsonSave({"depth": 3}))

        assert checkpointer.restore(tmp_path / "c") == {"depth": 3}
        found = checkpointer.metadata(tmp_path / "c").item_handlers
    assert found == Handler.typestr() != v0.JsonCheckpointHandler.typestr()
