"""Trees taken apart into ordered named leaves, and put together again.

The only place where names are made.  A tree becomes a `Node` skeleton, in which every
leaf is a number, and the list of leaves in that order.  Dictionary keys are sorted, so
that every process of a run comes to the same order.  In a stored skeleton keys of the
types str, int, bool and None keep their type, so that `{1: x}` and `{"1": x}` differ;
any other key, `1.5` or a NumPy integer among them, comes back as its text.

Names are those of Orbax: key texts joined with ".", without escaping (which is why two
paths may collide, and why `check_names` refuses that before anything is written).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import (
    Callable,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax

from stowax.errors import KeyPathCollisionError, StowaxError, TreeError

Role = Literal["key", "field", "index", "child"]
"""What a key is in its container: dict key, attribute or NamedTuple field, position in
a list or tuple, position among the children of a custom node without named children."""

Kind = Literal["leaf", "none", "dict", "list", "tuple", "namedtuple", "custom"]

NAMED_ROLES = ("key", "field")
_NATIVE_KEYS = (str, int, bool, type(None))


class Key(NamedTuple):
    """One step of a key path."""

    role: Role
    value: Hashable

    @property
    def text(self) -> str:
        """What the key is called in names on disk."""
        return str(self.value)

    @property
    def is_named(self) -> bool:
        """Whether the container is a mapping (dict, fields) and not a sequence."""
        return self.role in NAMED_ROLES


KeyPath = tuple[Key, ...]


@contextlib.contextmanager
def at_leaf(name: str) -> Generator[None]:
    """Adds the name of a leaf to whatever is raised inside."""
    try:
        yield
    except StowaxError as error:
        # In the message, which is what is printed and logged.
        error.args = (f"leaf {name or '<root>'!r}: {error.args[0]}", *error.args[1:])
        raise
    except Exception as error:  # Any failure deserves its place; raised again as it is.
        error.add_note(f"at leaf {name or '<root>'}")
        raise


def leaf_name(path: KeyPath) -> str:
    """The name of a leaf on disk and in messages: `params.dense.kernel`."""
    return ".".join([key.text for key in path])


def shown_name(path: KeyPath) -> str:
    """The name of a leaf where one below an empty key must not look like the root.

    Their names are both empty; messages show that of the root as `<root>`.
    """
    return leaf_name(path) or ("''" if path else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One container, or one leaf, of a tree without its values."""

    kind: Kind
    leaf: int = -1
    """Position in the list of leaves; only of a node of kind `leaf`."""
    keys: tuple[Key, ...] = ()
    children: tuple[Node, ...] = ()
    type_name: str | None = None
    """`module:qualified name` of a container that is no plain dict, list or tuple."""
    has_static: bool = False
    """Whether a dataclass had more than its children, which no checkpoint keeps."""
    build: Callable[[Sequence[Any]], Any] | None = field(default=None, compare=False)
    """Makes the original container of its children; unknown for a stored tree."""


@dataclass(frozen=True, slots=True)
class FlatTree:
    """A tree taken apart."""

    root: Node
    paths: tuple[KeyPath, ...]
    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    nones: tuple[KeyPath, ...] = ()
    """Paths of every None."""
    key_types: tuple[type, ...] = ()
    """Types of the keys of dicts that have other keys than strings: `1` and `True`, as
    keys, are equal."""


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> FlatTree:
    """Takes a tree apart: whatever JAX knows as a container, and None, is a node.

    Args:
        tree: Any tree.
        is_leaf: Tells which containers to keep whole; never asked of None.

    Raises:
        TreeError: It is too deep for this Python.
    """
    paths: list[KeyPath] = []
    names: list[str] = []
    leaves: list[Any] = []
    nones: list[KeyPath] = []
    key_types: list[type] = []

    def visit(value: Any, path: KeyPath, name: str) -> Node:
        keys_and_children = None
        if is_leaf is None or value is None or not _is_kept(value, path, is_leaf):
            keys_and_children = _open(value)
        if keys_and_children is None:
            paths.append(path)
            names.append(name)
            leaves.append(value)
            return _leaf_node(len(leaves) - 1)
        kind, type_name, keys, values, build, has_static = keys_and_children
        if kind == "none":
            nones.append(path)
        if kind not in ("list", "tuple", "namedtuple"):
            found = [type(value) for _, value in keys]
            if found.count(str) != len(found):
                key_types.extend(found)
        head = f"{name}." if path else ""
        if is_leaf is None and jax.tree_util.all_leaves(values):
            # The same as below, for the many that have only leaves, in one go.
            count = len(leaves)
            leaves.extend(values)
            paths.extend([(*path, key) for key in keys])
            names.extend([f"{head}{key[1]!s}" for key in keys])
            children = tuple(map(_leaf_node, range(count, len(leaves))))
        else:
            children = tuple(
                [
                    visit(child, (*path, key), f"{head}{key[1]!s}")
                    for key, child in zip(keys, values, strict=True)
                ]
            )
        return Node(
            kind=kind,
            keys=keys,
            children=children,
            type_name=type_name,
            has_static=has_static,
            build=build,
        )

    try:
        root = visit(tree, (), "")
    except RecursionError as error:
        raise TreeError(
            "the tree is nested too deeply, or contains itself; nothing was written"
        ) from error
    return FlatTree(
        root, *map(tuple[Any, ...], (paths, names, leaves, nones, key_types))
    )


