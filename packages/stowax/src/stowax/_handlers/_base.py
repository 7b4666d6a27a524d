"""What a handler promises, and what a checkpointable that saves itself promises.

Both work in two phases.  `await handler.save(...)` ends when the caller may change the
checkpointable again, and returns an awaitable that finishes the write in the
background; loading is the same the other way round.

A user's handler is a guest.  Its first phase runs on the thread of the caller, its
second on a thread and a loop of its own, so it may block, write with plain file calls,
call `stowax.load`, or use `PyTreeHandler()` inside.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from etils import epath

from stowax._formats._base import ItemKind
from stowax.errors import HandlerError

T = TypeVar("T")
AbstractT = TypeVar("AbstractT")

_PACKAGE = __name__.partition(".")[0]


@runtime_checkable
class PathAwaitingCreation(Protocol):
    """A directory that may not exist yet, for handlers to write into."""

    @property
    def path(self) -> epath.Path:
        """Where it will be; nothing is there before `await_creation`."""
        ...

    def __truediv__(self, other: str | os.PathLike[str]) -> PathAwaitingCreation:
        """A path below it, for a file or for a directory of the handler's own."""
        ...

    async def await_creation(self) -> epath.Path:
        """Waits until the directory exists, and returns the path.

        May be awaited any number of times, in any event loop. The directory is that of
        the checkpointable; a path joined to it comes back with nothing there yet:

            path = await (directory / "shards").await_creation()
            path.mkdir()
        """
        ...


@runtime_checkable
class CheckpointableHandler(Protocol[T, AbstractT]):
    """Saves and loads one kind of checkpointable.

    Example:
        A handler for objects of one class, registered for good:

        >>> import json
        >>> import stowax
        >>> class Vocabulary(list): ...
        >>> class VocabularyHandler:
        ...     async def save(self, directory, checkpointable):
        ...         words = list(checkpointable)  # the caller may change it now
        ...
        ...         async def write():
        ...             path = await directory.await_creation()
        ...             (path / "words.json").write_text(json.dumps(words))
        ...
        ...         return write()
        ...
        ...     async def load(self, directory, abstract_checkpointable=None):
        ...         async def read():
        ...             text = (directory / "words.json").read_text()
        ...             return Vocabulary(json.loads(text))
        ...
        ...         return read()
        ...
        ...     async def metadata(self, directory):
        ...         return None
        ...
        ...     def is_handleable(self, checkpointable):
        ...         return isinstance(checkpointable, Vocabulary)
        ...
        ...     def is_abstract_handleable(self, abstract_checkpointable):
        ...         return None
        >>> registry = stowax.handlers.local_registry()
        >>> _ = registry.add(VocabularyHandler, checkpointable_name="words")
    """

    async def save(
        self, directory: PathAwaitingCreation, checkpointable: T
    ) -> Awaitable[None]:
        """Takes what it needs of the checkpointable; returns the rest of the work."""
        ...

    async def load(
        self, directory: epath.Path, abstract_checkpointable: AbstractT | None = None
    ) -> Awaitable[T]:
        """Begins to load; returns the rest of the work."""
        ...

    async def metadata(self, directory: epath.Path) -> AbstractT:
        """What the directory holds, without loading it."""
        ...

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether this handler can save `checkpointable`."""
        ...

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether this handler can load what is asked for; None: cannot tell."""
        ...


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves itself into a directory, and loads itself in place.

    Example:
        >>> import stowax
        >>> class Counter:
        ...     def __init__(self, count=0):
        ...         self.count = count
        ...
        ...     async def save(self, directory):
        ...         tree = {"count": self.count}
        ...         return await stowax.handlers.PyTreeHandler().save(directory, tree)
        ...
        ...     async def load(self, directory):
        ...         reading = await stowax.handlers.PyTreeHandler().load(directory)
        ...
        ...         async def finish():
        ...             self.count = (await reading)["count"]
        ...
        ...         return finish()
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"counter": Counter(3)})
        >>> counter = Counter()
        >>> _ = stowax.load_checkpointables(path, {"counter": counter})
        >>> counter.count
        3
        >>> stowax.load(path, checkpointable_name="counter")  # without the class
        {'count': 3}
    """

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Captures the state; returns the rest of the work."""
        ...

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """Begins to load the state in place; returns the rest of the work."""
        ...


class OwnHandler:
    """Marks the handlers of this library.

    They work on stores instead of paths, take part in the operation that their
    directory carries, and never block a loop, so they are driven without a guest's
    room. That is said of what this library defines: a method that a subclass of a user
    overrides is a guest's; see `is_own`.
    """

    typestr: ClassVar[str] = ""
    """What a checkpoint records as the handler; a name that Orbax knows."""

    kind: ClassVar[ItemKind] = "opaque"
    """What the files are that it writes."""

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """See `CheckpointableHandler.save`; a directory may be a path too."""
        raise NotImplementedError  # Every final class has its own.

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """See `CheckpointableHandler.load`."""
        raise NotImplementedError  # Every final class has its own.

    async def metadata(self, directory: Any) -> Any:
        """See `CheckpointableHandler.metadata`."""
        raise NotImplementedError  # Every final class has its own.


class NeedsTarget:
    """Marks the handlers of this library that load nothing unless they are told what.

    Of what they saved, a load of everything gives a description.
    """


class FinalizingHandler:
    """Marks the handlers of guests that finish an item once all of it is written."""

    def has_to_finalize(self) -> bool:
        """Whether there is anything to finish; asked when all of it is written."""
        return True

    async def finalize_item(self, directory: epath.Path) -> None:
        """Runs in the primary process, before the item is sealed; may block."""
        raise NotImplementedError  # Every final class has its own.


def is_own(handler: Any, name: str) -> bool:
    """Whether a method, or attribute, of a handler is one of ours.

    Of a user's subclass only what it inherits is.

    Args:
        handler: A class, or an instance.
        name: Of the method.
    """
    return _is_ours(handler, name, OwnHandler)


def needs_target(handler: Any) -> bool:
    """Whether a handler, class or instance, can load nothing unless told what."""
    return _is_ours(handler, "load", NeedsTarget)


def _is_ours(handler: Any, name: str, mark: type) -> bool:
    cls = handler if isinstance(handler, type) else type(handler)
    for each in cls.__mro__:
        if name in vars(each):
            is_here = each.__module__.partition(".")[0] == _PACKAGE
            return is_here and issubclass(each, mark)
    return False


def check_awaitable(found: Any, owner: Any, verb: str, *, phase: int = 2) -> Any:
    """Refuses a handler, or an object that saves itself, whose phases are not two.

    Args:
        found: What a call of its method, or awaiting that, gave.
        owner: The handler or object.
        verb: The method.
        phase: Whether it is the method itself that should be awaited, or what it
            returns.

    Raises:
        HandlerError: It cannot be awaited.
    """
    if isinstance(found, Awaitable):
        return found
    name = f"{type(owner).__qualname__}.{verb}"
    if phase == 1:
        raise HandlerError(f"{name} must be an `async def`, found {found!r}")
    raise HandlerError(
        f"{name} must return an awaitable that does the rest of the work, found "
        f"{found!r}"
    )
