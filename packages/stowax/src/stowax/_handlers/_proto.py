"""The handler of protocol buffers.

`protobuf` is no dependency: it is imported when there is a message to read or write,
and who has one has imported it before.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from stowax._context import current_settings
from stowax._formats._orbax_json import PROTO_DOCUMENT, PROTO_TYPESTR
from stowax._handlers._base import NeedsTarget, OwnHandler
from stowax._handlers._file import begin, check_file_name, read_file, write_file
from stowax._operation import Operation
from stowax._operation_path import OperationPath
from stowax.errors import HandlerError

if TYPE_CHECKING:
    from google.protobuf.message import Message


class ProtoHandler(OwnHandler, NeedsTarget):
    """Saves a protocol buffer message as text, and loads it.

    Needs the package `protobuf`; `pip install 'stowax[proto]'` brings it.

    Args:
        filename: Name of the file.

    Example:
        A load has to be told the class of the message:

        >>> import stowax
        >>> from google.protobuf.duration_pb2 import Duration
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"limit": Duration(seconds=90)})
        >>> stowax.load_checkpointables(path, {"limit": Duration})["limit"].seconds
        90
    """

    typestr = PROTO_TYPESTR
    kind = "proto"

    def __init__(self, filename: str = PROTO_DOCUMENT) -> None:
        self._filename = check_file_name(filename)

    async def save(self, directory: Any, checkpointable: Message) -> Awaitable[None]:
        """Writes the message down; returns the rest of the work.

        Raises:
            HandlerError: It is no message.
        """
        if not self.is_handleable(checkpointable):
            raise HandlerError(
                f"a {type(checkpointable).__qualname__} is no protocol buffer message; "
                "only those are saved by `ProtoHandler`"
            )
        from google.protobuf import text_format

        data = text_format.MessageToString(checkpointable).encode()
        where = await OperationPath.of(directory, current_settings(), verb="write")
        work = write_file(where.operation, where.location, self._filename, data)
        return begin(where.operation, work, is_alone=where is not directory)

    async def load(
        self, directory: Any, abstract_checkpointable: type[Message] | None = None
    ) -> Awaitable[Message]:
        """Returns the work of reading a message.

        Args:
            directory: The item's directory.
            abstract_checkpointable: The class of the message.

        Raises:
            HandlerError: It is no class of messages.
        """
        if not self.is_abstract_handleable(abstract_checkpointable):
            raise HandlerError(
                f"{directory} holds a protocol buffer message, whose text does not "
                "tell its class; give the class as its abstract checkpointable, found "
                f"{abstract_checkpointable!r}"
            )
        assert abstract_checkpointable is not None
        where = await OperationPath.of(directory, current_settings())
        work = self._read(where.operation, where.location, abstract_checkpointable)
        return begin(where.operation, work, is_alone=where is not directory)

    async def metadata(self, directory: Any) -> Any:
        """Cannot be told: the text does not name the class.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{directory} does not tell the class of its message")

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it is a message."""
        message = _message_class()
        return message is not None and isinstance(checkpointable, message)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it is a class of messages."""
        message = _message_class()
        return (
            message is not None
            and isinstance(abstract_checkpointable, type)
            and issubclass(abstract_checkpointable, message)
        )

    async def _read(
        self, operation: Operation, location: str, message_class: type[Message]
    ) -> Message:
        from google.protobuf import text_format

        names = (self._filename, PROTO_DOCUMENT)
        path, data = await read_file(operation, location, names)
        try:
            return text_format.Parse(data.decode(), message_class())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise HandlerError(
                f"{path} is no {message_class.__qualname__}: {error}"
            ) from error


def _message_class() -> type[Message] | None:
    """The class of all messages; None as long as nobody can have one."""
    module = sys.modules.get("google.protobuf.message")
    return None if module is None else module.Message