@functools.lru_cache(maxsize=1 << 16)
def _leaf_node(leaf: int) -> Node:
    """The same for all trees, which makes them cheap to make and to compare."""
    return Node(kind="leaf", leaf=leaf)


def _is_kept(value: Any, path: KeyPath, is_leaf: Callable[[Any], bool]) -> bool:
    try:
        return is_leaf(value)
    except Exception:  # The code of a user: whatever it raises deserves its place.
        with at_leaf(leaf_name(path)):
            raise


def unflatten(
    node: Node, values: Sequence[Any], types: Mapping[str, type] | None = None
) -> Any:
    """Puts a tree together again.

    A skeleton made by `flatten` gives exactly the containers it came from.  One that
    was read from a file gives plain ones: dicts, lists and tuples; a container of any
    other type becomes the dict or list of its children, and None when it has none.

    Args:
        node: The skeleton.
        values: The leaves, in its order.
        types: Classes, by the name that a skeleton has for them, of which containers
            that were read from a file are made; see `type_name`.
    """
    if node.kind == "leaf":
        return values[node.leaf]
    if node.kind == "none":
        return None
    children = [unflatten(child, values, types) for child in node.children]
    if node.build is not None:
        return node.build(children)
    if types and node.type_name is not None and node.type_name in types:
        return types[node.type_name](
            **{key.text: c for key, c in zip(node.keys, children, strict=True)}
        )
    if node.kind == "list":
        return children
    if node.kind == "tuple":
        return tuple(children)
    if node.kind == "dict":
        return {k.value: c for k, c in zip(node.keys, children, strict=True)}
    if not children:
        return None
    if all(key.is_named for key in node.keys):
        return {k.value: c for k, c in zip(node.keys, children, strict=True)}
    return children


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every leaf and every empty container, in order, with its path."""
    if node.kind in ("leaf", "none") or not node.children:
        yield path, node
        return
    for key, child in zip(node.keys, node.children, strict=True):
        yield from walk(child, (*path, key))


def container_types(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every container that is no plain dict, list or tuple, with its path."""
    if node.type_name is not None:
        yield path, node
    for key, child in zip(node.keys, node.children, strict=True):
        yield from container_types(child, (*path, key))


def array_prefix(name: str) -> str:
    """What the keys of an array of this name begin with, as TensorStore makes them.

    A "/" at the end says no more than the name without it: "/" alone is "".
    """
    if name in ("", "/"):
        return ""
    return name if name.endswith("/") else f"{name}/"


def check_names(root: Node) -> None:
    """Refuses a tree in which two entries would get one name on disk.

    Raises:
        KeyPathCollisionError: Names both paths of every collision.
    """
    seen: dict[str, KeyPath] = {}
    clashes: list[str] = []
    for path, _ in walk(root):
        name = leaf_name(path)
        if not name.isascii():
            _check_encodable(name, path)
        other = seen.setdefault(array_prefix(name), path)
        if other is not path:
            clashes.append(
                f"  {leaf_name(path)!r}: {describe(other)} and {describe(path)}"
            )
    if clashes:
        raise KeyPathCollisionError(
            f"{len(clashes)} name(s) on disk would stand for two leaves each:\n"
            + "\n".join(clashes)
            + "\nKey texts are joined with '.', and a '/' at the end does not count: "
            "rename one key of each pair. "
            "Nothing was written."
        )


