"""What the handler of trees is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stowax.errors import InvalidArgumentError
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._tree_handler import PyTreeCheckpointHandler
from stowax.v0._tree_metadata import TreeMetadata


@register_with_handler(PyTreeCheckpointHandler, for_save=True)
@dataclass
class PyTreeSaveArgs(CheckpointArgs):
    """What a tree is saved with.

    Args:
        item: The tree.
        save_args: A tree of the same structure, of `SaveArgs` or None.
        ocdbt_target_data_file_size: Size from which on a data file takes no further
            chunk, in bytes; None or 0: there is no limit.
        custom_metadata: JSON of your own to keep with the tree.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> args = ocp.args.PyTreeSave({"step": 7}, custom_metadata={"by": "me"})
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, args)
        ...     checkpointer.metadata(path).item_metadata.custom_metadata
        {'by': 'me'}
    """

    item: Any
    save_args: Any | None = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Any | None = None

    def __post_init__(self) -> None:
        refuse_metadata(self.item)


@register_with_handler(PyTreeCheckpointHandler, for_restore=True)
@dataclass
class PyTreeRestoreArgs(CheckpointArgs):
    """What a tree is restored with.

    Args:
        item: Gives the structure of the result; None: the stored one.
        restore_args: A tree of that structure, of `RestoreArgs`.
        transforms: What is to be done to what was saved; see `apply_transformations`.
        transforms_default_to_original: Whether leaves without a transformation are
            those that were saved; else those of `item`.
        legacy_transform_fn: Of Orbax; must be None.
        partial_restore: Whether `item` may leave out stored leaves.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"w": np.ones(2), "b": np.zeros(1)})
        ...     args = ocp.args.PyTreeRestore({"b": 0}, partial_restore=True)
        ...     checkpointer.restore(path, args)
        {'b': array([0.])}
    """

    item: Any | None = None
    restore_args: Any | None = None
    transforms: Any | None = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any | None = None
    partial_restore: bool = False

    def __post_init__(self) -> None:
        self.item = plain(self.item)
        self.restore_args = plain(self.restore_args)
        self.transforms = plain(self.transforms)


def plain(tree: Any) -> Any:
    """A tree, be it given as one or as the metadata of one."""
    return tree.tree if isinstance(tree, TreeMetadata) else tree


def refuse_metadata(item: Any) -> None:
    """Refuses the metadata of a tree where the tree is to be saved.

    Raises:
        InvalidArgumentError: It is metadata.
    """
    if isinstance(item, TreeMetadata):
        raise InvalidArgumentError(
            "the item is a TreeMetadata, which holds no values; save the tree itself"
        )
