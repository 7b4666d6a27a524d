"""Contexts: nesting, inheritance, freezing, and what operations read from them."""

import asyncio
import contextlib
import dataclasses
import inspect
import pathlib
import threading
import warnings

import jax
import pytest

from stowax import options
from stowax._context import (
    Context,
    UnsupportedOptionError,
    current_context,
    current_settings,
)
from stowax._settings import (
    LoadSettings,
    SaveSettings,
    Settings,
    StorageSettings,
    check_supported,
)
from stowax.errors import ContextInUseError, ContextNotActiveError, StowaxError

ALIASES = {
    "pytree_options": "pytree",
    "array_options": "array",
    "async_options": "asynchronous",
    "multiprocessing_options": "multiprocessing",
    "file_options": "file",
    "checkpointables_options": "checkpointables",
    "pathways_options": "pathways",
    "deletion_options": "deletion",
    "memory_options": "memory",
    "safetensors_options": "safetensors",
    "atomicity_options": "atomicity",
}
GROUPS = [*ALIASES.values(), "integrity"]

MESH = jax.make_mesh((1,), ("x",))


@pytest.fixture(scope="module")
def peer():
    """Orbax v1, as the oracle."""
    return pytest.importorskip("orbax.checkpoint").v1


def test_parameters_are_a_superset_of_the_peers(peer):
    """Whatever Orbax's Context takes, ours takes, with the same default."""
    theirs = inspect.signature(peer.Context).parameters
    ours = inspect.signature(Context).parameters

    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind, name
        assert ours[name].default == parameter.default, name


def test_attributes_are_a_superset_of_the_peers(peer):
    """Whatever can be read from Orbax's Context can be read from ours."""
    theirs = [name for name in dir(peer.Context()) if not name.startswith("_")]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        missing = [name for name in theirs if not hasattr(Context(), name)]

    assert "pytree" in theirs
    assert missing == []


def test_context_is_known_by_its_public_name():
    """Tracebacks say `stowax.Context`."""
    assert Context.__module__ == "stowax"


def test_no_context_means_the_defaults():
    """Outside of any block, operations see the defaults."""
    assert current_settings() == Settings()


def test_innermost_context_counts():
    """Blocks nest; leaving one returns to the one around it."""
    outer, inner = _with_timeout(1), _with_timeout(2)

    with outer:
        with inner:
            inside = current_settings().timeout_secs
        between = current_settings().timeout_secs

    assert (inside, between) == (2, 1)
    assert current_settings().timeout_secs == 1200


def test_with_answers_the_context_itself():
    """`with context as name` binds the context."""
    context = Context()

    with context as bound:
        assert bound is context
        assert current_context() is context


def test_block_left_by_an_error_ends():
    """An error that leaves the block leaves no active Context, and no frozen one."""
    context = _with_timeout(1)

    with pytest.raises(KeyError), context:
        raise KeyError

    context.asynchronous.timeout_secs = 2
    assert current_settings() == Settings()


def test_new_context_starts_from_the_defaults_inside_another():
    """Nothing is inherited unless asked for."""
    with _with_timeout(1):
        assert Context().asynchronous.timeout_secs == 1200


def test_inheriting_copies():
    """`Context(other)` has the other's options; then neither sees the other change."""
    runtime, store = object(), object()
    outer = Context(checkpoint_layout="auto", runtime=runtime)
    outer.file.store = store
    outer.array.saving.storage_options.chunk_byte_size = 5
    with outer:
        inner = Context(outer)

    inner.array.saving.storage_options.chunk_byte_size = 6
    outer.array.saving.use_zarr3 = False

    assert outer.array.saving.storage_options.chunk_byte_size == 5
    assert inner.array.saving.use_zarr3
    assert inner.checkpoint_layout is options.CheckpointLayout.AUTO
    assert inner.runtime is runtime
    assert inner.file.store is store


def test_callbacks_are_shared_by_copies():
    """Copying a Context does not copy what a callback belongs to."""
    calls = []
    outer = Context()
    outer.asynchronous.post_finalization_callback = lambda: calls.append(1)

    callback = Context(outer).settings().post_finalization_callback
    assert callback is not None
    callback()

    assert calls == [1]


def test_given_group_replaces_the_inherited_one():
    """A keyword wins over the Context inherited from, group by group."""
    outer = _with_timeout(1)
    outer.pytree.loading.partial_load = True

    inner = Context(outer, asynchronous=options.AsyncOptions(timeout_secs=2))

    assert inner.asynchronous.timeout_secs == 2
    assert inner.pytree.loading.partial_load


