import contextlib
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as orbax

from stowax import _sharding
from stowax._formats import _orbax_json as documents
from stowax._formats._orbax_json import (
    decode_deletion,
    decode_json,
    decode_root,
    encode_root,
    item_kind,
)
from stowax._formats._orbax_strings import check_string_names
from stowax._formats._orbax_tree_read import decode_documents
from stowax._formats._orbax_tree_write import encode_documents
from stowax._keypath import check_names, flatten
from stowax._manifest import LeafEntry, LeafForm, Manifest
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    KeyPathCollisionError,
    StowaxError,
    UnsupportedLeafError,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
SINGLE = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
NAMED = {
    "sharding_type": "NamedSharding",
    "shape": [2],
    "axis_names": ["x"],
    "axis_types": ["AxisType.Auto"],
    "partition_spec": ["x", None],
    "device_mesh": {"mesh": [{"id": 0}, {"id": 1}]},
}
KEYS_OF_NO_NAME = {"param_name": "w", "ext_metadata": {"random_key_impl": 1}}


class Slot:
    """Stands for a leaf; JAX knows nothing of it."""


TREES = st.recursive(
    st.builds(Slot) | st.sampled_from([None, (), {}, []]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=12)
        | st.dictionaries(TEXT, inner, min_size=1, max_size=4)
    ),
    max_leaves=24,
)
LEAVES = st.one_of(
    st.builds(
        dict,
        kind=st.just("jax.Array"),
        write_shape=SHAPES,
        chunk_shape=SHAPES,
        prng_impl=st.sampled_from([None, "threefry2x32", "rbg"]),
        sharding=st.sampled_from([None, SINGLE, NAMED]),
    ),
    st.builds(dict, kind=st.sampled_from(["np.ndarray", "scalar"])),
    st.builds(dict, kind=st.just("string"), text=TEXT),
)


@st.composite
def manifests(draw):
    """Whatever the documents can say: trees that can be written, all kinds of leaf."""
    flat = flatten(draw(TREES))
    leaves = tuple(
        LeafEntry(path, name, LeafForm(**draw(LEAVES)))
        for path, name in zip(flat.paths, flat.names, strict=True)
    )
    return Manifest(root=flat.root, leaves=leaves)


def _writable(manifest):
    try:
        check_names(manifest.root)
        check_string_names(e.name for e in manifest.leaves if e.form.kind == "string")
    except KeyPathCollisionError:
        return False
    return True


def _manifest_of(tree, **kinds):
    """A manifest of leaves that are all of one kind."""
    flat = flatten(tree)
    leaves = tuple(
        LeafEntry(path, name, LeafForm(**kinds))
        for path, name in zip(flat.paths, flat.names, strict=True)
    )
    return Manifest(root=flat.root, leaves=leaves)


def _encode(manifest):
    return encode_documents(manifest, process_count=1, manifest_name=None)


def _strings(**texts):
    flat = flatten(texts)
    leaves = tuple(
        LeafEntry(path, name, LeafForm(kind="string", text=text))
        for path, name, text in zip(flat.paths, flat.names, flat.leaves, strict=True)
    )
    return Manifest(root=flat.root, leaves=leaves)


# --- both ways ------------------------------------------------------------------------


@settings(deadline=None)  # machines may be busy
@given(manifests().filter(_writable), st.integers(1, 3), st.none() | st.just("m-1"))
def test_documents_read_back_as_written(manifest, process_count, manifest_name):
    """Tree, kinds, strings, shardings and keys survive for every tree."""
    encoded = encode_documents(
        manifest, process_count=process_count, manifest_name=manifest_name
    )

    said = decode_documents(encoded, path="/c/state")

    assert said.manifest == manifest
    assert said.manifest_name == manifest_name
    assert (said.use_ocdbt, said.use_zarr3, said.stores_fill_value) == (True,) * 3


