"""Where operations and handlers differ from Orbax's, as `docs/from-orbax.md` says."""

import asyncio
import contextlib
import gc

import numpy as np
import pytest
from orbax.checkpoint import v1

import stowax
from stowax.errors import CorruptCheckpointError, SaveInProgressError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Orbax drops coroutines that it has begun when one of them fails.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STATE = {"x": np.arange(3), "n": 1}


@pytest.fixture(autouse=True)
def _no_leftovers():
    """What Orbax drops goes here, and not in the middle of another test."""
    yield
    gc.collect()


class Words(list):
    """What `WordsHandler` serves."""


class WordsHandler:
    """A handler as both libraries take it."""

    async def save(self, directory, checkpointable):
        words = ",".join(checkpointable)

        async def write():
            (await directory.await_creation() / "words").write_text(words)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            return Words((directory / "words").read_text().split(","))

        return read()

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Words)

    def is_abstract_handleable(self, abstract_checkpointable):
        return None


class Broken:
    """An object that fails to save itself."""

    async def save(self, directory):
        async def write():
            raise OSError("no space left")

        return write()

    async def load(self, directory):
        raise NotImplementedError


def with_words(library):
    """A Context of a library that knows `WordsHandler`."""
    context = library.Context()
    context.checkpointables.registry = library.handlers.local_registry()
    context.checkpointables.registry.add(WordsHandler)
    return context


def test_load_in_the_background(tmp_path):
    """Orbax loads ordinary checkpoints in the foreground only."""
    v1.save(tmp_path / "c", STATE)

    for load in (v1.load_async, v1.load_checkpointables_async):
        with pytest.raises(NotImplementedError):
            load(tmp_path / "c")

    assert stowax.load_async(tmp_path / "c").result()["n"] == 1
    parts = stowax.load_checkpointables_async(tmp_path / "c").result()
    assert parts["state"]["n"] == 1


def test_two_saves_to_one_path(tmp_path):
    """In Orbax both begin, and one of them fails when it is done."""
    large = {"x": np.zeros(3_000_000)}
    theirs = [v1.save_async(tmp_path / "theirs", large) for _ in range(2)]
    failures = 0
    for response in theirs:
        try:
            response.result()
        except Exception:  # noqa: BLE001 chance decides where it breaks
            failures += 1

    ours = stowax.save_async(tmp_path / "ours", large)
    refused = None
    with contextlib.suppress(SaveInProgressError):
        refused = stowax.save_async(tmp_path / "ours", large, overwrite=True)
    ours.result()

    assert failures > 0
    assert refused is None


def test_home_directory(tmp_path, monkeypatch):
    """Orbax does not know `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # Where Orbax has begun before it refuses.

    with pytest.raises(ValueError, match="absolute"):
        v1.save("~/c", STATE)
    stowax.save("~/c", STATE)

    assert stowax.load(tmp_path / "c")["n"] == 1


def test_await_of_a_response(tmp_path):
    """In a notebook ours can be awaited; theirs can only block."""

    async def save(library, name):
        response = library.save_async(tmp_path / name, STATE)
        try:
            await response
        finally:
            response.result()

    with pytest.raises(TypeError, match="await"):
        asyncio.run(save(v1, "theirs"))
    asyncio.run(save(stowax, "ours"))

    assert stowax.load(tmp_path / "ours")["n"] == 1


def test_missing_handler(tmp_path):
    """Orbax loads nothing when one handler is missing; ours describes what is there."""
    parts = {"words": Words("ab"), "state": STATE}
    with with_words(v1):
        v1.save_checkpointables(tmp_path / "c", parts)

    with pytest.raises(KeyError, match="words"):
        v1.load_checkpointables(tmp_path / "c")
    loaded = stowax.load_checkpointables(tmp_path / "c")

    assert loaded["state"]["n"] == 1
    assert loaded["words"].files == ("words",)
    with with_words(stowax):
        again = stowax.load_checkpointables(tmp_path / "c", {"words": None})
    assert again == {"words": ["a", "b"]}


def test_files_of_a_handler(tmp_path):
    """Orbax gives a handler whatever lies there; ours compares it first."""
    for library, name in ((v1, "theirs"), (stowax, "ours")):
        with with_words(library):
            library.save_checkpointables(tmp_path / name, {"words": Words("ab")})
        (tmp_path / name / "words/words").write_text("a,c")

    with with_words(v1):
        loaded = v1.load_checkpointables(tmp_path / "theirs")["words"]
    assert loaded == ["a", "c"]
    with (
        with_words(stowax),
        pytest.raises(CorruptCheckpointError, match="words/words"),
    ):
        stowax.load_checkpointables(tmp_path / "ours")


def test_failure_says_where(tmp_path):
    """Both raise what the handler raised; ours notes the part, the path, the phase."""
    notes = {}
    for library in (v1, stowax):
        path = tmp_path / library.__name__
        response = library.save_checkpointables_async(path, {"x": Broken()})
        with pytest.raises(OSError, match="no space left") as caught:
            response.result()
        notes[library] = getattr(caught.value, "__notes__", [])

    assert notes[v1] == []
    assert notes[stowax] == [
        "while writing the checkpointable 'x'",
        f"in the save to {tmp_path / 'stowax'}",
    ]


PARTS = {"model": {"w": np.arange(6)}, "optimizer": {"m": 2}, "rest": {"n": 3}}


@pytest.mark.parametrize("writer", [v1, stowax])
def test_one_checkpointable_is_deleted(tmp_path, writer):
    """Whoever wrote it, both load what is left, and Orbax deletes more of it."""
    path = tmp_path / "c"
    writer.save_checkpointables(path, PARTS, custom_metadata={"a": 1})

    stowax.delete(path, checkpointable_name="optimizer")

    for library in (v1, stowax):
        found = library.load_checkpointables(path)
        assert sorted(found) == ["model", "rest"]
        assert found["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
        assert library.checkpointables_metadata(path).custom_metadata == {"a": 1}
    v1.delete(path, checkpointable_name="rest")
    assert list(v1.load_checkpointables(path)) == ["model"]


@pytest.fixture
def half_deleted(tmp_path, monkeypatch):
    """A checkpoint of Orbax, which was interrupted while it deleted `optimizer`."""
    path = tmp_path / "c"
    v1.save_checkpointables(path, PARTS)

    async def interrupted(*arguments, **options):
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(f"{ORBAX_DELETION}.path_utils.delete_path", interrupted)
        with pytest.raises(OSError, match="interrupted"):
            v1.delete(path, checkpointable_name="optimizer")
    return path


ORBAX_DELETION = "orbax.checkpoint.experimental.v1._src.deletion"


def test_what_orbax_has_half_deleted(half_deleted):
    """It is hidden, as in Orbax, and who asks for it is told; it can be finished."""
    for library in (v1, stowax):
        assert sorted(library.load_checkpointables(half_deleted)) == ["model", "rest"]
        with pytest.raises(library.errors.DeletionInProgressError):
            library.load(half_deleted, checkpointable_name="optimizer")
        with pytest.raises(library.errors.DeletionRecoveryError):
            library.delete(half_deleted, checkpointable_name="rest")

    assert stowax.delete(half_deleted, checkpointable_name="optimizer") is True

    names = [entry.name for entry in half_deleted.iterdir()]
    assert "optimizer" not in names
    assert "_CHECKPOINT_DELETION" not in names
    for library in (v1, stowax):
        assert sorted(library.load_checkpointables(half_deleted)) == ["model", "rest"]