def test_given_group_is_copied():
    """A group handed to two Contexts can be changed in each alone."""
    group = options.AsyncOptions(timeout_secs=1)
    first, second = Context(asynchronous=group), Context()
    second.asynchronous = group

    group.timeout_secs = 2

    assert first.asynchronous.timeout_secs == 1
    assert second.asynchronous.timeout_secs == 1


@pytest.mark.parametrize("name", GROUPS)
def test_wrong_group_is_refused(name):
    """Each keyword and attribute takes its own group only."""
    wrong = options.AsyncOptions if name != "asynchronous" else options.FileOptions

    with pytest.raises(TypeError, match=f"Context.{name} must be options."):
        Context(**{name: wrong()})


def test_unknown_layout_is_refused():
    """`checkpoint_layout` takes a member or its value."""
    with pytest.raises(ValueError, match="torch"):
        Context(checkpoint_layout="torch")


@pytest.mark.parametrize(
    "assign",
    [
        lambda context: setattr(context, "checkpoint_layout", "auto"),
        lambda context: setattr(context, "pytree", options.PyTreeOptions()),
        lambda context: setattr(context, "runtime", object()),
        lambda context: setattr(context.asynchronous, "timeout_secs", 3),
        lambda context: setattr(context.array.saving.storage_options, "dtype", "int8"),
        lambda context: setattr(context.memory, "no_such_option", 1),
        lambda context: setattr(
            context.pytree.saving.pytree_metadata_options, "support_rich_types", True
        ),
    ],
)
def test_active_context_refuses_assignment(assign):
    """Options stay as they are while their Context is active, at every depth."""
    context = Context()

    with context:
        before = repr(context)
        with pytest.raises(ContextInUseError, match="is active"):
            assign(context)
        assert repr(context) == before
    with contextlib.suppress(UserWarning):
        assign(context)


def test_copy_of_an_active_context_is_free():
    """Inside the block a copy can be changed and entered."""
    with _with_timeout(1) as outer:
        inner = Context(outer)
        inner.asynchronous.timeout_secs = 2
        with inner:
            assert current_settings().timeout_secs == 2


def test_context_entered_twice_is_frozen_until_the_last_exit():
    """A Context may be entered again while it is active."""
    context = _with_timeout(1)

    with context:
        with context:
            pass
        with pytest.raises(ContextInUseError):
            context.asynchronous.timeout_secs = 2
        assert current_context() is context

    context.asynchronous.timeout_secs = 2


def test_other_threads_start_from_the_defaults_and_may_not_assign():
    """A thread does not inherit the block; an active Context is frozen there too."""
    context = _with_timeout(1)

    def look():
        seen = current_settings()
        with pytest.raises(ContextInUseError):
            context.asynchronous.timeout_secs = 2
        return seen

    with context:
        assert _in_thread(look) == Settings()


def test_threads_enter_one_context_independently():
    """A thread's block does not end another thread's block."""
    context = _with_timeout(1)

    def enter_and_leave():
        with context:
            return current_settings().timeout_secs

    with context:
        assert _in_thread(enter_and_leave) == 1
        assert current_context() is context
        with pytest.raises(ContextInUseError):
            context.asynchronous.timeout_secs = 2
    context.asynchronous.timeout_secs = 2


def test_tasks_inherit_and_nest_independently():
    """Tasks started in the block see it, and their own blocks do not meet."""

    async def enter(secs, turns):
        seen = [current_settings().timeout_secs]
        with _with_timeout(secs):
            await turns.wait()
            seen.append(current_settings().timeout_secs)
        return seen

    async def main():
        turns = asyncio.Barrier(2)
        with _with_timeout(1):
            return await asyncio.gather(enter(2, turns), enter(3, turns))

    assert asyncio.run(main()) == [[1, 2], [1, 3]]