def test_orbax_loads_what_the_documents_describe(tmp_path):
    """Orbax reads every kind of leaf and container through documents of ours."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = {
        "w": jax.device_put(np.arange(8.0, dtype=np.float32).reshape(4, 2), sharding),
        "keys": jax.device_put(jax.random.split(jax.random.key(3), 4), sharding),
        "host": np.arange(3),
        "list": [1, 2.5, True, "text", {"s/t": "nested"}, (), [], {}, None],
    }
    flat = flatten(tree)
    leaves, arrays = [], {}
    for path, name, value in zip(flat.paths, flat.names, flat.leaves, strict=True):
        form = LeafForm(kind="scalar")
        if isinstance(value, str):
            text = LeafForm(kind="string", text=value)
            leaves.append(LeafEntry(path, name, text))
            continue
        data = value
        if isinstance(value, np.ndarray):
            form = LeafForm(kind="np.ndarray")
        elif isinstance(value, jax.Array):
            described = _sharding.describe(value.sharding)
            form = LeafForm(kind="jax.Array", sharding=described)
            if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
                data = jax.random.key_data(value)
                form = replace(form, prng_impl=str(jax.random.key_impl(value)))
        arrays[name] = np.asarray(data)
        shape = arrays[name].shape
        form = replace(form, shape=shape, chunk_shape=shape)
        leaves.append(LeafEntry(path, name, form))
    item = tmp_path / "checkpoint" / "state"
    _write_arrays(item, arrays)
    written = encode_documents(
        Manifest(root=flat.root, leaves=tuple(leaves)),
        process_count=1,
        manifest_name="manifest-1",
    )
    root = encode_root(
        typestrs={"state": documents.PYTREE_TYPESTR},
        init_timestamp_nsecs=1,
        commit_timestamp_nsecs=2,
        custom_metadata={"note": "ours"},
    )
    for name, data in written.items():
        (item / name).parent.mkdir(exist_ok=True)
        (item / name).write_bytes(data)
    (item.parent / documents.ROOT_DOCUMENT).write_bytes(root)
    (item.parent / documents.INDICATOR).touch()

    loaded = orbax.load(item.parent)

    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for ours, theirs in zip(
        jax.tree.leaves(tree), jax.tree.leaves(loaded), strict=True
    ):
        assert type(ours) is type(theirs)
        if isinstance(ours, jax.Array):
            assert ours.dtype == theirs.dtype
            assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
            assert jax.numpy.array_equal(ours, theirs)
        else:
            np.testing.assert_array_equal(ours, theirs)


def _write_arrays(directory, arrays):
    kvstore = ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}}
    ).result()
    for name, data in arrays.items():
        spec = {"driver": "zarr3", "kvstore": (kvstore / name).spec().to_json()}
        array = ts.open(spec, create=True, dtype=data.dtype, shape=data.shape).result()
        array.write(data).result()


# --- _METADATA ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "value_type"),
    [({}, "Dict"), ([], "List"), ((), "Tuple"), (None, "None")],
)
def test_empty_root_has_an_entry(tree, value_type):
    """A tree without leaves is one entry with an empty path."""
    said = json.loads(_encode(_manifest_of(tree))["_METADATA"])

    value = {"value_type": value_type, "skip_deserialize": True}
    entry = {"key_metadata": [], "value_metadata": value}
    assert said["tree_metadata"] == {"()": entry}


def test_every_process_that_wrote_has_its_document():
    """Each process's list of arrays is there, and all are the same."""
    manifest = _manifest_of({"w": Slot()}, kind="jax.Array")

    encoded = encode_documents(manifest, process_count=3, manifest_name=None)

    arrays = {k: v for k, v in encoded.items() if k.startswith("array_metadatas/")}
    assert list(arrays) == [f"array_metadatas/process_{i}" for i in range(3)]
    assert len(set(arrays.values())) == 1


def test_documents_without_content_are_not_written():
    """A tree of plain numbers needs one document."""
    assert list(_encode(_manifest_of({"n": Slot()}, kind="scalar"))) == ["_METADATA"]