def _check_encodable(name: str, path: KeyPath) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise TreeError(
            f"the key path {describe(path)} holds half of a surrogate pair, which no "
            "name on disk can hold; rename the key. Nothing was written."
        ) from error


def describe(path: KeyPath) -> str:
    """A path as Python would write it, for messages about the path itself."""
    parts = [
        f".{key.text}" if key.role == "field" else f"[{key.value!r}]" for key in path
    ]
    return "".join(parts) or "<root>"


def to_json(node: Node) -> Any:
    """The skeleton as JSON: a leaf is its number, None is null, the rest an object."""
    if node.kind == "leaf":
        return node.leaf
    if node.kind == "none":
        return None
    document: dict[str, Any] = {"kind": node.kind}
    if node.type_name is not None:
        document["type"] = node.type_name
    if node.has_static:
        document["static"] = True
    if node.kind not in ("list", "tuple"):
        document["keys"] = [_key_to_json(key) for key in node.keys]
    document["children"] = [to_json(child) for child in node.children]
    return document


def from_json(document: Any) -> tuple[Node, tuple[KeyPath, ...], tuple[str, ...]]:
    """Reads what `to_json` wrote; returns the skeleton, and paths and names of leaves.

    Raises:
        ValueError: The document is no skeleton whose leaves are 0, 1, 2, …
    """
    paths: list[KeyPath] = []
    names: list[str] = []

    def visit(part: Any, path: KeyPath, name: str) -> Node:
        if part is None:
            return Node(kind="none")
        if type(part) is int:
            if part != len(paths):
                raise ValueError(f"leaf {part} stands where leaf {len(paths)} belongs")
            paths.append(path)
            names.append(name)
            return _leaf_node(part)
        if not isinstance(part, Mapping):
            raise ValueError(f"{part!r} is no part of a tree")
        kind = part.get("kind")
        children = part.get("children")
        if kind not in ("dict", "list", "tuple", "namedtuple", "custom"):
            raise ValueError(f"unknown kind of container {kind!r}")
        if not isinstance(children, list):
            raise ValueError("a container without a list of children")
        if kind in ("list", "tuple"):
            keys = tuple([Key("index", i) for i in range(len(children))])
        else:
            keys = tuple(map(_key_from_json, part.get("keys", ())))
        if len(keys) != len(children):
            raise ValueError(f"{len(keys)} keys for {len(children)} children")
        head = f"{name}." if path else ""
        nodes = tuple(
            [
                visit(child, (*path, key), f"{head}{key[1]!s}")
                for key, child in zip(keys, children, strict=True)
            ]
        )
        return Node(
            kind=kind,
            keys=keys,
            children=nodes,
            type_name=part.get("type"),
            has_static=bool(part.get("static")),
        )

    root = visit(document, (), "")
    return root, tuple(paths), tuple(names)


def from_named_paths(entries: Sequence[tuple[KeyPath, Node]]) -> Node:
    """Builds the skeleton from paths alone, as documents of Orbax give them.

    Named keys make dicts, positions make lists.  An entry for an empty container may
    coexist with entries below it (partial saves leave such); the longer ones win.

    Raises:
        ValueError: Mixed key roles in one container, list positions that are not
            0 … n-1, or a leaf that lies on the path of another.
    """
    if len(entries) == 1 and not entries[0][0]:
        return entries[0][1]
    groups: dict[Key, list[tuple[KeyPath, Node]]] = {}
    for path, node in entries:
        if not path:
            if node.kind == "leaf":
                raise ValueError("a leaf has entries below it")
            continue
        groups.setdefault(path[0], []).append((path[1:], node))
    keys = list(groups)
    if all(key.is_named for key in keys):
        kind: Kind = "dict"
    elif not any(key.is_named for key in keys):
        kind = "list"
        keys.sort(key=lambda key: int(key.text))
        if [int(key.text) for key in keys] != list(range(len(keys))):
            raise ValueError(f"list positions {[key.text for key in keys]}")
    else:
        raise ValueError(f"mixed keys {[key.text for key in keys]} in one container")
    children = tuple(from_named_paths(groups[key]) for key in keys)
    return Node(kind=kind, keys=tuple(keys), children=children)


