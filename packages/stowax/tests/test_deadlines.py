"""`AsyncOptions.timeout_secs` is the time of a whole operation, whichever it is."""

import asyncio
import decimal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from sample_leaves import DecimalHandler

import stowax
from stowax import _deadline
from stowax._stores._local import LocalStore
from stowax.errors import DeadlineError
from stowax.handlers import JsonHandler, ProtoHandler
from stowax.options import AsyncOptions, CheckpointablesOptions, FileOptions


class Stuck(LocalStore):
    """A store that answers no more, once the test says so."""

    def __init__(self):
        super().__init__()
        self.is_stuck = False

    async def _answer(self):
        if self.is_stuck:
            await asyncio.Event().wait()

    async def write(self, path, pieces, *, size_bytes=None):
        await self._answer()
        await super().write(path, pieces, size_bytes=size_bytes)

    async def read_into(self, path, offset_bytes, buffer):
        await self._answer()
        return await super().read_into(path, offset_bytes, buffer)

    async def list(self, path):
        await self._answer()
        return await super().list(path)


def in_context(store, timeout_secs, **options):
    """A Context with a store (None: that of the path) and a deadline."""
    return stowax.Context(
        file=FileOptions(store=store),
        asynchronous=AsyncOptions(timeout_secs=timeout_secs),
        **options,
    )


STATE = {"x": np.arange(3), "n": 1}
PARTS = {"state": STATE, "more": STATE}


OPERATIONS = {
    "save": lambda p: stowax.save(p / "new", STATE),
    "save over": lambda p: stowax.save(p / "old", STATE, overwrite=True),
    "save_async": lambda p: stowax.save_async(p / "new", STATE).result(),
    "save_checkpointables": lambda p: stowax.save_checkpointables(p / "new", PARTS),
    "save_checkpointables_async": lambda p: stowax.save_checkpointables_async(
        p / "new", PARTS
    ).result(),
    "load": lambda p: stowax.load(p / "old"),
    "load of a tree": lambda p: stowax.load(p / "old/state", checkpointable_name=None),
    "load_async": lambda p: stowax.load_async(p / "old").result(),
    "load_checkpointables": lambda p: stowax.load_checkpointables(p / "old"),
    "load_checkpointables_async": lambda p: stowax.load_checkpointables_async(
        p / "old"
    ).result(),
    "load_leaf": lambda p: stowax.load_leaf(p / "old", "x"),
    "preview_load": lambda p: stowax.preview_load(p / "old"),
    "metadata": lambda p: stowax.metadata(p / "old"),
    "checkpointables_metadata": lambda p: stowax.checkpointables_metadata(p / "old"),
    "is_orbax_checkpoint": lambda p: stowax.is_orbax_checkpoint(p / "old"),
    "verify": lambda p: stowax.verify(p / "old"),
    "delete": lambda p: stowax.delete(p / "old"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_store_that_answers_no_more(tmp_path, name):
    """Every operation ends at its deadline; the checkpoint that was there stays."""
    store = Stuck()
    stowax.save(tmp_path / "old", STATE)
    store.is_stuck = True

    with (
        in_context(store, 0.1),
        pytest.raises(DeadlineError, match=r"0\.1 s.*timeout_secs") as caught,
    ):
        OPERATIONS[name](tmp_path)

    assert isinstance(caught.value, TimeoutError)
    assert str(tmp_path) in str(caught.value)
    assert stowax.load(tmp_path / "old", STATE)["n"] == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["write", "load"])
@pytest.mark.parametrize(
    ("handler", "value", "target"),
    [(JsonHandler(), {"a": 1}, None), (ProtoHandler(), Duration(seconds=1), Duration)],
    ids=["json", "proto"],
)
def test_handler_alone(tmp_path, handler, value, target, verb):
    """A handler that is given a plain path has the deadline, and says what it does."""
    store = Stuck()

    async def save():
        await (await handler.save(tmp_path / "item", value))

    async def load():
        await (await handler.load(tmp_path / "item", target))

    asyncio.run(save())
    store.is_stuck = True
    what = rf"the {verb} of {tmp_path}/item took longer than 0\.1 s.*timeout_secs"
    with in_context(store, 0.1), pytest.raises(DeadlineError, match=what):
        # Without its deadline it would hang; so it fails instead.
        asyncio.run(asyncio.wait_for(save() if verb == "write" else load(), 20))


class StuckAtData(LocalStore):
    """A store that tells what it has, and never gives it."""

    async def read_into(self, path, offset_bytes, buffer):
        if path.endswith("/d/data-0"):
            await asyncio.Event().wait()
        return await super().read_into(path, offset_bytes, buffer)


class SlowToPlace(DecimalHandler):
    """Takes its time to make a value of what was read."""

    def place(self, stored, facts, target):
        time.sleep(0.5)
        return super().place(stored, facts, target)


class TestLoadSaysWhatItWasDoing:
    """A load that is given up names its phase, as a save does."""

    @pytest.mark.parametrize("name", [name for name in OPERATIONS if "load" in name])
    def test_opening(self, tmp_path, name):
        """Nothing is known of the checkpoint yet."""
        store = Stuck()
        stowax.save(tmp_path / "old", STATE)
        store.is_stuck = True

        with (
            in_context(store, 0.1),
            pytest.raises(DeadlineError, match=r"while opening (it|the tree);"),
        ):
            OPERATIONS[name](tmp_path)

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("load", "reading state"),
            ("load_async", "reading state"),
            ("load_checkpointables", "reading state"),
            ("load of a tree", "reading the tree"),
            ("load_leaf", "reading it"),
            ("verify", "comparing it with its checksums"),
        ],
    )
    def test_reading(self, tmp_path, name, what):
        """What is to be loaded is known, and its bytes do not come."""
        stowax.save(tmp_path / "old", STATE)

        with (
            in_context(StuckAtData(), 0.3),
            pytest.raises(DeadlineError, match=f"while {what};"),
        ):
            OPERATIONS[name](tmp_path)

    def test_placing(self, tmp_path):
        """All bytes are here; values are made of them."""
        options = stowax.options.PyTreeOptions(leaf_handlers=(SlowToPlace(),))
        with in_context(None, 0.4, pytree=options):
            stowax.save(tmp_path / "c", {"price": decimal.Decimal("0.10")})
            with pytest.raises(DeadlineError, match="while placing what was read;"):
                stowax.load(tmp_path / "c")


