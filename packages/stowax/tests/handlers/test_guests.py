"""A handler written from the docstring alone does what its author would expect.

`Diary` does everything at once that its docstring allows. It is saved and loaded from
every place that a program may call from.
"""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from sample_trees import bits, differences

import stowax
from stowax._operation import in_place
from stowax.errors import (
    CorruptCheckpointError,
    HandlerError,
    InvalidNameError,
    SaveError,
)
from stowax.handlers import PyTreeHandler
from stowax.options import CheckpointablesOptions, FileOptions
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster
from stowax.testing._recording_store import durability_faults


@dataclasses.dataclass
class Diary:
    """Pages, numbers, and where another checkpoint lies."""

    pages: dict
    tree: dict
    base: str


@dataclasses.dataclass
class AbstractDiary:
    """What is known of a diary before it is loaded."""

    page_names: list
    tree: dict


class DiaryHandler:
    """Blocks, writes with plain file calls, and uses the library inside."""

    async def save(self, directory, checkpointable):
        assert directory.path.name
        pages = dict(checkpointable.pages)
        base = stowax.load(checkpointable.base)
        numbers = directory / "numbers"
        tree = await PyTreeHandler().save(numbers, checkpointable.tree)
        others = {"others": stowax.load(checkpointable.base), "pages": list(pages)}
        copy = f"{checkpointable.base}-copy-of-{directory.path.name}"
        lock = threading.Lock()

        async def write():
            time.sleep(0.01)  # noqa: ASYNC251 it may block
            path = await directory.await_creation()
            assert path == await directory.await_creation()
            deep = await (directory / "deep").await_creation()
            deep.mkdir()
            note = await (directory / "deep" / "note.txt").await_creation()
            note.write_text("note")
            note.rename(path / "deep" / "renamed.txt")
            with lock:
                for name, text in pages.items():
                    (path / "pages" / name).parent.mkdir(parents=True, exist_ok=True)
                    (path / "pages" / name).write_text(text)
            (path / "removed").write_text("not for long")
            (path / "removed").unlink()
            (path / "empty" / "directory").mkdir(parents=True)
            assert stowax.load(checkpointable.base) == base
            stowax.save(copy, others, overwrite=True)
            again = await PyTreeHandler().save(directory / "late", {"late": 1})
            await again
            await tree

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        numbers = await PyTreeHandler().load(directory / "numbers")

        async def read():
            time.sleep(0.01)  # noqa: ASYNC251 it may block
            names = [path.name for path in (directory / "pages").iterdir()]
            pages = {n: (directory / "pages" / n).read_text() for n in sorted(names)}
            late = await (await PyTreeHandler().load(directory / "late"))
            assert (directory / "deep" / "renamed.txt").read_text() == "note"
            return Diary(pages, await numbers, late)

        return read()

    async def metadata(self, directory):
        tree = await PyTreeHandler().metadata(directory / "numbers")
        names = sorted(path.name for path in (directory / "pages").iterdir())
        return AbstractDiary(names, tree)

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Diary)

    def is_abstract_handleable(self, abstract_checkpointable):
        return isinstance(abstract_checkpointable, AbstractDiary | None)


def diary(base, number=0):
    """A diary of some number."""
    return Diary(
        {"monday.txt": f"rain {number}", "tuesday.txt": "sun"},
        {"w": jax.device_put(bits("float32", (3, 4), number)), "n": number},
        base,
    )


def keep_diaries(place):
    """Everything that one does with diaries; in the Context of the place."""
    registry = stowax.handlers.local_registry().add(DiaryHandler)
    options = CheckpointablesOptions(registry=registry)
    with place.context(checkpointables=options):
        stowax.save(place / "base", {"x": 1})
        parts = {f"diary_{i}": diary(place / "base", i) for i in range(3)}
        parts["state"] = {"y": np.arange(5)}
        path = place / "checkpoint"
        stowax.save_checkpointables(path, parts)
        response = stowax.save_checkpointables_async(place / "later", parts)
        for part in parts.values():
            if isinstance(part, Diary):
                part.pages.clear()
        response.result()

        for path in (place / "checkpoint", place / "later"):
            metadata = stowax.checkpointables_metadata(path).metadata
            assert metadata["diary_2"].page_names == ["monday.txt", "tuesday.txt"]
            assert metadata["diary_2"].tree["w"].shape == (3, 4)
            for targets in (None, metadata, {"diary_1": None, "diary_2": None}):
                loaded = stowax.load_checkpointables(path, targets)
                assert loaded["diary_2"].pages["monday.txt"] == "rain 2"
                assert loaded["diary_2"].base == {"late": 1}
                wanted = diary("", 2).tree
                assert differences(wanted, loaded["diary_2"].tree) == []
        copy = stowax.load(place / "base-copy-of-diary_1")
        assert copy["others"] == {"x": 1}
        later = stowax.load_checkpointables_async(place / "later").result()
        assert later["diary_0"].pages["tuesday.txt"] == "sun"


