"""Functions that programs of the older API look for here; most have a better place."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import jax
import numpy as np
from etils import epath

from stowax._formats._orbax_json import UNFINISHED_MARK
from stowax._public import claim as _claim
from stowax.v0._flat import get_key_name as get_key_name
from stowax.v0._flat import is_dict_key as is_dict_key
from stowax.v0._flat import is_empty_node as is_empty_node
from stowax.v0._flat import is_empty_or_leaf as is_empty_or_leaf
from stowax.v0._flat import is_sequence_key as is_sequence_key
from stowax.v0._step_names import any_checkpoint_step as any_checkpoint_step
from stowax.v0._step_names import checkpoint_steps as checkpoint_steps
from stowax.v0._step_names import checkpoint_steps_paths as checkpoint_steps_paths
from stowax.v0._step_names import (
    step_from_checkpoint_name as step_from_checkpoint_name,
)
from stowax.v0.multihost import is_pathways_backend as is_pathways_backend
from stowax.v0.multihost import is_primary_host as is_primary_host
from stowax.v0.multihost import reached_preemption as reached_preemption
from stowax.v0.multihost import sync_global_processes as sync_global_processes
from stowax.v0.tree import deserialize_tree as deserialize_tree
from stowax.v0.tree import from_flat_dict as from_flat_dict
from stowax.v0.tree import serialize_tree as serialize_tree
from stowax.v0.tree import str_keypath as tuple_path_from_keypath
from stowax.v0.tree import to_flat_dict as to_flat_dict
from stowax.v0.tree import to_shape_dtype_struct as to_shape_dtype_struct

__all__ = [
    "TMP_DIR_SUFFIX",
    "any_checkpoint_step",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "deserialize_tree",
    "from_flat_dict",
    "get_key_name",
    "is_checkpoint_finalized",
    "is_dict_key",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_gcs_path",
    "is_pathways_backend",
    "is_primary_host",
    "is_scalar",
    "is_sequence_key",
    "is_tmp_checkpoint",
    "reached_preemption",
    "record_saved_duration",
    "serialize_tree",
    "step_from_checkpoint_name",
    "sync_global_devices",
    "sync_global_processes",
    "to_flat_dict",
    "to_shape_dtype_struct",
    "tuple_path_from_keypath",
]

TMP_DIR_SUFFIX: Final = UNFINISHED_MARK
"""In the names of directories that are not whole yet."""

sync_global_devices = sync_global_processes


def is_tmp_checkpoint(path: epath.PathLike) -> bool:
    """Whether a directory is the draft of a checkpoint.

    Args:
        path: The directory.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_tmp_checkpoint(getfixture("tmp_path"))
        False
    """
    directory = epath.Path(path)
    return UNFINISHED_MARK in directory.name and directory.is_dir()


def is_checkpoint_finalized(path: epath.PathLike) -> bool:
    """Whether a directory is no draft: what has another name is whole.

    Args:
        path: The directory.

    Raises:
        FileNotFoundError: There is none.
        NotADirectoryError: It is a file.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_checkpoint_finalized(getfixture("tmp_path"))
        True
    """
    directory = epath.Path(path)
    if not directory.exists():
        raise FileNotFoundError(f"there is no checkpoint at {directory}")
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; give its directory")
    return UNFINISHED_MARK not in directory.name


def is_gcs_path(path: epath.Path) -> bool:
    """Whether a path is one of Google Cloud Storage.

    Args:
        path: Any path.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_gcs_path(getfixture("tmp_path"))
        False
    """
    return path.as_posix().startswith(("gs://", "/gs/", "/gcs/"))


def is_scalar(x: Any) -> bool:
    """Whether something is a number of Python or of NumPy.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_scalar(np.float32(1)), ocp.utils.is_scalar(np.ones(()))
        (True, False)
    """
    return isinstance(x, int | float | np.number)


def record_saved_duration(checkpoint_start_time: float) -> None:
    """Tells `jax.monitoring` how much time of a program a checkpoint keeps.

    It is the time since the checkpoint before began, or since this module was
    imported.

    Args:
        checkpoint_start_time: When the checkpoint was begun, as `time.time()` has it.

    Example:
        >>> import time
        >>> from stowax import v0 as ocp
        >>> ocp.utils.record_saved_duration(time.time())
    """
    global _last_start_time
    with _lock:
        kept_secs = checkpoint_start_time - _last_start_time
        _last_start_time = checkpoint_start_time
    jax.monitoring.record_event_duration_secs(
        "/jax/checkpoint/write/duration_since_last_checkpoint_secs", kept_secs
    )


_last_start_time = time.time()
_lock = threading.Lock()
"""Guards the start of the last checkpoint."""

_claim(globals())
