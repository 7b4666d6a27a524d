"""Every difference that `docs/from-orbax.md` names is there, on both libraries.

A row of its table "What is different" is shown by a test here, which says so with
`shows`, or by what `ELSEWHERE` names: other tests, or a row of the table of errors.
"""

import ast
import gc
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
import safetensors.numpy
from golden_cases import compare, load_case
from orbax.checkpoint import v1
from page_tables import FROM_ORBAX, table
from sample_trees import differences, sharded_arrays

import stowax
from stowax.errors import (
    CorruptCheckpointError,
    InvalidNameError,
    TreeMismatchError,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Orbax drops coroutines that it has begun when one of them fails.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = FROM_ORBAX.parents[1]
CORE = "packages/stowax/tests"

ELSEWHERE = {
    "two leaves whose key paths spell the same name "
    '(`{"a.b": x, "a": {"b": y}}`)': "`save`: two leaves with one name",
    "a background save fails and nobody asks for the result": (
        f"{CORE}/test_response.py::test_unseen_failure_is_logged",
        f"{CORE}/test_response.py::test_unseen_failure_ends_the_process_with_an_error",
        f"{CORE}/test_save.py::test_failure_is_raised_by_the_next_save",
    ),
    "empty trees, arrays without elements, complex scalars, NumPy scalars, `bytes`, "
    "integers beyond 64 bits": (
        "tests/interop/test_leaf_table.py::test_kinds",
        "tests/interop/test_leaf_table.py::test_containers",
    ),
    "leaves that cannot be saved: functions, foreign objects": (
        "tests/interop/test_leaf_table.py::test_refused"
    ),
    "leaves of types of your own": (
        f"{CORE}/leaves/test_custom.py::test_orbax_loads_the_stored_form"
    ),
    "a string under a name with a bare `~`": (
        "tests/interop/test_leaf_table.py::test_names_that_orbax_cannot_look_up"
    ),
    "`~` at the beginning of a path": (
        "tests/interop/test_operations.py::test_home_directory"
    ),
    "`load_async` of an ordinary checkpoint, `load_checkpointables_async`": (
        "tests/interop/test_operations.py::test_load_in_the_background"
    ),
    "`await` of what `save_async` or `load_async` returns": (
        "tests/interop/test_operations.py::test_await_of_a_response"
    ),
    "a second save to a path while the first is in flight": (
        "tests/interop/test_operations.py::test_two_saves_to_one_path"
    ),
    "a failed save": "tests/interop/test_operations.py::test_failure_says_where",
    "a checkpointable whose handler is missing": (
        "tests/interop/test_operations.py::test_missing_handler"
    ),
    "a byte flips in a file that a handler of yours wrote": (
        "tests/interop/test_operations.py::test_files_of_a_handler"
    ),
    "`storage_options.dtype`": (
        "tests/interop/test_storage.py::test_keys_keep_their_dtype",
        f"{CORE}/test_storage_options.py::test_lossy_dtypes_are_warned_of_once",
    ),
    "`chunk_byte_size`, of an array whose length has few divisors": (
        "tests/interop/test_storage.py::test_chunks_of_lengths_without_divisors"
    ),
    "a chunk without `chunk_byte_size`": (
        f"{CORE}/test_save.py::test_chunks_of_a_large_array"
    ),
    "`max_replicas_for_replica_parallel`, `min_slice_bytes_for_replica_parallel`": (
        "tests/interop/test_storage.py::test_replicas_write_whole_shards"
    ),
    "`file.path_permission_mode`": (
        "tests/interop/test_storage.py::test_permission_mode_is_theirs"
    ),
    "masked arrays": "`save`: a masked array",
    "`uint2`, `uint4`, `float8_e4m3` and other dtypes that TensorStore lacks": (
        "tests/interop/test_leaf_table.py::test_dtypes"
    ),
    "several trees in a checkpoint, none named": (
        '`load`: several trees, none of them named or called "state"'
    ),
    "`is_orbax_checkpoint` of an empty directory": (
        "tests/interop/test_programs.py::test_an_empty_directory"
    ),
    "the newest step of a `Checkpointer`": (
        "tests/interop/test_programs.py::test_the_newest_step"
    ),
    "`partial.finalize` of a session in which two calls saved texts": (
        "tests/interop/test_partial.py::test_texts_of_two_calls"
    ),
    "`partial.finalize` that was interrupted": (
        "tests/interop/test_partial.py::test_interrupted_in_the_middle"
    ),
    "`partial.save` of what the session has, or on a checkpoint": (
        "tests/interop/test_partial.py::test_replaced_in_a_session_of_orbax",
        "tests/interop/test_partial.py::test_a_checkpoint_of_orbax_in_place",
    ),
    "`asynchronous.post_finalization_callback`": (
        "tests/interop/test_programs.py::test_told_of_every_save"
    ),
}
"""Rows with the tests of other files, or the row of "Errors", that show them."""

NOT_YET = {
    "`training.Checkpointer.cancel`, `step_name_format=`, `logger=`; `ocp.path.step`": (
        "tests/interop/test_face.py::test_pending_is_missing",
        f"{CORE}/training/test_checkpointer.py::test_cancel",
        f"{CORE}/training/test_checkpointer.py::test_options_that_are_not_built",
    ),
    "`training.pathways` and `PathwaysOptions.checkpointing_impl`": (
        "tests/interop/test_face.py::test_pending_is_missing",
        f"{CORE}/test_option_effects.py::test_refused",
    ),
    "`multiprocessing.primary_host`, `active_processes`; `AtomicityMode.COMMIT_FILE`; "
    "`memory.serialization_status_callback`": (
        f"{CORE}/test_option_effects.py::test_refused"
    ),
    "`gs://`, `s3://`": "tests/interop/test_differences.py::test_object_stores",
}
"""Rows of "What is not there yet", in the same way."""

SHOWN: dict[str, str] = {}
"""Rows that a test here shows."""


def shows(row):
    """Says which row of the page a test shows."""

    def note(test):
        SHOWN[row] = test.__name__
        return test

    return note


STATE = {"x": np.arange(3), "n": 1}


def save(library, directory, state):
    """Saves a checkpoint with one library."""
    path = directory / library.__name__
    library.save(path, state)
    return path


@shows("a byte of an array flips on the disk")
def test_flipped_byte(tmp_path):
    """Orbax loads what was never saved; ours says which leaf it is."""
    case = load_case("corrupt_flipped_byte_data")
    saved = case.expected["undamaged"]["checkpoint"]["items"]["state"]["tree"]
    ours = save(stowax, tmp_path, {"big": np.arange(1000), "small": np.arange(3)})
    (file,) = (ours / "state/d").glob("data-*")
    content = bytearray(file.read_bytes())
    content[700] ^= 16
    file.write_bytes(content)

    (wrong,) = compare(saved, v1.load(case.directory / "checkpoint"))
    assert wrong.startswith("['big']: expected other values")
    with pytest.raises(CorruptCheckpointError, match="'big'"):
        stowax.load(ours)


@shows("the abstract state does not fit")
def test_all_mismatches(tmp_path):
    """Orbax stops at one; ours lists them all."""
    asked = {f"new_{i}": int for i in range(3)}
    asked["x"] = np.zeros((2, 2), np.int64)
    said = {}
    for library in (v1, stowax):
        path = save(library, tmp_path, STATE)
        with pytest.raises(ValueError, match=r".") as caught:
            library.load(path, asked)
        said[library] = caught.value

    assert "(2, 2)" not in str(said[v1])
    assert isinstance(said[stowax], TreeMismatchError)
    named = {line.partition(":")[0] for line in said[stowax].problems}
    assert named == {"new_0", "new_1", "new_2", "x", "n"}


@shows("the abstract state asks for a dtype that loses range")
def test_lost_range(tmp_path):
    """Both obey; ours says so, once, or refuses where that is asked for."""
    state = {"a": jnp.full(3, 1e5, jnp.float32), "b": jnp.ones(2, jnp.float32)}
    asked = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float16), state)
    said = {}
    for library in (v1, stowax):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            loaded = library.load(save(library, tmp_path, state), asked)
        assert loaded["a"].dtype == np.float16
        # Orbax warns of shardings, whatever is asked for.
        said[library] = [t for w in caught if "float16" in (t := str(w.message))]

    assert said[v1] == []
    (warning,) = said[stowax]
    assert {"a", "b"} <= {word.rstrip(":") for word in warning.split()}
    context = stowax.Context()
    context.array.loading.casting = "safe"
    with context, pytest.raises(TreeMismatchError):
        stowax.load(tmp_path / "stowax", asked)