class TestPlaces:
    """The same from wherever a program calls; nothing hangs."""

    def test_script(self, place):
        """In a plain program."""
        keep_diaries(place)

    def test_thread(self, place):
        """In a thread that is not the main one."""
        errors = []

        def run():
            try:
                keep_diaries(place)
            except BaseException as error:  # noqa: BLE001 raised in the test's thread
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)

        assert not thread.is_alive()
        assert errors == []

    def test_running_loop(self, place):
        """In a coroutine: a cell of a notebook, or a server."""

        async def cell():
            keep_diaries(place)
            await asyncio.sleep(0)  # The loop is the caller's again.

        asyncio.run(cell())

    def test_notebook(self, tmp_path):
        """In cells of a loop that goes on between them, with `await` at their top."""
        program = """
            import ast, asyncio, stowax

            cells = '''
            import stowax, numpy as np

            response = stowax.save_async("first", {"x": np.arange(3)})
            await response
            ---
            import asyncio
            results = await asyncio.gather(
                stowax.save_async("second", {"y": 1}),
                stowax.load_async("first"),
                stowax.load_checkpointables_async("first"),
            )
            print(results[1]["x"].tolist(), results[2]["state"]["x"].tolist())
            ---
            stowax.save("second", {"y": 2}, overwrite=True)
            print(stowax.load("second"), stowax.metadata("second").metadata)
            '''

            async def notebook():
                names = {}
                for cell in cells.replace(" " * 12, "").split("---"):
                    code = compile(
                        cell, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                    )
                    done = eval(code, names)
                    if asyncio.iscoroutine(done):
                        await done

            asyncio.run(notebook())
        """

        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

        assert ended.stdout.splitlines() == [
            "[0, 1, 2] [0, 1, 2]",
            "{'y': 2} {'y': 0}",
        ], ended.stderr


class Here:
    """The directory of a test, as the fixture `place` would give it."""

    store = None

    def __init__(self, directory):
        self.directory = str(directory)

    def context(self, **options):
        return stowax.Context(**options)

    def __truediv__(self, name):
        return f"{self.directory}/{name}"


class TestFiles:
    """What a guest writes is a part of the checkpoint as everything else."""

    def save(self, place, store=None):
        options = CheckpointablesOptions.create_with_handlers(DiaryHandler)
        with place.context():
            stowax.save(place / "base", {"x": 1})
        context = place.context(checkpointables=options)
        context.file = FileOptions(store=store or place.store)
        with context:
            stowax.save_checkpointables(
                place / "checkpoint", {"d": diary(place / "base")}
            )

    def test_synced(self, place):
        """Every file and directory of it is synced before the publish."""
        recording = RecordingStore(place.store or stowax._stores._local.LocalStore())

        self.save(place, recording)

        synced = {
            path.partition("/d/")[2]
            for call in recording.calls
            if call.operation == "sync"
            for path in call.paths
        }
        files = {"pages/monday.txt", "pages/tuesday.txt", "deep/renamed.txt"}
        directories = {"pages", "deep", "numbers", "late"}
        if place.store is None:  # A memory store has no empty directories.
            directories |= {"empty", "empty/directory"}
        assert files | directories <= synced
        assert durability_faults(recording.calls) == []

    @pytest.mark.parametrize(
        "name", ["pages/monday.txt", "deep/renamed.txt", "late/stowax.manifest"]
    )
    def test_summed(self, tmp_path, name):
        """A flipped bit in any file is found before the handler sees it."""
        self.save(Here(tmp_path))
        file = tmp_path / "checkpoint" / "d" / name
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
        options = CheckpointablesOptions.create_with_handlers(DiaryHandler)

        with (
            stowax.Context(checkpointables=options),
            pytest.raises(CorruptCheckpointError, match=name.rpartition("/")[2]),
        ):
            stowax.load_checkpointables(tmp_path / "checkpoint")

    def test_missing(self, tmp_path):
        """So is a file that is gone."""
        self.save(Here(tmp_path))
        (tmp_path / "checkpoint/d/deep/renamed.txt").unlink()
        options = CheckpointablesOptions.create_with_handlers(DiaryHandler)

        with (
            stowax.Context(checkpointables=options),
            pytest.raises(CorruptCheckpointError, match=r"renamed\.txt is missing"),
        ):
            stowax.load_checkpointables(tmp_path / "checkpoint")

    def test_pipe(self, place):
        """What is no file cannot be saved, and nothing waits for its other end."""

        class Pipe:
            async def save(self, directory):
                async def write():
                    os.mkfifo(await directory.await_creation() / "pipe")

                return write()

            async def load(self, directory):
                raise NotImplementedError

        with pytest.raises((SaveError, CorruptCheckpointError), match="pipe"):
            stowax.save_checkpointables(place / "c", {"x": Pipe()})

        assert is_empty(place)


