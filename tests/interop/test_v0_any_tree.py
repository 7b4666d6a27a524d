"""Any tree goes from one library to the other by the older API.

As `test_any_tree` has it for the newer one: however it is stored, and however it is
restored.  Comparisons are bit for bit; each library is the other's oracle.
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


def storing():
    """Ways to store arrays that the older API has."""
    return st.fixed_dictionaries(
        {},
        optional={
            "use_ocdbt": st.booleans(),
            "use_zarr3": st.booleans(),
            "use_compression": st.booleans(),
        },
    )


def save(library, path, parts, options):
    """Saves several trees, each as an item of its own."""
    handlers = {name: library.PyTreeCheckpointHandler(**options) for name in parts}
    args = {name: library.args.PyTreeSave(part) for name, part in parts.items()}
    handler = library.CompositeCheckpointHandler(**handlers)
    with library.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=library.args.Composite(**args))


def restore(library, path, targets):
    """Restores several trees; None as they are stored, others as they look."""

    def ask(target):
        if target is None:
            return library.args.PyTreeRestore()
        args = library.checkpoint_utils.construct_restore_args(target)
        return library.args.PyTreeRestore(target, args)

    asked = {name: ask(target) for name, target in targets.items()}
    handler = library.CompositeCheckpointHandler()
    with library.Checkpointer(handler) as checkpointer:
        found = checkpointer.restore(path, args=library.args.Composite(**asked))
    return {name: found[name] for name in targets}


@given(
    first=orbax_states(), second=orbax_states(), options=storing(), ours=st.booleans()
)
@examples(20)
def test_any_tree(first, second, options, ours):
    """Whoever saves, both restore: with a target exactly, without as Orbax does."""
    if not options.get("use_ocdbt", True):
        assume(all(is_file_name(n) for t in (first, second) for n in flatten(t).names))
    parts = {"state": first, "other": second}
    bare = dict.fromkeys(parts)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        save(v0 if ours else orbax, path, parts, options)

        exact = [restore(library, path, parts) for library in (v0, orbax)]
        alone = restore(orbax, path, bare)
        found = restore(v0, path, bare)

    for restored in exact:
        assert differences(parts, restored) == []
        assert differences(spread(parts), spread(restored), placement=True) == []
    plain = {name: as_orbax_has_it(part) for name, part in parts.items()}
    assert differences(plain, alone) == []
    if not ours:
        assert differences(alone, found) == []
