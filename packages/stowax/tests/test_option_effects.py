"""Every option does what it says, or is refused: each has its proof, in one table.

`PROOFS` has a row for every option of a `Context`, spelled as users assign to it. A row
is one proof, or several:

* `Effect` names the tests of the effect, in this package or in the shared tests;
* `Refused` gives values that operations refuse, which is tried here;
* `Hint` says why an option changes no result, and gives a value with which a save and a
  load are tried here.
"""

import ast
import asyncio
import dataclasses
import functools
import pathlib
import re
import threading

import jax
import numpy as np
import pytest
from sample_trees import abstract, bits, differences, plain, sharded_arrays

import stowax
from stowax._group import OptionGroup
from stowax.errors import DeadlineError, UnsupportedOptionError
from stowax.options import FileOptions, MemoryOptions
from stowax.testing import MemoryStore, SimulatedCluster

REPOSITORY = pathlib.Path(__file__).parents[3]
FOLDERS = (pathlib.Path(__file__).parent, REPOSITORY / "tests")


@dataclasses.dataclass(frozen=True)
class Effect:
    """Tests of the effect: `file.py::test_name` or `file.py::Class::test_name`."""

    tests: tuple[str, ...]

    def __init__(self, *tests):
        object.__setattr__(self, "tests", tests)


@dataclasses.dataclass(frozen=True)
class Refused:
    """Values that are refused with the name of the option, by saves at least."""

    values: tuple[object, ...]

    def __init__(self, *values):
        object.__setattr__(self, "values", values)


@dataclasses.dataclass(frozen=True)
class Hint:
    """A value that changes nothing but speed and memory, and why that is so."""

    value: object
    reason: str


NO_REGULATION = Hint(
    MemoryOptions.RegulatorOptions(max_memory_limit_gib=1, profiler=object()),
    "nothing is regulated: staging holds views of arrays, and copies of NumPy leaves",
)
ONE_READS_FOR_ITSELF = "every process reads what it needs itself"
SAFETENSORS_READS = "such files are read as all others, a few MiB at a time"