class TestDirectory:
    """The directory that a handler is given."""

    def test_paths(self, place):
        """Paths below it can be joined and awaited; those that lead out cannot."""
        seen = {}

        class Looking:
            async def save(self, directory):
                assert isinstance(directory, stowax.path.PathAwaitingCreation)
                for bad in ("/etc", "..", "a/../../b"):
                    with pytest.raises(InvalidNameError, match="leads out"):
                        directory / bad
                below = directory / stowax.path.Path("a") / "b"
                seen["before"] = directory.path.exists()

                async def write():
                    path = await below.await_creation()
                    seen["base"] = directory.path.is_dir()
                    seen["below"] = path.exists()
                    assert path == directory.path / "a" / "b"
                    path.parent.mkdir()
                    path.write_text("b")

                return write()

            async def load(self, directory):
                async def read():
                    assert (directory / "a" / "b").read_text() == "b"

                return read()

        stowax.save_checkpointables(place / "checkpoint", {"x": Looking()})

        stowax.load_checkpointables(place / "checkpoint", {"x": Looking()})
        assert seen == {"before": False, "base": True, "below": False}

    def test_never_awaited(self, place):
        """A handler need not wait for its directory, nor write anything."""

        class Idle:
            async def save(self, directory):
                async def nothing():
                    assert directory.path.name == "x"

                return nothing()

            async def load(self, directory):
                async def read():
                    assert list(directory.iterdir()) == []

                return read()

        stowax.save_checkpointables(place / "checkpoint", {"x": Idle()})

        assert list(stowax.load_checkpointables(place / "checkpoint")) == ["x"]
        stowax.load_checkpointables(place / "checkpoint", {"x": Idle()})


class Broken:
    """What the handler below serves: says where it fails."""

    def __init__(self, where="nowhere"):
        self.where = where


class BrokenHandler:
    """Fails at one place of its life."""

    where = "nowhere"

    def fail(self, where, checkpointable=None):
        if where in (self.where, getattr(checkpointable, "where", None)):
            raise ZeroDivisionError(f"broken in {where}")

    async def save(self, directory, checkpointable):
        self.fail("save 1", checkpointable)

        async def write():
            (await directory.await_creation() / "half").write_text("half")
            self.fail("save 2", checkpointable)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        self.fail("load 1", abstract_checkpointable)

        async def read():
            self.fail("load 2", abstract_checkpointable)
            return Broken()

        return read()

    async def metadata(self, directory):
        self.fail("metadata")

    def is_handleable(self, checkpointable):
        if isinstance(checkpointable, Broken):
            self.fail("is_handleable", checkpointable)
            return True
        return False

    def is_abstract_handleable(self, abstract_checkpointable):
        self.fail("is_abstract_handleable", abstract_checkpointable)


