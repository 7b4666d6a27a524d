"""What `metadata` of the older API shows of a tree."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field, replace
from typing import Any

import jax.tree_util as jtu
import numpy as np
from etils import epath

from stowax._codecs._zarr import dtype_from_name
from stowax._formats._base import TreeItem
from stowax._item_target import metadata_leaf
from stowax._keypath import unflatten
from stowax._manifest import LeafForm
from stowax._settings import LoadSettings
from stowax.v0._leaf_metadata import ArrayMetadata, ScalarMetadata, leaf_metadata
from stowax.v0._sharding_metadata import recorded_sharding


@jtu.register_pytree_with_keys_class
class TreeMetadata:
    """The tree of what is known of every leaf; a tree itself, and a mapping.

    It has the key paths of the tree, and can be given to a restore as the item.

    Args:
        tree: Leaves are `stowax.v0.metadata.ArrayMetadata` and its kin; containers are
            dicts, lists and tuples.
        custom_metadata: What the user keeps with the tree.
        use_zarr3: Whether arrays are described as zarr 3.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7, "rate": 0.1})
        ...     found = checkpointer.metadata(path).item_metadata
        >>> sorted(found), found["step"].shape
        (['rate', 'step'], ())
        >>> jax.tree.map(lambda leaf: leaf.dtype.name, found).tree
        {'rate': 'float64', 'step': 'int64'}
    """

    def __init__(
        self, *, tree: Any, custom_metadata: Any = None, use_zarr3: bool = False
    ) -> None:
        self._tree = tree
        self._facts = _Facts(custom_metadata, use_zarr3)

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
        return self._facts.custom_metadata

    @property
    def use_zarr3(self) -> bool:
        """Whether arrays are described as zarr 3."""
        return self._facts.use_zarr3

    def tree_flatten(self) -> tuple[Any, Any]:
        """As a tree of JAX: the children of the plain tree."""
        children, structure = jtu.tree_flatten(self._tree, is_leaf=self._is_below)
        return children, (structure, self._facts)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The same with keys."""
        found, structure = jtu.tree_flatten_with_path(
            self._tree, is_leaf=self._is_below
        )
        children = [(path[0] if path else _ROOT, child) for path, child in found]
        return children, (structure, self._facts)

    @classmethod
    def tree_unflatten(cls, aux_data: Any, flat_tree: Any) -> TreeMetadata:
        """One of other leaves."""
        structure, facts = aux_data
        return cls(
            tree=structure.unflatten(flat_tree),
            custom_metadata=facts.custom_metadata,
            use_zarr3=facts.use_zarr3,
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
            f"custom_metadata={self.custom_metadata!r}, use_zarr3={self.use_zarr3})"
        )

    def _is_below(self, node: Any) -> bool:
        return node is not self._tree


_ROOT = jtu.GetAttrKey("tree")
"""The key of a tree that is one leaf."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What JAX compares beside the structure."""

    custom_metadata: Any = field(hash=False)
    """Any JSON value, most of which have no hash."""

    use_zarr3: bool


def shown_tree(item: TreeItem) -> Any:
    """The tree of what is shown of every leaf of an item."""
    directory = epath.Path(item.path)
    leaves = [
        _shown_leaf(form, name, directory) for _, name, form in item.manifest.leaves
    ]
    return unflatten(item.manifest.root, leaves)


def _shown_leaf(form: LeafForm, name: str, directory: epath.Path) -> Any:
    shown = leaf_metadata(metadata_leaf(form, LoadSettings()), name, directory)
    if isinstance(shown, ScalarMetadata):
        if form.dtype is None:
            # An integer beyond 64 bits, which is to NumPy an object of Python.
            return replace(shown, dtype=np.dtype(object))
        return replace(shown, dtype=dtype_from_name(form.dtype))
    if isinstance(shown, ArrayMetadata) and form.sharding is not None:
        # Also where this run lacks the devices: it is told, and cannot be had.
        return replace(shown, sharding=recorded_sharding(form.sharding))
    return shown