_Opened = tuple[
    Kind,
    str | None,
    tuple[Key, ...],
    Sequence[Any],
    Callable[[Sequence[Any]], Any] | None,
    bool,
]


def _open(value: Any) -> _Opened | None:
    """Keys, children and builder of a container, and whether it holds more than these.

    None for a leaf.
    """
    cls = type(value)
    if value is None:
        return "none", None, (), (), None, False
    if cls is dict:
        are_strings = all(type(key) is str for key in value)
        order = sorted(value, key=None if are_strings else _sort_key)
        keys = tuple([Key("key", key) for key in order])
        values = [value[key] for key in order]
        return "dict", None, keys, values, _dict_builder(order), False
    if cls is list or cls is tuple:
        keys = tuple(Key("index", i) for i in range(len(value)))
        return ("list", None, keys, value, list, False) if cls is list else (
            "tuple", None, keys, value, tuple, False
        )  # fmt: skip
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        keys = tuple(Key("field", name) for name in cls._fields)
        return "namedtuple", type_name(cls), keys, value, lambda c: cls(*c), False
    if jax.tree_util.all_leaves((value,)):
        return None
    # One level only: every child counts as a leaf here.
    children, treedef = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda child: child is not value
    )
    if len(children) == 1 and not children[0][0]:
        return None
    keys = tuple(_key_of_jax(path[0]) for path, _ in children)
    values = [child for _, child in children]
    return (
        *("custom", type_name(cls), keys, values, treedef.unflatten),
        dataclasses.is_dataclass(cls) and _has_static(treedef),
    )


def _has_static(treedef: Any) -> bool:
    """Whether a container gave JAX anything beside its children: static fields."""
    _, static = treedef.node_data()
    return static is not None and not (isinstance(static, tuple) and not static)


def _dict_builder(order: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
    return lambda children: dict(zip(order, children, strict=True))


def sort_keys(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Keys of a dict in the order in which `flatten` takes them."""
    return tuple(sorted(keys, key=lambda key: _sort_key(key.value)))


def _sort_key(key: Any) -> tuple[str, Any]:
    # Keys of different types cannot be compared with each other; within one type the
    # natural order holds (10 after 9), and text is the last resort.
    natural = isinstance(key, str | int | float)
    rank = "" if isinstance(key, int | float) else type(key).__name__
    return rank, key if natural else str(key)


def _key_of_jax(key: Any) -> Key:
    match key:
        case jax.tree_util.DictKey(key=value):
            return Key("key", value)
        case jax.tree_util.GetAttrKey(name=name):
            return Key("field", name)
        case jax.tree_util.SequenceKey(idx=position):
            return Key("index", position)
        case jax.tree_util.FlattenedIndexKey(key=position):
            return Key("child", position)
    # Registered classes may use key objects of their own; their text is all there is.
    return Key("key", str(key))


def jax_key_path(path: KeyPath) -> tuple[Any, ...]:
    """The path as JAX tells it; what only its class could tell is a dict key there."""
    return tuple(_JAX_KEYS[key.role](key.value) for key in path)


_JAX_KEYS: Mapping[Role, Callable[[Any], Any]] = {
    "key": jax.tree_util.DictKey,
    "field": jax.tree_util.GetAttrKey,
    "index": jax.tree_util.SequenceKey,
    "child": jax.tree_util.FlattenedIndexKey,
}


def _key_to_json(key: Key) -> Any:
    # By the exact type: a string of an `Enum` is known by its text, as in names.
    value = key.value if type(key.value) in _NATIVE_KEYS else key.text
    return value if key.role == "key" else [key.role, value]


def _key_from_json(document: Any) -> Key:
    if isinstance(document, _NATIVE_KEYS):
        return Key("key", document)
    if isinstance(document, list) and len(document) == 2:
        role, value = document
        if role in ("field", "index", "child") and isinstance(value, str | int):
            return Key(role, value)
    raise ValueError(f"{document!r} is no key")


def type_name(cls: type) -> str:
    """What a skeleton calls a class: `module:qualified name`."""
    return f"{cls.__module__}:{cls.__qualname__}"
