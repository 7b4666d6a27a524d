"""Option groups: the names and defaults of the peer, and what assignment does."""

import copy
import dataclasses
import pickle

import pytest

from stowax import options

# Where our default differs from the peer's, as the module's docstring says.
OTHER_DEFAULTS = {
    "CheckpointablesOptions.registry",
    "ArrayOptions.Saving.array_metadata_store",
    "ArrayOptions.Saving.use_compression",
}
OURS = {
    "IntegrityOptions",
    "PyTreeMetadataOptions",  # the peer keeps it elsewhere
    "FileOptions.store",
    "CheckpointablesOptions.handlers",
    "PyTreeOptions.leaf_handlers",
    "PyTreeOptions.Loading.rename",
    "PyTreeOptions.Loading.container_types",
    "ArrayOptions.Saving.StorageOptions.compression",
    "ArrayOptions.Loading.casting",
    "ArrayOptions.Loading.as_numpy",
    "ArrayOptions.Loading.memory_map",
    "SafetensorsOptions.max_file_bytes",
    "ArrayOptions.Loading.mesh",
}


@pytest.fixture(scope="module")
def peer():
    """Orbax v1, as the oracle."""
    return pytest.importorskip("orbax.checkpoint").v1.options


def test_every_group_of_the_peer_is_here(peer):
    """Option groups have the names that Orbax v1 gives them, and one is ours."""
    theirs = {name for name, value in vars(peer).items() if isinstance(value, type)}

    assert theirs <= set(options.__all__)
    assert set(options.__all__) - theirs == OURS & set(options.__all__)


@pytest.mark.parametrize("name", ["AtomicityMode", "CheckpointLayout"])
def test_enumerations_equal_those_of_the_peer(peer, name):
    """Enumerations have the members and values of Orbax v1."""
    ours, theirs = getattr(options, name), getattr(peer, name)

    assert {m.name: m.value for m in ours} == {m.name: m.value for m in theirs}
    assert issubclass(ours, str) == issubclass(theirs, str)


def test_fields_and_defaults_equal_those_of_the_peer(peer):
    """Every field has the name and the default of Orbax v1, nested classes included."""
    theirs = dict(_fields_of_all(peer))
    ours = dict(_fields_of_all(options))

    assert set(theirs) <= set(ours)
    assert len(theirs) > 50
    added = {name for name in ours if name not in theirs}
    assert {name for name in added if not name.startswith(tuple(OURS))} == set()
    differing = {name for name in theirs if ours[name] != theirs[name]}
    assert differing == OTHER_DEFAULTS


def test_scoped_creator_is_a_protocol_in_its_place(peer):
    """User code may annotate with the nested protocol, as in Orbax v1."""
    assert hasattr(peer.ArrayOptions.Saving, "ScopedStorageOptionsCreator")
    assert options.ArrayOptions.Saving.ScopedStorageOptionsCreator is not None


def test_groups_take_keywords_and_assignments():
    """A group may be filled when it is made, or afterwards."""
    made = options.AsyncOptions(timeout_secs=7)
    assigned = options.AsyncOptions()

    assigned.timeout_secs = 7

    assert made == assigned


def test_nested_groups_are_not_shared():
    """Assigning to one group never changes another one's defaults."""
    changed, untouched = options.ArrayOptions(), options.ArrayOptions()

    changed.saving.storage_options.chunk_byte_size = 5

    assert untouched.saving.storage_options.chunk_byte_size is None


@pytest.mark.parametrize(
    ("group", "name", "meant"),
    [
        (options.AsyncOptions(), "timeout_sec", "'timeout_secs'"),
        (options.ArrayOptions(), "use_ocdbt", "'saving.use_ocdbt'"),
        (options.PyTreeOptions(), "partial_loads", "'loading.partial_load'"),
    ],
)
def test_unknown_name_is_kept_and_warned_about(group, name, meant):
    """A misspelt option warns at the caller's line and names the nearest real one."""
    with pytest.warns(UserWarning, match=meant) as caught:
        setattr(group, name, 1)

    assert getattr(group, name) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_groups_can_be_copied_and_pickled(copied):
    """A copy is equal."""
    group = options.PyTreeOptions()
    group.loading.partial_load = True

    assert copied(group) == group


def test_replace_makes_another_group():
    """`dataclasses.replace` works on groups."""
    group = options.MemoryOptions(read_concurrent_bytes=5)

    changed = dataclasses.replace(group, write_concurrent_bytes=6)

    assert (changed.read_concurrent_bytes, changed.write_concurrent_bytes) == (5, 6)
    assert group.write_concurrent_bytes is None


def test_create_with_handlers_keeps_order_and_names():
    """Handlers for everything come first, then those of one name."""

    class Any:
        pass

    class Named:
        pass

    named = Named()

    made = options.CheckpointablesOptions.create_with_handlers(Any, config=named)

    assert made.handlers == ((None, Any), ("config", named))
    assert made.registry is None


def test_regulator_needs_a_profiler():
    """A regulator without a profiler is refused when it is made."""
    with pytest.raises(ValueError, match="profiler"):
        options.MemoryOptions.RegulatorOptions(max_memory_limit_gib=1, profiler=None)


def _fields_of_all(module):
    """Yields (qualified name, comparable default) of every field of every group."""
    for name, value in vars(module).items():
        if isinstance(value, type) and not name.startswith("_"):
            yield from _fields_of(name, value)


def _fields_of(name, group):
    if not dataclasses.is_dataclass(group):
        return
    for field in dataclasses.fields(group):
        if field.init:
            yield f"{name}.{field.name}", _default(field)
    for inner_name, inner in vars(group).items():
        if isinstance(inner, type):
            yield from _fields_of(f"{name}.{inner_name}", inner)


def _default(field):
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        return "required"
    # Two libraries' groups and enumerations are never equal; names and values are.
    if dataclasses.is_dataclass(default):
        return type(default).__qualname__
    return getattr(default, "value", default)