PROOFS = {
    "pytree.saving.pytree_metadata_options.support_rich_types": Effect(
        "formats/test_orbax_rich.py::test_orbax_finds_the_types",
        "formats/test_orbax_rich.py::test_types_that_orbax_wrote_are_found",
    ),
    "pytree.leaf_handlers": Effect(
        "leaves/test_custom.py::test_orbax_loads_the_stored_form",
        "leaves/test_custom.py::test_checkpointables",
    ),
    "pytree.loading.partial_load": Effect(
        "test_load_abstract.py::TestPartial::test_what_is_left_out",
        "interop/test_loading.py::test_partial_load",
    ),
    "pytree.loading.rename": Effect(
        "test_load_rename.py::TestWithAnAbstractState::test_prefix",
        "test_load_rename.py::TestWithout::test_exactly_what_the_rules_map",
    ),
    "pytree.loading.container_types": Effect(
        "test_container_types.py::test_plain_unless_allowed",
        "test_container_types.py::test_what_is_no_such_class",
    ),
    "array.saving.storage_options.dtype": Effect(
        "test_storage_options.py::test_dtype_of_arrays_and_numbers",
        "test_storage_options.py::test_nonsense_is_refused_by_name",
        "interop/test_storage.py::test_conversions_are_theirs",
    ),
    "array.saving.storage_options.chunk_byte_size": Effect(
        "test_storage_options.py::test_chunks_within_the_limit",
        "test_storage_options.py::test_nonsense_is_refused_by_name",
        "interop/test_storage.py::test_orbax_shows_the_chunks",
    ),
    "array.saving.storage_options.shard_axes": Effect(
        "test_storage_options.py::test_axes_of_chunks",
        "test_storage_options.py::test_nonsense_is_refused_by_name",
        "interop/test_storage.py::test_orbax_shows_the_chunks",
    ),
    "array.saving.storage_options.compression": Effect(
        "test_compression.py::test_what_is_compressed_how",
        "test_compression.py::test_leaf_by_leaf",
        "interop/test_storage.py::test_tensorstore_reads_compressed",
    ),
    "array.saving.scoped_storage_options_creator": Effect(
        "test_storage_options.py::test_own_options_come_before_general_ones",
        "interop/test_storage.py::test_own_options_of_a_leaf_are_theirs",
    ),
    "array.saving.use_ocdbt": Effect(
        "test_array_directories.py::test_one_file_per_chunk",
        "interop/test_storage.py::test_orbax_loads_whatever_the_options",
    ),
    "array.saving.use_zarr3": Effect(
        "test_array_directories.py::test_tensorstore_reads_it",
        "interop/test_storage.py::test_orbax_loads_whatever_the_options",
    ),
    "array.saving.use_compression": Effect(
        "test_compression.py::test_what_is_compressed",
        "interop/test_storage.py::test_tensorstore_reads_compressed",
    ),
    "array.saving.ocdbt_target_data_file_size": Effect(
        "test_storage_options.py::test_size_of_data_files",
        "test_storage_options.py::test_negative_size_of_data_files",
    ),
    "array.saving.enable_pinned_host_transfer": Hint(
        True, "how bytes come to the host does not change them"
    ),
    "array.saving.enable_post_merge_validation": Hint(
        False, "that every part was written, once, is checked in any case"
    ),
    "array.saving.use_replica_parallel": Effect(
        "test_simulated.py::test_who_shares_the_work"
    ),
    "array.saving.min_slice_bytes_for_replica_parallel": Effect(
        "test_simulated.py::test_who_shares_the_work"
    ),
    "array.saving.max_replicas_for_replica_parallel": Effect(
        "test_simulated.py::test_who_shares_the_work"
    ),
    "array.saving.enable_replica_parallel_separate_folder": Hint(
        True, "every process has a folder of its own already"
    ),
    "array.saving.enable_write_sharding_file": Effect(
        "test_storage_options.py::test_recording_of_shardings",
        "interop/test_storage.py::test_without_recorded_shardings",
    ),
    "array.saving.array_metadata_store": (
        Effect(
            "test_storage_options.py::test_no_array_metadata",
            "interop/test_storage.py::test_without_array_metadata",
        ),
        Refused(object()),
    ),
    "array.loading.enable_padding_and_truncation": Effect(
        "test_load_shape.py::test_padded_and_cut",
        "interop/test_loading.py::test_padding_and_cutting",
    ),
    "array.loading.raise_array_data_missing_error": Effect(
        "interop/test_loading.py::test_missing_chunks",
        "interop/test_loading.py::test_a_chunk_of_ours_is_never_missed",
    ),
    "array.loading.casting": (
        Effect("test_load_cast.py::test_safe"),
        Refused("same_kind"),
    ),
    "array.loading.as_numpy": Effect(
        "test_load_numpy.py::test_abstract_states",
        "test_load_numpy.py::test_no_backend",
    ),
    "array.loading.memory_map": Effect(
        "test_mapped.py::test_what_is_large_is_mapped",
        "test_mapped.py::test_any_chunks_onto_any_mesh",
    ),
    "array.loading.mesh": Effect("test_load_abstract.py::TestAbstractMesh::test_given"),
    "array.loading.use_load_and_broadcast": Hint(True, ONE_READS_FOR_ITSELF),
    "array.loading.load_and_broadcast_options.replica_axis_index": Hint(
        1, ONE_READS_FOR_ITSELF
    ),
    "array.loading.load_and_broadcast_options.primary_replica_id": Hint(
        1, ONE_READS_FOR_ITSELF
    ),
    "array.loading.load_and_broadcast_options.broadcast_memory_limit_bytes": Hint(
        1, ONE_READS_FOR_ITSELF
    ),
    "array.loading.load_and_broadcast_options.broadcast_memory_scaling_factor": Hint(
        0.1, ONE_READS_FOR_ITSELF
    ),
    "asynchronous.timeout_secs": Effect(
        "test_load.py::test_deadline",
        "test_durability.py::test_guest_that_comes_too_late",
    ),
    "asynchronous.post_finalization_callback": Effect(
        "test_save.py::TestAsync::test_callback_after_publishing"
    ),
    "asynchronous.create_directories_asynchronously": Hint(
        False, "nothing is visible under the final path before it is published"
    ),
    "multiprocessing.primary_host": Refused(1, None),
    "multiprocessing.active_processes": Refused({0}),
    "multiprocessing.barrier_sync_key_prefix": Effect(
        "test_option_effects.py::test_prefixes_keep_processes_apart"
    ),
    "file.path_permission_mode": Effect(
        "test_storage_options.py::test_permission_mode",
        "test_storage_options.py::test_permission_mode_without_directories",
        "interop/test_storage.py::test_permission_mode_is_theirs",
    ),
    "file.path_class": Effect("test_storage_options.py::test_class_of_paths"),
    "file.skip_sync_file_validations": Hint(
        True, "the checks before a background save are cheap, and stay"
    ),
    "file.store": Effect("test_option_effects.py::test_bytes_go_to_the_store"),
    "checkpointables.registry": Effect(
        "handlers/test_registry.py::TestOnesOwnRegistry::test_round_trip"
    ),
    "checkpointables.handlers": Effect("test_handlers.py::TestJson::test_by_name"),
    "pathways.checkpointing_impl": Refused(object()),
    "checkpoint_layout": (
        Hint("auto", "what is loaded is told by what is on disk"),
        Effect("formats/test_safetensors_save.py::TestOneFile::test_a_model"),
    ),
    "deletion.gcs_deletion_options.todelete_full_path": Hint(
        "trash", "it is about Google Cloud Storage, which is not reached yet"
    ),
    "memory.write_concurrent_bytes": Effect(
        "test_staging.py::test_what_does_not_fit_is_waited_for"
    ),
    "memory.read_concurrent_bytes": Effect(
        "test_reading.py::test_scratch_stays_within_the_limit"
    ),
    "memory.transfer_concurrent_bytes": Effect(
        "test_staging.py::test_the_lower_limit_counts"
    ),
    "memory.regulator_options": NO_REGULATION,
    "memory.RegulatorOptions.max_memory_limit_gib": NO_REGULATION,
    "memory.RegulatorOptions.profiler": (
        NO_REGULATION,
        Effect("test_options.py::test_regulator_needs_a_profiler"),
    ),
    "memory.RegulatorOptions.target_ratio": NO_REGULATION,
    "memory.RegulatorOptions.min_memory_limit_gib": NO_REGULATION,
    "memory.RegulatorOptions.kp": NO_REGULATION,
    "memory.RegulatorOptions.ki": NO_REGULATION,
    "memory.RegulatorOptions.kd": NO_REGULATION,
    "memory.expected_surge_bytes": Effect(
        "test_staging.py::test_the_default_follows_the_memory_that_is_left"
    ),
    "memory.is_prioritized_key_fn": Effect(
        "test_staging.py::test_leaves_that_are_written_first"
    ),
    "memory.serialization_status_callback": Refused(object()),
    "memory.deepcopy_host_arrays": Effect(
        "test_option_effects.py::test_host_arrays_are_borrowed_if_asked_for"
    ),
    "safetensors.max_over_read_ratio": Hint(2.0, SAFETENSORS_READS),
    "safetensors.read_chunk_bytes": Hint(1, SAFETENSORS_READS),
    "safetensors.max_file_bytes": Effect(
        "formats/test_safetensors_save.py::TestDirectories::test_size_of_files"
    ),
    "atomicity.mode": (
        Refused("commit_file"),
        Hint("atomic_rename", "a rename is what AUTO chooses wherever we can write"),
    ),
    "atomicity.allow_legacy_atomic_rename": Hint(
        True, "it is about `COMMIT_FILE`, which is refused"
    ),
    "integrity.verify": Effect(
        "test_integrity.py::test_damaged_data_without_verification"
    ),
    "runtime": Effect("test_simulated.py::test_eight_save_and_load"),
}


