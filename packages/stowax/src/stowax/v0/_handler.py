"""What a handler of the older API is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from etils import epath


class CheckpointHandler(abc.ABC):
    """Saves and restores one kind of item; to be used in a `Checkpointer`.

    A handler of yours is a guest: it is given a directory of the draft, may block and
    write with plain file calls, and what it wrote is summed, synced and published with
    the rest.

    Example:
        Without arguments of its own, a handler is given those of the call:

        >>> from stowax import v0 as ocp
        >>> class TextHandler(ocp.CheckpointHandler):
        ...     def save(self, directory, item):
        ...         (directory / "text").write_text(item)
        ...
        ...     def restore(self, directory, item=None):
        ...         return (directory / "text").read_text()
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(TextHandler()) as checkpointer:
        ...     checkpointer.save(path, "some words")
        ...     checkpointer.restore(path)
        'some words'
    """

    @abc.abstractmethod
    def save(self, directory: epath.Path, *args: Any, **kwargs: Any) -> Any:
        """Writes an item into a directory; returns when all is written."""

    @abc.abstractmethod
    def restore(self, directory: epath.Path, *args: Any, **kwargs: Any) -> Any:
        """Reads the item of a directory."""

    def metadata(self, directory: epath.Path) -> Any | None:
        """What the item of a directory looks like; None if that cannot be told."""
        del directory

    # No abstract method: most handlers have nothing to finish.
    def finalize(self, directory: epath.Path) -> None:  # noqa: B027
        """Called in one process when all have written, before it is published."""

    def close(self) -> None:  # noqa: B027
        """Called when its checkpointer is closed."""

    @classmethod
    def typestr(cls) -> str:
        """The name under which checkpoints record it."""
        return f"{cls.__module__}.{cls.__qualname__}"


class AsyncCheckpointHandler(CheckpointHandler):
    """A handler that can go on in the background, for an `AsyncCheckpointer`.

    Example:
        >>> import concurrent.futures
        >>> from stowax import v0 as ocp
        >>> class TextHandler(ocp.AsyncCheckpointHandler):
        ...     def save(self, directory, item):
        ...         (directory / "text").write_text(item)
        ...
        ...     async def async_save(self, directory, item):
        ...         pool = concurrent.futures.ThreadPoolExecutor()
        ...         return [pool.submit(self.save, directory, item)]
        ...
        ...     def restore(self, directory, item=None):
        ...         return (directory / "text").read_text()
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.AsyncCheckpointer(TextHandler()) as checkpointer:
        ...     checkpointer.save(path, "some words")
        ...     checkpointer.restore(path)
        'some words'
    """

    @abc.abstractmethod
    async def async_save(
        self, directory: epath.Path, *args: Any, **kwargs: Any
    ) -> Sequence[Any] | None:
        """Takes what it needs of the item.

        Returns:
            Futures of the rest of the work, whose `result()` is waited for.
        """


class DeferredPathAsyncCheckpointHandler(AsyncCheckpointHandler):
    """The same; in Orbax the directory may be made later, here it is there."""
