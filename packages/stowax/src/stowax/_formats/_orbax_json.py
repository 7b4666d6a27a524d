"""The JSON documents of Orbax, both ways: values to bytes and bytes to values.

Pure: no files are touched here.  A tree item has four kinds of document.  `_METADATA`
lists every leaf and every empty container, `_sharding` the shardings of `jax.Array`
leaves, `_strings.json` the values of strings, and `array_metadatas/process_<i>` which
arrays are typed PRNG keys.  A checkpoint has one more at its root,
`_CHECKPOINT_METADATA`.

What is written is exactly what Orbax expects.  What is read may be older or, within
limits, odd; whatever could make a value wrong is refused as damage.
"""

from __future__ import annotations

import ast
import base64
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stowax._formats._base import ITEM_DOCUMENT, ItemKind
from stowax._formats._orbax_rich import encode_rich, refine
from stowax._keypath import (
    Key,
    KeyPath,
    Kind,
    Node,
    from_named_paths,
    walk,
)
from stowax._manifest import LeafEntry, LeafKind, Manifest
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    KeyPathCollisionError,
    UnsupportedLeafError,
)

INDICATOR = "orbax.checkpoint"
ROOT_DOCUMENT = "_CHECKPOINT_METADATA"
DELETION_DOCUMENT = "_CHECKPOINT_DELETION"
COMMIT_DOCUMENT = "commit_success.txt"
METRICS_DOCUMENT = "metrics/metrics"
SHARDING_DOCUMENT = "_sharding"
STRINGS_DOCUMENT = "_strings.json"
ARRAYS_DIRECTORY = "array_metadatas"
UNFINISHED_MARK = ".orbax-checkpoint-tmp"
"""A directory whose name contains this is not finished."""
PARTIAL_MARK = ".partial_save"
"""In the names of directories that a partial save of Orbax has not finalized."""

OUR_KEY = "stowax"
"""Extra key of `_METADATA`, which Orbax ignores: names the integrity manifest."""
_RICH_KEY = "value_metadata_tree"
"""Key of `_METADATA` under which the tree may be told once more, with its types."""

_V1 = "orbax.checkpoint.experimental.v1._src.handlers."
# The older API, and where it is going to live.
_V0 = ("orbax.checkpoint._src.handlers.", "orbax.checkpoint.v0._src.handlers.")

PYTREE_TYPESTR = _V1 + "pytree_handler.PyTreeHandler"
JSON_TYPESTR = _V1 + "json_handler.JsonHandler"
METRICS_TYPESTR = _V1 + "json_handler.MetricsHandler"
PROTO_TYPESTR = _V1 + "proto_handler.ProtoHandler"
STATEFUL_TYPESTR = _V1 + "stateful_checkpointable_handler.StatefulCheckpointableHandler"

V0_PYTREE_TYPESTRS = tuple(
    prefix + name
    for prefix in _V0
    for name in (
        "pytree_checkpoint_handler.PyTreeCheckpointHandler",
        "standard_checkpoint_handler.StandardCheckpointHandler",
    )
)
V0_JSON_TYPESTRS = tuple(
    prefix + "json_checkpoint_handler.JsonCheckpointHandler" for prefix in _V0
)
V0_PROTO_TYPESTRS = tuple(
    prefix + "proto_checkpoint_handler.ProtoCheckpointHandler" for prefix in _V0
)

JSON_DOCUMENTS = ("data.json", "metadata", "metrics")
"""Files that hold the value of a JSON item, in the order in which they are tried."""
PROTO_DOCUMENT = "proto.pbtxt"

_EMPTY_KINDS: Mapping[str, Kind] = {
    "None": "none",
    "NamedTuple": "none",
    "Dict": "dict",
    "List": "list",
    "Tuple": "tuple",
}
_LEAF_KINDS: Mapping[str, LeafKind] = {
    "jax.Array": "jax.Array",
    "np.ndarray": "np.ndarray",
    "scalar": "scalar",
    "string": "string",
}
_VALUE_TYPE_OF_EMPTY: Mapping[Kind, str] = {
    "dict": "Dict",
    "list": "List",
    "tuple": "Tuple",
}
"""Other childless nodes are stored as `None`, and come back as None."""

