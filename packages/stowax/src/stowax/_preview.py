"""A dry run: what a load would do, and what stands against it."""

from __future__ import annotations

from typing import Any

from stowax._caller import in_mesh
from stowax._context import current_settings
from stowax._deadline import drive_in_time
from stowax._item_plan import plan_load
from stowax._leaves._registry import Leaves
from stowax._metadata import CheckpointMetadata
from stowax._named_tree import NamedTree, read_tree
from stowax._opened import AUTO
from stowax._operation_path import absolute
from stowax._plan._rows import LoadPreview
from stowax._settings import check_supported


def preview_load(
    path: Any,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
) -> LoadPreview:
    """Says what `load` would do with the same arguments in the same Context.

    No array data is read and nothing is changed. What would be a `TreeMismatchError`
    of the load is in `.problems`, a line each; `.rows` has all leaves, for code.

    Args:
        path: The checkpoint.
        abstract_state: See `load`.
        checkpointable_name: See `load`.

    Returns:
        A value that prints as a table: every leaf of the result, where it is stored,
        what is stored and what is asked for, and what happens.

    Raises:
        RenameError: The rules of `PyTreeOptions.Loading.rename` cannot be followed.
        UnsupportedLeafError: A leaf asks for nothing that a checkpoint can hold.
        Exception: See `metadata`.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"dense": {"kernel": np.ones((2, 3), np.float32)}})
        >>> loading = stowax.options.PyTreeOptions.Loading(rename={"linear": "dense"})
        >>> pytree = stowax.options.PyTreeOptions(loading=loading)
        >>> with stowax.Context(pytree=pytree):
        ...     asked = {"linear": {"kernel": np.zeros((2, 3), np.int8)}}
        ...     preview = stowax.preview_load(path, asked)
        >>> [(row.target, row.stored, row.outcome) for row in preview.rows]
        [('linear.kernel', 'dense.kernel', 'cast')]
        >>> preview.problems
        ()
    """
    location, settings = absolute(path), current_settings()
    check_supported(settings, saving=False)
    if isinstance(abstract_state, CheckpointMetadata):
        abstract_state = abstract_state.metadata

    async def plan(tree: NamedTree) -> LoadPreview:
        with in_mesh(settings.loading.mesh):
            return plan_load(
                tree.item,
                abstract_state,
                has_target=abstract_state is not None,
                loading=settings.loading,
                processes=tree.operation.processes,
                leaves=Leaves(settings.leaf_handlers),
            ).preview()

    async def read() -> LoadPreview:
        return await read_tree(location, settings, checkpointable_name, plan)

    return drive_in_time(read, settings, f"preview of {location}")
