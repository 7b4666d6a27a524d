"""Programs written for Orbax v1 run on both libraries, with equal results.

A module of `programs/` is a program in two halves: `save(ocp, path)`, the job that
saves, and `load(ocp, path)`, the job that loads.  Both are given a library and a
directory, and answer with what they found: trees, dtypes, shardings, what was refused.
Whichever library saves and whichever loads, the answers are those of Orbax alone.

The programs stay with what the two libraries promise alike.  Where they differ on
purpose `docs/from-orbax.md` says so; differences that a program would meet first are
at the end.
"""

import ast
import functools
import gc
import importlib
import inspect
from pathlib import Path

import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1
from sample_trees import differences

import stowax

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # What Orbax refuses leaves them behind; that we leave none is seen elsewhere.
    pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited"),
]

LIBRARIES = {"orbax": v1, "stowax": stowax}
FOLDER = Path(__file__).parent / "programs"
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
    program = importlib.import_module(f"interop.programs.{name}")
    expected = answers(program, tmp_path / "expected", "orbax", "orbax")

    for saver, loader in [
        ("stowax", "stowax"),
        ("orbax", "stowax"),
        ("stowax", "orbax"),
    ]:
        found = answers(program, tmp_path / f"{saver}-{loader}", saver, loader)

        assert differences(expected, found) == [], f"{saver} saved, {loader} loaded"


def test_there_are_twenty():
    """There are at least twenty of them, and each is a program in two halves."""
    assert len(PROGRAMS) >= 20
    for name in PROGRAMS:
        program = importlib.import_module(f"interop.programs.{name}")
        for half in (program.save, program.load):
            assert list(inspect.signature(half).parameters) == ["ocp", "path"], name


def test_programs_know_neither_library():
    """A program uses the library that it is given; it imports none, and no pytest."""
    for name in PROGRAMS:
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        imported = {
            module.partition(".")[0]
            for node in ast.walk(tree)
            for module in _modules(node)
        }
        assert not imported & {*LIBRARIES, "pytest"}, name


def _modules(node):
    if isinstance(node, ast.ImportFrom):
        return [node.module]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_an_empty_directory(tmp_path):
    """To Orbax it is a checkpoint that cannot be loaded, to us it is none."""
    assert v1.is_orbax_checkpoint(tmp_path)
    assert not stowax.is_orbax_checkpoint(tmp_path)
    for library in LIBRARIES.values():
        with pytest.raises(library.errors.InvalidLayoutError):
            library.load(tmp_path)


def test_the_newest_step(tmp_path):
    """It stays, whatever the preservation policy says; in Orbax it need not."""
    found = {}
    for name, library in LIBRARIES.items():
        policies = library.training.preservation_policies
        with library.training.Checkpointer(
            tmp_path / name, preservation_policy=policies.CustomSteps([1])
        ) as steps:
            for step in (1, 2, 3):
                steps.save(step, {"w": jnp.ones(2)}, force=True)
            found[name] = [each.step for each in steps.checkpoints]

    assert found == {"orbax": [1], "stowax": [1, 3]}


def test_told_of_every_save(tmp_path):
    """`save_async` calls the callback of the options; that of Orbax does not."""
    said = []
    for name, library in LIBRARIES.items():
        context = library.Context()
        note = functools.partial(said.append, name)
        context.asynchronous.post_finalization_callback = note
        with context:
            library.save_async(tmp_path / name, {"w": 1}).result()

    assert said == ["stowax"]
