"""What the tests of the core share."""

from dataclasses import dataclass
from typing import Any

import pytest

import stowax
from stowax._runtime import default_runtime
from stowax.options import FileOptions
from stowax.testing import MemoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Somewhere to save to: a store, and a directory in it that may not exist yet."""

    directory: str

    store: Any
    """None for that of the path."""

    def context(self, **options: Any) -> stowax.Context:
        """A Context with this store."""
        return stowax.Context(file=FileOptions(store=self.store), **options)

    def __truediv__(self, name: str) -> str:
        return f"{self.directory}/{name}"


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """A place in every kind of store, its Context active."""
    is_local = request.param == "local"
    found = Place(
        directory=str(tmp_path) if is_local else "/runs",
        store=None if is_local else MemoryStore(),
    )
    with found.context():
        yield found


@pytest.fixture(autouse=True)
def _no_failure_is_left_unseen():
    """A background failure that a test does not ask for is a failure of the test."""
    yield
    assert default_runtime().unseen_failures.all() == ()