def test_blocks_of_interleaved_generators_end_in_any_order():
    """Leaving an outer block first leaves the inner one active."""

    def block(context):
        with context:
            yield

    first, second = block(_with_timeout(1)), block(_with_timeout(2))
    next(first)
    next(second)

    first.close()
    remaining = current_settings().timeout_secs
    second.close()

    assert remaining == 2
    assert current_settings() == Settings()


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_old_names_work_and_warn(alias, name):
    """Orbax's `*_options` keywords and attributes are aliases that warn."""
    context = Context()
    other = type(getattr(context, name))()

    with pytest.warns(DeprecationWarning, match=f"use Context.{name}") as caught:
        assert getattr(context, alias) is getattr(context, name)
    with pytest.warns(DeprecationWarning, match=f"use Context.{name}") as assigned:
        setattr(context, alias, other)
    with pytest.warns(DeprecationWarning, match=f"Context\\({name}=") as made:
        made_context = Context(**{alias: other})

    assert getattr(made_context, name) == other
    for warned in (caught, assigned, made):
        assert warned[0].filename == __file__


def test_only_a_context_is_copied():
    """What is given in its place is a group, most likely, that wants its name."""
    with pytest.raises(TypeError, match="copies a Context, found PyTreeOptions"):
        Context(options.PyTreeOptions())


def test_old_and_new_keyword_together_are_refused():
    """Two answers to one question are a mistake."""
    with pytest.raises(TypeError, match="both pytree= and pytree_options="):
        Context(pytree=options.PyTreeOptions(), pytree_options=options.PyTreeOptions())


def test_unknown_attribute_is_warned_about():
    """A misspelt group warns at the caller's line; options in groups are found."""
    context = Context()

    with pytest.warns(UserWarning, match=r"'pytree\.loading\.partial_load'") as caught:
        context.partial_load = True

    assert caught[0].filename == __file__


def test_settings_are_values():
    """What was read stays as it was, whatever is assigned later; equal reads match."""
    context = Context()
    before = context.settings()

    context.asynchronous.timeout_secs = 1

    assert before == Settings()
    assert hash(before) == hash(Settings())
    assert context.settings() != before
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.verify = False  # pyright: ignore[reportAttributeAccessIssue] - the point


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("integrity.verify", False, "verify"),
        ("asynchronous.timeout_secs", 3, "timeout_secs"),
        (
            "asynchronous.post_finalization_callback",
            print,
            "post_finalization_callback",
        ),
        ("file.store", "store", "store"),
        ("runtime", "runtime", "runtime"),
        ("checkpointables.registry", "registry", "registry"),
        ("checkpointables.handlers", ((None, print),), "handlers"),
        ("memory.deepcopy_host_arrays", False, "deepcopy_host_arrays"),
        ("multiprocessing.barrier_sync_key_prefix", "run", "barrier_prefix"),
        ("file.path_permission_mode", 0o700, "permission_mode"),
        ("file.path_class", pathlib.Path, "path_class"),
    ],
)
def test_each_option_reaches_the_settings(option, value, field):
    """An option that operations follow arrives, and nothing else changes."""
    context = _with(option, value)

    assert context.settings() == dataclasses.replace(Settings(), **{field: value})


@pytest.mark.parametrize(
    ("option", "value", "field", "read"),
    [
        ("pytree.loading.partial_load", True, "partial", True),
        ("pytree.loading.rename", {"a": "b"}, "rename", (("a", "b"),)),
        ("pytree.loading.container_types", [int], "container_types", (int,)),
        ("array.loading.enable_padding_and_truncation", True, "pads", True),
        ("array.loading.raise_array_data_missing_error", False, "fills_missing", True),
        ("array.loading.casting", "safe", "casting", "safe"),
        ("array.loading.as_numpy", True, "as_numpy", True),
        ("array.loading.memory_map", True, "maps_files", True),
        ("array.loading.mesh", MESH, "mesh", MESH),
    ],
)
def test_each_option_of_loading_reaches_the_settings(option, value, field, read):
    """An option of how trees are loaded arrives, and nothing else changes."""
    loading = dataclasses.replace(LoadSettings(), **{field: read})

    found = _with(option, value).settings()

    assert found == dataclasses.replace(Settings(), loading=loading)
    assert hash(found) is not None