def test_entries_out_of_order_are_put_in_order():
    """Positions sort as numbers, whatever the order of the document."""
    encoded = _encode(_strings(x=[f"{i}" for i in range(12)]))
    said = json.loads(encoded["_METADATA"])
    shuffled = sorted(said["tree_metadata"].items(), key=lambda item: item[0])
    encoded["_METADATA"] = json.dumps(
        {**said, "tree_metadata": dict(shuffled)}
    ).encode()

    manifest = decode_documents(encoded, path="/c").manifest

    assert [leaf.form.text for leaf in manifest.leaves] == [f"{i}" for i in range(12)]
    assert manifest == _strings(x=[f"{i}" for i in range(12)])


def test_older_documents_lack_keys():
    """Without the newer keys it is zarr2, and missing chunks mean zeros."""
    said = json.loads(_encode(_manifest_of({"n": Slot()}, kind="scalar"))["_METADATA"])
    old = json.dumps({"tree_metadata": said["tree_metadata"]}).encode()

    read = decode_documents({"_METADATA": old}, path="/c")

    assert (read.use_ocdbt, read.use_zarr3, read.stores_fill_value) == (
        None,
        False,
        False,
    )
    assert read.manifest_name is None


def _entry(*keys, value_type="scalar"):
    return {
        "key_metadata": [{"key": k, "key_type": 2 - (k.isdigit())} for k in keys],
        "value_metadata": {"value_type": value_type, "skip_deserialize": False},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"tree_metadata": {}}',
        b"\xff",
        b"[" * 100_000,
        {"a": []},
        {"a": {}},
        {"a": {**_entry("a"), "key_metadata": [{"key": 1, "key_type": 2}]}},
        {"a": {**_entry("a"), "key_metadata": [{"key": "a", "key_type": 3}]}},
        {"a": {**_entry("a"), "key_metadata": [{"key": "a", "key_type": 1}]}},
        {"a": {**_entry("a"), "value_metadata": {"value_type": []}}},
        {"0": _entry("0"), "2": _entry("2")},
        {"0": _entry("0"), "a": _entry("a")},
        {"a": _entry("a"), "a.b": _entry("a", "b")},
        {"a": _entry("a"), "b": _entry("a")},
        {"a": _entry("a", value_type="string")},
        {"a": _entry("a", value_type="None")},
        {"a": _entry("a", value_type="Dict")},
        {"b": _entry("a")},
    ],
)
def test_damaged_tree_is_named(content):
    """Whatever is wrong with the tree, the error says in which document."""
    if isinstance(content, dict):
        entries = {repr(tuple(key.split("."))): e for key, e in content.items()}
        content = json.dumps({"tree_metadata": entries}).encode()

    with pytest.raises(CorruptCheckpointError, match=r"^/c/state/_"):
        decode_documents({"_METADATA": content}, path="/c/state")


def test_entry_that_stands_twice_is_damage():
    """A label that became that of another entry does not make the other vanish."""
    entries = [json.dumps(_entry(key)) for key in "ae"]
    content = (
        f"""{{"tree_metadata": {{"('e',)": {entries[0]}, "('e',)": {entries[1]}}}}}"""
    )

    with pytest.raises(CorruptCheckpointError, match=r"_METADATA: .*occurs twice"):
        decode_documents({"_METADATA": content.encode()}, path="/c")


def test_label_of_another_python():
    """Which characters a label escapes depends on the Python that wrote it."""
    content = {"tree_metadata": {r"('\xe9',)": _entry("é")}}

    read = decode_documents({"_METADATA": json.dumps(content).encode()}, path="/c")

    assert [leaf.name for leaf in read.manifest.leaves] == ["é"]


def test_json_value_may_have_a_key_twice():
    """Python writes the keys 1 and "1" of a dict so; the last one counts."""
    assert decode_json(b'{"1": 2, "1": 3}', path="/c/data.json") == {"1": 3}


def test_placeholder():
    """A leaf that was saved without a value is known as such."""
    content = {"tree_metadata": {"('a',)": _entry("a", value_type="placeholder")}}

    read = decode_documents({"_METADATA": json.dumps(content).encode()}, path="/c")

    assert read.manifest.leaves[0].form == LeafForm(kind="placeholder")


