"""What handlers may do, and which handler serves which checkpointable."""

import asyncio
import json
import threading

import jax
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from sample_trees import bits, differences

import stowax
from stowax._handlers._choose import typestr_of
from stowax.errors import (
    HandlerError,
    HandlerNotFoundError,
    InvalidLayoutError,
    TreeMismatchError,
    UnsupportedLeafError,
    UnsupportedOptionError,
)
from stowax.handlers import (
    JsonHandler,
    ProtoHandler,
    PyTreeHandler,
    local_registry,
)
from stowax.options import CheckpointablesOptions

V1 = "orbax.checkpoint.experimental.v1._src.handlers."


class Words(list):
    """What the guest below saves."""

    __slots__ = ()


class WordsHandler:
    """A user's handler, as its docstring teaches: it blocks, and uses plain files."""

    threads = ()

    async def save(self, directory, checkpointable):
        first = threading.current_thread()
        words = list(checkpointable)

        async def write():
            path = await directory.await_creation()
            done = threading.Event()
            thread = threading.Thread(target=done.set)
            thread.start()
            done.wait()  # Blocks the loop that it runs on.
            thread.join()
            (path / "words.json").write_text(json.dumps(words))
            (path / "deep").mkdir()
            (path / "deep" / "count").write_text(str(len(words)))
            WordsHandler.threads = first, threading.current_thread()

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            assert (directory / "deep" / "count").read_text().isdigit()
            return Words(json.loads((directory / "words.json").read_text()))

        return read()

    async def metadata(self, directory):
        return {"count": int((directory / "deep" / "count").read_text())}

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Words)

    def is_abstract_handleable(self, abstract_checkpointable):
        return None


def with_words(place):
    """A Context whose registry has the guest's handler."""
    registry = local_registry().add(WordsHandler)
    return place.context(checkpointables=CheckpointablesOptions(registry=registry))


class Counter:
    """Saves itself as a tree."""

    def __init__(self, tree=None):
        self.tree = tree

    async def save(self, directory):
        return await PyTreeHandler().save(directory, self.tree)

    async def load(self, directory):
        reading = await PyTreeHandler().load(directory)

        async def finish():
            self.tree = await reading

        return finish()


class Nested:
    """Saves two trees into directories of its own, and a file beside them."""

    def __init__(self, trees=None):
        self.trees = trees

    async def save(self, directory):
        handler = PyTreeHandler()
        writing = [await handler.save(directory / n, t) for n, t in self.trees.items()]
        names = sorted(self.trees)

        async def finish():
            path = await directory.await_creation()
            (path / "names.json").write_text(json.dumps(names))
            for awaitable in writing:
                await awaitable

        return finish()

    async def load(self, directory):
        async def finish():
            names = json.loads((directory / "names.json").read_text())
            handler = PyTreeHandler()
            self.trees = {n: await (await handler.load(directory / n)) for n in names}

        return finish()


def tree():
    """A small tree with data."""
    return {"w": jax.device_put(bits("float32", (3, 4))), "n": 3, "s": "text"}


class Together:
    """Asks for its directory at the very moment when others do."""

    def __init__(self, barrier):
        self.barrier = barrier

    async def save(self, directory):
        async def write():
            self.barrier.wait(10)
            path = await directory.await_creation()
            (path / "file").write_text("whole")

        return write()

    async def load(self, directory):
        async def read():
            assert (directory / "file").read_text() == "whole"

        return read()


