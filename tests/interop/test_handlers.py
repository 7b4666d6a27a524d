"""Items of handlers: Orbax loads ours, and we load those of both of its APIs."""

import json

import orbax.checkpoint as v0
import pytest
from google.protobuf.duration_pb2 import Duration
from orbax.checkpoint import v1

import stowax

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LIBRARIES = {"orbax": v1, "stowax": stowax}
BOTH_WAYS = pytest.mark.parametrize(
    ("saver", "loader"),
    [("orbax", "stowax"), ("stowax", "orbax")],
    ids=["theirs", "ours"],
)
VALUES = [{"a": [1, None, "ü"], "b": {}}, [1, 2.5], "text", True, {}]


def chosen(library, name, handler, **arguments):
    """A Context of a library with a handler for one name, as its documentation has it.

    Orbax takes classes that need no arguments.
    """
    base = getattr(library.handlers, handler)
    members = {"__init__": lambda self: base.__init__(self, **arguments)}
    cls = type(f"My{handler}", (base,), members) if arguments else base
    registry = library.handlers.local_registry()
    registry.add(cls, checkpointable_name=name)
    context = library.Context()
    context.checkpointables.registry = registry
    return context


@BOTH_WAYS
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json(tmp_path, saver, loader, value):
    """A JSON value comes back, with its handler chosen again and without."""
    saver, loader = LIBRARIES[saver], LIBRARIES[loader]
    with chosen(saver, "config", "JsonHandler"):
        saver.save_checkpointables(tmp_path / "c", {"config": value})

    with chosen(loader, "config", "JsonHandler"):
        assert loader.load_checkpointables(tmp_path / "c") == {"config": value}
    assert loader.load_checkpointables(tmp_path / "c", {"config": None}) == {
        "config": value
    }


@BOTH_WAYS
def test_json_under_another_name(tmp_path, saver, loader):
    """The name of the file is what was asked for, and found when asked for again."""
    saver, loader = LIBRARIES[saver], LIBRARIES[loader]
    with chosen(saver, "config", "JsonHandler", filename="own.json"):
        saver.save_checkpointables(tmp_path / "c", {"config": {"a": 1}})

    assert json.loads((tmp_path / "c/config/own.json").read_text()) == {"a": 1}
    with chosen(loader, "config", "JsonHandler", filename="own.json"):
        assert loader.load_checkpointables(tmp_path / "c") == {"config": {"a": 1}}


@BOTH_WAYS
@pytest.mark.parametrize("arguments", [{}, {"filename": "m.pbtxt"}], ids=str)
def test_proto(tmp_path, saver, loader, arguments):
    """A message comes back, its class given."""
    saver, loader = LIBRARIES[saver], LIBRARIES[loader]
    message = Duration(seconds=90, nanos=7)
    with chosen(saver, "limit", "ProtoHandler", **arguments):
        saver.save_checkpointables(tmp_path / "c", {"limit": message})

    with chosen(loader, "limit", "ProtoHandler", **arguments):
        loaded = loader.load_checkpointables(tmp_path / "c", {"limit": Duration})
    assert loaded == {"limit": message}
    if not arguments:
        loaded = loader.load_checkpointables(tmp_path / "c", {"limit": Duration})
        assert loaded == {"limit": message}


@pytest.mark.parametrize("filename", ["proto.pbtxt", "m.pbtxt"])
def test_items_of_v0(tmp_path, filename):
    """JSON and message items of the older API are found by what it records."""
    handlers = {
        "limit": v0.ProtoCheckpointHandler(filename=filename),
        "config": v0.JsonCheckpointHandler(),
    }
    with v0.Checkpointer(v0.CompositeCheckpointHandler(**handlers)) as checkpointer:
        checkpointer.save(
            tmp_path / "c",
            v0.args.Composite(
                limit=v0.args.ProtoSave(Duration(seconds=90)),
                config=v0.args.JsonSave({"a": 1}),
            ),
        )

    asked = {"limit": Duration, "config": None}
    loaded = stowax.load_checkpointables(tmp_path / "c", asked)
    without = stowax.load_checkpointables(tmp_path / "c")

    assert loaded == {"limit": Duration(seconds=90), "config": {"a": 1}}
    assert without["config"] == {"a": 1}
    assert isinstance(without["limit"], stowax.OpaqueCheckpointable)


def test_v0_loads_our_files(tmp_path):
    """The older API reads our messages and JSON values with its own handlers."""
    with chosen(stowax, "config", "JsonHandler", filename="metadata"):
        parts = {"limit": Duration(seconds=90), "config": {"a": 1}}
        stowax.save_checkpointables(tmp_path / "c", parts)
    handler = v0.CompositeCheckpointHandler(
        limit=v0.ProtoCheckpointHandler(filename="proto.pbtxt"),
        config=v0.JsonCheckpointHandler(),
    )

    with v0.Checkpointer(handler) as checkpointer:
        loaded = checkpointer.restore(
            tmp_path / "c",
            v0.args.Composite(
                limit=v0.args.ProtoRestore(Duration), config=v0.args.JsonRestore()
            ),
        )

    assert loaded["limit"] == Duration(seconds=90)
    assert loaded["config"] == {"a": 1}


def test_typestrs():
    """What we record, and the older names that we know, are those of Orbax."""
    theirs = v1.handlers.global_registry()
    ours = stowax.handlers.global_registry()

    for name in ("PyTreeHandler", "JsonHandler", "ProtoHandler"):
        their, our = getattr(v1.handlers, name), getattr(stowax.handlers, name)
        assert our.typestr == f"{their.__module__}.{their.__qualname__}"
        assert set(ours.get_secondary_typestrs(our)) == set(
            theirs.get_secondary_typestrs(their)
        )
    order = [(cls.__name__, name) for cls, name in theirs.get_all_entries()]
    assert [(cls.__name__, name) for cls, name in ours.get_all_entries()] == order


class Counts:
    """A handler as both libraries take it, which keeps counts as a tree."""

    library = None

    async def save(self, directory, checkpointable):
        tree = {"counts": dict(checkpointable.counts)}
        return await self.library.handlers.PyTreeHandler().save(directory, tree)

    async def load(self, directory, abstract_checkpointable=None):
        reading = await self.library.handlers.PyTreeHandler().load(directory)

        async def finish():
            return Counter((await reading)["counts"])

        return finish()

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Counter)

    def is_abstract_handleable(self, abstract_checkpointable):
        return None


class Counter:
    """What it serves."""

    def __init__(self, counts):
        self.counts = counts


@BOTH_WAYS
def test_a_users_handler(tmp_path, saver, loader):
    """A handler that uses `PyTreeHandler` inside works in both, and across.

    Where it is missing, what it wrote is a tree.
    """
    saver, loader = LIBRARIES[saver], LIBRARIES[loader]

    def context(library):
        handler = type("Counts", (Counts,), {"library": library})
        handler.__module__ = "somewhere"
        registry = library.handlers.local_registry()
        registry.add(handler)
        context = library.Context()
        context.checkpointables.registry = registry
        return context

    with context(saver):
        saver.save_checkpointables(tmp_path / "c", {"n": Counter({"a": 1, "b": 2})})

    with context(loader):
        loaded = loader.load_checkpointables(tmp_path / "c")["n"]
    assert type(loaded) is Counter
    assert loaded.counts == {"a": 1, "b": 2}
    assert loader.load_checkpointables(tmp_path / "c") == {
        "n": {"counts": {"a": 1, "b": 2}}
    }
