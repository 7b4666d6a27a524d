"""The handler of trees of arrays and numbers, restored as a target says."""

from __future__ import annotations

import numbers
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from stowax._operation_path import OperationPath
from stowax.errors import InvalidArgumentError, TreeError, UnsupportedLeafError
from stowax.options import PyTreeMetadataOptions
from stowax.tree import PLACEHOLDER
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._leaf_metadata import Metadata
from stowax.v0._own import OwnHandler
from stowax.v0._restore_args import STANDARD_ARRAY_TYPES
from stowax.v0._standard_target import standard_restore_args
from stowax.v0._tree_args import (
    PyTreeRestoreArgs,
    PyTreeSaveArgs,
    plain,
    refuse_metadata,
)
from stowax.v0._tree_handler import PyTreeCheckpointHandler
from stowax.v0._tree_metadata import TreeMetadata
from stowax.v0.options import MultiprocessingOptions

_MULTIPROCESSING = MultiprocessingOptions()
_METADATA = PyTreeMetadataOptions()


class StandardCheckpointHandler(OwnHandler):
    """Saves and restores trees of arrays and numbers.

    Args:
        save_concurrent_gb: Ignored, as in `PyTreeCheckpointHandler`.
        restore_concurrent_gb: The same.
        multiprocessing_options: Those of the checkpointer count.
        pytree_metadata_options: See `PyTreeCheckpointHandler`.
        use_ocdbt: See `PyTreeCheckpointHandler`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> state = {"w": jnp.ones((2, 3))}
        >>> target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        >>> with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, args=ocp.args.StandardSave(state))
        ...     args = ocp.args.StandardRestore(target)
        ...     checkpointer.restore(path, args=args)["w"].shape
        (2, 3)
    """

    _TYPESTR = (
        "orbax.checkpoint._src.handlers.standard_checkpoint_handler."
        "StandardCheckpointHandler"
    )

    def __init__(
        self,
        *,
        save_concurrent_gb: int = 96,
        restore_concurrent_gb: int = 96,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
        pytree_metadata_options: PyTreeMetadataOptions = _METADATA,
        use_ocdbt: bool = True,
    ) -> None:
        self._trees = PyTreeCheckpointHandler(
            use_ocdbt=use_ocdbt, pytree_metadata_options=pytree_metadata_options
        )

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        return await self._trees.begin_save(
            directory,
            PyTreeSaveArgs(
                item=_checked_state(args.item),
                save_args=args.save_args,
                custom_metadata=args.custom_metadata,
            ),
        )

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        _check_target(args.item)
        item = await self._trees.open(directory)
        restore_args = standard_restore_args(
            args.item,
            item,
            fallback_sharding=args.fallback_sharding,
            support_layout=args.support_layout,
        )
        if not args.strict:
            restore_args = jax.tree.map(_not_strict, restore_args)
        return self._trees.begin_restore_of(
            directory,
            item,
            PyTreeRestoreArgs(item=args.item, restore_args=restore_args),
        )

    async def tell(self, directory: OperationPath) -> TreeMetadata:
        """See `OwnHandler`."""
        return await self._trees.tell(directory)

    def save(
        self,
        directory: Any,
        item: Any = None,
        save_args: Any = None,
        args: StandardSaveArgs | None = None,
    ) -> None:
        """Writes a tree into a directory as it is, without a draft."""
        super().save(directory, item, save_args, args=args)

    async def async_save(
        self,
        directory: Any,
        item: Any = None,
        save_args: Any = None,
        args: StandardSaveArgs | None = None,
    ) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        return await super().async_save(directory, item, save_args, args=args)

    def restore(
        self, directory: Any, item: Any = None, args: StandardRestoreArgs | None = None
    ) -> Any:
        """Reads the tree of a directory."""
        return super().restore(directory, item, args=args)


@register_with_handler(StandardCheckpointHandler, for_save=True)
@dataclass
class StandardSaveArgs(CheckpointArgs):
    """What a tree of arrays and numbers is saved with.

    Args:
        item: The tree.
        save_args: A tree of the same structure, of `SaveArgs` or None.
        custom_metadata: JSON of your own to keep with the tree.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.StandardSave({"step": 7}).item
        {'step': 7}
    """

    item: Any
    save_args: Any | None = None
    custom_metadata: Any | None = None

    def __post_init__(self) -> None:
        refuse_metadata(self.item)


@register_with_handler(StandardCheckpointHandler, for_restore=True)
@dataclass
class StandardRestoreArgs(CheckpointArgs):
    """What a tree of arrays and numbers is restored with.

    Args:
        item: The target: arrays, abstract ones included, and numbers. What has no
            sharding, and none was saved, becomes a NumPy array. None: all as it was
            saved.
        strict: Whether it is an error if an array has another shape than the target's.
            False cuts it, or pads it with zeros.
        support_layout: Whether the memory layouts of the target count.
        fallback_sharding: For arrays that were saved from devices which this run lacks,
            and of which the target says nothing.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.StandardRestore().strict
        True
    """

    item: Any | None = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: jax.sharding.Sharding | None = None

    def __post_init__(self) -> None:
        self.item = plain(self.item)


def _checked_state(item: Any) -> Any:
    """The tree, if every leaf is an array or a number.

    Raises:
        InvalidArgumentError: It is no tree of several leaves.
        UnsupportedLeafError: Names the leaves that are neither.
    """
    if item is None:
        raise TreeError("None is no state; give the tree to save as `item`")
    if isinstance(item, jax.Array | numbers.Number):
        raise InvalidArgumentError(
            f"the item is a single {type(item).__qualname__}; save it with "
            "`ArrayCheckpointHandler`, `ocp.args.ArraySave`"
        )

    def as_array(leaf: Any) -> Any:
        is_one = isinstance(leaf, np.ndarray | jax.Array)
        return np.asarray(leaf) if not is_one and hasattr(leaf, "__array__") else leaf

    tree = jax.tree.map(as_array, item)
    _check_leaves(tree, STANDARD_ARRAY_TYPES, "saved")
    return tree


def _check_target(item: Any) -> None:
    if item is not None:
        _check_leaves(item, (*STANDARD_ARRAY_TYPES, *_ABSTRACT), "restored")


_ABSTRACT = (jax.ShapeDtypeStruct, Metadata, type(PLACEHOLDER))


def _check_leaves(tree: Any, accepted: tuple[type, ...], verb: str) -> None:
    problems = [
        f"{jax.tree_util.keystr(path)} is a {type(leaf).__qualname__}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not isinstance(leaf, accepted)
    ]
    if problems:
        raise UnsupportedLeafError(
            f"{len(problems)} leaves are no arrays and no numbers, and so are not "
            f"{verb} by `StandardCheckpointHandler`:\n  "
            + "\n  ".join(problems)
            + "\nTake `PyTreeCheckpointHandler` for them.",
            problems,
        )


def _not_strict(args: Any) -> Any:
    return replace(args, strict=False) if hasattr(args, "strict") else args