_BY_NAME, _BY_POSITION = 2, 1  # `key_type`
_PROCESS_FILE = re.compile(r"process_[0-9]+")
_POINTER_ESCAPE = re.compile("~[01]")
_NO_ESCAPE = re.compile("~(?![01])")

_T = TypeVar("_T")


# --- one item: what its files say it is -----------------------------------------------


def item_kind(file_names: Iterable[str]) -> ItemKind:
    """What an item is, judged by the names of the files in its directory."""
    present = frozenset(file_names)
    if ITEM_DOCUMENT in present:
        return "tree"
    if present.intersection(JSON_DOCUMENTS):
        return "json"
    if PROTO_DOCUMENT in present:
        return "proto"
    return "opaque"


# --- a tree item: values → documents --------------------------------------------------


def encode_documents(
    manifest: Manifest,
    *,
    process_count: int,
    manifest_name: str | None,
    rich_types: bool = False,
    array_metadata: bool = True,
) -> dict[str, bytes]:
    """Every document of a tree item, by path relative to the item's directory.

    Args:
        manifest: What the item contains; its chunk tables are not looked at.
        process_count: Number of processes that wrote the item.
        manifest_name: File name of the integrity manifest, if there is one.
        rich_types: Whether `_METADATA` tells tuples and NamedTuples, too.
        array_metadata: Whether `array_metadatas` is among them.

    Raises:
        KeyPathCollisionError: Two strings cannot both stand in `_strings.json`.
        UnsupportedLeafError: A name or a string holds half of a surrogate pair.
    """
    documents = {
        ITEM_DOCUMENT: _encode_metadata(manifest, manifest_name, rich_types=rich_types)
    }
    arrays = [leaf for leaf in manifest.leaves if leaf.kind == "jax.Array"]
    if any(leaf.sharding is not None for leaf in arrays):
        documents[SHARDING_DOCUMENT] = _encode_shardings(arrays)
    strings = {
        leaf.name: leaf.text for leaf in manifest.leaves if leaf.text is not None
    }
    if strings:
        documents[STRINGS_DOCUMENT] = _encode_strings(strings)
    if arrays and array_metadata:
        data = _encode_arrays(arrays)
        for index in range(process_count):
            documents[f"{ARRAYS_DIRECTORY}/process_{index}"] = data
    return documents


def check_string_names(names: Iterable[str]) -> None:
    """Refuses names of string leaves that cannot stand in one `_strings.json`.

    Raises:
        KeyPathCollisionError: Names both leaves.
    """
    _nest(dict.fromkeys(names, ""))


