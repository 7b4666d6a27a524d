"""The public face: what is exported, and under which name it is known."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2]

MODULES = [
    "stowax",
    "stowax.adapters",
    "stowax.arrays",
    "stowax.errors",
    "stowax.events",
    "stowax.handlers",
    "stowax.multihost",
    "stowax.options",
    "stowax.partial",
    "stowax.path",
    "stowax.testing",
    "stowax.training",
    "stowax.training.errors",
    "stowax.training.preservation_policies",
    "stowax.training.save_decision_policies",
    "stowax.tree",
    "stowax.v0",
    "stowax.v0.args",
    "stowax.v0.checkpoint_args",
    "stowax.v0.checkpoint_utils",
    "stowax.v0.checkpointers",
    "stowax.v0.future",
    "stowax.v0.handlers",
    "stowax.v0.metadata",
    "stowax.v0.metadata.value",
    "stowax.v0.multihost",
    "stowax.v0.options",
    "stowax.v0.path",
    "stowax.v0.path.atomicity",
    "stowax.v0.transform_utils",
    "stowax.v0.tree",
    "stowax.v0.type_handlers",
    "stowax.v0.utils",
    "stowax_flax",
    "stowax_grain",
    "stowax_optax",
]
# Public modules that a later release brings; the day they come, they move up.
PENDING: set[str] = set()
# Imported by those who test, or who have programs for the older API; not by the door.
ON_DEMAND = {"stowax.testing", "stowax.v0"}


def test_pending_modules_are_pending():
    """A module that exists is checked like the others."""
    assert [name for name in sorted(PENDING) if _exists(name)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PENDING])
def test_all_is_exactly_the_public_names(name):
    """`__all__` lists, sorted, what a user may name; nothing public is beside it."""
    module = importlib.import_module(name)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and _is_ours(value, module)
    }

    assert list(module.__all__) == sorted(set(module.__all__))
    assert public - set(module.__all__) == set()
    assert [key for key in module.__all__ if not hasattr(module, key)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PENDING])
def test_exports_are_known_by_a_public_name(name):
    """Tracebacks and documentation show a path that a user can import."""
    module = importlib.import_module(name)

    for key in module.__all__:
        value = getattr(module, key)
        if not _is_defined(value) or not _top(value.__module__).startswith("stowax"):
            continue
        known_as = f"{value.__module__}.{value.__qualname__}"
        assert value.__module__ in MODULES, f"{name}.{key} calls itself {known_as}"
        home = importlib.import_module(value.__module__)
        assert getattr(home, value.__qualname__, None) is value, known_as
        assert value.__qualname__ in home.__all__, known_as


@pytest.mark.parametrize("adapter", ["flax", "grain", "optax"])
def test_adapters_are_registered(adapter):
    """Each adapter's package names its module in the group where the core looks."""
    project = _project(f"stowax-{adapter}")

    assert project["entry-points"]["stowax.adapters"] == {adapter: f"stowax_{adapter}"}


@pytest.mark.parametrize("adapter", ["flax", "grain", "optax"])
def test_packages_go_in_lock_step(adapter):
    """The four packages have one version, and an adapter asks for that of its core."""
    core, ours = _project("stowax"), _project(f"stowax-{adapter}")
    major, minor, _ = core["version"].split(".")

    wanted = f"stowax>={major}.{minor},<{major}.{int(minor) + 1}"
    assert ours["version"] == core["version"]
    assert ours["requires-python"] == core["requires-python"]
    assert ours["dependencies"][0] == wanted


def _project(package: str) -> dict:
    path = PACKAGES / package / "pyproject.toml"
    return tomllib.loads(path.read_text())["project"]


def _exists(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _is_defined(value) -> bool:
    """Whether `value` is a class or a function, which know their module."""
    return inspect.isclass(value) or inspect.isroutine(value)


def _is_ours(value, module) -> bool:
    """Whether a name bound to `value` in `module` would be taken for its face."""
    if inspect.ismodule(value):
        # The door offers its public modules; any other module is just imported.
        offered = set(MODULES) - ON_DEMAND
        return value.__name__ in offered and module.__name__ == "stowax"
    return _is_defined(value) and value.__module__ == module.__name__


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]


def test_what_an_import_costs():
    """Beside JAX one library, for checksums, and no collection of all garbage."""
    script = """
import gc, sys
import jax.experimental.layout, jax.experimental.multihost_utils
before, generations = set(sys.modules), []
gc.callbacks.append(lambda phase, info: generations.append(info["generation"]))
import stowax
gc.callbacks.clear()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)), generations.count(2))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout == "['crc32c', 'stowax'] 0\n"
