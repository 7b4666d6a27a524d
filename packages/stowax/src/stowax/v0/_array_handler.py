"""The handler of single arrays and numbers of the older API."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from stowax._operation_path import OperationPath
from stowax.errors import UnsupportedLeafError
from stowax.v0._arguments import RestoreArgs, SaveArgs
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._own import OwnHandler
from stowax.v0._tree_args import PyTreeRestoreArgs, PyTreeSaveArgs
from stowax.v0._tree_handler import PyTreeCheckpointHandler

ArrayType: TypeAlias = int | float | np.number | np.ndarray | jax.Array

_KINDS = (int, float, complex, np.generic, np.ndarray, jax.Array)


class ArrayCheckpointHandler(OwnHandler):
    """Saves and restores one array or number.

    Args:
        checkpoint_name: Name of the array in the item; None: `checkpoint`.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, np.arange(3))
        ...     checkpointer.restore(path)
        array([0, 1, 2])
    """

    _TYPESTR = (
        "orbax.checkpoint._src.handlers.array_checkpoint_handler.ArrayCheckpointHandler"
    )

    def __init__(self, checkpoint_name: str | None = None) -> None:
        self._name = checkpoint_name or "checkpoint"
        # With an index, unlike in Orbax, which reads both: a directory of the usual
        # name is what its handler of trees stumbles over.
        self._trees = PyTreeCheckpointHandler()

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        if not isinstance(args.item, _KINDS):
            raise UnsupportedLeafError(
                f"a {type(args.item).__qualname__} is no array and no number; save a "
                "tree with `PyTreeCheckpointHandler`"
            )
        tree = PyTreeSaveArgs({self._name: args.item}, {self._name: args.save_args})
        return await self._trees.begin_save(directory, tree)

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        item = None if args.item is None else {self._name: args.item}
        tree = PyTreeRestoreArgs(item, {self._name: args.restore_args})
        return self._alone(await self._trees.begin_restore(directory, tree))

    def save(
        self,
        directory: Any,
        item: ArrayType | None = None,
        save_args: SaveArgs | None = None,
        args: ArraySaveArgs | None = None,
    ) -> None:
        """Writes an array into a directory as it is, without a draft."""
        super().save(directory, item, save_args, args=args)

    async def async_save(
        self,
        directory: Any,
        item: ArrayType | None = None,
        save_args: SaveArgs | None = None,
        args: ArraySaveArgs | None = None,
    ) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        return await super().async_save(directory, item, save_args, args=args)

    def restore(
        self,
        directory: Any,
        item: ArrayType | None = None,
        restore_args: RestoreArgs | None = None,
        args: ArrayRestoreArgs | None = None,
    ) -> Any:
        """Reads the array of a directory."""
        return super().restore(directory, item, restore_args, args=args)

    async def _alone(self, rest: Awaitable[Any]) -> Any:
        return (await rest)[self._name]


@register_with_handler(ArrayCheckpointHandler, for_save=True)
@dataclass
class ArraySaveArgs(CheckpointArgs):
    """What an array is saved with.

    Args:
        item: The array, or a number.
        save_args: How it is stored.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> ocp.args.ArraySave(np.ones(2)).item.shape
        (2,)
    """

    item: ArrayType
    save_args: SaveArgs | None = None


@register_with_handler(ArrayCheckpointHandler, for_restore=True)
@dataclass
class ArrayRestoreArgs(CheckpointArgs):
    """What an array is restored with.

    Args:
        item: What it looks like; not needed.
        restore_args: As what it is restored.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> args = ocp.RestoreArgs(restore_type=np.ndarray)
        >>> ocp.args.ArrayRestore(restore_args=args).item is None
        True
    """

    item: ArrayType | None = None
    restore_args: RestoreArgs | None = None