class Failing:
    """An object that fails to save itself."""

    async def save(self, directory):
        async def write():
            raise OSError("no space left")

        return write()

    async def load(self, directory):
        raise NotImplementedError


@shows("safetensors files")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_safetensors(tmp_path):
    """Ours needs no option, and fills any tree; Orbax has both as it was asked."""
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a.w": np.arange(3, dtype=np.float32)}, path)
    asked = {"a": {"w": jax.ShapeDtypeStruct((3,), np.float32)}}

    assert stowax.load(path, asked)["a"]["w"].tolist() == [0, 1, 2]
    with pytest.raises((ValueError, OSError)):
        v1.load(path)
    layout = v1.options.CheckpointLayout.SAFETENSORS
    with v1.Context(checkpoint_layout=layout):
        assert v1.load(path)["a.w"].tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match="not a flat dictionary"):
            v1.load(path, asked)
        with pytest.raises(NotImplementedError):
            v1.save(tmp_path / "new.safetensors", {"w": np.arange(3)})
    gc.collect()  # What Orbax began and does not wait for.
    with stowax.Context(checkpoint_layout="safetensors"):
        stowax.save(tmp_path / "new.safetensors", {"w": np.arange(3)})
    assert safetensors.numpy.load_file(tmp_path / "new.safetensors")["w"].size == 3