class Busy:
    """What `BusyHandler` serves."""


class BusyHandler:
    """Blocks in one place, until the test lets it go."""

    def __init__(self, where):
        self.where = where
        self.gate = threading.Event()
        self.ended = threading.Event()

    def block(self, where):
        if where == self.where:
            # On the caller's thread nobody could let it go.
            self.gate.wait(60 if where.endswith("2") else 0.5)
            self.ended.set()

    async def save(self, directory, checkpointable):
        self.block("save 1")

        async def write():
            self.block("save 2")

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        self.block("load 1")

        async def read():
            self.block("load 2")
            return Busy()

        return read()

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Busy)

    def is_abstract_handleable(self, abstract_checkpointable):
        return abstract_checkpointable is None


class TestGuests:
    """A guest that blocks cannot be stopped, but it is not waited for for ever."""

    @pytest.mark.parametrize("in_background", [False, True])
    @pytest.mark.parametrize(
        ("where", "phase"), [("save 1", "staging busy"), ("save 2", "writing busy")]
    )
    def test_save(self, tmp_path, monkeypatch, where, phase, in_background):
        """Nothing is published, and the error says in which phase it was."""
        monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)
        handler = BusyHandler(where)
        options = CheckpointablesOptions.create_with_handlers(handler)
        parts = {"state": STATE, "busy": Busy()}

        def save():
            if in_background:
                stowax.save_checkpointables_async(tmp_path / "c", parts).result()
            stowax.save_checkpointables(tmp_path / "c", parts)

        with (
            in_context(None, 0.2, checkpointables=options),
            pytest.raises(DeadlineError, match=phase),
        ):
            save()
        handler.gate.set()

        assert handler.ended.wait(10)
        assert list(tmp_path.iterdir()) == []

    def test_load_in_the_background(self, tmp_path, monkeypatch):
        """The caller gets the error; the guest has its thread to itself."""
        monkeypatch.setattr(_deadline, "GUEST_GRACE_SECS", 0)
        handler = BusyHandler("load 2")
        options = CheckpointablesOptions.create_with_handlers(handler)
        with in_context(None, 60, checkpointables=options):
            stowax.save_checkpointables(tmp_path / "c", {"busy": Busy()})

        with in_context(None, 0.2, checkpointables=options):
            response = stowax.load_checkpointables_async(tmp_path / "c")
        with pytest.raises(DeadlineError, match="while reading busy;"):
            response.result()

        handler.gate.set()
        assert handler.ended.wait(10)

    def test_load(self, tmp_path):
        """On the caller's thread a load can end only when the guest does."""
        handler = BusyHandler("load 1")
        options = CheckpointablesOptions.create_with_handlers(handler)
        with in_context(None, 60, checkpointables=options):
            stowax.save_checkpointables(tmp_path / "c", {"busy": Busy(), "s": STATE})

        with (
            in_context(None, 0.2, checkpointables=options),
            pytest.raises(DeadlineError, match="while opening busy;"),
        ):
            stowax.load_checkpointables(tmp_path / "c", {"busy": None, "s": None})

    def test_end_of_the_program(self, tmp_path):
        """A guest that was given up does not keep the program from ending."""
        program = f"""
            import threading, stowax

            class Busy:
                async def save(self, directory):
                    async def write():
                        threading.Event().wait()
                    return write()
                async def load(self, directory): ...

            stowax._deadline.GUEST_GRACE_SECS = 0
            path = {str(tmp_path / "c")!r}
            options = stowax.options.AsyncOptions(timeout_secs=1)
            with stowax.Context(asynchronous=options):
                response = stowax.save_checkpointables_async(path, {{"busy": Busy()}})
            try:
                response.result()
            except stowax.errors.DeadlineError as error:
                print("given up")
        """

        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=120,
        )

        assert (ended.returncode, ended.stdout) == (0, "given up\n"), ended.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda p: stowax.save_async(p / "new", STATE),
        lambda p: stowax.save_checkpointables_async(p / "new", PARTS),
        lambda p: stowax.load_async(p / "old"),
        lambda p: stowax.load_checkpointables_async(p / "old"),
    ],
    ids=["save", "save_checkpointables", "load", "load_checkpointables"],
)
def test_result(tmp_path, call):
    """`result(timeout)` gives up the wait, not the operation."""
    store = Stuck()
    stowax.save(tmp_path / "old", STATE)
    store.is_stuck = True

    with in_context(store, 0.5):
        response = call(tmp_path)
    with pytest.raises(DeadlineError, match=r"not done after 0\.01 s; it goes on"):
        response.result(0.01)
    with pytest.raises(DeadlineError, match="timeout_secs"):
        response.result()