def _encode_metadata(
    manifest: Manifest, manifest_name: str | None, *, rich_types: bool
) -> bytes:
    def describe(node: Node) -> dict[str, Any]:
        if node.kind == "leaf":
            return _describe_leaf(manifest.leaves[node.leaf])
        value_type = _VALUE_TYPE_OF_EMPTY.get(node.kind, "None")
        if rich_types and node.kind == "namedtuple":
            value_type = "NamedTuple"
        return {"value_type": value_type, "skip_deserialize": True}

    entries = {}
    for path, node in walk(manifest.root):
        texts = tuple(key.text for key in path)
        value = describe(node)
        keys = [
            {"key": key.text, "key_type": _BY_NAME if key.is_named else _BY_POSITION}
            for key in path
        ]
        entries[repr(texts)] = {"key_metadata": keys, "value_metadata": value}
    document: dict[str, Any] = {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    if manifest_name is not None:
        document[OUR_KEY] = {"manifest": manifest_name}
    if rich_types:
        document[_RICH_KEY] = encode_rich(manifest.root, describe)
    return json.dumps(document).encode()


def _describe_leaf(leaf: LeafEntry) -> dict[str, Any]:
    if leaf.text is not None and not _is_pointer(leaf.name):
        # Orbax would fail at its name, and with it the whole load.
        return {"value_type": "None", "skip_deserialize": True}
    value: dict[str, Any] = {"value_type": _value_type(leaf), "skip_deserialize": False}
    if leaf.kind == "jax.Array":
        value["write_shape"] = _write_shape(leaf)
    return value


def _value_type(leaf: LeafEntry) -> str:
    """What Orbax takes the leaf for: it has fewer kinds."""
    if leaf.kind == "integer":
        return "string"
    # A complex scalar makes its `metadata` of the whole tree None.
    is_complex = leaf.kind == "scalar" and (leaf.dtype or "").startswith("complex")
    return "np.ndarray" if is_complex or leaf.kind == "bytes" else leaf.kind


def _write_shape(leaf: LeafEntry) -> list[int]:
    shape = leaf.shape if leaf.write_shape is None else leaf.write_shape
    return [max(1, extent) for extent in shape]


def _encode_shardings(arrays: Sequence[LeafEntry]) -> bytes:
    # Leaves share few shardings, and a big mesh makes a long text: say each one once.
    texts: dict[tuple[int, bool], str] = {}
    document = {}
    for leaf in arrays:
        if leaf.sharding is None:
            continue
        is_key = leaf.prng_impl is not None
        known = (id(leaf.sharding), is_key)
        if known not in texts:
            sharding = _of_key_data(leaf.sharding) if is_key else leaf.sharding
            texts[known] = json.dumps(dict(sharding))
        name = base64.urlsafe_b64encode(_utf8(leaf.name, leaf.name)).decode()
        document[name] = texts[known]
    return _compact(document)


def _of_key_data(sharding: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sharding of the data of PRNG keys, which has one more, unsharded, axis."""
    if "partition_spec" not in sharding:
        return sharding
    return {**sharding, "partition_spec": [*sharding["partition_spec"], None]}


def _of_keys(sharding: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = sharding.get("partition_spec")
    if not isinstance(spec, list) or not spec or spec[-1] is not None:
        return sharding
    return {**sharding, "partition_spec": spec[:-1]}


def _encode_strings(strings: Mapping[str, str]) -> bytes:
    for name, text in strings.items():
        _utf8(text, name)
        _utf8(name, name)
    return _compact(_nest(strings))


def _nest(strings: Mapping[str, str]) -> dict[str, Any]:
    """Strings by name, arranged so that "/" + name is the JSON pointer to each.

    Orbax takes a name as a JSON pointer without escaping it: "/" makes an object, `~0`
    and `~1` are escapes.  A "~" that starts no escape is no pointer at all: Orbax can
    neither save nor load such a string.  Here it stands for itself, so that we find the
    string; `_METADATA` says None to Orbax, so that it finds the other leaves.
    """
    document: dict[str, Any] = {}
    owners: dict[tuple[str, ...], str] = {}
    for name, text in strings.items():
        steps = _pointer(name)
        place = document
        for depth, step in enumerate(steps[:-1], 1):
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise _string_collision(owners[steps[:depth]], name)
        if steps[-1] in place:
            # Either the same pointer, or objects that some longer name has made here.
            other = next(o for s, o in owners.items() if s[: len(steps)] == steps)
            raise _string_collision(other, name)
        place[steps[-1]] = text
        owners[steps] = name
    return document


def _pointer(name: str) -> tuple[str, ...]:
    return tuple(
        _POINTER_ESCAPE.sub(lambda match: "~/"[int(match[0][1])], step)
        for step in name.split("/")
    )


def _is_pointer(name: str) -> bool:
    return _NO_ESCAPE.search(name) is None


def _string_collision(first: str, second: str) -> KeyPathCollisionError:
    return KeyPathCollisionError(
        f"The strings at {first!r} and {second!r} would get one place in "
        f"{STRINGS_DOCUMENT}, in which '/' separates levels and '~0', '~1' stand for "
        "'~', '/'. Rename one of the keys."
    )


def _encode_arrays(arrays: Sequence[LeafEntry]) -> bytes:
    entries = []
    for leaf in arrays:
        extra = None
        if leaf.prng_impl is not None:
            extra = {"random_key_impl": leaf.prng_impl}
        entry = {
            "param_name": leaf.name,
            "write_shape": _write_shape(leaf),
            "chunk_shape": list(leaf.chunk_shape),
            "ext_metadata": extra,
        }
        entries.append({"array_metadata": entry})
    return json.dumps({"array_metadatas": entries}).encode()


def _compact(document: Mapping[str, Any]) -> bytes:
    # The peer writes these two through TensorStore: compact, sorted, raw UTF-8.
    return json.dumps(
        document, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).encode()


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedLeafError(
            f"The leaf {name!r} cannot be saved: {error.object[error.start]!r} at "
            f"character {error.start} of {'its name' if text is name else 'its value'} "
            "is half of a surrogate pair, which no text file can hold."
        ) from None


# --- a tree item: documents → values --------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeDocuments:
    """What the documents of a tree item say."""

    manifest: Manifest
    """Without chunks, and without dtypes and shapes: those stand with the arrays."""
    use_ocdbt: bool | None
    """Arrays lie in one database; None: not recorded, the files will tell."""
    use_zarr3: bool
    stores_fill_value: bool
    """Whether chunks full of the fill value were written like all others."""
    custom_metadata: Any
    manifest_name: str | None
    """File name of the integrity manifest that belongs to the item."""


def decode_documents(
    documents: Mapping[str, bytes], *, path: str, rich_types: bool = False
) -> TreeDocuments:
    """Reads the documents of a tree item.

    Args:
        documents: Contents by path relative to the item, as `encode_documents` gives
            them; all but `_METADATA` may be missing.
        path: Directory of the item, for messages.
        rich_types: Whether tuples and NamedTuples are told apart where that is known.

    Raises:
        CorruptCheckpointError: Names the document and, where it is one, the leaf.
        InvalidLayoutError: A leaf is of a kind that this library does not know.
    """
    where = f"{path}/{ITEM_DOCUMENT}"
    document = _object(_parse(documents[ITEM_DOCUMENT], where), where)
    strings = _decode_json(documents, STRINGS_DOCUMENT, path)
    shardings = _decode_shardings(documents, path)
    facts = _decode_arrays(documents, path)

    nodes: list[tuple[KeyPath, Node]] = []
    leaves: list[LeafEntry] = []
    for label, recorded_path, value in _entries(document, where):
        name = ".".join(text for text, _ in recorded_path)
        key_path = _key_path(recorded_path, f"{where}, entry {label}")
        value_type = _typed(value.get("value_type"), str, "a kind", f"{where}, {label}")
        if value_type == "None" and _is_hidden(strings, name):
            value_type = "string"
        if value_type in _EMPTY_KINDS:
            if value.get("skip_deserialize") is False:
                raise CorruptCheckpointError(
                    f"{where}, entry {label}: of the kind {value_type!r} there is "
                    "nothing to read, but it says that there is."
                )
            nodes.append((key_path, Node(kind=_EMPTY_KINDS[value_type])))
            continue
        if value_type not in _LEAF_KINDS:
            raise InvalidLayoutError(
                f"{where}: leaf {name!r} is of the kind {value_type!r}; known are "
                f"{', '.join((*_LEAF_KINDS, *_EMPTY_KINDS))}. It was saved by a leaf "
                "handler of its own, or is a placeholder without a value."
            )
        nodes.append((key_path, Node(kind="leaf", leaf=len(leaves))))
        leaf = LeafEntry(
            path=key_path,
            name=name,
            kind=_LEAF_KINDS[value_type],
            write_shape=_shape(value, "write_shape", f"{where}, leaf {name!r}"),
        )
        if leaf.kind == "string":
            leaf = replace(leaf, text=_look_up(strings, name, path))
        elif leaf.kind == "jax.Array":
            leaf = _with_facts(leaf, facts.get(name), shardings.get(name))
        leaves.append(leaf)
    manifest = _manifest(nodes, leaves, where)
    if rich_types and (rich := document.get(_RICH_KEY)) is not None:
        manifest = _refined(manifest, rich, f"{where}, key {_RICH_KEY!r}")

    ours = document.get(OUR_KEY)
    return TreeDocuments(
        manifest=manifest,
        use_ocdbt=_flag(document, "use_ocdbt", where),
        use_zarr3=bool(_flag(document, "use_zarr3", where)),
        stores_fill_value=bool(
            _flag(document, "store_array_data_equal_to_fill_value", where)
        ),
        custom_metadata=document.get("custom_metadata"),
        manifest_name=None if ours is None else _manifest_name(ours, where),
    )


def _entries(
    document: Mapping[str, Any], where: str
) -> Iterator[tuple[str, list[tuple[str, int]], Mapping[str, Any]]]:
    """Label, path of (key text, key type), and value of every entry."""
    entries = _object(document.get("tree_metadata"), f"{where}, key 'tree_metadata'")
    if not entries:
        raise CorruptCheckpointError(f"{where}: 'tree_metadata' has no entries.")
    for label, entry in entries.items():
        at = f"{where}, entry {label}"
        keys = _list(_object(entry, at).get("key_metadata"), f"{at}, 'key_metadata'")
        steps: list[tuple[str, int]] = []
        for key in keys:
            text = _object(key, at).get("key")
            kind = key.get("key_type")
            if not isinstance(text, str) or kind not in (_BY_NAME, _BY_POSITION):
                raise CorruptCheckpointError(f"{at}: {key!r} is no key.")
            steps.append((text, kind))
        if not _is_label(label, tuple(text for text, _ in steps)):
            raise CorruptCheckpointError(
                f"{at}: its 'key_metadata' are those of another entry."
            )
        yield label, steps, _object(entry.get("value_metadata"), at)


def _is_label(label: str, texts: tuple[str, ...]) -> bool:
    if label == repr(texts):
        return True
    # What another Python shows as it is, this one may escape, and the reverse.
    try:
        return ast.literal_eval(label) == texts
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _key_path(steps: Sequence[tuple[str, int]], where: str) -> KeyPath:
    keys = []
    for text, kind in steps:
        if kind == _BY_NAME:
            keys.append(Key("key", text))
        elif text.isascii() and text.isdigit():
            keys.append(Key("index", int(text)))
        else:
            raise CorruptCheckpointError(f"{where}: {text!r} is no list position.")
    return tuple(keys)


def _manifest(
    nodes: Sequence[tuple[KeyPath, Node]], leaves: Sequence[LeafEntry], where: str
) -> Manifest:
    try:
        root = from_named_paths(nodes)
        ordered = list(walk(root))
        order = [node.leaf for _, node in ordered if node.kind == "leaf"]
        if order != list(range(len(leaves))):
            # The document was not in the order of its tree: number the leaves anew.
            leaves = [leaves[old] for old in order]
            new = itertools.count()
            root = from_named_paths(
                [
                    (
                        path,
                        Node(kind="leaf", leaf=next(new))
                        if node.kind == "leaf"
                        else node,
                    )
                    for path, node in ordered
                ]
            )
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{where}: the entries form no tree: {error}."
        ) from None
    return Manifest(root=root, leaves=tuple(leaves))


def _refined(manifest: Manifest, rich: Any, where: str) -> Manifest:
    """The manifest with the containers that the second description tells."""
    text = _typed(rich, str, "JSON in a string", where)
    root = refine(manifest.root, _parse(text.encode(), where))
    paths = [path for path, node in walk(root) if node.kind == "leaf"]
    return Manifest(
        root=root,
        leaves=tuple(
            replace(leaf, path=path)
            for leaf, path in zip(manifest.leaves, paths, strict=True)
        ),
    )


def _decode_shardings(
    documents: Mapping[str, bytes], path: str
) -> dict[str, Mapping[str, Any]]:
    where = f"{path}/{SHARDING_DOCUMENT}"
    parsed: dict[str, Mapping[str, Any]] = {}
    shardings: dict[str, Mapping[str, Any]] = {}
    for label, text in _decode_json(documents, SHARDING_DOCUMENT, path).items():
        try:
            name = base64.b64decode(label, altchars="-_", validate=True).decode()
        except ValueError:
            raise CorruptCheckpointError(
                f"{where}: the key {label!r} is no leaf name in base64."
            ) from None
        at = f"{where}, leaf {name!r}"
        if not isinstance(text, str):
            raise CorruptCheckpointError(f"{at}: expected JSON in a string.")
        if text not in parsed:
            parsed[text] = _object(_parse(text.encode(), at), at)
        shardings[name] = parsed[text]
    return shardings


def _decode_arrays(
    documents: Mapping[str, bytes], path: str
) -> dict[str, Mapping[str, Any]]:
    """What `array_metadatas` says about every array, united over the processes."""
    facts: dict[str, Mapping[str, Any]] = {}
    for file in sorted(documents):
        directory, _, name = file.rpartition("/")
        if directory != ARRAYS_DIRECTORY:
            continue
        where = f"{path}/{file}"
        if not _PROCESS_FILE.fullmatch(name):
            # A renamed file would turn typed PRNG keys into plain numbers in silence.
            raise CorruptCheckpointError(
                f"{where}: only files named process_<number> belong here."
            )
        document = _object(_parse(documents[file], where), where)
        for entry in _list(document.get("array_metadatas"), where):
            fact = _object(_object(entry, where).get("array_metadata"), where)
            name = fact.get("param_name")
            if not isinstance(name, str):
                raise CorruptCheckpointError(f"{where}: an entry without 'param_name'.")
            at = f"{where}, leaf {name!r}"
            extra = fact.get("ext_metadata")
            impl = None if extra is None else _object(extra, at).get("random_key_impl")
            if impl is not None and not isinstance(impl, str):
                raise CorruptCheckpointError(f"{at}: {impl!r} names no PRNG.")
            shape = _shape(fact, "chunk_shape", at)
            facts.setdefault(name, {"impl": impl, "chunk_shape": shape})
    return facts


def _with_facts(
    leaf: LeafEntry,
    fact: Mapping[str, Any] | None,
    sharding: Mapping[str, Any] | None,
) -> LeafEntry:
    impl = None if fact is None else fact["impl"]
    if sharding is not None and impl is not None:
        sharding = _of_keys(sharding)
    chunk_shape = () if fact is None else fact["chunk_shape"] or ()
    return replace(leaf, prng_impl=impl, sharding=sharding, chunk_shape=chunk_shape)


def _is_hidden(strings: Mapping[str, Any], name: str) -> bool:
    """Whether a leaf that is None to Orbax is a string whose name is no pointer."""
    return not _is_pointer(name) and isinstance(_find(strings, name), str)


def _find(strings: Mapping[str, Any], name: str) -> Any:
    value: Any = strings
    for step in _pointer(name):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _look_up(strings: Mapping[str, Any], name: str, path: str) -> str:
    value = _find(strings, name)
    if value is None or isinstance(value, dict):
        raise CorruptCheckpointError(
            f"{path}/{STRINGS_DOCUMENT}: the string leaf {name!r} is missing."
        )
    return value if isinstance(value, str) else str(value)


def _manifest_name(ours: Any, where: str) -> str:
    name = _object(ours, f"{where}, key {OUR_KEY!r}").get("manifest")
    if not isinstance(name, str) or not name:
        raise CorruptCheckpointError(f"{where}: key {OUR_KEY!r} names no manifest.")
    return name


# --- the root of a checkpoint ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RootDocument:
    """What `_CHECKPOINT_METADATA` says."""

    typestrs: Mapping[str, str] = field(default_factory=dict)
    """Handler type string of every item; of a direct layout under the name ""."""
    is_direct: bool = False
    """The files of the only item lie at the root of the checkpoint."""
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)


def encode_root(
    *,
    typestrs: Mapping[str, str] | str,
    init_timestamp_nsecs: int | None,
    commit_timestamp_nsecs: int | None,
    custom_metadata: Mapping[str, Any] | None,
) -> bytes:
    """The document `_CHECKPOINT_METADATA`.

    Args:
        typestrs: Handler type string by item, or the only one of a direct layout.
        init_timestamp_nsecs: When the save began.
        commit_timestamp_nsecs: When it was about to be published.
        custom_metadata: The user's own, of JSON types already.
    """
    # No key may be added: Orbax moves unknown ones into the user's metadata, or fails.
    document = {
        "item_handlers": typestrs if isinstance(typestrs, str) else dict(typestrs),
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": init_timestamp_nsecs,
        "commit_timestamp_nsecs": commit_timestamp_nsecs,
        "custom_metadata": dict(custom_metadata or {}),
    }
    return json.dumps(document).encode()


def decode_root(data: bytes, *, path: str = "") -> RootDocument:
    """Reads `_CHECKPOINT_METADATA` with the patience that Orbax has.

    A document that is empty or no JSON object says nothing, and every key may be
    absent.  `performance_metrics` are not looked at.

    Args:
        data: The document.
        path: Directory of the checkpoint, for messages.

    Raises:
        CorruptCheckpointError: A value is of the wrong type, or there are unknown keys
            beside custom metadata.
    """
    where = f"{path}/{ROOT_DOCUMENT}" if path else ROOT_DOCUMENT
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return RootDocument()
    if not isinstance(document, dict):
        return RootDocument()
    handlers = document.pop("item_handlers", None)
    init = document.pop("init_timestamp_nsecs", None)
    commit = document.pop("commit_timestamp_nsecs", None)
    custom = document.pop("custom_metadata", None)
    document.pop("metrics", None)
    document.pop("performance_metrics", None)
    for value in (init, commit):
        if value is not None and type(value) is not int:
            raise CorruptCheckpointError(
                f"{where}: the timestamp {value!r:.80} is no whole number."
            )
    custom = {} if custom is None else _object(custom, f"{where}, 'custom_metadata'")
    if document and custom:
        raise CorruptCheckpointError(
            f"{where}: unknown keys {sorted(document)} beside custom metadata."
        )
    typestrs: Mapping[str, Any] = {}
    if isinstance(handlers, str):
        typestrs = {"": handlers}
    elif isinstance(handlers, dict):
        typestrs = handlers
    return RootDocument(
        typestrs={k: v for k, v in typestrs.items() if isinstance(v, str)},
        is_direct=isinstance(handlers, str),
        init_timestamp_nsecs=init,
        commit_timestamp_nsecs=commit,
        custom_metadata=custom or document,
    )


def decode_deletion(data: bytes, *, path: str) -> str:
    """The item that `_CHECKPOINT_DELETION` says is being deleted.

    Raises:
        CorruptCheckpointError: The record names no item.
    """
    where = f"{path}/{DELETION_DOCUMENT}"
    name = _object(_parse(data, where), where).get("checkpointable_name")
    if not isinstance(name, str) or not name:
        raise CorruptCheckpointError(f"{where}: it names no checkpointable.")
    return name


def decode_json(data: bytes, *, path: str) -> Any:
    """The value of a JSON file; NaN and infinities are allowed, as in Python.

    So is a key that occurs twice, which Python writes for the keys 1 and "1".

    Raises:
        CorruptCheckpointError: It is no JSON.
    """
    return _parse(data, path, unique_keys=False)


# --- JSON that may be damaged ---------------------------------------------------------


def _parse(data: bytes, where: str, *, unique_keys: bool = True) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise CorruptCheckpointError(f"{where}: nested too deeply.") from None
    except ValueError as error:
        # Not UTF-8 is a ValueError, too.
        raise CorruptCheckpointError(f"{where}: no valid JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; refuses keys that occur twice, one of which would be dropped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.80} occurs twice")
    return found


def _decode_json(
    documents: Mapping[str, bytes], name: str, path: str
) -> Mapping[str, Any]:
    """An optional document that is one object; empty when there is none."""
    if name not in documents:
        return {}
    return _object(_parse(documents[name], f"{path}/{name}"), f"{path}/{name}")


def _object(value: Any, where: str) -> dict[str, Any]:
    return _typed(value, dict, "an object", where)


def _list(value: Any, where: str) -> list[Any]:
    return _typed(value, list, "a list", where)


def _typed(value: Any, kind: type[_T], words: str, where: str) -> _T:
    if isinstance(value, kind):
        return value
    raise CorruptCheckpointError(f"{where}: expected {words}, found {value!r:.80}.")


def _flag(document: Mapping[str, Any], name: str, where: str) -> bool | None:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise CorruptCheckpointError(
            f"{where}: {name!r} is {value!r:.80}, expected true or false."
        )
    return value


def _shape(
    document: Mapping[str, Any], name: str, where: str
) -> tuple[int, ...] | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise CorruptCheckpointError(f"{where}: {name!r} is {value!r:.80}.")
    return tuple(value)
