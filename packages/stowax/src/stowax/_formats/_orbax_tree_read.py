"""The documents of a tree item as Orbax has them: bytes to values.

Pure: no files are touched here.  What is read may be older or, within limits, odd;
whatever could make a value wrong is refused as damage.  `_orbax_tree_write` says what
the documents are.
"""

from __future__ import annotations

import ast
import base64
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stowax._codecs._json import as_list, as_object, as_typed, parse
from stowax._formats._base import ITEM_DOCUMENT
from stowax._formats._orbax_json import (
    ARRAYS_DIRECTORY,
    BY_NAME,
    BY_POSITION,
    OUR_KEY,
    RICH_KEY,
    SHARDING_DOCUMENT,
    STRINGS_DOCUMENT,
)
from stowax._formats._orbax_rich import refine
from stowax._formats._orbax_strings import is_hidden, look_up
from stowax._keypath import (
    Key,
    KeyPath,
    Kind,
    Node,
    from_named_paths,
    walk,
)
from stowax._manifest import LeafEntry, LeafForm, LeafKind, Manifest
from stowax._uncollected import uncollected
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

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
    "placeholder": "placeholder",
}
_PLACEHOLDER = LeafForm(kind="placeholder")
_PROCESS_FILE = re.compile(r"process_[0-9]+")


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


@uncollected()
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
    document = as_object(parse(documents[ITEM_DOCUMENT], where), where)
    strings = _decode_json(documents, STRINGS_DOCUMENT, path)
    shardings = _decode_shardings(documents, path)
    facts = _decode_arrays(documents, path)

    nodes: list[tuple[KeyPath, Node]] = []
    leaves: list[LeafEntry] = []
    forms: dict[tuple[Any, ...], LeafForm] = {}
    for label, recorded_path, value in _entries(document, where):
        name = ".".join(text for text, _ in recorded_path)
        key_path = _key_path(recorded_path, f"{where}, entry {label}")
        value_type = as_typed(
            value.get("value_type"), str, "a kind", f"{where}, {label}"
        )
        if value_type == "None" and is_hidden(strings, name):
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
                "handler of its own."
            )
        nodes.append((key_path, Node(kind="leaf", leaf=len(leaves))))
        kind = _LEAF_KINDS[value_type]
        if kind == "string":
            form = LeafForm(kind=kind, text=look_up(strings, name, path))
        elif kind == "placeholder":
            form = _PLACEHOLDER
        else:
            write_shape = _shape(value, "write_shape", f"{where}, leaf {name!r}")
            fact = sharding = None
            if kind == "jax.Array":
                fact, sharding = facts.get(name), shardings.get(name)
            # Leaves that are alike share one form, as they do one sharding.
            alike = (kind, write_shape, *(fact or {}).values(), id(sharding))
            form = forms.get(alike)
            if form is None:
                form = LeafForm(kind=kind, write_shape=write_shape)
                form = forms[alike] = _with_facts(form, fact, sharding)
        leaves.append(LeafEntry(key_path, name, form))
    manifest = _manifest(nodes, leaves, where)
    if rich_types and (rich := document.get(RICH_KEY)) is not None:
        manifest = _refined(manifest, rich, f"{where}, key {RICH_KEY!r}")

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
    entries = as_object(document.get("tree_metadata"), f"{where}, key 'tree_metadata'")
    if not entries:
        raise CorruptCheckpointError(f"{where}: 'tree_metadata' has no entries.")
    for label, entry in entries.items():
        at = f"{where}, entry {label}"
        keys = as_list(
            as_object(entry, at).get("key_metadata"), f"{at}, 'key_metadata'"
        )
        steps: list[tuple[str, int]] = []
        for key in keys:
            text = as_object(key, at).get("key")
            kind = key.get("key_type")
            if not isinstance(text, str) or kind not in (BY_NAME, BY_POSITION):
                raise CorruptCheckpointError(f"{at}: {key!r} is no key.")
            steps.append((text, kind))
        if not _is_label(label, tuple(text for text, _ in steps)):
            raise CorruptCheckpointError(
                f"{at}: its 'key_metadata' are those of another entry."
            )
        yield label, steps, as_object(entry.get("value_metadata"), at)


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
        if kind == BY_NAME:
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
    text = as_typed(rich, str, "JSON in a string", where)
    root = refine(manifest.root, parse(text.encode(), where))
    paths = [path for path, node in walk(root) if node.kind == "leaf"]
    return Manifest(
        root=root,
        leaves=tuple(
            leaf._replace(path=path)
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
            parsed[text] = as_object(parse(text.encode(), at), at)
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
        document = as_object(parse(documents[file], where), where)
        for entry in as_list(document.get("array_metadatas"), where):
            fact = as_object(as_object(entry, where).get("array_metadata"), where)
            name = fact.get("param_name")
            if not isinstance(name, str):
                raise CorruptCheckpointError(f"{where}: an entry without 'param_name'.")
            at = f"{where}, leaf {name!r}"
            extra = fact.get("ext_metadata")
            impl = (
                None if extra is None else as_object(extra, at).get("random_key_impl")
            )
            if impl is not None and not isinstance(impl, str):
                raise CorruptCheckpointError(f"{at}: {impl!r} names no PRNG.")
            shape = _shape(fact, "chunk_shape", at)
            facts.setdefault(name, {"impl": impl, "chunk_shape": shape})
    return facts


def _with_facts(
    form: LeafForm,
    fact: Mapping[str, Any] | None,
    sharding: Mapping[str, Any] | None,
) -> LeafForm:
    impl = None if fact is None else fact["impl"]
    if sharding is not None and impl is not None:
        sharding = _of_keys(sharding)
    chunk_shape = () if fact is None else fact["chunk_shape"] or ()
    return replace(form, prng_impl=impl, sharding=sharding, chunk_shape=chunk_shape)


def _of_keys(sharding: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = sharding.get("partition_spec")
    if not isinstance(spec, list) or not spec or spec[-1] is not None:
        return sharding
    return {**sharding, "partition_spec": spec[:-1]}


def _manifest_name(ours: Any, where: str) -> str:
    name = as_object(ours, f"{where}, key {OUR_KEY!r}").get("manifest")
    if not isinstance(name, str) or not name:
        raise CorruptCheckpointError(f"{where}: key {OUR_KEY!r} names no manifest.")
    return name


def _decode_json(
    documents: Mapping[str, bytes], name: str, path: str
) -> Mapping[str, Any]:
    """An optional document that is one object; empty when there is none."""
    if name not in documents:
        return {}
    return as_object(parse(documents[name], f"{path}/{name}"), f"{path}/{name}")


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
