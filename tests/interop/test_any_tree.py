"""Any tree goes from one library to the other, as far as Orbax can hold it."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from orbax.checkpoint import v1
from sample_trees import abstract, differences, orbax_holds, orbax_leaves, trees

import stowax
from stowax._keypath import flatten

SOAK = int(os.environ.get("STOWAX_SOAK", "0"))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

examples = settings(
    max_examples=1000 if SOAK else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@given(state=trees(orbax_leaves()))
@examples
def test_trees_of_both(state):
    """What both can hold comes back from both, whoever saved it; with target, exactly.

    Without one, what Orbax gives is the same for what we saved and what it saved; and
    so is what we give for what it saved.
    """
    assume(flatten(state).leaves)  # Orbax saves no empty tree.
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory) / "ours", Path(directory) / "theirs"

        stowax.save(ours, state)
        v1.save(theirs, state)

        expected = v1.load(theirs)
        assert differences(expected, v1.load(ours)) == []
        assert differences(expected, stowax.load(theirs)) == []
        assert differences(state, v1.load(ours, abstract(state))) == []
        assert differences(state, stowax.load(theirs, abstract(state))) == []


@given(state=trees())
@examples
def test_what_orbax_lacks_hides_nothing(state):
    """Of any tree, Orbax loads every leaf that it can hold, whatever is beside it."""
    assume(state is not None)
    with tempfile.TemporaryDirectory() as directory:
        stowax.save(Path(directory) / "c", state)

        found = flatten(v1.load(Path(directory) / "c"))

    leaves = dict(zip(found.names, found.leaves, strict=True))
    saved = flatten(state)
    assert sorted(leaves) == sorted(saved.names)
    for name, leaf in zip(saved.names, saved.leaves, strict=True):
        if orbax_holds(leaf):
            assert differences(leaf, leaves[name]) == []