@pytest.mark.parametrize(
    ("option", "value", "field", "read"),
    [
        ("scoped_storage_options_creator", print, "storage_of_leaf", print),
        ("use_compression", True, "use_compression", True),
        ("ocdbt_target_data_file_size", 9, "data_file_size_bytes", 9),
        ("use_replica_parallel", False, "share_among_replicas", False),
        ("min_slice_bytes_for_replica_parallel", 9, "share_from_bytes", 9),
        ("max_replicas_for_replica_parallel", 9, "share_among_most", 9),
        ("enable_write_sharding_file", False, "record_shardings", False),
        ("array_metadata_store", None, "record_array_metadata", False),
    ],
)
def test_each_option_of_saving_reaches_the_settings(option, value, field, read):
    """An option of how arrays are saved arrives, and nothing else changes."""
    context = _with(f"array.saving.{option}", value)

    saving = dataclasses.replace(SaveSettings(), **{field: read})
    assert context.settings() == dataclasses.replace(Settings(), saving=saving)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "bfloat16"),
        ("chunk_byte_size", 5),
        ("shard_axes", (1,)),
        ("compression", "blosc"),
    ],
)
def test_each_storage_option_reaches_the_settings(option, value):
    """So does an option of how one array is stored; None for all is the defaults."""
    context = _with(f"array.saving.storage_options.{option}", value)

    storage = context.settings().saving.storage
    assert storage == StorageSettings(**{option: value})
    without = _with("array.saving.storage_options", None)
    assert without.settings().saving.storage == StorageSettings()


def test_defaults_are_supported():
    """Nobody who leaves the options alone is refused."""
    check_supported(Settings(), saving=True)
    check_supported(Settings(), saving=False)


REFUSED_BY_SAVES = [
    ("array.saving.array_metadata_store", object()),
    ("atomicity.mode", options.AtomicityMode.COMMIT_FILE),
    ("atomicity.mode", "commit_file"),
    ("memory.serialization_status_callback", object()),
    ("checkpoint_layout", "safetensors"),
]
REFUSED_BY_ALL = [
    ("array.loading.casting", "unsave"),
    ("memory.read_concurrent_bytes", -1),
    ("memory.write_concurrent_bytes", -1),
    ("array.saving.storage_options.compression", "gzip"),
    ("multiprocessing.primary_host", 1),
    ("multiprocessing.primary_host", None),
    ("multiprocessing.active_processes", {0}),
    ("pathways.checkpointing_impl", object()),
]


@pytest.mark.parametrize(("option", "value"), REFUSED_BY_SAVES + REFUSED_BY_ALL)
def test_what_is_not_built_is_refused_by_saves(option, value):
    """A save never passes over an option that would change what it writes."""
    settings = _with(option, value).settings()

    with pytest.raises(UnsupportedOptionError, match=f"Context.{option} is ") as caught:
        check_supported(settings)

    assert isinstance(caught.value, StowaxError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("option", "value"), REFUSED_BY_ALL)
def test_what_changes_a_load_is_refused_by_loads(option, value):
    """A load refuses what would change its result or who takes part."""
    with pytest.raises(UnsupportedOptionError, match=f"Context.{option} is "):
        check_supported(_with(option, value).settings(), saving=False)


@pytest.mark.parametrize(("option", "value"), REFUSED_BY_SAVES)
def test_options_of_saving_do_not_stop_a_load(option, value):
    """A load does not care how something would be saved."""
    check_supported(_with(option, value).settings(), saving=False)


def test_all_refused_options_are_named_at_once():
    """One error lists every option to change."""
    context = _with("atomicity.mode", "commit_file")
    context.multiprocessing.primary_host = 2

    with pytest.raises(UnsupportedOptionError, match=r"atomicity(.|\n)*primary_host"):
        check_supported(context.settings())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("array.saving.enable_pinned_host_transfer", True),
        ("array.loading.use_load_and_broadcast", True),
        ("asynchronous.create_directories_asynchronously", False),
        ("atomicity.mode", "atomic_rename"),
        ("file.skip_sync_file_validations", True),
        ("memory.expected_surge_bytes", 1),
        ("memory.read_concurrent_bytes", 1),
        ("checkpoint_layout", "auto"),
        ("safetensors.read_chunk_bytes", 1),
    ],
)
def test_hints_are_accepted(option, value):
    """What only concerns speed and memory never stops an operation."""
    check_supported(_with(option, value).settings())


def _with_timeout(secs):
    return _with("asynchronous.timeout_secs", secs)


def _with(option, value):
    context = Context()
    target = context
    *groups, name = option.split(".")
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, value)
    return context


def _in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_context_that_was_not_entered_cannot_be_left():
    """Leaving once too often says so, and the Context goes on to work."""
    context = Context()

    with pytest.raises(ContextNotActiveError, match="not active"):
        context.__exit__(None, None, None)
    with context:
        assert current_context() is context
    with pytest.raises(RuntimeError):
        context.__exit__(None, None, None)

    context.asynchronous.timeout_secs = 60
