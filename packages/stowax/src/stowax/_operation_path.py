"""The directories that carry an operation to handlers.

A directory given to a handler carries the operation, so that a `PyTreeHandler()` used
inside another handler takes part in it; given a plain path, a handler makes an
operation of its own.
"""

from __future__ import annotations

import os
import pathlib
import posixpath
from typing import Any

from etils import epath

from stowax._operation import Operation, in_place
from stowax._settings import Settings
from stowax.errors import InvalidNameError


class OperationPath:
    """A directory of a running operation: the `PathAwaitingCreation` of handlers.

    Args:
        operation: What it carries.
        location: Where it is, as the store knows it.
        base: The directory that is made for whoever awaits it; None: this one.
    """

    def __init__(
        self, operation: Operation, location: str, base: str | None = None
    ) -> None:
        self.operation = operation
        self.location = location
        self._base = location if base is None else base

    @classmethod
    async def of(
        cls, directory: Any, settings: Settings, *, verb: str = "load"
    ) -> OperationPath:
        """A handler's directory, with the operation that it carries or one of its own.

        Args:
            directory: An `OperationPath`, a plain path, or a `PathAwaitingCreation`.
            settings: Those of an operation of its own.
            verb: See `in_place`.
        """
        if isinstance(directory, OperationPath):
            return directory
        if not isinstance(directory, str | os.PathLike):
            directory = await directory.await_creation()
        location = absolute(directory)
        return cls(in_place(location, settings, verb=verb), location)

    @property
    def path(self) -> epath.Path:
        """Where plain file calls find it."""
        local = self.operation.local_directory(self.location)
        return self.operation.settings.path_class(os.fspath(local))

    def __truediv__(self, other: str | os.PathLike[str]) -> OperationPath:
        below = pathlib.PurePath(other)
        if below.is_absolute() or ".." in below.parts:
            raise InvalidNameError(
                f"{os.fspath(other)!r} leads out of {self.location}, where a handler "
                "has to stay; join a plain relative path"
            )
        location = posixpath.normpath(posixpath.join(self.location, below.as_posix()))
        return OperationPath(self.operation, location, self._base)

    async def await_creation(self) -> epath.Path:
        """Makes the directory of the checkpointable, and returns the path."""
        store = self.operation.store
        await self.operation.submit(store.make_directory(self._base))
        if not store.has_directories:
            os.makedirs(self.operation.local_directory(self._base), exist_ok=True)
        return self.path

    def __repr__(self) -> str:
        return f"OperationPath({self.location!r})"


def absolute(path: Any) -> str:
    """The path as stores know it: absolute, normalised, with forward slashes.

    A leading `~` is the home directory, as in a shell; `./~` is a directory of that
    name.

    Raises:
        InvalidNameError: It is no path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidNameError(
            f"the path is {path!r}; a checkpoint has a str that is not empty, or a "
            "path object, as its path"
        )
    if "://" not in text:
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            raise InvalidNameError(
                f"{text}: nobody here has that home directory; a directory whose name "
                f"begins with '~' is './{text}'"
            )
        text = pathlib.Path(os.path.abspath(expanded)).as_posix()
    location = text.rstrip("/")
    if not location:
        raise InvalidNameError("the root directory is no path of a checkpoint")
    return location
