"""Names of steps, and what tutorials begin with, as in Orbax."""

import pytest
from packaging.version import Version

from stowax import v0

ocp = pytest.importorskip("orbax.checkpoint")

STEPS = ["1", "20", "ckpt_3", "a_b_004"]
DRAFTS = ["x_5.orbax-checkpoint-tmp-1", "6.orbax-checkpoint-tmp-7"]
OTHERS = ["foo", "9x", "-1", "ckpt-3", "_", "prefix_", "_8"]


@pytest.fixture
def steps(tmp_path):
    """A directory of steps, drafts and others, and of a file with the name of a step.

    Without `_8`, where Orbax fails.
    """
    for name in (*STEPS, *DRAFTS, *OTHERS[:-1], "x.orbax-checkpoint-tmp-1_9"):
        (tmp_path / name).mkdir()
    (tmp_path / "77").write_text("no directory")
    return tmp_path


@pytest.mark.parametrize("name", [*STEPS, *DRAFTS])
def test_steps_by_name(name):
    """A name of a step, or of the draft of one, tells the step."""
    step = v0.utils.step_from_checkpoint_name(name)

    assert step == ocp.utils.step_from_checkpoint_name(name)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("library", [v0, ocp], ids=["stowax", "orbax"])
def test_other_names(name, library):
    """Any other name is refused."""
    with pytest.raises(ValueError, match=name):
        library.utils.step_from_checkpoint_name(name)


def test_checkpoint_steps(steps):
    """Directories of steps are found, drafts and files are not."""
    found = v0.utils.checkpoint_steps(steps)
    paths = v0.utils.checkpoint_steps_paths(steps)

    assert sorted(found) == sorted(ocp.utils.checkpoint_steps(steps)) == [1, 3, 4, 20]
    assert sorted(paths) == sorted(ocp.utils.checkpoint_steps_paths(steps))
    assert v0.utils.any_checkpoint_step(steps) in found


def test_nearly_a_step(steps):
    """What is no step by its name is passed over."""
    (steps / "_8").mkdir()

    assert sorted(v0.utils.checkpoint_steps(steps)) == [1, 3, 4, 20]


@pytest.mark.parametrize("library", [v0, ocp], ids=["stowax", "orbax"])
def test_no_steps(library, tmp_path):
    """Where there are none, none are found; one in no directory cannot be."""
    assert library.utils.checkpoint_steps(tmp_path / "nowhere") == []
    assert library.utils.any_checkpoint_step(tmp_path) is None
    with pytest.raises(FileNotFoundError):
        library.utils.any_checkpoint_step(tmp_path / "nowhere")


@pytest.mark.parametrize("library", [v0, ocp], ids=["stowax", "orbax"])
def test_erase_and_create_empty(library, tmp_path):
    """A directory is there and empty afterwards, whatever was there."""
    directory = tmp_path / "checkpoints"
    for _ in range(2):
        path = library.test_utils.erase_and_create_empty(str(directory))

        assert path == directory
        assert hasattr(path, "rmtree")
        assert list(path.iterdir()) == []
        (directory / "1").mkdir()
    with pytest.raises(FileNotFoundError):
        library.test_utils.erase_and_create_empty(tmp_path / "a" / "b")


def test_version():
    """The version tells programs what they find here: that of the peer."""
    assert Version(v0.__version__) <= Version(ocp.__version__)
