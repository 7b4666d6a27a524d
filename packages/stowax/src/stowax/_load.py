"""The story of a load: settings, format, handlers, and values in place."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from stowax._caller import as_caller, is_on_behalf, on_behalf
from stowax._context import current_settings
from stowax._deadline import Timed, drive_in_time, entering, guest_in_time, in_time
from stowax._environment import runtime_of
from stowax._formats._base import OpenCheckpoint
from stowax._handlers._base import check_awaitable, is_own
from stowax._handlers._pytree import PyTreeHandler
from stowax._handlers._registry import Handlers
from stowax._metadata import CheckpointMetadata
from stowax._opened import (
    AUTO,
    OpaqueCheckpointable,
    check_tree_name,
    describe,
    guest_directory,
    item_kinds,
    not_found,
    tree_name,
    unless_replaced,
)
from stowax._operation import Operation, in_place, reported
from stowax._operation_path import OperationPath, absolute
from stowax._report import Report
from stowax._response import AsyncResponse, respond
from stowax._settings import Settings, check_supported
from stowax._tasks import drop, noting
from stowax.errors import InvalidNameError


def load(
    path: Any,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
) -> Any:
    """Loads a state, verified.

    Args:
        path: A checkpoint of this library, or of any Orbax.
        abstract_state: What to load: a tree with a leaf for every stored one:
            `jax.ShapeDtypeStruct` or any array (with a sharding: loaded onto it), a
            NumPy array, a number or its type, `str`, or `PLACEHOLDER` to leave it out;
            the types `jax.Array` and `numpy.ndarray` for one as it is stored; None for
            None, also in place of one leaf, which is then not loaded, as in Orbax; the
            result has exactly its containers. Also the result of
            `metadata()`. None: all, as it was saved, in plain containers; with
            `PyTreeOptions.Loading.rename`, what its rules map.
        checkpointable_name: Which tree; `"AUTO"`: the only one, or "state"; None: the
            path itself is the directory of a tree.

    Returns:
        The state. Arrays go where the abstract state says; without a word there, to
        the devices they were spread over when they were saved, or, not committed, to
        the default device.

    Raises:
        CheckpointNotFoundError: Nothing is at the path.
        InvalidLayoutError: It is no checkpoint, or an incomplete one.
        CheckpointableNotFoundError: It holds no tree of that name.
        TreeMismatchError: Lists every leaf that does not fit.
        RenameError: The rules of `PyTreeOptions.Loading.rename` cannot be followed.
        UnsupportedLeafError: A leaf asks for nothing that a checkpoint can hold.
        CorruptCheckpointError: Bytes are not what was saved; names leaf and file.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`; says what it
            was doing.
        RunningLoopError: Called in a callback of `on_complete`, where it could not go
            on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": jnp.ones((2, 3)), "pair": (1, "two")})
        >>> stowax.load(path)["pair"]
        (1, 'two')
        >>> abstract = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "pair": ...}
        >>> stowax.load(path, abstract)["w"].dtype
        dtype(bfloat16)
    """
    return _start_load(path, abstract_state, checkpointable_name).now()


def load_async(
    path: Any,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
) -> AsyncResponse[Any]:
    """Loads a state in the background; see `load`.

    Arrays are made as on the thread of the caller: the mesh of `jax.set_mesh`,
    `jax.enable_x64` and `jax.default_device` are taken along. Nothing is loaded yet
    when it returns, so leave the abstract state alone until the result is there.

    Args:
        path: See `load`.
        abstract_state: See `load`.
        checkpointable_name: See `load`.

    Returns:
        A response; `result()`, or `await`, gives the state, or raises what `load`
        raises.

    Raises:
        UnsupportedOptionError: An option would change the result, and cannot be
            followed.
        InvalidNameError: It is no path.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 3})
        >>> stowax.load_async(path).result()
        {'step': 3}
    """
    return _start_load(path, abstract_state, checkpointable_name).later()


def load_checkpointables(
    path: Any, abstract_checkpointables: Any = None
) -> dict[str, Any]:
    """Loads several named checkpointables.

    Args:
        path: See `load`.
        abstract_checkpointables: What to load, by name: an abstract state, an object
            with `save` and `load` methods, which is loaded in place, or None for
            whatever is stored. None in place of the dict: all that are stored. Also
            the result of `checkpointables_metadata()`.

    Returns:
        By name, what was loaded. A checkpointable that nothing here can load comes
        back as a description if it was not asked for by name.

    Raises:
        CheckpointableNotFoundError: A name is not in the checkpoint.
        HandlerNotFoundError: Nothing here can load what was asked for by name.
        Exception: See `load`; and whatever a handler raises.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"model": {"w": 1.5}, "step": 3})
        >>> stowax.load_checkpointables(path, {"step": int})
        {'step': 3}
    """
    return _start_load_checkpointables(path, abstract_checkpointables).now()


def load_checkpointables_async(
    path: Any, abstract_checkpointables: Any = None
) -> AsyncResponse[dict[str, Any]]:
    """Loads several named checkpointables in the background; see `load_async`.

    Args:
        path: See `load`.
        abstract_checkpointables: See `load_checkpointables`.

    Returns:
        A response; `result()`, or `await`, gives the dict, or raises what
        `load_checkpointables` raises.

    Raises:
        InvalidNameError: It is no path, or what to load is no dict.
        UnsupportedOptionError: An option would change the result, and cannot be
            followed.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"model": {"w": 1.5}, "step": 3})
        >>> response = stowax.load_checkpointables_async(path, {"step": int})
        >>> response.result()
        {'step': 3}
    """
    return _start_load_checkpointables(path, abstract_checkpointables).later()


@dataclass(frozen=True, slots=True)
class _Load:
    """A load that may run on the caller's thread or on one of its own."""

    work: Callable[[Settings], Coroutine[Any, Any, Any]]
    """Begins it."""
    settings: Settings
    location: str

    @property
    def what(self) -> str:
        """In words."""
        return f"load of {self.location}"

    def now(self) -> Any:
        settings, report = self._reported(in_background=is_on_behalf())
        with report.telling():
            return drive_in_time(lambda: self.work(settings), settings, self.what)

    def later(self) -> AsyncResponse[Any]:
        settings, report = self._reported(in_background=True)
        runtime, timed = runtime_of(settings), Timed(f"the {self.what}")
        # What blocks cannot be stopped, but is not waited for beyond the deadline.
        with report.telling_of_failure(), on_behalf():
            work = self._as_caller(settings, report, timed)
            future = guest_in_time(runtime, work, settings, timed)
        future.add_done_callback(report.given_up)
        return respond(runtime, future, what=self.what)

    def _reported(self, *, in_background: bool) -> tuple[Settings, Report]:
        return reported(
            "load", self.location, self.settings, in_background=in_background
        )

    async def _as_caller(self, settings: Settings, report: Report, timed: Timed) -> Any:
        with as_caller(), report.telling():
            return await in_time(lambda: self.work(settings), settings, timed)


def _start_load(path: Any, target: Any, name: str | None) -> _Load:
    settings, location = _door(path)
    check_tree_name(name)
    if isinstance(target, CheckpointMetadata):
        target = target.metadata

    async def work(settings: Settings) -> Any:
        if name is None:
            operation = in_place(location, settings)
            entering("opening the tree")
            async with operation.ending():
                where = OperationPath(operation, location)
                begun = await PyTreeHandler().load(where, target)
                entering("reading the tree")
                return await begun
        return await unless_replaced(location, settings, load_tree)

    async def load_tree(checkpoint: OpenCheckpoint, operation: Operation) -> Any:
        assert name is not None
        chosen = tree_name(checkpoint, await item_kinds(operation, checkpoint), name)
        loaded = await _load_named(checkpoint, operation, {chosen: target}, settings)
        return loaded[chosen]

    return _Load(work, settings, location)


def _start_load_checkpointables(path: Any, targets: Any) -> _Load:
    settings, location = _door(path)
    if isinstance(targets, CheckpointMetadata):
        targets = targets.metadata
    if targets is not None and not isinstance(targets, Mapping):
        raise InvalidNameError(
            f"`abstract_checkpointables` is {targets!r:.80}; give a dict: what to load "
            "by the name of each checkpointable"
        )

    async def load_all(
        checkpoint: OpenCheckpoint, operation: Operation
    ) -> dict[str, Any]:
        asked = dict.fromkeys(checkpoint.items) if targets is None else dict(targets)
        return await _load_named(
            checkpoint, operation, asked, settings, required=targets is not None
        )

    async def work(settings: Settings) -> dict[str, Any]:
        return await unless_replaced(location, settings, load_all)

    return _Load(work, settings, location)


def _door(path: Any) -> tuple[Settings, str]:
    settings = current_settings()
    check_supported(settings, saving=False)
    return settings, absolute(path)


async def _load_named(
    checkpoint: OpenCheckpoint,
    operation: Operation,
    targets: Mapping[str, Any],
    settings: Settings,
    *,
    required: bool = True,
) -> dict[str, Any]:
    handlers = Handlers(settings)
    kinds = await item_kinds(operation, checkpoint)
    asked: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for name, target in targets.items():
        if name not in checkpoint.items:
            raise not_found(checkpoint, name)
        typestr = checkpoint.typestrs.get(name)
        is_described = isinstance(target, OpaqueCheckpointable)
        asked[name] = None if is_described else target
        with noting(f"while choosing who loads {name!r}"):
            handler = handlers.for_loading(name, typestr, kinds[name], asked[name])
        if handler is None and required and not is_described:
            raise handlers.none_loads(checkpoint.items[name], name, typestr)
        chosen[name] = handler
    async with contextlib.AsyncExitStack() as directories, operation.ending():
        begun: dict[str, Awaitable[Any]] = {}
        loaded: dict[str, Any] = {}
        try:
            # All first phases before any second: what does not fit is found before
            # the first object is loaded into.
            for name, handler in chosen.items():
                entering(f"opening {name or 'the tree'}")
                with noting(f"while loading the checkpointable {name!r}"):
                    begun[name] = await _begin_item(
                        checkpoint, operation, name, asked[name], handler, directories
                    )
            for name in chosen:
                entering(f"reading {name or 'the tree'}")
                with noting(f"while loading the checkpointable {name!r}"):
                    loaded[name] = await begun.pop(name)
        finally:
            for rest in begun.values():
                drop(rest)
    return loaded


async def _begin_item(
    checkpoint: OpenCheckpoint,
    operation: Operation,
    name: str,
    target: Any,
    handler: Any | None,
    directories: contextlib.AsyncExitStack,
) -> Awaitable[Any]:
    """First phase of loading one item, on this thread as the second."""
    directory = checkpoint.items[name]
    if handler is None:
        return describe(operation, directory, checkpoint.typestrs.get(name))
    if is_own(handler, "load"):
        return await handler.load(OperationPath(operation, directory), target)
    local = await directories.enter_async_context(guest_directory(operation, directory))
    first = check_awaitable(handler.load(local, target), handler, "load", phase=1)
    return check_awaitable(await first, handler, "load")
