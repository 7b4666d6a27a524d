"""Every name of the older API that programs use is here, and can be called as there.

As `test_face` does with the newer API.  What is not the same stands in one of four
tables, each entry of which must still be true.
"""

import importlib
import inspect

import pytest
from faces import (
    ABSENT,
    Pair,
    defaults,
    fields,
    find,
    get,
    is_async,
    is_dataclass,
    misfits,
    named,
    with_members,
)

from stowax import v0

ocp = pytest.importorskip("orbax.checkpoint")

MODULES = [
    *("", "args", "checkpoint_args", "checkpoint_utils", "checkpointers", "future"),
    *("handlers", "metadata", "metadata.value", "multihost", "options"),
    *("transform_utils", "tree", "type_handlers", "utils"),
]
"""Modules of the peer whose names are held against ours, by their path."""

DEFINING = {"checkpoint_args", "checkpoint_utils", "options", "transform_utils"}
"""Those of them that offer what they define; the others offer what they import."""

ELSEWHERE = {
    "abstract_checkpoint_manager": "comes with the checkpoint manager",
    "aggregate_handlers": "documents of 2023",
    "arrays": "`tree.to_shape_dtype_struct`, and `stowax.arrays`",
    "checkpoint_manager": "comes with the checkpoint manager",
    "checkpoint_managers": "comes with the checkpoint manager",
    "experimental": "the newer API is `stowax` itself",
    "logging": "`stowax.events` tells of saves and restores",
    "msgpack_utils": "documents of 2023",
    "path": "names of steps come with the checkpoint manager; `atomicity` is there",
    "pathways": "not supported",
    "serialization": "a part of the peer's own save or restore",
    "step": "comes with the checkpoint manager",
    "test_utils": "tests of the peer's own, but for `erase_and_create_empty`",
    "v1": "the newer API is `stowax` itself",
}
"""Modules of the peer that are not held against ours, with what there is instead."""

_MANAGER = "comes with the checkpoint manager"

PENDING = {
    "AbstractCheckpointManager": _MANAGER,
    "CheckpointManager": _MANAGER,
    "CheckpointManagerOptions": _MANAGER,
    "checkpoint_utils.checkpoints_iterator": _MANAGER,
    "checkpoint_utils.get_snapshot_dir_from_step_dir": _MANAGER,
    "checkpoint_utils.wait_for_new_checkpoint": _MANAGER,
    "metadata.RootMetadata": _MANAGER,
    "utils.get_save_directory": _MANAGER,
    "utils.tmp_checkpoints": _MANAGER,
    "utils.fully_replicated_host_local_array_to_global_array": "arrays of `jax.pmap`",
}
"""Names that are not built yet, with what brings them; a class stands for its members.
An entry goes when its name has come: the test that it is missing fails."""

_INSIDE = "a part of the peer's own save or restore"
_DATA = "what the peer asks of a subclass of its own"
_TYPES = "leaves of other types are taught by `PyTreeOptions.leaf_handlers`"
_BEGUN = "what a handler of the user has begun is waited for, whatever happens"
_MEETING = "processes meet by `jax.distributed`"
_2023 = "documents of 2023, without which nothing is written any more"

