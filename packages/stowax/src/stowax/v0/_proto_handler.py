"""The handler of protocol buffers of the older API."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stowax._formats._orbax_json import PROTO_DOCUMENT
from stowax._handlers._proto import ProtoHandler
from stowax._operation_path import OperationPath
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._own import OwnHandler, or_not_found
from stowax.v0.options import MultiprocessingOptions

if TYPE_CHECKING:
    from google.protobuf.message import Message

_MULTIPROCESSING = MultiprocessingOptions()


class ProtoCheckpointHandler(OwnHandler):
    """Saves and restores a protocol buffer message, as text.

    Args:
        filename: Name of the file.
        multiprocessing_options: Those of the checkpointer count.

    Example:
        >>> from google.protobuf.duration_pb2 import Duration
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> handler = ocp.ProtoCheckpointHandler("limit.pbtxt")
        >>> with ocp.Checkpointer(handler) as checkpointer:
        ...     checkpointer.save(path, args=ocp.args.ProtoSave(Duration(seconds=9)))
        ...     args = ocp.args.ProtoRestore(Duration)
        ...     checkpointer.restore(path, args=args).seconds
        9
    """

    _TYPESTR = (
        "orbax.checkpoint._src.handlers.proto_checkpoint_handler.ProtoCheckpointHandler"
    )

    def __init__(
        self,
        filename: str = PROTO_DOCUMENT,
        *,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
    ) -> None:
        self._handler = ProtoHandler(filename)

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        return await self._handler.save(directory, args.item)

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        return or_not_found(await self._handler.load(directory, args.item))

    async def async_save(
        self,
        directory: Any,
        item: Message | None = None,
        args: ProtoSaveArgs | None = None,
    ) -> Sequence[Any] | None:
        """Writes a message into a directory as it is; returns a future."""
        return await super().async_save(directory, item, args=args)

    def restore(
        self,
        directory: Any,
        item: type[Message] | None = None,
        args: ProtoRestoreArgs | None = None,
    ) -> Any:
        """Reads the message of a directory, of a class that has to be told."""
        return super().restore(directory, item, args=args)


@register_with_handler(ProtoCheckpointHandler, for_save=True)
@dataclass
class ProtoSaveArgs(CheckpointArgs):
    """What a message is saved with.

    Args:
        item: The message.

    Example:
        >>> from google.protobuf.duration_pb2 import Duration
        >>> from stowax import v0 as ocp
        >>> ocp.args.ProtoSave(Duration(seconds=9)).item.seconds
        9
    """

    item: Message


@register_with_handler(ProtoCheckpointHandler, for_restore=True)
@dataclass
class ProtoRestoreArgs(CheckpointArgs):
    """What a message is restored with.

    Args:
        item: The class of the message.

    Example:
        >>> from google.protobuf.duration_pb2 import Duration
        >>> from stowax import v0 as ocp
        >>> ocp.args.ProtoRestore(Duration).item.__name__
        'Duration'
    """

    item: type[Message]