def proofs_of(option):
    """The proofs in a row, one or several."""
    row = PROOFS[option]
    return row if isinstance(row, tuple) else (row,)


def test_every_option_has_a_proof():
    """No option is without a row, and no row without an option."""
    found = set(options_of(stowax.Context()))

    missing = sorted(found - PROOFS.keys())
    assert not missing, (
        f"{missing}: give each of these options a row in PROOFS in {__file__}: "
        "Effect('file.py::test_of_its_effect'), or Refused(value) if operations refuse "
        "it, or Hint(value, 'reason') if it changes no result"
    )
    stale = sorted(PROOFS.keys() - found)
    assert not stale, f"{stale}: no such options; remove their rows in {__file__}"


@pytest.mark.parametrize("option", sorted(PROOFS))
def test_named_tests_exist(option):
    """A proof that a row names is a test that pytest collects."""
    names = [n for p in proofs_of(option) if isinstance(p, Effect) for n in p.tests]

    lacking = [name for name in names if name not in collected(name.split("::")[0])]
    assert not lacking, (
        f"{lacking}: no such tests below {[str(folder) for folder in FOLDERS]}; if "
        f"they were renamed, write their new names into the row of {option!r}"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, value, id=f"{option}-{number}")
        for option in sorted(PROOFS)
        for proof in proofs_of(option)
        if isinstance(proof, Refused)
        for number, value in enumerate(proof.values)
    ],
)
def test_refused(tmp_path, option, value):
    """What cannot be followed is refused by name, and nothing is written."""
    with (
        context_with(option, value),
        pytest.raises(UnsupportedOptionError, match=f"Context.{option} is "),
    ):
        stowax.save(tmp_path / "checkpoint", {"w": 1})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("array.saving.use_compression", "yes", "True or False or None"),
        ("array.saving.use_replica_parallel", "x", "True or False or None"),
        ("array.saving.storage_options", {"dtype": "f4"}, "StorageOptions"),
        ("array.saving.ocdbt_target_data_file_size", "x", "an integer or None"),
        ("array.saving.min_slice_bytes_for_replica_parallel", -1, "at least 0"),
        ("array.saving.max_replicas_for_replica_parallel", 0, "at least 1"),
        ("array.saving.max_replicas_for_replica_parallel", True, "an integer or None"),
        ("array.saving.scoped_storage_options_creator", 5, "a callable or None"),
        ("array.saving.storage_options.chunk_byte_size", 1.5, "an integer or None"),
        (
            "array.saving.storage_options.compression",
            "gzip",
            "'none' or 'zstd' or 'blosc' or 'auto' or None",
        ),
        ("array.saving.storage_options.compression", True, "'none' or "),
        ("array.saving.storage_options.compression", ["zstd"], "'none' or "),
        ("array.loading.casting", "unsave", "'unsafe' or 'safe'"),
        ("asynchronous.timeout_secs", None, "an integer or a number"),
        ("asynchronous.post_finalization_callback", 5, "a callable or None"),
        ("file.path_permission_mode", -1, "0 to 4095"),
        ("file.path_permission_mode", 99999, "0 to 4095"),
        ("pytree.loading.partial_load", "x", "True or False"),
        ("pytree.loading.container_types", int, "several values"),
        ("pytree.leaf_handlers", None, "several values"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path, option, value, expected):
    """A value that an option cannot have is refused by name, in saves and in loads."""
    stowax.save(tmp_path / "checkpoint", {"w": 1})
    told = re.escape(f"Context.{option} is {value!r}") + f".*{expected}"

    with context_with(option, value):
        with pytest.raises(UnsupportedOptionError, match=told):
            stowax.save(tmp_path / "other", {"w": 1})
        with pytest.raises(UnsupportedOptionError, match=told):
            stowax.load(tmp_path / "checkpoint")

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, proof.value, id=option)
        for option in sorted(PROOFS)
        for proof in proofs_of(option)
        if isinstance(proof, Hint)
    ],
)
def test_hints_change_nothing(tmp_path, option, value):
    """With a hint, everything is saved and loaded as without it."""
    state = {
        "w": sharded_arrays()["both"],
        "host": bits("float64", (3, 2)),
        "key": jax.random.key(3),
        "n": 7,
        "s": "text",
    }

    with context_with(option, value):
        stowax.save(tmp_path / "a", state)
        stowax.save_async(tmp_path / "b", state).result()
        for name in ("a", "b"):
            loaded = stowax.load(tmp_path / name, abstract(state))
            assert differences(state, loaded, placement=True) == []
            assert differences(plain(state), stowax.load(tmp_path / name)) == []
    assert differences(plain(state), stowax.load(tmp_path / "a")) == []