def test_unknown_kind_of_leaf_is_named():
    """A leaf of somebody's own leaf handler is no damage, but cannot be read."""
    content = {"tree_metadata": {"('a',)": _entry("a", value_type="mine.Handler")}}

    with pytest.raises(InvalidLayoutError, match=r"'a' is of the kind 'mine\.Handler'"):
        decode_documents({"_METADATA": json.dumps(content).encode()}, path="/c")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_sharding", b"{"),
        ("_sharding", b'{"?": "{}"}'),
        ("_sharding", b'{"dw==": {}}'),
        ("_sharding", b'{"dw==": "[]"}'),
        ("_strings.json", b"[]"),
        ("_strings.json", b"{}"),
        ("_strings.json", b'{"s": {}}'),
        ("array_metadatas/process_0", b"{}"),
        ("array_metadatas/process_0", b'{"array_metadatas": [{}]}'),
        ("array_metadatas/process_x", b'{"array_metadatas": []}'),
        (
            "array_metadatas/process_0",
            json.dumps(
                {"array_metadatas": [{"array_metadata": KEYS_OF_NO_NAME}]}
            ).encode(),
        ),
    ],
)
def test_damaged_companion_is_named(name, content):
    """A damaged document beside `_METADATA` is an error that names it."""
    flat = flatten({"s": "text", "w": Slot()})
    leaves = (
        LeafEntry(flat.paths[0], "s", LeafForm(kind="string", text="text")),
        LeafEntry(flat.paths[1], "w", LeafForm(kind="jax.Array", sharding=SINGLE)),
    )
    encoded = _encode(Manifest(root=flat.root, leaves=leaves))

    with pytest.raises(CorruptCheckpointError, match=f"^/c/{name}"):
        decode_documents({**encoded, name: content}, path="/c")


@settings(deadline=None)  # machines may be busy
@given(st.data())
def test_no_damage_surprises(data):
    """One changed byte in any document gives a value or an error of this library."""
    flat = flatten({"s": "text", "w": [Slot(), ()]})
    leaves = (
        LeafEntry(flat.paths[0], "s", LeafForm(kind="string", text="text")),
        LeafEntry(
            flat.paths[1],
            "w.0",
            LeafForm(kind="jax.Array", sharding=NAMED, prng_impl="rbg"),
        ),
    )
    encoded = _encode(Manifest(root=flat.root, leaves=leaves))
    name = data.draw(st.sampled_from(sorted(encoded)))
    content = bytearray(encoded[name])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))

    with contextlib.suppress(StowaxError):
        decode_documents({**encoded, name: bytes(content)}, path="/c")


# --- strings --------------------------------------------------------------------------


def test_string_names_are_json_pointers():
    """TensorStore, and so Orbax, finds each string at "/" and its name."""
    names = ["a/b", "a/c//d", "e~1f", "g~0h", "", "i.j", "ü \N{SNOWMAN}"]
    encoded = _encode(_strings(**{name: f"at {name}" for name in names}))
    context = ts.Context()
    store = ts.KvStore.open("memory://", context=context).result()
    store["s.json"] = encoded["_strings.json"]

    for name in names:
        spec = {
            "driver": "json",
            "kvstore": {"driver": "memory", "path": "s.json"},
            "json_pointer": f"/{name}",
        }
        found = ts.open(spec, context=context).result().read().result()
        assert found.item() == f"at {name}"


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a/b"), ("a/b", "a"), ("x~", "x~0"), ("a/b/c", "a/b")]
)
def test_colliding_string_names_are_refused(first, second):
    """Two strings for one place in the document are named, both."""
    with pytest.raises(KeyPathCollisionError) as error:
        check_string_names([first, second])

    assert repr(first) in str(error.value)
    assert repr(second) in str(error.value)


def test_string_name_that_is_no_pointer_harms_no_other():
    """A bare "~" is beyond Orbax; we read it, and Orbax still reads the others."""
    encoded = _encode(_strings(**{"bare~": "ours", "plain": "anybody's"}))

    assert json.loads(encoded["_strings.json"])["plain"] == "anybody's"
    manifest = decode_documents(encoded, path="/c").manifest
    assert [leaf.form.text for leaf in manifest.leaves] == ["ours", "anybody's"]


