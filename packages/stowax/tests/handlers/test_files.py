"""Handlers of one small file: JSON values and protocol buffers."""

import asyncio
import json
import subprocess
import sys

import pytest
from google.protobuf import text_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

import stowax
from stowax.errors import (
    CorruptCheckpointError,
    HandlerError,
    HandlerNotFoundError,
    InvalidLayoutError,
    InvalidNameError,
)
from stowax.handlers import JsonHandler, ProtoHandler
from stowax.options import CheckpointablesOptions

with_handlers = CheckpointablesOptions.create_with_handlers


def struct(**values):
    """A message with something in it."""
    message = Struct()
    message.update(values)
    return message


async def there_and_back(handler, directory, value, target=None):
    """Both phases of a save and of a load."""
    await (await handler.save(directory, value))
    return await (await handler.load(directory, target))


class TestJson:
    @pytest.mark.parametrize(
        "names",
        [
            ["own.json", "data.json", "metadata"],
            ["data.json", "metadata"],
            ["metadata"],
            ["under any name.txt"],
        ],
        ids=lambda names: names[0],
    )
    def test_names_in_order(self, tmp_path, names):
        """Its own name is tried first, then those of Orbax, then what is alone."""
        for name in names:
            (tmp_path / name).write_text(json.dumps(name))
        handler = JsonHandler("own.json")

        loaded = asyncio.run(_load(handler, tmp_path))

        assert loaded == names[0]

    def test_no_document(self, tmp_path):
        """Where no such file is, the error says what is there, and how to name it."""
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("1")

        with pytest.raises(InvalidLayoutError, match=r"data.json.*a.txt.*filename="):
            asyncio.run(_load(JsonHandler(), tmp_path))

    def test_file_name_is_not_needed_to_load(self, place):
        """A checkpoint whose values lie under other names loads as any other."""
        with place.context(checkpointables=with_handlers(c=JsonHandler("own.json"))):
            parts = {"c": {"depth": 3}, "state": {"x": 1}}
            stowax.save_checkpointables(place / "checkpoint", parts)

        assert stowax.load_checkpointables(place / "checkpoint") == parts

    def test_snapshot(self, place):
        """When `save_async` returns, the value may change."""
        value = {"depth": [1, 2]}
        with place.context(checkpointables=with_handlers(c=JsonHandler)):
            response = stowax.save_checkpointables_async(place / "c", {"c": value})
        value["depth"].clear()
        response.result()

        assert stowax.load_checkpointables(place / "c") == {"c": {"depth": [1, 2]}}

    def test_damage_is_found(self, tmp_path):
        """A changed file is refused, and names the file."""
        with stowax.Context(checkpointables=with_handlers(c=JsonHandler)):
            stowax.save_checkpointables(tmp_path / "c", {"c": {"depth": 3}})
        (tmp_path / "c/c/data.json").write_text('{"depth": 4}')

        with pytest.raises(CorruptCheckpointError, match=r"data\.json"):
            stowax.load_checkpointables(tmp_path / "c")

    @pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "\0"])
    def test_bad_file_name(self, name):
        """A name that leads elsewhere is refused."""
        for handler in (JsonHandler, ProtoHandler):
            with pytest.raises(InvalidNameError, match="filename="):
                handler(filename=name)


