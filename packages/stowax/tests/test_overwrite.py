"""What `overwrite=True` replaces, and what it leaves alone."""

import numpy as np
import pytest

import stowax
from stowax._stores._base import REPLACEMENT_SUFFIX, format_replacement
from stowax.errors import CheckpointExistsError, InvalidArgumentError


@pytest.mark.parametrize("name", ["notes.txt", "0/notes.txt"])
def test_what_is_no_checkpoint_is_not_replaced(tmp_path, name):
    """A folder of other files is not deleted, whatever the caller says."""
    file = tmp_path / "folder" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")

    with pytest.raises(CheckpointExistsError, match="no checkpoint"):
        stowax.save(tmp_path / "folder", {"x": 1}, overwrite=True)

    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def interrupt_replacement(path):
    """Brings a checkpoint to where a writer leaves it who dies while he replaces it.

    On a system that cannot exchange two directories, between the second step and the
    third.
    """
    draft = path.with_name(f"{path.name}.orbax-checkpoint-tmp-1")
    record = path.with_name(path.name + REPLACEMENT_SUFFIX)
    record.write_bytes(format_replacement(draft.name))
    path.rename(draft)


@pytest.mark.parametrize("name", ["checkpoint", "m.safetensors"])
def test_readers_follow_an_interrupted_replacement(tmp_path, name):
    """Whatever looks at the path finds the new checkpoint, and changes nothing."""
    path, state = tmp_path / name, {"x": np.arange(3)}
    layout = "safetensors" if name.endswith("s") else "orbax"
    with stowax.Context(checkpoint_layout=layout):
        stowax.save(path, state)
    interrupt_replacement(path)
    before = sorted(entry.name for entry in tmp_path.iterdir())

    assert stowax.load(path)["x"].tolist() == [0, 1, 2]
    assert stowax.load(path, state)["x"].tolist() == [0, 1, 2]
    assert stowax.load_leaf(path, "x").tolist() == [0, 1, 2]
    assert stowax.metadata(path).metadata["x"].shape == (3,)
    assert str(stowax.preview_load(path, state))
    if layout == "orbax":
        assert stowax.load_checkpointables(path)["state"]["x"].tolist() == [0, 1, 2]
        assert not stowax.verify(path).damages
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


def test_the_next_writer_completes_a_replacement(tmp_path):
    """It takes the place of the new one, and nothing is left over."""
    path = tmp_path / "checkpoint"
    stowax.save(path, {"x": 1})
    interrupt_replacement(path)

    with pytest.raises(CheckpointExistsError):
        stowax.save(path, {"x": 2})
    stowax.save(path, {"x": 2}, overwrite=True)

    assert stowax.load(path) == {"x": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_run_is_not_replaced(tmp_path):
    """The directory of a training run is no checkpoint, though it is full of them."""
    with stowax.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(0, {"x": 1})

    with pytest.raises(CheckpointExistsError, match="no checkpoint"):
        stowax.save(tmp_path / "run", {"x": 2}, overwrite=True)

    assert stowax.load(tmp_path / "run" / "0") == {"x": 1}


def test_empty_directory_is_replaced(tmp_path):
    """There is nothing to lose in an empty directory."""
    (tmp_path / "empty").mkdir()

    stowax.save(tmp_path / "empty", {"x": 1}, overwrite=True)

    assert stowax.load(tmp_path / "empty") == {"x": 1}


def test_damaged_checkpoint_is_replaced(tmp_path):
    """Damage may be the very reason to save anew."""
    stowax.save(tmp_path / "c", {"x": 1})
    (tmp_path / "c" / "stowax.json").write_bytes(b"{")

    stowax.save(tmp_path / "c", {"x": 2}, overwrite=True)

    assert stowax.load(tmp_path / "c") == {"x": 2}


def test_root_directory_is_refused():
    """There is nothing beside the root directory to write a draft to."""
    with pytest.raises(stowax.errors.InvalidNameError, match="root directory"):
        stowax.save("/", {"x": 1}, overwrite=True)


@pytest.mark.parametrize("name", ["c.orbax-checkpoint-tmp", "c.partial_save"])
def test_name_of_something_unfinished_is_refused(tmp_path, name):
    """What no load would take for a checkpoint is not saved in the first place."""
    with pytest.raises(stowax.errors.InvalidNameError, match="unfinished"):
        stowax.save(tmp_path / name, {"x": 1})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", ["no", "", 2, 1.0, None, [], np.ones(1, bool)], ids=repr
)
@pytest.mark.parametrize("save", [stowax.save, stowax.save_async])
def test_overwrite_that_is_no_flag_is_refused(place, save, value):
    """Only True replaces, only False does not; "no" is a mistake that costs nothing."""
    stowax.save(place / "c", {"x": 1})

    with pytest.raises(InvalidArgumentError, match=r"`overwrite` is .*True or False"):
        save(place / "c", {"x": 2}, overwrite=value)

    assert stowax.load(place / "c") == {"x": 1}
    assert issubclass(InvalidArgumentError, TypeError)


@pytest.mark.parametrize("yes", [np.bool_(True), 1], ids=repr)
def test_overwrite_may_be_another_true(tmp_path, yes):
    """A bool of NumPy, and 1, mean nothing else."""
    stowax.save(tmp_path / "c", {"x": 1})

    stowax.save(tmp_path / "c", {"x": 2}, overwrite=yes)

    assert stowax.load(tmp_path / "c") == {"x": 2}


@pytest.mark.parametrize("flags", [{"overwrite": "no"}, {"force": "no"}], ids=repr)
def test_flags_of_a_checkpointer(tmp_path, flags):
    """A training loop is told the same."""
    with stowax.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(0, {"x": 1})
        with pytest.raises(InvalidArgumentError, match=next(iter(flags))):
            checkpointer.save(0, {"x": 2}, **flags)
        with pytest.raises(InvalidArgumentError, match="missing_ok"):
            checkpointer.delete(0, missing_ok="yes")
        assert checkpointer.load(0) == {"x": 1}

    with pytest.raises(InvalidArgumentError, match="cleanup_tmp_directories"):
        stowax.training.Checkpointer(tmp_path / "run", cleanup_tmp_directories="no")


def test_flag_of_a_deletion(tmp_path):
    """A deletion is told the same."""
    stowax.save(tmp_path / "c", {"x": 1})

    with pytest.raises(InvalidArgumentError, match="`missing_ok` is 'yes'"):
        stowax.delete(tmp_path / "c", missing_ok="yes")

    assert stowax.load(tmp_path / "c") == {"x": 1}
