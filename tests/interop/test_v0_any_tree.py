"""Any tree goes from one library to the other by the older API, too.

However it is stored.  Comparisons are bit for bit; each library is the other's oracle.
"""

import tempfile
from pathlib import Path

import orbax.checkpoint as orbax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_states import examples, orbax_states, spread
from sample_trees import as_orbax_has_it, differences, is_file_name

from stowax import v0
from stowax._keypath import flatten

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def ways():
    """Ways to store a tree."""
    return st.fixed_dictionaries(
        {},
        optional={
            "use_ocdbt": st.booleans(),
            "use_zarr3": st.booleans(),
            "use_compression": st.booleans(),
        },
    )


def assume_storable(state, way):
    """Where arrays are directories, not every name can be."""
    if not way.get("use_ocdbt", True):
        assume(all(map(is_file_name, flatten(state).names)))


@given(state=orbax_states(), way=ways())
@examples(8)
def test_ours_to_orbax(state, way):
    """What we save Orbax restores: in its containers, or in those of an item."""
    assume_storable(state, way)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        v0.PyTreeCheckpointer(**way).save(path, state)

        bare = orbax.PyTreeCheckpointer().restore(path)
        exact = orbax.PyTreeCheckpointer().restore(path, item=state)

    assert differences(as_orbax_has_it(state), bare) == []
    assert differences(state, exact) == []


@given(state=orbax_states(), way=ways())
@examples(8)
def test_orbax_to_us(state, way):
    """What Orbax saves we restore as it does itself."""
    assume_storable(state, way)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        orbax.PyTreeCheckpointer(**way).save(path, state)

        expected = orbax.PyTreeCheckpointer().restore(path)
        bare = v0.PyTreeCheckpointer().restore(path)
        exact = v0.PyTreeCheckpointer().restore(path, item=state)

    assert differences(expected, bare) == []
    assert differences(state, exact) == []


@given(first=orbax_states(), second=orbax_states())
@examples(5)
def test_several_items(first, second):
    """So it is with several of them, saved in the background."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        with v0.AsyncCheckpointer(v0.CompositeCheckpointHandler()) as checkpointer:
            saves = {"a": v0.args.PyTreeSave(first), "b": v0.args.PyTreeSave(second)}
            checkpointer.save(path, args=v0.args.Composite(**saves))
            ours = checkpointer.restore(path)
        theirs = orbax.Checkpointer(orbax.CompositeCheckpointHandler()).restore(path)

    for name, state in (("a", first), ("b", second)):
        assert differences(as_orbax_has_it(state), theirs[name]) == []
        assert differences(as_orbax_has_it(state), as_orbax_has_it(ours[name])) == []


@given(state=orbax_states(), way=ways(), ours=st.booleans())
@examples(8)
def test_by_arguments(state, way, ours):
    """With the arguments that a tree makes, it comes back as it is, where it was."""
    assume_storable(state, way)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        (v0 if ours else orbax).PyTreeCheckpointer(**way).save(path, state)

        for library in (v0, orbax):
            args = library.checkpoint_utils.construct_restore_args(state)
            asked = library.args.PyTreeRestore(state, args)
            found.append(library.PyTreeCheckpointer().restore(path, args=asked))

    for restored in found:
        assert differences(state, restored) == []
        assert differences(spread(state), spread(restored), placement=True) == []