class TestGuests:
    def test_several_at_once(self, place):
        """Guests that begin to write at the same moment all find their directory."""
        for number in range(10):
            barrier = threading.Barrier(6)
            guests = {f"guest_{i}": Together(barrier) for i in range(6)}

            stowax.save_checkpointables(place / str(number), guests)

            stowax.load_checkpointables(place / str(number), guests)

    def test_round_trip(self, place):
        """A guest's checkpointable comes back from every store, its files verified."""
        with with_words(place):
            parts = {"words": Words(["a", "b"]), "state": {"x": 1}}
            stowax.save_checkpointables(place / "checkpoint", parts)
            loaded = stowax.load_checkpointables(place / "checkpoint")
            described = stowax.checkpointables_metadata(place / "checkpoint").metadata

        assert loaded == parts
        assert type(loaded["words"]) is Words
        assert described == {"words": {"count": 2}, "state": {"x": 0}}

    def test_threads(self, place):
        """The first phase runs on the caller's thread, the second on one of its own."""
        with with_words(place):
            parts = {"words": Words("ab")}
            stowax.save_checkpointables_async(place / "checkpoint", parts).result()

        first, second = WordsHandler.threads
        assert first is threading.current_thread()
        assert second.name == "stowax-guest"
        assert second is not first

    def test_loading_inside(self, tmp_path):
        """A guest may call `stowax.load` and `stowax.save` in both of its phases."""
        stowax.save(tmp_path / "base", {"x": 1})

        class Derived:
            async def save(self, directory):
                first = stowax.load(tmp_path / "base")["x"]

                async def write():
                    second = stowax.load(tmp_path / "base")["x"]
                    path = await directory.await_creation()
                    (path / "sum").write_text(str(first + second))
                    stowax.save(tmp_path / "other", {"y": 2})

                return write()

            async def load(self, directory):
                async def read():
                    self.value = stowax.load(tmp_path / "base")["x"]

                return read()

        stowax.save_checkpointables(tmp_path / "checkpoint", {"derived": Derived()})

        derived = Derived()
        stowax.load_checkpointables(tmp_path / "checkpoint", {"derived": derived})
        assert derived.value == 1
        assert (tmp_path / "checkpoint/derived/sum").read_text() == "2"
        assert stowax.load(tmp_path / "other") == {"y": 2}

    def test_writing_nothing(self, place):
        """A guest that has nothing to write is a checkpointable all the same."""

        class Silent:
            loaded = False

            async def save(self, directory):
                async def nothing():
                    pass

                return nothing()

            async def load(self, directory):
                self.loaded = True

                async def nothing():
                    pass

                return nothing()

        stowax.save_checkpointables(place / "checkpoint", {"silent": Silent()})

        silent = Silent()
        loaded = stowax.load_checkpointables(place / "checkpoint", {"silent": silent})
        assert loaded["silent"].loaded
        assert list(stowax.load_checkpointables(place / "checkpoint")) == ["silent"]

    @pytest.mark.parametrize("verb", ["save", "load"])
    def test_broken_contract(self, place, verb):
        """An object whose method returns no awaitable is told so."""

        class Broken(Counter):
            async def save(self, directory):
                rest = await super().save(directory)
                return None if verb == "save" else rest

            async def load(self, directory):
                return None

        def there_and_back():
            stowax.save_checkpointables(place / "checkpoint", {"x": Broken({"a": 1})})
            stowax.load_checkpointables(place / "checkpoint", {"x": Broken()})

        with pytest.raises(HandlerError, match=rf"Broken\.{verb} must return an await"):
            there_and_back()

    def test_unknown_comes_back_opaque(self, place):
        """What nothing here can load comes back described, unless asked for by name."""
        with with_words(place):
            parts = {"words": Words("ab"), "state": {"x": 1}}
            stowax.save_checkpointables(place / "checkpoint", parts)

        loaded = stowax.load_checkpointables(place / "checkpoint")

        assert loaded["state"] == {"x": 1}
        opaque = loaded["words"]
        assert isinstance(opaque, stowax.OpaqueCheckpointable)
        assert opaque.path == f"{place / 'checkpoint'}/words"
        assert opaque.typestr == typestr_of(WordsHandler())
        assert sorted(opaque.files) == ["deep", "words.json"]
        with pytest.raises(HandlerNotFoundError, match="register_handler"):
            stowax.load_checkpointables(place / "checkpoint", {"words": None})

    def test_nothing_accepts(self, tmp_path):
        """An object that nothing can save is refused with the two ways out."""
        with pytest.raises(HandlerError, match="StatefulCheckpointable") as caught:
            stowax.save_checkpointables(tmp_path / "checkpoint", {"x": object()})

        assert "stowax.handlers.register_handler" in str(caught.value)
        assert list(tmp_path.iterdir()) == []


class TestStateful:
    def test_tree_inside(self, place):
        """An object that saves itself as a tree is loaded in place, verified."""
        state = tree()

        stowax.save_checkpointables(place / "checkpoint", {"counter": Counter(state)})
        counter = Counter()
        loaded = stowax.load_checkpointables(place / "checkpoint", {"counter": counter})

        assert loaded["counter"] is counter
        assert differences(state, counter.tree) == []

    def test_tree_without_its_class(self, place):
        """Such an item is a tree to everybody who does not have the class."""
        state = tree()

        stowax.save_checkpointables(place / "checkpoint", {"counter": Counter(state)})

        assert differences(state, stowax.load(place / "checkpoint")) == []
        loaded = stowax.load_checkpointables(place / "checkpoint")
        assert differences({"counter": state}, loaded) == []
        described = stowax.checkpointables_metadata(place / "checkpoint").metadata
        assert described["counter"]["w"].shape == (3, 4)

    def test_several_trees_inside(self, place):
        """An object may save several trees into directories of its own."""
        trees = {"a": tree(), "b": {"x": np.arange(3)}}

        stowax.save_checkpointables(place / "checkpoint", {"nested": Nested(trees)})
        nested = Nested()
        stowax.load_checkpointables(place / "checkpoint", {"nested": nested})

        assert differences(trees, nested.trees) == []

    def test_values_may_change_at_once(self, place):
        """Also of an object that saves itself, values are those of the call."""
        array = np.arange(10)
        counter = Counter({"x": array})

        response = stowax.save_checkpointables_async(
            place / "checkpoint", {"c": counter}
        )
        array[:] = -1
        counter.tree = None
        response.result()

        assert stowax.load(place / "checkpoint")["x"].tolist() == list(range(10))


