"""Every function that takes a path takes it however it is written."""

import asyncio
import os
import pathlib

import pytest
from etils import epath

import stowax
from stowax.errors import CheckpointNotFoundError, InvalidNameError
from stowax.handlers import JsonHandler, PyTreeHandler

STATE = {"x": 1, "y": "text"}


class Spelled:
    """A path as some other library has it."""

    def __init__(self, text):
        self.text = text

    def __fspath__(self):
        return self.text


SPELLINGS = {
    "str": lambda home: str(home / "c"),
    "slash at the end": lambda home: f"{home}//c/",
    "pathlib": lambda home: home / "c",
    "epath": lambda home: epath.Path(home) / "c",
    "PathLike": lambda home: Spelled(str(home / "c")),
    "relative": lambda home: "c",
    "relative with dots": lambda home: "./a/../c",
    "relative pathlib": lambda home: pathlib.Path("c"),
    "relative epath": lambda home: epath.Path("c"),
    "home": lambda home: "~/c",
    "home pathlib": lambda home: pathlib.Path("~", "c"),
    "home epath": lambda home: epath.Path("~/c"),
    "home PathLike": lambda home: Spelled("~/c"),
}


@pytest.fixture(params=SPELLINGS)
def spelled(request, tmp_path, monkeypatch):
    """One path below a directory that is both the home and the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return SPELLINGS[request.param](tmp_path)


async def _in_two_phases(first):
    return await (await first)


SAVES = {
    "save": lambda path: stowax.save(path, STATE),
    "save_async": lambda path: stowax.save_async(path, STATE).result(),
    "save_checkpointables": lambda path: stowax.save_checkpointables(
        path, {"state": STATE}
    ),
    "save_checkpointables_async": lambda path: stowax.save_checkpointables_async(
        path, {"state": STATE}
    ).result(),
}

LOOKS = {
    "load": stowax.load,
    "load_async": lambda path: stowax.load_async(path).result(),
    "load_checkpointables": stowax.load_checkpointables,
    "load_checkpointables_async": lambda path: stowax.load_checkpointables_async(
        path
    ).result(),
    "load_leaf": lambda path: stowax.load_leaf(path, "y"),
    "preview_load": lambda path: str(stowax.preview_load(path)),
    "metadata": lambda path: (
        stowax.metadata(path).metadata,
        stowax.metadata(path).path,
    ),
    "checkpointables_metadata": lambda path: (
        stowax.checkpointables_metadata(path).metadata
    ),
    "is_orbax_checkpoint": stowax.is_orbax_checkpoint,
}

DELETES = {
    "delete": stowax.delete,
    "delete_async": lambda path: stowax.delete_async(path).result(),
}


@pytest.mark.parametrize("name", SAVES)
def test_saves(tmp_path, spelled, name):
    """What is saved is there, whatever becomes the current directory meanwhile."""
    SAVES[name](spelled)

    assert stowax.load(tmp_path / "c") == STATE
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("name", LOOKS)
def test_looks(tmp_path, spelled, name):
    """What is read is the same."""
    stowax.save(tmp_path / "c", STATE)

    assert LOOKS[name](spelled) == LOOKS[name](tmp_path / "c")


@pytest.mark.parametrize("name", DELETES)
def test_deletes(tmp_path, spelled, name):
    """What is deleted is gone."""
    stowax.save(tmp_path / "c", STATE)

    assert DELETES[name](spelled)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("handler", [PyTreeHandler, JsonHandler])
def test_handlers_alone(tmp_path, spelled, handler):
    """So do handlers that are used alone."""
    asyncio.run(_in_two_phases(handler().save(spelled, STATE)))

    assert asyncio.run(_in_two_phases(handler().load(spelled))) == STATE
    assert os.listdir(tmp_path) == ["c"]
    asyncio.run(handler().metadata(spelled))


def test_steps(tmp_path, spelled):
    """So does a `Checkpointer`."""
    with stowax.training.Checkpointer(spelled) as checkpointer:
        checkpointer.save(3, STATE)
        assert checkpointer.directory == tmp_path / "c"

    assert stowax.load(tmp_path / "c" / "3") == STATE


def test_current_directory_of_the_call(tmp_path, monkeypatch):
    """A relative path is that of the moment of the call, in the background too."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    response = stowax.save_async("c", STATE)
    monkeypatch.chdir(tmp_path / "other")
    response.result()

    assert stowax.load(tmp_path / "c") == STATE
    assert os.listdir() == []


def test_directory_named_like_the_home(tmp_path, monkeypatch):
    """As in a shell, `./~` is a directory of that name."""
    monkeypatch.chdir(tmp_path)

    stowax.save("./~/c", STATE)

    assert stowax.load(tmp_path / "~" / "c") == STATE


def test_home_of_nobody(tmp_path, monkeypatch):
    """The home of a user that does not exist is no directory called `~user`."""
    monkeypatch.chdir(tmp_path)

    for call in (*SAVES.values(), *LOOKS.values(), *DELETES.values()):
        with pytest.raises(InvalidNameError, match=r"\./~nobody-of-that-name/c"):
            call("~nobody-of-that-name/c")

    assert os.listdir() == []


@pytest.mark.parametrize("path", ["file/c", "file/c/d", "loop", "loop/c"])
def test_path_that_leads_nowhere(tmp_path, path):
    """Below a file, and where links go round, there is no checkpoint."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")

    for look in LOOKS.values():
        if look is not LOOKS["is_orbax_checkpoint"]:
            with pytest.raises(CheckpointNotFoundError):
                look(tmp_path / path)


@pytest.mark.parametrize("call", [*SAVES.values(), *LOOKS.values(), *DELETES.values()])
@pytest.mark.parametrize("bad", ["", b"c", None, 3, "a\0b", "/"], ids=repr)
def test_no_path(call, bad):
    """What is no path is refused as such."""
    with pytest.raises((InvalidNameError, TypeError)):
        call(bad)


@pytest.mark.parametrize("letter", ["a", "ü"])
def test_longest_name(tmp_path, letter):
    """A name has to leave room for that of the draft; the error says how much."""
    size_bytes = len(letter.encode())
    longest, too_long = 201 // size_bytes * letter, 202 // size_bytes * letter + "b"

    stowax.save(tmp_path / longest, {"x": 1})
    stowax.save(tmp_path / longest, {"x": 2}, overwrite=True)
    assert stowax.load(tmp_path / longest) == {"x": 2}

    with pytest.raises(InvalidNameError, match=r"has 203 bytes; it may have 201 "):
        stowax.save(tmp_path / "new" / too_long, {"x": 1})
    assert [path.name for path in tmp_path.iterdir()] == [longest]


def test_half_of_a_surrogate_pair(tmp_path):
    """A name that no file system can hold is refused by what is wrong with it."""
    with pytest.raises(InvalidNameError, match="surrogate pair"):
        stowax.save(tmp_path / "new" / "half\ud800", {"x": 1})

    assert list(tmp_path.iterdir()) == []
