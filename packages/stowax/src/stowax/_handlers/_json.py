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
from stowax._formats._stowax import read_document
from stowax._handlers._base import OwnHandler
from stowax._operation import Operation, OperationPath
from stowax._stores._base import join
from stowax.errors import HandlerError, InvalidLayoutError


class JsonHandler(OwnHandler):
    """Saves a JSON value as a file of its own, and loads it.

    It has to be chosen for a name: a dict without a handler is saved as a tree.

    Args:
        filename: Name of the file; None: `data.json`.

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
        ...     stowax.load_checkpointables(path)
        {'config': {'depth': 3}}
    """

    typestr = JSON_TYPESTR

    def __init__(self, filename: str | None = None) -> None:
        self._filename = filename or JSON_DOCUMENTS[0]

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Writes the value down; returns the rest of the work.

        Raises:
            HandlerError: It is no JSON value; says which part is not.
        """
        try:
            data = json.dumps(checkpointable).encode()
        except (TypeError, ValueError) as error:
            raise HandlerError(f"no JSON value: {error}") from error
        where = await OperationPath.of(directory, current_settings())
        writing = self._write(where.operation, where.location, data)
        return where.operation.submit(writing)

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """Returns the work of reading the value; there is nothing to ask for."""
        del abstract_checkpointable
        where = await OperationPath.of(directory, current_settings())
        return where.operation.submit(self._read(where.operation, where.location))

    async def metadata(self, directory: Any) -> None:
        """Nothing is known of a JSON value but itself."""
        del directory

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether the value is JSON."""
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """None can be loaded; anything else asks for more than JSON says."""
        return None if abstract_checkpointable is None else False

    async def _write(self, operation: Operation, location: str, data: bytes) -> None:
        if operation.processes.index == operation.processes.primary:
            path = join(location, self._filename)
            await operation.store.write(path, [data], size_bytes=len(data))
            await operation.store.sync([path, location])

    async def _read(self, operation: Operation, location: str) -> Any:
        for name in (self._filename, *JSON_DOCUMENTS):
            path = join(location, name)
            if await operation.store.stat(path) is None and (
                path not in operation.digests
            ):
                continue
            data = await read_document(
                operation.store,
                path,
                operation.digests.get(path),
                operation.settings.verify,
            )
            return decode_json(data, path=path)
        raise InvalidLayoutError(f"{location} holds no JSON document")


class MetricsHandler(JsonHandler):
    """Saves and loads the metrics of a step."""

    typestr = METRICS_TYPESTR

    def __init__(self) -> None:
        super().__init__("metrics")