def told(caught):
    """What a user sees of an error."""
    error = caught.value
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class TestFailures:
    """A failure of a handler keeps its class, and names part, path and phase."""

    @pytest.mark.parametrize("in_background", [False, True])
    @pytest.mark.parametrize(
        ("where", "phase"),
        [
            ("is_handleable", "choosing who saves"),
            ("save 1", "staging"),
            ("save 2", "writing"),
        ],
    )
    def test_save(self, place, where, phase, in_background):
        """Nothing is published, and the draft is gone."""
        options = CheckpointablesOptions.create_with_handlers(BrokenHandler)
        parts = {"good": {"x": 1}, "bad": Broken(where), "fine": Broken()}

        def save():
            if in_background:
                stowax.save_checkpointables_async(place / "c", parts).result()
            stowax.save_checkpointables(place / "c", parts)

        with (
            place.context(checkpointables=options),
            pytest.raises(ZeroDivisionError, match=f"broken in {where}") as caught,
        ):
            save()

        for word in ("'bad'", f"save to {place / 'c'}", f"while {phase}"):
            assert word in told(caught)
        assert "'good'" not in told(caught)
        assert is_empty(place)

    @pytest.mark.parametrize(
        "where", ["load 1", "load 2", "is_abstract_handleable", "metadata"]
    )
    def test_load(self, place, where):
        """The others are not to blame."""
        options = CheckpointablesOptions.create_with_handlers(BrokenHandler)
        with place.context(checkpointables=options):
            parts = {"good": {"x": 1}, "bad": Broken()}
            stowax.save_checkpointables(place / "c", parts)
        broken = BrokenHandler()
        broken.where = "metadata"
        options = CheckpointablesOptions.create_with_handlers(broken)

        def look():
            if where == "metadata":
                stowax.checkpointables_metadata(place / "c")
            stowax.load_checkpointables(place / "c", {"bad": Broken(where)})

        with (
            place.context(checkpointables=options),
            pytest.raises(ZeroDivisionError, match=f"broken in {where}") as caught,
        ):
            look()

        for word in ("'bad'", place / "c"):
            assert word in told(caught)

    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("verb", ["save", "load"])
    def test_no_two_phases(self, place, verb, is_async):
        """A handler whose method does all at once is told what is expected."""

        class Hasty(BrokenHandler): ...

        if is_async:

            async def method(self, *args):
                return None

            message = rf"Hasty\.{verb} must return an awaitable"
        else:

            def method(self, *args):
                return None

            message = rf"Hasty\.{verb} must be an `async def`"
        setattr(Hasty, verb, method)

        def there_and_back():
            stowax.save_checkpointables(place / "c", {"x": Broken()})
            stowax.load_checkpointables(place / "c")

        options = CheckpointablesOptions.create_with_handlers(Hasty)
        with (
            place.context(checkpointables=options),
            pytest.raises(HandlerError, match=message),
        ):
            there_and_back()

    def test_draft_is_over(self, place):
        """A tree that is handed in when all is over is refused, and leaves nothing."""
        kept = []

        class Keeping:
            async def save(self, directory):
                kept.append(directory)

                async def nothing():
                    pass

                return nothing()

            async def load(self, directory):
                raise NotImplementedError

        class Failing(Keeping):
            async def save(self, directory):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stowax.save_checkpointables(
                place / "c", {"keeping": Keeping(), "then": Failing()}
            )

        async def late():
            await (await PyTreeHandler().save(kept[0], {"x": 1}))

        with pytest.raises(SaveError, match="is over"):
            asyncio.run(late())
        assert is_empty(place)

    @pytest.mark.parametrize("verb", ["load", "deletion"])
    def test_load_is_over(self, place, verb):
        """What comes too late is told what is over, and not that a save has failed."""
        operation = in_place(place / "c", place.context().settings(), verb=verb)
        operation.runtime.run(operation.stop())

        async def late():
            await operation.submit(operation.store.stat(place / "c"))

        with pytest.raises(HandlerError, match=f"{verb} of .* is over; start another"):
            asyncio.run(late())


def is_empty(place):
    """Whether nothing is left of a save."""
    store = place.store or stowax._stores._local.LocalStore()
    run = stowax._runtime.default_runtime().run
    is_there = run(store.stat(place.directory)) is not None
    return not is_there or run(store.list(place.directory)) == ()


class PerProcess:
    """A guest of a run of several processes: a file each, and a tree together."""

    def __init__(self, index, tree):
        self.index, self.tree = index, tree

    async def save(self, directory):
        tree = await PyTreeHandler().save(directory / "tree", self.tree)

        async def write():
            path = await directory.await_creation()
            (path / f"process_{self.index}").write_text(json.dumps(self.index))
            await tree

        return write()

    async def load(self, directory):
        reading = await PyTreeHandler().load(directory / "tree", self.tree)

        async def read():
            text = (directory / f"process_{self.index}").read_text()
            self.loaded = json.loads(text), await reading

        return read()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_several_processes(tmp_path, kind):
    """In a run of several processes every one writes its part, and finds it again."""
    store = MemoryStore() if kind == "memory" else None
    path = "/runs/c" if kind == "memory" else str(tmp_path / "c")
    tree = {"step": 3, "w": np.arange(5)}

    with SimulatedCluster(2, devices=jax.devices()[:2]) as cluster:

        def there_and_back(index):
            options = FileOptions(store=store)
            with stowax.Context(runtime=cluster.runtimes[index], file=options):
                guest = PerProcess(index, tree)
                stowax.save_checkpointables(path, {"x": guest})
                stowax.load_checkpointables(path, {"x": guest})
                return guest.loaded

        found = cluster.run(there_and_back)

    assert [index for index, _ in found] == [0, 1]
    for _, loaded in found:
        assert differences(tree, loaded) == []