class TestJson:
    @pytest.mark.parametrize(
        "value", [{"a": [1, None, "ü"]}, [1, 2], "text", 3.5, None, {}], ids=repr
    )
    def test_by_name(self, place, value):
        """A value whose name has the JSON handler is kept as JSON."""
        options = CheckpointablesOptions.create_with_handlers(config=JsonHandler)

        with place.context(checkpointables=options):
            stowax.save_checkpointables(place / "checkpoint", {"config": value})
            assert stowax.load_checkpointables(place / "checkpoint") == {
                "config": value
            }

        # The record of the checkpoint is enough.
        assert stowax.load_checkpointables(place / "checkpoint") == {"config": value}

    def test_file_name(self, tmp_path):
        """The file may have another name."""
        options = CheckpointablesOptions.create_with_handlers(
            config=JsonHandler("settings.json")
        )

        with stowax.Context(checkpointables=options):
            stowax.save_checkpointables(tmp_path / "checkpoint", {"config": {"a": 1}})
            loaded = stowax.load_checkpointables(tmp_path / "checkpoint")

        assert loaded == {"config": {"a": 1}}
        text = (tmp_path / "checkpoint/config/settings.json").read_text()
        assert json.loads(text) == {"a": 1}

    def test_no_json(self, tmp_path):
        """A value that is no JSON is refused, and nothing is left."""
        options = CheckpointablesOptions.create_with_handlers(config=JsonHandler)

        with (
            stowax.Context(checkpointables=options),
            pytest.raises(HandlerError, match="no JSON value"),
        ):
            stowax.save_checkpointables(tmp_path / "c", {"config": {"a": object()}})

        assert list(tmp_path.iterdir()) == []


class SortedJsonHandler(JsonHandler):
    """A user's subclass with plain file calls, as any handler of theirs."""

    async def save(self, directory, checkpointable):
        text = json.dumps(checkpointable, sort_keys=True)

        async def write():
            (await directory.await_creation() / "sorted.json").write_text(text)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        assert abstract_checkpointable is None

        async def read():
            return json.loads((directory / "sorted.json").read_text())

        return read()

    async def metadata(self, directory):
        return len((directory / "sorted.json").read_text())


class CountingJsonHandler(JsonHandler):
    """A subclass that adds something, and leaves the rest to ours."""

    calls = ()

    async def load(self, directory, abstract_checkpointable=None):
        type(self).calls = (*self.calls, str(directory))
        return await super().load(directory, abstract_checkpointable)


class AnyProtoHandler(ProtoHandler):
    """A subclass that needs no target."""

    async def load(self, directory, abstract_checkpointable=None):
        return await super().load(directory, abstract_checkpointable or Duration)


class TestSubclass:
    def test_overridden_methods_are_a_guests(self, place):
        """What a subclass of ours overrides gets paths, and is driven as a guest."""
        options = CheckpointablesOptions.create_with_handlers(config=SortedJsonHandler)

        with place.context(checkpointables=options):
            stowax.save_checkpointables(place / "c", {"config": {"b": 1, "a": [2]}})
            loaded = stowax.load_checkpointables(place / "c")
            told = stowax.checkpointables_metadata(place / "c").metadata

        assert loaded == {"config": {"b": 1, "a": [2]}}
        assert told == {"config": len('{"a": [2], "b": 1}')}

    def test_inherited_methods_are_ours(self, place):
        """A subclass may hand what it was given to our method."""
        options = CheckpointablesOptions.create_with_handlers(
            config=CountingJsonHandler
        )

        with place.context(checkpointables=options):
            stowax.save_checkpointables(place / "c", {"config": {"a": 1}})
            loaded = stowax.load_checkpointables(place / "c")

        assert loaded == {"config": {"a": 1}}
        assert len(CountingJsonHandler.calls) > 0
        # Its files are those of a JSON value, whoever loads them.
        with place.context():
            assert stowax.load_checkpointables(place / "c") == loaded

    def test_own_load_needs_no_target(self, place):
        """Whether a load has to be told what is up to the `load` that is called."""
        options = CheckpointablesOptions.create_with_handlers(AnyProtoHandler)

        with place.context(checkpointables=options):
            stowax.save_checkpointables(place / "c", {"limit": Duration(seconds=90)})
            loaded = stowax.load_checkpointables(place / "c")

        assert loaded["limit"].seconds == 90

    @pytest.mark.parametrize(
        ("handler", "expected"),
        [
            (JsonHandler, JsonHandler.typestr),
            (CountingJsonHandler(), JsonHandler.typestr),
            (SortedJsonHandler, f"{__name__}.SortedJsonHandler"),
            (SortedJsonHandler(), f"{__name__}.SortedJsonHandler"),
        ],
    )
    def test_recorded_name(self, handler, expected):
        """A checkpoint records ours for files that ours wrote, and for no others."""
        assert typestr_of(handler) == expected


