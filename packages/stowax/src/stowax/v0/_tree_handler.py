"""The handler of trees of the older API."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from stowax._custom_metadata import json_value
from stowax._formats._base import ITEM_DOCUMENT, TreeItem
from stowax._formats._orbax_json import PYTREE_TYPESTR, decode_json
from stowax._formats._stowax import read_document
from stowax._handlers._tree import begin_load, begin_save
from stowax._item_layout import Beside
from stowax._item_read import metadata_tree, open_item
from stowax._leaves._registry import Leaves
from stowax._operation_path import OperationPath
from stowax._settings import LoadSettings, SaveSettings
from stowax._stores._base import join
from stowax.errors import (
    CheckpointNotFoundError,
    InvalidLayoutError,
    UnsupportedOptionError,
)
from stowax.options import PyTreeMetadataOptions
from stowax.v0._handler_types import register_handler_type
from stowax.v0._own import OwnHandler
from stowax.v0._save_args import leaf_storage
from stowax.v0._targets import Restoration, plan_restore
from stowax.v0._transformed import plan_transformed
from stowax.v0._tree_metadata import TreeMetadata, shown_tree
from stowax.v0.options import MemoryLimitOptions, MultiprocessingOptions

_AS_USUAL: Any = None
"""Stands for objects of Orbax's own that have no counterpart here."""

_MULTIPROCESSING = MultiprocessingOptions()
_METADATA = PyTreeMetadataOptions()


class PyTreeCheckpointHandler(OwnHandler):
    """Saves and restores trees, leaf by leaf as the arguments say.

    Args:
        aggregate_filename: Ignored; it named a file that is not written any more.
        save_concurrent_gb: Ignored: what a save takes beside its values is bounded by
            `stowax.options.MemoryOptions`.
        restore_concurrent_gb: The same for a restore.
        save_device_host_concurrent_gb: Ignored, as the first.
        memory_limit_options: Ignored, as the first.
        use_ocdbt: Whether chunks share files and are found by an index.
        use_zarr3: Whether arrays are described as zarr 3; else 2.
        use_compression: Whether chunks are compressed.
        multiprocessing_options: Those of the checkpointer count.
        type_handler_registry: Of Orbax; must be left out. Leaves of your own types are
            taught by `stowax.options.PyTreeOptions.leaf_handlers`.
        handler_impl: Of Orbax; must be None.
        pytree_metadata_options: Whether the types of tuples and NamedTuples are told
            to Orbax. A restore here knows them in any case.
        array_metadata_validator: Of Orbax; must be left out. What is restored is
            verified by checksums.
        enable_pinned_host_transfer: Whether devices write to page-locked memory of the
            host; None: GPUs do.
        is_prioritized_key_fn: Called with the key path of a leaf: whether it is staged
            and written before the others.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, args=ocp.args.PyTreeSave({"w": np.ones(2)}))
        ...     checkpointer.restore(path)
        {'w': array([1., 1.])}
    """

    _TYPESTR = (
        "orbax.checkpoint._src.handlers.pytree_checkpoint_handler."
        "PyTreeCheckpointHandler"
    )

    def __init__(
        self,
        aggregate_filename: str | None = None,
        *,
        save_concurrent_gb: int | None = None,
        restore_concurrent_gb: int | None = None,
        save_device_host_concurrent_gb: int | str | None = None,
        memory_limit_options: MemoryLimitOptions | None = None,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
        type_handler_registry: Any = _AS_USUAL,
        handler_impl: Any = None,
        pytree_metadata_options: PyTreeMetadataOptions = _METADATA,
        array_metadata_validator: Any = _AS_USUAL,
        enable_pinned_host_transfer: bool | None = None,
        is_prioritized_key_fn: Callable[[Any], bool] | None = None,
    ) -> None:
        _refuse(
            type_handler_registry=type_handler_registry,
            handler_impl=handler_impl,
            array_metadata_validator=array_metadata_validator,
        )
        self._use_ocdbt = use_ocdbt
        self._use_zarr3 = use_zarr3
        self._use_compression = use_compression
        self._rich_types = bool(pytree_metadata_options.support_rich_types)
        self._pins_transfers = enable_pinned_host_transfer
        self._is_first = is_prioritized_key_fn

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        settings = directory.operation.settings

        def saving() -> SaveSettings:
            return self._saving(settings.saving, args)

        return await begin_save(
            directory,
            args.item,
            saving=saving,
            leaves=Leaves(settings.leaf_handlers),
            is_alone=False,
            beside=Beside(
                rich_types=self._rich_types or settings.rich_types,
                custom_metadata=_in_json(args.custom_metadata),
            ),
            asked_by="SaveArgs",
        )

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        return self.begin_restore_of(directory, await self.open(directory), args)

    def begin_restore_of(
        self, directory: OperationPath, item: TreeItem, args: Any
    ) -> Awaitable[Any]:
        """The same of an item that is open."""
        operation = directory.operation
        loading = operation.settings.loading
        plan = _plan(args, item)
        rest = begin_load(
            directory,
            item,
            plan.abstract,
            has_target=plan.abstract is not None,
            loading=replace(
                loading,
                partial=loading.partial or plan.is_partial,
                pads=loading.pads or plan.pads,
            ),
            leaves=Leaves(operation.settings.leaf_handlers),
        )
        return _finished(rest, plan.finish)

    async def tell(self, directory: OperationPath) -> TreeMetadata:
        """See `OwnHandler`."""
        item, operation = await self.open(directory), directory.operation
        path = join(item.path, ITEM_DOCUMENT)
        expected = item.documents.get(ITEM_DOCUMENT)
        verify = operation.settings.verify
        reading = read_document(operation.store, path, expected, verify)
        document = decode_json(await operation.submit(reading), path=path)
        return TreeMetadata(
            tree=shown_tree(item),
            custom_metadata=document.get("custom_metadata"),
            use_zarr3=bool(document.get("use_zarr3")),
        )

    async def open(self, directory: OperationPath) -> TreeItem:
        """Opens what is restored.

        Raises:
            CheckpointNotFoundError: There is no tree.
            InvalidLayoutError: There is one that cannot be read here.
        """
        operation, location = directory.operation, directory.location
        opening = open_item(operation, location, operation.settings.loading)
        try:
            return await operation.submit(opening)
        except InvalidLayoutError as error:
            document = operation.store.stat(join(location, ITEM_DOCUMENT))
            if await operation.submit(document) is not None:
                raise  # It is there, and cannot be read.
            # Where there is no tree, callers of this API expect the other class.
            raise CheckpointNotFoundError(str(error)) from error

    def save(
        self,
        directory: Any,
        item: Any = None,
        save_args: Any = None,
        args: Any | None = None,
    ) -> None:
        """Writes a tree into a directory as it is, without a draft."""
        super().save(directory, item, save_args, args=args)

    async def async_save(
        self,
        directory: Any,
        item: Any = None,
        save_args: Any = None,
        args: Any | None = None,
    ) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        return await super().async_save(directory, item, save_args, args=args)

    def restore(
        self,
        directory: Any,
        item: Any = None,
        restore_args: Any = None,
        transforms: Any = None,
        transforms_default_to_original: bool = True,
        legacy_transform_fn: Any = None,
        args: Any | None = None,
    ) -> Any:
        """Reads the tree of a directory."""
        return super().restore(
            directory,
            item,
            restore_args,
            transforms,
            transforms_default_to_original,
            legacy_transform_fn,
            args=args,
        )

    def _saving(self, saving: SaveSettings, args: Any) -> SaveSettings:
        size_bytes = args.ocdbt_target_data_file_size
        storage, storage_of_leaf = leaf_storage(args.item, args.save_args)
        return replace(
            saving,
            storage=storage or saving.storage,
            storage_of_leaf=storage_of_leaf or saving.storage_of_leaf,
            use_ocdbt=self._use_ocdbt,
            use_zarr3=self._use_zarr3,
            use_compression=self._use_compression,
            data_file_size_bytes=size_bytes or 0,
            pins_transfers=self._pins_transfers,
            is_first=self._is_first or saving.is_first,
        )


