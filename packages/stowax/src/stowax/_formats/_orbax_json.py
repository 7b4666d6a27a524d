"""What the documents of Orbax are called, those of a checkpoint, and their JSON.

Pure: no files are touched here.  A checkpoint has one document at its root,
`_CHECKPOINT_METADATA`; those of a tree item are written by `_orbax_tree_write` and read
by `_orbax_tree_read`.

What is written is exactly what Orbax expects.  What is read may be older or, within
limits, odd; whatever could make a value wrong is refused as damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stowax._codecs._json import as_object, parse
from stowax._formats._base import ITEM_DOCUMENT, ItemKind
from stowax.errors import CorruptCheckpointError

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
RICH_KEY = "value_metadata_tree"
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

BY_NAME, BY_POSITION = 2, 1
"""How `key_type` says what a key is."""


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
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """As a rule empty: those of a step are an item."""
    performance_metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of Orbax alone."""


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
    absent.  Metrics that are none are passed over.

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
    metrics = document.pop("metrics", None)
    performance = document.pop("performance_metrics", None)
    for value in (init, commit):
        if value is not None and type(value) is not int:
            raise CorruptCheckpointError(
                f"{where}: the timestamp {value!r:.80} is no whole number."
            )
    custom = {} if custom is None else as_object(custom, f"{where}, 'custom_metadata'")
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
        metrics=metrics if isinstance(metrics, dict) else {},
        performance_metrics=performance if isinstance(performance, dict) else {},
    )


def without_handler(data: bytes, name: str) -> bytes:
    """`_CHECKPOINT_METADATA` as it was, but for the handler of one item."""
    try:
        document = json.loads(data)
        handlers = document["item_handlers"]
        document["item_handlers"] = {k: v for k, v in handlers.items() if k != name}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return data  # It says nothing of handlers, see `decode_root`.
    return json.dumps(document).encode()


def decode_deletion(data: bytes, *, path: str) -> str:
    """The item that `_CHECKPOINT_DELETION` says is being deleted.

    Raises:
        CorruptCheckpointError: The record names no item.
    """
    where = f"{path}/{DELETION_DOCUMENT}"
    name = as_object(parse(data, where), where).get("checkpointable_name")
    if not isinstance(name, str) or not name:
        raise CorruptCheckpointError(f"{where}: it names no checkpointable.")
    return name


def decode_json(data: bytes, *, path: str) -> Any:
    """The value of a JSON file; NaN and infinities are allowed, as in Python.

    So is a key that occurs twice, which Python writes for the keys 1 and "1".

    Raises:
        CorruptCheckpointError: It is no JSON.
    """
    return parse(data, path, unique_keys=False)
