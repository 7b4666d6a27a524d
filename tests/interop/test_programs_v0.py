"""Programs written for the older API run on both libraries, with equal results.

A module of `programs_v0/` is a program in two halves, as in `programs/`.
"""

import gc
import importlib
import inspect
from pathlib import Path

import orbax.checkpoint as orbax
import pytest
from sample_trees import differences

from stowax import v0

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore:.*lose values"),
    # What Orbax refuses leaves them behind; that we leave none is seen elsewhere.
    pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited"),
    # It closes its loop while reads of TensorStore are under way that have to tell it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIBRARIES = {"orbax": orbax, "stowax": v0}
FOLDER = Path(__file__).parent / "programs_v0"
PROGRAMS = sorted(file.stem for file in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    """What a library left behind is complained of here, and in no other test."""
    yield
    gc.collect()


def answers(program, directory, saver, loader):
    """What the two halves of a program find, each run on a library."""
    directory.mkdir()
    saved = program.save(LIBRARIES[saver], directory)
    return {"save": saved, "load": program.load(LIBRARIES[loader], directory)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(tmp_path, name):
    """Stowax alone, and either library after the other, find what Orbax finds."""
    program = importlib.import_module(f"interop.programs_v0.{name}")
    expected = answers(program, tmp_path / "expected", "orbax", "orbax")

    for saver, loader in [
        ("stowax", "stowax"),
        ("orbax", "stowax"),
        ("stowax", "orbax"),
    ]:
        found = answers(program, tmp_path / f"{saver}-{loader}", saver, loader)

        assert differences(expected, found) == [], f"{saver} saved, {loader} loaded"


def test_there_are_ten():
    """There are at least ten of them, and each is a program in two halves."""
    assert len(PROGRAMS) >= 10
    for name in PROGRAMS:
        program = importlib.import_module(f"interop.programs_v0.{name}")
        for half in (program.save, program.load):
            assert list(inspect.signature(half).parameters) == ["ocp", "path"], name