class TestPyTreeHandlerAlone:
    def test_two_loops(self, tmp_path):
        """The two phases may be awaited in different event loops."""
        handler, state = PyTreeHandler(), tree()

        writing = asyncio.run(handler.save(tmp_path / "item", state))
        asyncio.run(_await(writing))
        reading = asyncio.run(handler.load(tmp_path / "item"))
        loaded = asyncio.run(_await(reading))
        described = asyncio.run(handler.metadata(tmp_path / "item"))

        assert differences(state, loaded) == []
        assert described["w"].shape == (3, 4)

    def test_options(self, tmp_path):
        """The Context that the handler was made with counts."""
        asyncio.run(_save(PyTreeHandler(), tmp_path / "item", {"a": 1, "b": 2}))
        context = stowax.Context()
        context.pytree.loading.partial_load = True

        handler = PyTreeHandler(context=context)
        loaded = asyncio.run(_load(handler, tmp_path / "item", {"a": int}))

        assert loaded == {"a": 1}
        with pytest.raises(TreeMismatchError):
            asyncio.run(_load(PyTreeHandler(), tmp_path / "item", {"a": int}))

    def test_not_a_tree(self, tmp_path):
        """A directory without a tree is refused."""
        (tmp_path / "file").write_text("text")

        with pytest.raises(InvalidLayoutError):
            asyncio.run(_load(PyTreeHandler(), tmp_path, None))

    def test_is_handleable(self):
        """It says what it can save, and what it can load."""
        handler = PyTreeHandler()

        assert handler.is_handleable({"a": [1, np.ones(2), "text", None]})
        assert not handler.is_handleable({"a": len})
        assert handler.is_abstract_handleable({"a": int, "b": ...})
        assert not handler.is_abstract_handleable({"a": object()})

    def test_validate(self):
        """It refuses by name every leaf that it cannot save, or load."""
        handler = PyTreeHandler()
        odd = {"a": len, "b": [1, object()], "c": stowax.PLACEHOLDER}

        for validate in (
            handler.validate_leaves_handleable,
            handler.validate_abstract_leaves_handleable,
        ):
            validate({"a": 1, "b": stowax.PLACEHOLDER})
            with pytest.raises(
                UnsupportedLeafError, match=r"(?s)'a'.*'b\.1'"
            ) as caught:
                validate(odd)
            assert "'c'" not in str(caught.value)

    def test_arguments_of_orbax(self):
        """What only Orbax can follow is refused, unless it is left at its default."""
        PyTreeHandler(
            context=None,
            array_metadata_validator=None,
            leaf_handler_registry=None,
            partial_save_mode=False,
        )

        with pytest.raises(UnsupportedOptionError) as caught:
            PyTreeHandler(
                array_metadata_validator=object(),
                leaf_handler_registry=object(),
                partial_save_mode=True,
            )

        for name in ("metadata_validator", "handler_registry", "save_mode=True"):
            assert name in str(caught.value)


async def _await(awaitable):
    return await awaitable


async def _save(handler, directory, state):
    await (await handler.save(directory, state))


async def _load(handler, directory, target):
    return await (await handler.load(directory, target))


class TestRegistry:
    def test_names_are_pinned(self):
        """The strings in checkpoints are those that Orbax knows; they never change."""
        known = stowax.handlers
        assert typestr_of(known.PyTreeHandler()) == V1 + "pytree_handler.PyTreeHandler"
        assert typestr_of(known.JsonHandler()) == V1 + "json_handler.JsonHandler"
        assert typestr_of(WordsHandler()) == f"{__name__}.WordsHandler"

    def test_recorded_names(self, place):
        """A checkpoint records the handler of every item."""
        with with_words(place):
            parts = {"words": Words("a"), "tree": {"x": 1}, "own": Counter({"x": 2})}
            stowax.save_checkpointables(place / "checkpoint", parts)
        run = stowax._runtime.default_runtime().run
        store = place.store or stowax._stores._local.LocalStore()
        path = place / "checkpoint/_CHECKPOINT_METADATA"
        data = run(stowax._stores._base.read_bytes(store, path, limit_bytes=10**6))

        assert json.loads(data)["item_handlers"] == {
            "words": typestr_of(WordsHandler()),
            "tree": V1 + "pytree_handler.PyTreeHandler",
            "own": V1 + "pytree_handler.PyTreeHandler",
        }
