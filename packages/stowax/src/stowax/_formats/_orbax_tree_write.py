"""The documents of a tree item as Orbax has them: values to bytes.

Pure: no files are touched here.  `_METADATA` lists every leaf and every empty
container, `_sharding` the shardings of `jax.Array` leaves, `_strings.json` the values
of strings, and `array_metadatas/process_<i>` which arrays are typed PRNG keys.

What is written is exactly what Orbax expects.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

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
from stowax._formats._orbax_rich import encode_rich
from stowax._formats._orbax_strings import is_pointer, nest
from stowax._keypath import NAMED_ROLES, Kind, Node, Role, walk
from stowax._manifest import LeafEntry, LeafForm, Manifest
from stowax.errors import UnsupportedLeafError

_VALUE_TYPE_OF_EMPTY: Mapping[Kind, str] = {
    "dict": "Dict",
    "list": "List",
    "tuple": "Tuple",
}
"""Other childless nodes are stored as `None`, and come back as None."""


def encode_documents(
    manifest: Manifest,
    *,
    process_count: int,
    manifest_name: str | None,
    use_ocdbt: bool = True,
    use_zarr3: bool = True,
    rich_types: bool = False,
    array_metadata: bool = True,
    custom_metadata: str = "null",
) -> dict[str, bytes]:
    """Every document of a tree item, by path relative to the item's directory.

    Args:
        manifest: What the item contains; its chunk tables are not looked at.
        process_count: Number of processes that wrote the item.
        manifest_name: File name of the integrity manifest, if there is one.
        use_ocdbt: Whether arrays lie in a database, and not each in a directory.
        use_zarr3: Whether they are described as zarr 3, and not 2.
        rich_types: Whether `_METADATA` tells tuples and NamedTuples, too.
        array_metadata: Whether `array_metadatas` is among them.
        custom_metadata: What the user keeps with this item, in JSON.

    Raises:
        KeyPathCollisionError: Two strings cannot both stand in `_strings.json`.
        UnsupportedLeafError: A name or a string holds half of a surrogate pair.
    """
    documents = {
        ITEM_DOCUMENT: _encode_metadata(
            manifest,
            {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3},
            manifest_name,
            rich_types=rich_types,
            custom_metadata=json.loads(custom_metadata),
        )
    }
    arrays = [leaf for leaf in manifest.leaves if leaf.form.kind == "jax.Array"]
    if any(leaf.form.sharding is not None for leaf in arrays):
        documents[SHARDING_DOCUMENT] = _encode_shardings(arrays)
    strings = {
        leaf.name: leaf.form.text
        for leaf in manifest.leaves
        if leaf.form.text is not None
    }
    if strings:
        documents[STRINGS_DOCUMENT] = _encode_strings(strings)
    if arrays and array_metadata:
        data = _encode_arrays(arrays)
        for index in range(process_count):
            documents[f"{ARRAYS_DIRECTORY}/process_{index}"] = data
    return documents


def _encode_metadata(
    manifest: Manifest,
    arrays: Mapping[str, bool],
    manifest_name: str | None,
    *,
    rich_types: bool,
    custom_metadata: Any,
) -> bytes:
    def describe(node: Node) -> dict[str, Any]:
        if node.kind == "leaf":
            return _describe_leaf(manifest.leaves[node.leaf])
        value_type = _VALUE_TYPE_OF_EMPTY.get(node.kind, "None")
        if rich_types and node.kind == "namedtuple":
            value_type = "NamedTuple"
        return {"value_type": value_type, "skip_deserialize": True}

    document: dict[str, Any] = {
        **arrays,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": custom_metadata,
    }
    if manifest_name is not None:
        document[OUR_KEY] = {"manifest": manifest_name}
    if rich_types:
        document[RICH_KEY] = encode_rich(manifest.root, describe)
    # What repeats from leaf to leaf is made into JSON once, and the rest put around it.
    values: dict[int, str] = {}
    entries: list[str] = []
    for path, node in walk(manifest.root):
        texts = tuple([key.text for key in path])
        keys = ", ".join(
            [_encode_key(text, key[0]) for text, key in zip(texts, path, strict=True)]
        )
        value = None
        if node.kind == "leaf":
            _, name, form = manifest.leaves[node.leaf]
            if form.text is None or is_pointer(name):
                value = values.get(id(form))
                if value is None:
                    value = values[id(form)] = json.dumps(describe(node))
        if value is None:
            value = json.dumps(describe(node))
        entries.append(
            f'{json.dumps(repr(texts))}: {{"key_metadata": [{keys}], '
            f'"value_metadata": {value}}}'
        )
    rest = json.dumps(document)
    return f'{{"tree_metadata": {{{", ".join(entries)}}}, {rest[1:]}'.encode()


@functools.lru_cache(maxsize=1 << 12)
def _encode_key(text: str, role: Role) -> str:
    kind = BY_NAME if role in NAMED_ROLES else BY_POSITION
    return json.dumps({"key": text, "key_type": kind})


def _describe_leaf(leaf: LeafEntry) -> dict[str, Any]:
    if leaf.form.text is not None and not is_pointer(leaf.name):
        # Orbax would fail at its name, and with it the whole load.
        return {"value_type": "None", "skip_deserialize": True}
    value: dict[str, Any] = {
        "value_type": _value_type(leaf.form),
        "skip_deserialize": False,
    }
    if leaf.form.kind == "jax.Array":
        value["write_shape"] = _write_shape(leaf.form)
    return value


def _value_type(form: LeafForm) -> str:
    """What Orbax takes the leaf for: it has fewer kinds."""
    if form.kind == "integer":
        return "string"
    # A complex scalar makes its `metadata` of the whole tree None.
    is_complex = form.kind == "scalar" and (form.dtype or "").startswith("complex")
    return "np.ndarray" if is_complex or form.kind == "bytes" else form.kind


def _write_shape(form: LeafForm) -> list[int]:
    shape = form.shape if form.write_shape is None else form.write_shape
    return [max(1, extent) for extent in shape]


def _encode_shardings(arrays: Sequence[LeafEntry]) -> bytes:
    # Leaves share few forms, and a big mesh makes a long text: say each one once.
    texts: dict[int, str] = {}
    entries: list[tuple[str, str]] = []
    for _, name, form in arrays:
        if form.sharding is None:
            continue
        text = texts.get(id(form))
        if text is None:
            is_key = form.prng_impl is not None
            sharding = _of_key_data(form.sharding) if is_key else form.sharding
            said = json.dumps(json.dumps(dict(sharding)), ensure_ascii=False)
            text = texts[id(form)] = said
        entries.append(
            (base64.urlsafe_b64encode(_utf8(name, name)).decode("ascii"), text)
        )
    entries.sort()
    body = ",".join([f'"{name}":{text}' for name, text in entries])
    return f"{{{body}}}".encode()


def _of_key_data(sharding: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sharding of the data of PRNG keys, which has one more, unsharded, axis."""
    if "partition_spec" not in sharding:
        return sharding
    return {**sharding, "partition_spec": [*sharding["partition_spec"], None]}


def _encode_strings(strings: Mapping[str, str]) -> bytes:
    for name, text in strings.items():
        _utf8(text, name)
        _utf8(name, name)
    return _compact(nest(strings))


def _encode_arrays(arrays: Sequence[LeafEntry]) -> bytes:
    # As above: by form, with the name put in front.
    rests: dict[int, str] = {}
    entries: list[str] = []
    for _, name, form in arrays:
        rest = rests.get(id(form))
        if rest is None:
            extra = None
            if form.prng_impl is not None:
                extra = {"random_key_impl": form.prng_impl}
            facts = {
                "write_shape": _write_shape(form),
                "chunk_shape": list(form.chunk_shape),
                "ext_metadata": extra,
            }
            rest = rests[id(form)] = json.dumps(facts)[1:]
        entries.append(
            f'{{"array_metadata": {{"param_name": {json.dumps(name)}, {rest}}}'
        )
    return f'{{"array_metadatas": [{", ".join(entries)}]}}'.encode()


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
