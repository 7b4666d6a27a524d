"""The handler of JSON documents."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from stowax._context import current_settings
from stowax._formats._orbax_json import (
    JSON_DOCUMENTS,
    JSON_TYPESTR,
    METRICS_TYPESTR,
    decode_json,
)
from stowax._handlers._base import OwnHandler
from stowax._handlers._file import begin, check_file_name, read_file, write_file
from stowax._operation import Operation
from stowax._operation_path import OperationPath
from stowax.errors import InvalidJsonError


class JsonHandler(OwnHandler):
    """Saves a JSON value as a file of its own, and loads it.

    It has to be chosen for a name: a dict without a handler is saved as a tree. The
    value is written down before `save_async` returns.

    Args:
        filename: Name of the file that is written, and tried first by a load, before
            `data.json` and `metadata`; None: `data.json`.

    Example:
        >>> import stowax
        >>> context = stowax.Context()
        >>> context.checkpointables = (
        ...     stowax.options.CheckpointablesOptions.create_with_handlers(
        ...         config=stowax.handlers.JsonHandler
        ...     )
        ... )
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with context:
        ...     stowax.save_checkpointables(path, {"config": {"depth": 3}})
        >>> stowax.load_checkpointables(path)  # the checkpoint knows its handlers
        {'config': {'depth': 3}}
    """

    typestr = JSON_TYPESTR
    kind = "json"

    def __init__(self, filename: str | None = None) -> None:
        self._filename = check_file_name(
            JSON_DOCUMENTS[0] if filename is None else filename
        )

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Writes the value down; returns the rest of the work.

        Raises:
            InvalidJsonError: It is no JSON value; says which part is not.
        """
        try:
            data = json.dumps(checkpointable).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJsonError(f"no JSON value: {error}") from error
        where = await OperationPath.of(directory, current_settings(), verb="write")
        work = write_file(where.operation, where.location, self._filename, data)
        return begin(where.operation, work, is_alone=where is not directory)

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """Returns the work of reading the value; there is nothing to ask for."""
        del abstract_checkpointable
        where = await OperationPath.of(directory, current_settings())
        work = self._read(where.operation, where.location)
        return begin(where.operation, work, is_alone=where is not directory)

    async def metadata(self, directory: Any) -> None:
        """Nothing is known of a JSON value but itself."""
        del directory

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether the value is JSON."""
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """None, whatever is asked for: what is stored decides."""
        del abstract_checkpointable

    async def _read(self, operation: Operation, location: str) -> Any:
        names = (self._filename, *JSON_DOCUMENTS)
        path, data = await read_file(operation, location, names)
        return decode_json(data, path=path)


class MetricsHandler(JsonHandler):
    """Saves and loads the metrics of a step."""

    typestr = METRICS_TYPESTR

    def __init__(self) -> None:
        super().__init__("metrics")
