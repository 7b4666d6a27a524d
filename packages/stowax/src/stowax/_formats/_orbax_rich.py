"""The second description of a tree that Orbax may keep in `_METADATA`.

The first one, `tree_metadata`, knows named and numbered children only.  The second,
`value_metadata_tree`, is the tree itself as JSON in a string, and tells tuples from
lists and NamedTuples from dicts.  Orbax writes it, and looks at it, only with
`PyTreeMetadataOptions(support_rich_types=True)`.  Here it is written
and used on the same wish; the first description is complete without it.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stowax._keypath import Key, Node

_TUPLE = {"category": "custom", "clazz": "tuple"}
_VALUE = {"category": "custom", "clazz": "ValueMetadataEntry"}


def encode_rich(root: Node, describe: Callable[[Node], Mapping[str, Any]]) -> str:
    """The text of `value_metadata_tree`.

    Args:
        root: The tree.
        describe: What `tree_metadata` says of a leaf or an empty container.
    """

    def visit(node: Node) -> Any:
        if node.kind in ("leaf", "none") or not node.children:
            return {**_VALUE, "data": dict(describe(node))}
        children = [visit(child) for child in node.children]
        texts = [key.text for key in node.keys]
        if node.kind == "list":
            return children
        if node.kind == "tuple":
            return {**_TUPLE, "entries": children}
        if node.kind == "namedtuple":
            module, _, name = (node.type_name or "").partition(":")
            entries = zip(texts, children, strict=True)
            return {
                "category": "namedtuple",
                "module": module,
                "clazz": name,
                "entries": [{"key": key, "value": value} for key, value in entries],
            }
        return dict(zip(texts, children, strict=True))

    return json.dumps(visit(root))


def refine(root: Node, rich: Any) -> Node:
    """The skeleton with the kinds of containers that the second description knows.

    Args:
        root: The skeleton that `tree_metadata` gives: dicts and lists.
        rich: The parsed text of `value_metadata_tree`.

    Returns:
        The skeleton as it was if the two do not describe one tree: Orbax does not keep
        the second one up to date when it joins partial saves.
    """
    try:
        return _refine(root, rich)
    except _UnlikeError:
        return root


class _UnlikeError(Exception):
    """The two descriptions differ in more than the kinds of containers."""


def _refine(node: Node, rich: Any) -> Node:
    if node.kind in ("leaf", "none") or not node.children:
        return node
    texts = [key.text for key in node.keys]
    # Before the tags: a dict of the user may have keys that look like one.
    if isinstance(rich, dict) and rich.keys() == set(texts):
        return _with_children(node, [rich[text] for text in texts])
    match rich:
        case list() if node.kind == "list":
            return _with_children(node, rich)
        case {"category": "custom", "clazz": "tuple", "entries": list(entries)} if (
            node.kind == "list"
        ):
            return replace(_with_children(node, entries), kind="tuple")
        case {
            "category": "namedtuple",
            "module": str(module),
            "clazz": str(name),
            "entries": list(entries),
        } if node.kind == "dict":
            pairs = [(entry["key"], entry["value"]) for entry in map(_entry, entries)]
            if [key for key, _ in pairs] == texts:
                return replace(
                    _with_children(node, [value for _, value in pairs]),
                    kind="namedtuple",
                    type_name=f"{module}:{name}",
                    keys=tuple(Key("field", text) for text in texts),
                )
    raise _UnlikeError


def _with_children(node: Node, rich: list[Any]) -> Node:
    if len(rich) != len(node.children):
        raise _UnlikeError
    return replace(node, children=tuple(map(_refine, node.children, rich)))


def _entry(entry: Any) -> Mapping[str, Any]:
    if isinstance(entry, dict) and entry.keys() == {"key", "value"}:
        return entry
    raise _UnlikeError