@shows("`overwrite=True`")
def test_failed_overwrite(tmp_path):
    """After a save that failed, Orbax has neither checkpoint; ours has the old one."""
    for library in (v1, stowax):
        path = save(library, tmp_path, STATE)
        with pytest.raises(OSError, match="no space left"):
            library.save_checkpointables(path, {"own": Failing()}, overwrite=True)

    assert not (tmp_path / v1.__name__).exists()
    assert stowax.load(tmp_path / "stowax")["n"] == 1


@shows("a tuple, loaded without an abstract state")
def test_tuple(tmp_path):
    """Orbax does not tell tuples from lists."""
    state = {"pair": (1, 2)}

    assert v1.load(save(v1, tmp_path, state)) == {"pair": [1, 2]}
    assert stowax.load(save(stowax, tmp_path, state)) == state


@shows("integer keys, loaded without an abstract state")
def test_integer_keys(tmp_path):
    """Orbax gives the text of the keys."""
    state = {"by_layer": {0: 1, 10: 2}}

    assert v1.load(save(v1, tmp_path, state)) == {"by_layer": {"0": 1, "10": 2}}
    assert stowax.load(save(stowax, tmp_path, state)) == state


@shows("an array without sharding in the abstract state")
def test_without_sharding(tmp_path):
    """What was on one device is committed by Orbax alone; what was spread, by both."""
    state = {"spread": sharded_arrays()["both"], "alone": jnp.ones(3)}
    asked = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    loaded = {}
    for library in (v1, stowax):
        loaded[library] = library.load(save(library, tmp_path, state), asked)

    for library, is_committed in ((v1, True), (stowax, False)):
        assert loaded[library]["spread"].sharding == state["spread"].sharding
        assert loaded[library]["alone"].committed == is_committed
    assert differences(loaded[v1], loaded[stowax]) == []


@shows("a leaf that Orbax's older API saved as `...`")
def test_placeholder(tmp_path):
    """The newer API of Orbax has no name for it, unless it is asked for as that."""
    state = {"a": ..., "b": 1}
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", state)

    with pytest.raises(ValueError, match="placeholder"):
        v1.load(tmp_path / "c")
    assert stowax.load(tmp_path / "c") == state
    assert stowax.metadata(tmp_path / "c").metadata == {"a": ..., "b": 0}
    assert stowax.load_leaf(tmp_path / "c", "a") is ...
    for library in (v1, stowax):
        assert library.load(tmp_path / "c", {"a": ..., "b": 0}) == state


@shows("relative paths")
def test_relative_path(tmp_path, monkeypatch):
    """Orbax wants the whole path."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="absolute"):
        v1.save("theirs", STATE)
    stowax.save("ours", STATE)

    assert stowax.load(tmp_path / "ours")["n"] == 1


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_object_stores(path):
    """A store that is not built yet is refused by name; nothing local is written."""
    for call in (lambda: stowax.save(path, STATE), lambda: stowax.load(path)):
        with pytest.raises(InvalidNameError, match=f"no store for '{path[:2]}' yet"):
            call()


# --- the page -------------------------------------------------------------------------


def test_every_row_is_shown():
    """The page has no difference that no test shows, and no test shows another."""
    rows = [row[0] for row in table(FROM_ORBAX, "What is different")]

    assert len(rows) == len(set(rows))
    assert not SHOWN.keys() & ELSEWHERE.keys()
    assert {*SHOWN, *ELSEWHERE} == {*rows}
    assert NOT_YET.keys() == {r[0] for r in table(FROM_ORBAX, "What is not there yet")}


@pytest.mark.parametrize("row", [*ELSEWHERE, *NOT_YET])
def test_named_tests_exist(row):
    """What a row names is a test of that file, or a situation on the page."""
    named = {**ELSEWHERE, **NOT_YET}[row]
    situations = [r[0] for r in table(FROM_ORBAX, "Errors")]
    for name in [named] if isinstance(named, str) else named:
        file, found, test = name.partition("::")
        assert test in _tests_in(ROOT / file) if found else name in situations, name


def _tests_in(path: Path) -> set[str]:
    """Names of the test functions of a file, those in classes included."""
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}