@pytest.mark.parametrize("texts", [{"k": "\ud800"}, {"\ud800": "v"}])
def test_half_a_surrogate_pair_is_refused(texts):
    """What no UTF-8 document can hold is an error that says so."""
    with pytest.raises(UnsupportedLeafError, match="surrogate"):
        _encode(_strings(**texts))


# --- shardings ------------------------------------------------------------------------


def test_sharding_of_keys_gains_an_axis_on_disk():
    """Key data has one more axis than the keys, and the recorded spec follows."""
    flat = flatten({"k": Slot()})
    form = LeafForm(
        kind="jax.Array",
        prng_impl="rbg",
        sharding={**NAMED, "partition_spec": ["x"]},
    )
    leaf = LeafEntry(flat.paths[0], "k", form)
    encoded = _encode(Manifest(root=flat.root, leaves=(leaf,)))

    (text,) = json.loads(encoded["_sharding"]).values()
    assert json.loads(text)["partition_spec"] == ["x", None]
    (read,) = decode_documents(encoded, path="/c").manifest.leaves
    assert read.form.sharding == leaf.form.sharding


# --- the root -------------------------------------------------------------------------


@settings(deadline=None)  # machines may be busy
@given(
    st.dictionaries(TEXT, TEXT) | TEXT,
    st.none() | st.integers(0, 2**63),
    st.none() | st.integers(0, 2**63),
    st.dictionaries(TEXT, st.none() | st.integers() | st.lists(TEXT)),
)
def test_root_reads_back_as_written(typestrs, init, commit, custom_metadata):
    """Handlers, times and the user's metadata survive."""
    data = encode_root(
        typestrs=typestrs,
        init_timestamp_nsecs=init,
        commit_timestamp_nsecs=commit,
        custom_metadata=custom_metadata,
    )

    root = decode_root(data)

    is_direct = isinstance(typestrs, str)
    assert root.is_direct == is_direct
    assert root.typestrs == ({"": typestrs} if is_direct else typestrs)
    assert (root.init_timestamp_nsecs, root.commit_timestamp_nsecs) == (init, commit)
    assert root.custom_metadata == custom_metadata


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_root_that_says_nothing_is_tolerated(data):
    """An empty or unreadable root document means defaults, as it does to Orbax."""
    assert decode_root(data) == documents.RootDocument()


def test_unknown_root_key_becomes_custom_metadata():
    """Without custom metadata, unknown keys are taken for it."""
    assert decode_root(b'{"mine": 1}').custom_metadata == {"mine": 1}


@pytest.mark.parametrize(
    "data",
    [
        b'{"init_timestamp_nsecs": 1.5}',
        b'{"commit_timestamp_nsecs": "1"}',
        b'{"custom_metadata": [1]}',
        b'{"custom_metadata": {"a": 1}, "mine": 1}',
    ],
)
def test_root_of_wrong_types_is_damage(data):
    """A value of the wrong type is an error that names the document."""
    with pytest.raises(CorruptCheckpointError, match=r"^/c/_CHECKPOINT_METADATA"):
        decode_root(data, path="/c")


@pytest.mark.parametrize("data", [b"", b"{}", b'{"checkpointable_name": ""}'])
def test_deletion_record_that_names_nothing_is_damage(data):
    """Which item to hide must be known."""
    with pytest.raises(CorruptCheckpointError, match="_CHECKPOINT_DELETION"):
        decode_deletion(data, path="/c")


# --- what an item is ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"_METADATA", "metadata"}, "tree"),
        ({"data.json"}, "json"),
        ({"metadata"}, "json"),
        ({"metrics"}, "json"),
        ({"proto.pbtxt"}, "proto"),
        ({"process_0-of-1.json"}, "opaque"),
        (set(), "opaque"),
    ],
)
def test_files_say_what_an_item_is(files, kind):
    """The presence of one file decides."""
    assert item_kind(files) == kind
