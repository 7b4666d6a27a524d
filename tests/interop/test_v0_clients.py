"""Flax and Grain save and restore with `stowax.v0` in the place of `orbax.checkpoint`.

A module of `clients/` is a program in two halves, as in `programs/`; it imports Flax or
Grain, which import `orbax.checkpoint`.  Each half runs in a process of its own, where
that is either library.  Whichever saves and whichever loads, the answers are those of
Orbax alone.
"""

import functools
import json
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
