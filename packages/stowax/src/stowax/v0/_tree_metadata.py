"""What `metadata` of the older API shows of a tree."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import jax
from etils import epath

from stowax._formats._base import TreeItem
from stowax._item_read import metadata_leaf
from stowax._keypath import unflatten
from stowax._settings import LoadSettings
from stowax.v0._leaf_metadata import leaf_metadata


@jax.tree_util.register_pytree_with_keys_class
class TreeMetadata:
    """The tree of what is known of every leaf; a tree itself, and a mapping.

    It can be given to a restore as the item.

    Args:
        tree: Leaves are `stowax.v0.metadata.ArrayMetadata` and its kin; containers are
            dicts, lists and tuples.
        custom_metadata: What the user keeps with the tree.
        use_zarr3: Whether arrays are described as zarr 3.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7, "label": "a"})
        ...     found = checkpointer.metadata(path).item_metadata
        >>> sorted(found), found["step"].shape
        (['label', 'step'], ())
    """

    def __init__(
        self, *, tree: Any, custom_metadata: Any = None, use_zarr3: bool = False
    ) -> None:
        self._tree = tree
        self._custom_metadata = custom_metadata
        self._use_zarr3 = use_zarr3

    @classmethod
    def build(
        cls, tree: Any, *, custom_metadata: Any = None, use_zarr3: bool = False
    ) -> TreeMetadata:
        """Makes one."""
        return cls(tree=tree, custom_metadata=custom_metadata, use_zarr3=use_zarr3)

    @property
    def tree(self) -> Any:
        """The plain tree."""
        return self._tree

    @property
    def custom_metadata(self) -> Any:
        """What the user keeps with the tree; None for nothing."""
        return self._custom_metadata

    @property
    def use_zarr3(self) -> bool:
        """Whether arrays are described as zarr 3."""
        return self._use_zarr3

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """As a tree of JAX: one child, the plain tree."""
        children = [(jax.tree_util.GetAttrKey("tree"), self._tree)]
        # JAX compares what is no child, and wants it hashable.
        return children, (repr(self._custom_metadata), self._use_zarr3, self)

    def tree_flatten(self) -> tuple[Any, Any]:
        """The same without keys."""
        children, rest = self.tree_flatten_with_keys()
        return [child for _, child in children], rest

    @classmethod
    def tree_unflatten(cls, rest: Any, children: Any) -> TreeMetadata:
        """One of other leaves."""
        _, use_zarr3, origin = rest
        return cls(
            tree=children[0],
            custom_metadata=origin.custom_metadata,
            use_zarr3=use_zarr3,
        )

    def __getitem__(self, key: Any) -> Any:
        return self._tree[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._tree

    def __len__(self) -> int:
        return len(self._tree)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tree)

    def get(self, key: Any, default: Any = None) -> Any:
        """What is below a key; the default where there is nothing."""
        try:
            return self._tree[key]
        except (KeyError, IndexError):
            return default

    def keys(self) -> KeysView[Any]:
        """Keys of a dict."""
        return self._tree.keys()

    def values(self) -> ValuesView[Any]:
        """Values of a dict."""
        return self._tree.values()

    def items(self) -> ItemsView[Any, Any]:
        """Keys and values of a dict."""
        return self._tree.items()

    def __repr__(self) -> str:
        return (
            f"TreeMetadata(tree={self._tree!r}, "
            f"custom_metadata={self._custom_metadata!r}, use_zarr3={self._use_zarr3})"
        )


def shown_tree(item: TreeItem) -> Any:
    """The tree of what is shown of every leaf of an item."""
    directory = epath.Path(item.path)
    leaves = [
        leaf_metadata(metadata_leaf(form, LoadSettings()), name, directory)
        for _, name, form in item.manifest.leaves
    ]
    return unflatten(item.manifest.root, leaves)
