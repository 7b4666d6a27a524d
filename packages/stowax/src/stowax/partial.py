"""Checkpoints that grow in parts, and are changed in place.

Each `save` adds to a session beside the path; `finalize` makes a checkpoint of it:

    save(path, {"encoder": …})
    save(path, {"decoder": …})
    finalize(path)                          now there is something at the path

With `replace=True` a later save replaces what is there, and a session may begin from a
checkpoint that is already at the path.  What is not saved again is not written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stowax._context import current_settings
from stowax._custom_metadata import json_object
from stowax._finalize import finalize as finalize
from stowax._handlers._registry import STATE_NAME
from stowax._option_values import check_flags
from stowax._public import claim as _claim
from stowax._response import AsyncResponse
from stowax._save_update import stage_update
from stowax._settings import Settings
from stowax._staged_save import StagedSave

__all__ = [
    "finalize",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
]


def save(
    path: Any, state: Any, *, custom_metadata: Any = None, replace: bool = False
) -> None:
    """Saves a part of a state to a session.

    The session is begun by the first call, in a directory beside the path; nothing can
    be loaded before `finalize`. All or nothing: if this raises, or is interrupted, the
    session is as it was. Containers are united with those that are there, key by key,
    so a later call may add leaves at any depth.

    It saves to the checkpointable "state"; `save_checkpointables` takes other names.

    Args:
        path: Of the checkpoint that it will be; the same in all calls.
        state: A tree; see `stowax.save`.
        custom_metadata: JSON values, a dict; united with those of earlier calls, the
            later value counts.
        replace: Whether leaves that are there already are replaced, and whether a
            session may begin from the checkpoint at the path. What the state does not
            name stays. Dicts and classes like them keep what they have; a list, a
            tuple or a class with other children than before takes the place of all that
            was there.

    Raises:
        CheckpointExistsError: A checkpoint is at the path, and `replace` is false.
        InvalidLayoutError: The checkpoint at the path has no "state", or is of a kind
            that cannot be changed in place.
        PartialSaveReplacementError: A leaf is there already, or another one above or
            below it, and `replace` is false; names every such leaf.
        UnsupportedOptionError: Arrays would be stored in another way than those that
            are there (`use_ocdbt`, `use_zarr3`).
        Exception: See `stowax.save`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"body": {"w": 1.5}, "head": {"w": 2.5}})
        >>> stowax.partial.save(path, {"head": {"w": 3.5, "b": 0.5}}, replace=True)
        >>> stowax.load(path)  # not before it is finalized
        {'body': {'w': 1.5}, 'head': {'w': 2.5}}
        >>> stowax.partial.finalize(path)
        >>> stowax.load(path)
        {'body': {'w': 1.5}, 'head': {'b': 0.5, 'w': 3.5}}
    """
    _stage(
        path,
        {STATE_NAME: state},
        current_settings(),
        custom_metadata=custom_metadata,
        replace=replace,
        is_named=False,
        borrow=True,
        in_background=False,
    ).finish()


def save_async(
    path: Any, state: Any, *, custom_metadata: Any = None, replace: bool = False
) -> AsyncResponse[None]:
    """Saves a part of a state to a session, in the background.

    Several calls may be under way together; they take effect in their order.

    Args:
        path: See `save`.
        state: See `save`.
        custom_metadata: See `save`.
        replace: See `save`.

    Raises:
        Exception: See `save`; what goes wrong in the background is raised by
            `result()`, else by the next save or by `finalize`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> first = stowax.partial.save_async(path, {"a": 1})
        >>> second = stowax.partial.save_async(path, {"b": 2})
        >>> stowax.partial.finalize(path)  # waits for both
        >>> stowax.load(path)
        {'a': 1, 'b': 2}
    """
    settings = current_settings()
    return _stage(
        path,
        {STATE_NAME: state},
        settings,
        custom_metadata=custom_metadata,
        replace=replace,
        is_named=False,
        borrow=not settings.deepcopy_host_arrays,
        in_background=True,
    ).start()


def save_checkpointables(
    path: Any,
    checkpointables: Mapping[str, Any],
    *,
    custom_metadata: Any = None,
    replace: bool = False,
) -> None:
    """Saves several named checkpointables, or parts of them, to a session.

    Args:
        path: See `save`.
        checkpointables: By name; see `stowax.save_checkpointables`. Trees are united
            with what is there; anything else is there as a whole, and only replaced as
            a whole.
        custom_metadata: See `save`.
        replace: See `save`.

    Raises:
        Exception: See `save`.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.partial.save_checkpointables(path, {"model": {"w": 1.5}})
        >>> stowax.partial.save_checkpointables(path, {"data": {"position": 7}})
        >>> stowax.partial.finalize(path)
        >>> stowax.load_checkpointables(path)
        {'data': {'position': 7}, 'model': {'w': 1.5}}
    """
    _stage(
        path,
        checkpointables,
        current_settings(),
        custom_metadata=custom_metadata,
        replace=replace,
        is_named=True,
        borrow=True,
        in_background=False,
    ).finish()


def save_checkpointables_async(
    path: Any,
    checkpointables: Mapping[str, Any],
    *,
    custom_metadata: Any = None,
    replace: bool = False,
) -> AsyncResponse[None]:
    """Saves several named checkpointables, or parts of them, in the background.

    Args:
        path: See `save`.
        checkpointables: See `save_checkpointables`.
        custom_metadata: See `save`.
        replace: See `save`.

    Raises:
        Exception: See `save_async`.
    """
    settings = current_settings()
    return _stage(
        path,
        checkpointables,
        settings,
        custom_metadata=custom_metadata,
        replace=replace,
        is_named=True,
        borrow=not settings.deepcopy_host_arrays,
        in_background=True,
    ).start()


def _stage(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    custom_metadata: Any,
    replace: bool,
    is_named: bool,
    borrow: bool,
    in_background: bool,
) -> StagedSave:
    check_flags(replace=replace)
    return stage_update(
        path,
        checkpointables,
        settings,
        replaces=replace,
        is_named=is_named,
        metadata=json_object("custom_metadata", custom_metadata) or {},
        borrow=borrow,
        in_background=in_background,
    )


_claim(globals())
