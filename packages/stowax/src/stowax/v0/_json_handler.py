"""The handler of JSON of the older API."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowax._formats._orbax_json import JSON_TYPESTR, METRICS_TYPESTR, decode_json
from stowax._handlers._file import read_file
from stowax._handlers._json import JsonHandler
from stowax._operation import Operation
from stowax._operation_path import OperationPath
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._handler_types import register_handler_type
from stowax.v0._own import OwnHandler, or_not_found
from stowax.v0.options import MultiprocessingOptions

_MULTIPROCESSING = MultiprocessingOptions()
_FILE = "metadata"


class JsonCheckpointHandler(OwnHandler):
    """Saves and restores a JSON value, as a file of its own.

    Args:
        filename: Name of the file; None: `metadata`, and a restore takes the file of
            the newer API, `data.json`, or one that is alone, too.
        multiprocessing_options: Those of the checkpointer count.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(path, {"depth": 3})
        ...     checkpointer.restore(path)
        {'depth': 3}
    """

    _TYPESTR = (
        "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler"
    )

    def __init__(
        self,
        filename: str | None = None,
        *,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
    ) -> None:
        self._handler = _NamedFile(filename) if filename else JsonHandler(_FILE)

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        return await self._handler.save(directory, args.item)

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        return or_not_found(await self._handler.load(directory))

    def save(
        self,
        directory: Any,
        item: Mapping[str, Any] | None = None,
        args: JsonSaveArgs | None = None,
    ) -> None:
        """Writes a value into a directory as it is, without a draft."""
        super().save(directory, item, args=args)

    async def async_save(
        self,
        directory: Any,
        item: Mapping[str, Any] | None = None,
        args: JsonSaveArgs | None = None,
    ) -> Sequence[Any] | None:
        """The same in the background; returns a future."""
        return await super().async_save(directory, item, args=args)

    def restore(
        self,
        directory: Any,
        item: Mapping[str, Any] | None = None,
        args: JsonRestoreArgs | None = None,
    ) -> Mapping[str, Any]:
        """Reads the value of a directory; there is nothing to ask for."""
        del item
        return super().restore(directory, args=args)


class _NamedFile(JsonHandler):
    """The handler of a file whose name the user gave: another may be anything."""

    async def _read(self, operation: Operation, location: str) -> Any:
        names = (self._filename,)
        path, data = await read_file(operation, location, names, or_alone=False)
        return decode_json(data, path=path)


# A checkpoint of the newer API names its own handlers.
register_handler_type(JsonCheckpointHandler, JSON_TYPESTR, METRICS_TYPESTR)


@register_with_handler(JsonCheckpointHandler, for_save=True)
@dataclass
class JsonSaveArgs(CheckpointArgs):
    """What a JSON value is saved with.

    Args:
        item: The value.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.JsonSave({"depth": 3}).item
        {'depth': 3}
    """

    item: Mapping[str, Any]


@register_with_handler(JsonCheckpointHandler, for_restore=True)
@dataclass
class JsonRestoreArgs(CheckpointArgs):
    """What a JSON value is restored with.

    Args:
        item: Ignored.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.JsonRestore()
        JsonRestoreArgs(item=None)
    """

    item: Any | None = None
