"""The doors of a save: one tree or several checkpointables, waited for or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stowax._composite import RootFacts
from stowax._context import current_settings
from stowax._custom_metadata import json_object
from stowax._handlers._registry import STATE_NAME
from stowax._response import AsyncResponse
from stowax._save_composite import stage_composite
from stowax._save_names import check_name
from stowax._save_tensors import stage_tensors
from stowax._settings import Settings
from stowax._staged_save import StagedSave


def save(
    path: Any,
    state: Any,
    *,
    checkpointable_name: str = STATE_NAME,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> None:
    """Saves a state: a tree of arrays, numbers and strings.

    All or nothing: when this returns, the checkpoint is complete and durable; if it
    raises, whatever was at the path before is untouched, and nothing goes on in the
    background, not even after Ctrl-C. In a run of several processes all of them call
    it.

    Args:
        path: Where. Missing parents are made; a relative path is resolved.
        state: Any tree that JAX knows: dicts, lists, tuples, NamedTuples, registered
            dataclasses, with `jax.Array`, NumPy arrays, Python numbers, strings and
            None as leaves. Must not be changed until this returns.
        checkpointable_name: What `load` finds it under.
        overwrite: Whether to replace what is at the path. The old checkpoint stays
            whole until the new one takes its place.
        custom_metadata: JSON values to keep with the checkpoint, a dict.

    Raises:
        CheckpointExistsError: Something is at the path, and `overwrite` is false or it
            is no checkpoint.
        InvalidArgumentError: `overwrite` is neither True nor False.
        TreeError: The state cannot be saved; names every leaf in the way.
        DeadlineError: It took longer than `AsyncOptions.timeout_secs`.

    Example:
        >>> import jax.numpy as jnp
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": jnp.ones((2, 3)), "step": 1})
        >>> stowax.load(path)["step"]
        1
    """
    save_checkpointables(
        path,
        _named(checkpointable_name, state),
        overwrite=overwrite,
        custom_metadata=custom_metadata,
    )


def save_async(
    path: Any,
    state: Any,
    *,
    checkpointable_name: str = STATE_NAME,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> AsyncResponse[None]:
    """Saves a state in the background.

    Returns once the caller may change, donate or delete every leaf. The checkpoint
    appears when it is complete. A failure is raised by `result()`; if nobody asks, by
    the next save; if there is none, the program ends with a message and status 1.

    Args:
        path: See `save`.
        state: See `save`.
        checkpointable_name: See `save`.
        overwrite: See `save`.
        custom_metadata: See `save`.

    Raises:
        CheckpointExistsError: Something is at the path.
        SaveInProgressError: An earlier save to this path has not ended, whether
            `overwrite` or not; wait for its `result()` first.
        TreeError: The state cannot be saved; names every leaf in the way.
        BackgroundSaveError: An earlier save failed, and nobody had asked for it.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> weights = np.ones(3)
        >>> response = stowax.save_async(path, {"w": weights})
        >>> weights[:] = 0  # already allowed
        >>> response.result()
        >>> stowax.load(path)["w"]
        array([1., 1., 1.])
    """
    return save_checkpointables_async(
        path,
        _named(checkpointable_name, state),
        overwrite=overwrite,
        custom_metadata=custom_metadata,
    )


def save_checkpointables(
    path: Any,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> None:
    """Saves several named checkpointables as one checkpoint.

    Args:
        path: See `save`.
        checkpointables: By name: trees, objects with `save` and `load` methods
            (`StatefulCheckpointable`), and whatever a registered handler accepts.
        overwrite: See `save`.
        custom_metadata: See `save`.

    Raises:
        InvalidNameError: A name that no checkpointable can have.
        HandlerError: No handler accepts a checkpointable.
        Exception: See `save`; and whatever a handler raises.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save_checkpointables(path, {"model": {"w": 1.5}, "step": 3})
        >>> stowax.load_checkpointables(path)
        {'model': {'w': 1.5}, 'step': 3}
    """
    _stage(
        path,
        checkpointables,
        current_settings(),
        overwrite=overwrite,
        custom_metadata=custom_metadata,
        borrow=True,
        in_background=False,
    ).finish()


def save_checkpointables_async(
    path: Any,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> AsyncResponse[None]:
    """Saves several named checkpointables in the background.

    Args:
        path: See `save`.
        checkpointables: See `save_checkpointables`.
        overwrite: See `save`.
        custom_metadata: See `save`.

    Returns:
        See `save_async`.
    """
    settings = current_settings()
    return _stage(
        path,
        checkpointables,
        settings,
        overwrite=overwrite,
        custom_metadata=custom_metadata,
        borrow=not settings.deepcopy_host_arrays,
        in_background=True,
    ).start()


def _named(name: Any, state: Any) -> dict[str, Any]:
    if not isinstance(name, str):  # Which may be no key of a dict.
        check_name(name)
    return {name: state}


def _stage(
    path: Any,
    checkpointables: Mapping[str, Any],
    settings: Settings,
    *,
    overwrite: bool,
    custom_metadata: Any,
    borrow: bool,
    in_background: bool,
) -> StagedSave:
    metadata = json_object("custom_metadata", custom_metadata) or {}
    if settings.writes_safetensors:
        return stage_tensors(
            path,
            checkpointables,
            settings,
            overwrite=overwrite,
            metadata=metadata,
            borrow=borrow,
            in_background=in_background,
        )
    return stage_composite(
        path,
        checkpointables,
        settings,
        overwrite=overwrite,
        facts=RootFacts(custom_metadata=metadata),
        borrow=borrow,
        in_background=in_background,
    )