# A checkpoint of the newer API names its own handler.
register_handler_type(PyTreeCheckpointHandler, PYTREE_TYPESTR)


def _plan(args: Any, item: TreeItem) -> Restoration:
    """What to load, by the arguments of a restore."""
    if args.legacy_transform_fn is not None:
        raise UnsupportedOptionError(
            "`legacy_transform_fn` works on what only Orbax has; say the same with "
            "`transforms`"
        )
    is_asked = any(x is not None for x in (args.item, args.restore_args))
    if args.transforms is None and not is_asked:
        return Restoration(abstract=None)
    stored = metadata_tree(item, LoadSettings())
    if args.transforms is None:
        return plan_restore(
            args.item, args.restore_args, stored, is_partial=args.partial_restore
        )
    return plan_transformed(
        args.item,
        args.restore_args,
        args.transforms,
        stored,
        default_to_original=args.transforms_default_to_original,
    )


async def _finished(rest: Awaitable[Any], finish: Callable[[Any], Any]) -> Any:
    return finish(await rest)


def _in_json(custom_metadata: Any) -> str:
    return json.dumps(json_value("custom_metadata", custom_metadata))


_INSTEAD = {
    "type_handler_registry": "give `Context.pytree.leaf_handlers` what they handle",
    "handler_impl": "derive a handler of your own from `CheckpointHandler`",
    "array_metadata_validator": "what is restored is verified by checksums",
}
"""What we offer in place of arguments that only Orbax knows."""


def _refuse(**arguments: object | None) -> None:
    lines = [
        f"  {name}={value!r}: leave it out; {_INSTEAD[name]}"
        for name, value in arguments.items()
        if value is not None
    ]
    if lines:
        raise UnsupportedOptionError(
            "arguments of PyTreeCheckpointHandler that this version cannot follow:\n"
            + "\n".join(lines)
        )