class TestProto:
    def test_round_trip(self, place):
        """A message is saved without more ado, and loaded with its class."""
        message = struct(depth=3, name="ü")

        stowax.save_checkpointables(place / "checkpoint", {"m": message, "x": {"a": 1}})
        loaded = stowax.load_checkpointables(
            place / "checkpoint", {"m": Struct, "x": None}
        )

        assert loaded == {"m": message, "x": {"a": 1}}
        assert type(loaded["m"]) is Struct

    def test_text(self, tmp_path):
        """What is on disk is the text format, which people can read."""
        stowax.save_checkpointables(tmp_path / "c", {"m": Duration(seconds=3)})

        text = (tmp_path / "c/m/proto.pbtxt").read_text()
        assert text_format.Parse(text, Duration()) == Duration(seconds=3)

    def test_file_name(self, place):
        """The file may have another name."""
        with place.context(checkpointables=with_handlers(m=ProtoHandler("m.pbtxt"))):
            stowax.save_checkpointables(place / "c", {"m": Duration(seconds=3)})
            loaded = stowax.load_checkpointables(place / "c", {"m": Duration})

        assert loaded == {"m": Duration(seconds=3)}
        # The name is not needed: the file is alone.
        assert stowax.load_checkpointables(place / "c", {"m": Duration}) == loaded

    def test_snapshot(self, place):
        """When `save_async` returns, the message may change."""
        message = Duration(seconds=3)

        response = stowax.save_checkpointables_async(place / "c", {"m": message})
        message.seconds = 4
        response.result()

        loaded = stowax.load_checkpointables(place / "c", {"m": Duration})
        assert loaded["m"].seconds == 3

    def test_class_is_needed(self, place):
        """Without the class nobody can load it; the other parts load all the same."""
        parts = {"m": Duration(seconds=3), "x": {"a": 1}}
        stowax.save_checkpointables(place / "c", parts)

        loaded = stowax.load_checkpointables(place / "c")

        assert loaded["x"] == {"a": 1}
        assert isinstance(loaded["m"], stowax.OpaqueCheckpointable)
        with pytest.raises(HandlerNotFoundError, match="the class of a message"):
            stowax.load_checkpointables(place / "c", {"m": None})
        with pytest.raises(HandlerError, match="give the class"):
            stowax.load_checkpointables(place / "c", {"m": {"a": 1}})

    def test_wrong_class(self, place):
        """A class that does not fit is named, with the file and the place in it."""
        stowax.save_checkpointables(place / "c", {"m": struct(a=1)})

        with pytest.raises(HandlerError, match=r"proto\.pbtxt is no Duration.*fields"):
            stowax.load_checkpointables(place / "c", {"m": Duration})

    def test_no_message(self, place):
        """What is no message is refused where the handler was chosen for the name."""
        with (
            place.context(checkpointables=with_handlers(m=ProtoHandler)),
            pytest.raises(HandlerError, match="a dict is no protocol buffer message"),
        ):
            stowax.save_checkpointables(place / "c", {"m": {"a": 1}})

    def test_alone(self, tmp_path):
        """The handler works without a checkpoint."""
        loaded = asyncio.run(
            there_and_back(ProtoHandler(), tmp_path / "m", struct(a=1), Struct)
        )

        assert loaded == struct(a=1)

    def test_is_handleable(self):
        """It says what it can save, and what it can load."""
        handler = ProtoHandler()

        assert handler.is_handleable(Duration())
        assert not handler.is_handleable(Duration)
        assert handler.is_abstract_handleable(Duration)
        assert not handler.is_abstract_handleable(Duration())
        assert not handler.is_abstract_handleable(None)

    def test_not_imported_without_need(self, tmp_path):
        """Who has no messages needs no protobuf: it is not imported."""
        program = f"""
import sys
sys.modules["google.protobuf"] = None  # makes every import of it fail
import numpy as np, stowax
stowax.save_checkpointables({str(tmp_path / "c")!r}, {{"x": {{"w": np.ones(3)}}}})
print(stowax.load_checkpointables({str(tmp_path / "c")!r})["x"]["w"].sum())
stowax.handlers.ProtoHandler()
try:
    stowax.save_checkpointables({str(tmp_path / "d")!r}, {{"x": object()}})
except stowax.errors.HandlerNotFoundError:
    print("refused")
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
        )

        assert ended.stdout.split() == ["3.0", "refused"], ended.stderr


async def _load(handler, directory):
    return await (await handler.load(directory))