def test_prefixes_keep_processes_apart():
    """Processes meet under one prefix, and wait in vain under two."""
    store = MemoryStore()

    def save(index, prefixes, timeout_secs, name):
        context = stowax.Context(
            runtime=cluster.runtimes[index], file=FileOptions(store=store)
        )
        context.multiprocessing.barrier_sync_key_prefix = prefixes[index]
        context.asynchronous.timeout_secs = timeout_secs
        with context:
            stowax.save(f"/runs/{name}", {"n": 1})

    def in_vain(index):
        with pytest.raises(DeadlineError):
            save(index, "ab", 0.3, "apart")

    with SimulatedCluster(2) as cluster:
        cluster.run(lambda index: save(index, "aa", 20, "together"))
        cluster.run(in_vain)

    assert asyncio.run(store.stat("/runs/together")) is not None
    assert asyncio.run(store.stat("/runs/apart")) is None


class HoldingStore(MemoryStore):
    """Begins to write when it is told to."""

    def __init__(self):
        super().__init__()
        self.may_write = threading.Event()

    async def write(self, path, pieces, *, size_bytes=None):
        await asyncio.to_thread(self.may_write.wait)
        await super().write(path, pieces, size_bytes=size_bytes)


@pytest.mark.parametrize("is_copied", [True, False])
def test_host_arrays_are_borrowed_if_asked_for(is_copied):
    """Without a copy, what is saved is what the array is when it is written."""
    store, array = HoldingStore(), np.zeros(3)
    context = stowax.Context(file=FileOptions(store=store))
    context.memory.deepcopy_host_arrays = is_copied

    with context:
        response = stowax.save_async("/runs/checkpoint", {"w": array})
        array[:] = 1
        store.may_write.set()
        response.result()
        loaded = stowax.load("/runs/checkpoint")

    assert loaded["w"].tolist() == ([0, 0, 0] if is_copied else [1, 1, 1])