LEFT_OUT = {
    "AsyncCheckpointer.create_temporary_path": _INSIDE,
    "AsyncCheckpointer.get_temporary_path": _INSIDE,
    "AsyncCheckpointer.synchronize_next_awaitable_signal_operation_id": _INSIDE,
    "BasePyTreeCheckpointHandler": "what `PyTreeCheckpointHandler` is made of there",
    "Checkpointer.create_temporary_path": _INSIDE,
    "Checkpointer.get_temporary_path": _INSIDE,
    "Checkpointer.synchronize_next_awaitable_signal_operation_id": _INSIDE,
    "CompositeCheckpointHandler.metadata_from_temporary_paths": _INSIDE,
    "Future.cancel": _BEGUN,
    "JaxRandomKeyCheckpointHandler.checkpoint_restore_args": _DATA,
    "JaxRandomKeyCheckpointHandler.checkpoint_save_args": _DATA,
    "JaxRandomKeyCheckpointHandler.post_restore": _DATA,
    "NumpyRandomKeyCheckpointHandler.checkpoint_restore_args": _DATA,
    "NumpyRandomKeyCheckpointHandler.checkpoint_save_args": _DATA,
    "NumpyRandomKeyCheckpointHandler.post_restore": _DATA,
    "PyTreeCheckpointer.create_temporary_path": _INSIDE,
    "PyTreeCheckpointer.get_temporary_path": _INSIDE,
    "PyTreeCheckpointer.synchronize_next_awaitable_signal_operation_id": _INSIDE,
    "StandardCheckpointer.create_temporary_path": _INSIDE,
    "StandardCheckpointer.get_temporary_path": _INSIDE,
    "StandardCheckpointer.synchronize_next_awaitable_signal_operation_id": _INSIDE,
    "future.ChainedFuture.cancel": _BEGUN,
    "future.CommitFutureAwaitingContractedSignals.cancel": _BEGUN,
    "multihost.BarrierSyncFn": _MEETING,
    "multihost.broadcast_one_to_all": "`jax.experimental.multihost_utils` has it",
    "multihost.get_barrier_sync_fn": _MEETING,
    "multihost.initialize_runtime_to_distributed_ids": _MEETING,
    "multihost.is_runtime_to_distributed_ids_initialized": _MEETING,
    "tree.tree_difference": "what messages of the peer are made of",
    "tree.tree_trim": _INSIDE,
    **{
        f"type_handlers.{name}": _TYPES
        for name in (
            *("ArrayHandler", "NumpyHandler", "ParamInfo", "ScalarHandler"),
            *("SingleReplicaArrayHandler", "StringHandler", "TypeHandler"),
            *("TypeHandlerRegistry", "check_input_arguments"),
            *("create_type_handler_registry", "get_cast_tspec_deserialize"),
            *("get_cast_tspec_serialize", "get_json_tspec_read"),
            *("get_json_tspec_write", "get_ts_context", "get_type_handler"),
            *("has_type_handler", "is_ocdbt_checkpoint", "is_supported_empty_value"),
            *("is_supported_type", "merge_ocdbt_per_process_files"),
            *("register_standard_handlers_with_options", "register_type_handler"),
            "supported_types",
        )
    },
    "utils.all_leaves_are_placeholders": _2023,
    "utils.from_flattened_with_keypath": _INSIDE,
    "utils.leaf_is_placeholder": _2023,
    "utils.leaf_placeholder": _2023,
    "utils.name_from_leaf_placeholder": _2023,
    "utils.pytree_structure": _2023,
}
"""Names that no program of a user needs, with the reason; a class stands for its
members."""

_OPEN = "takes by name and by position what it is given, there or here"

OTHERWISE = {
    "ArrayCheckpointHandler.save(args=)": _OPEN,
    "ArrayCheckpointHandler.save(kwargs=)": _OPEN,
    "CheckpointHandlerRegistry.add(kwargs=)": _OPEN,
    "JaxRandomKeyCheckpointHandler.async_save(args=)": _OPEN,
    "JaxRandomKeyCheckpointHandler.restore(args=)": _OPEN,
    "NumpyRandomKeyCheckpointHandler.async_save(args=)": _OPEN,
    "NumpyRandomKeyCheckpointHandler.restore(args=)": _OPEN,
    "StandardCheckpointHandler.save(args=)": _OPEN,
    "StandardCheckpointHandler.save(kwargs=)": _OPEN,
}
"""Parameters that look different and take the same."""

DEFAULTS = {
    "PyTreeCheckpointHandler(array_metadata_validator=)": "an object of the peer's own",
    "PyTreeCheckpointHandler(type_handler_registry=)": "an object of the peer's own",
}
"""Defaults that differ, with the reason."""


