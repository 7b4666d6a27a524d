"""Flax and Grain save and restore with `stowax.v0` in the place of `orbax.checkpoint`.

A module of `clients/` is a program in two halves, as in `programs/`; it imports Flax or
Grain, which import `orbax.checkpoint`.  Each half runs in a process of its own, where
that is either library.  Whichever saves and whichever loads, the answers are those of
Orbax alone.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "clients"
CLIENTS = sorted(
    file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_")
)


def run(client, half, library, path):
    """What a half of a client answers."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "interop.clients", client, half, library, str(path)],
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a client answers with Orbax, and where it has saved."""

    @functools.cache
    def answers(client):
        path = tmp_path_factory.mktemp(client) / "orbax"
        saved = run(client, "save", "orbax", path)
        return path, saved, run(client, "load", "orbax", path)

    return answers


@pytest.mark.parametrize("client", CLIENTS)
def test_what_orbax_saved(expected, client):
    """A client loads what it has saved before, with Orbax."""
    path, _, loaded = expected(client)

    assert run(client, "load", "stowax", path) == loaded


@pytest.mark.parametrize("client", CLIENTS)
def test_what_stowax_saved(expected, client, tmp_path):
    """A client saves, and loads that; so does one that has Orbax."""
    _, saved, loaded = expected(client)
    path = tmp_path / "stowax"

    assert run(client, "save", "stowax", path) == saved
    assert run(client, "load", "stowax", path) == loaded
    assert run(client, "load", "orbax", path) == loaded


PAGE = FOLDER.parents[2] / "docs" / "how-to" / "moving-from-orbax.md"

IDENTITY = """
import importlib, pkgutil, sys
import stowax.v0 as ours
from stowax.v0.options import AtomicityMode as mode

public = [
    name for _, name, _ in pkgutil.walk_packages(ours.__path__, "stowax.v0.")
    if "._" not in name
]
assert len(public) > 10, public
before = {name: sys.modules[name] for name in public}

import orbax.checkpoint as ocp
from orbax.checkpoint.options import AtomicityMode
import orbax.checkpoint.utils
from orbax.checkpoint import args

assert AtomicityMode is mode
assert ocp is ours and args is ours.args
for name in public:
    theirs = name.replace("stowax.v0", "orbax.checkpoint", 1)
    assert importlib.import_module(theirs) is before[name], name
    place = ocp
    for part in name.split(".")[2:]:
        place = getattr(place, part)
    assert place is before[name], name
assert not [
    name for name, module in sys.modules.items()
    if "/orbax/checkpoint/" in (getattr(module, "__file__", None) or "")
]
"""


def page_recipe():
    """What the documentation says to do, without the program that comes then."""
    blocks = re.findall(r"```python no-run\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "sys.modules" in block]
    return block.partition("from flax")[0]


def clients_recipe():
    """What the clients of this test do."""
    return "from interop.clients.__main__ import replace\nreplace()\n"


@pytest.mark.parametrize("recipe", [page_recipe, clients_recipe])
def test_a_module_is_one_module(recipe):
    """A module of ours is the same by both names, and is never made twice."""
    done = subprocess.run(
        [sys.executable, "-c", recipe() + IDENTITY],
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-4000:]