def test_bytes_go_to_the_store(tmp_path):
    """A store that is chosen gets every byte; nothing lands on the disk."""
    store = MemoryStore()

    with stowax.Context(file=FileOptions(store=store)):
        stowax.save(tmp_path / "checkpoint", {"w": np.ones(3)})
        assert stowax.load(tmp_path / "checkpoint")["w"].tolist() == [1, 1, 1]

    assert list(tmp_path.iterdir()) == []
    assert asyncio.run(store.stat(f"{tmp_path}/checkpoint/stowax.json")) is not None


def options_of(group, prefix=""):
    """Every option in a group, and in the groups inside, as users assign to it."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, OptionGroup):
            yield from options_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
    for name, cls in vars(type(group)).items():
        # What an option is made of, if it is no group that is there from the start.
        if dataclasses.is_dataclass(cls) and not issubclass(cls, OptionGroup):
            for field in dataclasses.fields(cls):
                yield f"{prefix}{name}.{field.name}"


@functools.cache
def collected(file):
    """What pytest finds in a file of tests: functions, and methods of classes."""
    found = [folder / file for folder in FOLDERS if (folder / file).exists()]
    return {
        f"{file}::{name}"
        for path in found
        for name in _tests_in(ast.parse(path.read_text()), "")
    }


def _tests_in(tree, prefix):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _tests_in(node, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield prefix + node.name


def context_with(option, value):
    """A Context in which one option has a value."""
    context = stowax.Context()
    target = context
    *groups, name = option.split(".")
    if "RegulatorOptions" in groups:
        groups, name = ["memory"], "regulator_options"
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, value)
    return context