def pairs():
    """Every public name of the peer with its members; of several names, the first."""
    found, seen = {}, {}
    for path in MODULES:
        theirs = importlib.import_module(f"{ocp.__name__}.{path}".rstrip("."))
        ours = find(v0, path)
        for name, value in offered(theirs, path):
            dotted = f"{path}.{name}" if path else name
            if id(value) not in seen:
                for pair in with_members(dotted, value, get(ours, name)):
                    found[pair.name] = pair
            seen.setdefault(id(value), []).append((dotted, get(ours, name)))
    return found, seen


def offered(module, path):
    """What a module of the peer offers."""
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "") or ""
        is_offer = home == module.__name__ or path not in DEFINING
        is_offer = is_offer and home.startswith("orbax.")
        if is_offer and not name.startswith("_") and not inspect.ismodule(value):
            yield name, value


PAIRS, SEEN = pairs()
HERE = [pair for pair in PAIRS.values() if pair.ours is not ABSENT]


def is_in(name: str, table) -> bool:
    """Whether a name, or what it is a part of, stands in a table."""
    return any(name == each or name.startswith(f"{each}.") for each in table)


def test_every_module_has_its_place():
    """A module that the peer offers is held against ours, or the table says why not."""
    offered = {
        name
        for name, value in vars(ocp).items()
        if inspect.ismodule(value)
        and value.__name__.startswith("orbax.")
        and not name.startswith("_")
    }

    assert offered - {*MODULES} == {*ELSEWHERE}


def test_every_name_is_here():
    """Functions and classes are here, with all their members and fields."""
    missing = {name for name, pair in PAIRS.items() if pair.ours is ABSENT}

    assert {
        name for name in missing if not is_in(name, {**PENDING, **LEFT_OUT})
    } == set()


@pytest.mark.parametrize("table", [PENDING, LEFT_OUT], ids=["pending", "left out"])
def test_what_is_missing_is_missing(table):
    """A name that has come is in no table, and the peer has all that are in one."""
    assert [name for name in table if PAIRS[name].ours is not ABSENT] == []


@pytest.mark.parametrize(
    "names",
    [names for names in SEEN.values() if len(names) > 1],
    ids=lambda names: names[0][0],
)
def test_a_thing_is_one_thing(names):
    """What the peer offers under several names is here the same under all of them."""
    ours = [value for name, value in names if not is_in(name, {**PENDING, **LEFT_OUT})]

    assert all(value is ours[0] for value in ours), names


@pytest.mark.parametrize(**named(pair for pair in HERE if callable(pair.theirs)))
def test_every_call_fits(pair: Pair):
    """Arguments that the peer takes are taken here, by position and by name."""
    problems = [
        problem
        for parameter, problem in misfits(pair)
        if f"{pair.name}({parameter}=)" not in OTHERWISE
    ]

    assert problems == []
    assert inspect.isclass(pair.ours) == inspect.isclass(pair.theirs)
    assert is_async(pair.theirs) == is_async(pair.ours)


def test_what_looks_different_looks_different():
    """No entry stays when parameters have become the same."""
    found = {
        f"{pair.name}({parameter}=)"
        for pair in HERE
        if callable(pair.theirs)
        for parameter, _ in misfits(pair)
    }

    assert found == set(OTHERWISE)


def test_defaults():
    """Who leaves an argument or an option out gets the same."""
    found = {
        name for pair in HERE for name, theirs, ours in defaults(pair) if theirs != ours
    }

    assert found == set(DEFAULTS)


@pytest.mark.parametrize(**named(p for p in HERE if is_dataclass(p.theirs)))
def test_dataclasses(pair: Pair):
    """What `dataclasses.replace` and `fields` find there, they find here."""
    public = {field for field in fields(pair.theirs) if not field.startswith("_")}

    assert public <= fields(pair.ours).keys()


@pytest.mark.parametrize("name", MODULES)
def test_modules_can_be_imported(name):
    """A public module is an attribute, and can be imported by its name."""
    module = importlib.import_module(f"stowax.v0.{name}".rstrip("."))

    assert module is find(v0, name)
