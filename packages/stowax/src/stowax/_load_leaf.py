"""One leaf of a stored tree, or one slice of it, without the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from stowax._caller import in_mesh, warn
from stowax._context import current_settings
from stowax._deadline import drive_in_time, entering
from stowax._item_fit import ANYTHING, LeafFit, fit_leaf
from stowax._item_leaf import Placing
from stowax._item_read import WAITING, read_item, tally_of
from stowax._keypath import at_leaf
from stowax._leaves._registry import Leaves
from stowax._manifest import LeafEntry, LeafForm
from stowax._named_tree import NamedTree, read_tree
from stowax._opened import AUTO
from stowax._operation import reported
from stowax._operation_path import absolute
from stowax._plan._index import view_of
from stowax._plan._match import near_name
from stowax._plan._rows import LoadPreview
from stowax._settings import Settings, check_supported
from stowax._transfer import HostMemory, settle
from stowax.errors import InvalidNameError, LeafIndexError, LeafNotFoundError


def load_leaf(
    path: Any,
    name: str,
    *,
    index: Any = None,
    abstract_leaf: Any = None,
    checkpointable_name: str | None = AUTO,
) -> Any:
    """Loads one leaf of a tree, or one slice of it.

    Only the chunks that hold the slice are read, and of large chunks of this library
    only the blocks of 128 KiB that it lies in. Every byte that is used is verified.

    Args:
        path: The checkpoint.
        name: The leaf, as messages and `preview_load` name it: ``"params.w"``; ``""``
            for a tree that is a leaf.
        index: A basic index of the stored array, as NumPy has it: integers, slices
            without a step, `...`, in a tuple for several axes. None: all of it.
        abstract_leaf: What to make of it, see `load`; its shape is that of the slice.
            None: as it was saved.
        checkpointable_name: Which tree; see `load`.

    Returns:
        The leaf. A slice of a `jax.Array` is not committed to a device, however the
        array was spread, unless the abstract leaf has a sharding.

    Raises:
        LeafNotFoundError: The tree has no such leaf; proposes near names.
        InvalidNameError: The name is no string.
        LeafIndexError: The index is none, or goes beyond the array.
        TreeMismatchError: The abstract leaf does not fit.
        Exception: See `load`.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": np.arange(12).reshape(3, 4), "step": 7})
        >>> stowax.load_leaf(path, "w", index=np.s_[1, -2:])
        array([6, 7])
        >>> stowax.load_leaf(path, "step")
        7
    """
    location, settings = absolute(path), current_settings()
    check_supported(settings, saving=False)
    _check_name(name)
    target = ANYTHING if abstract_leaf is None else abstract_leaf

    async def read_leaf(tree: NamedTree) -> Any:
        leaves = tree.item.manifest.leaves
        position = find_leaf(leaves, name, tree.item.path)
        path, form = leaves[position].path, leaves[position].form
        fit = _fit(tree, name, form, index, target, settings)
        if fit.plan is None:
            asked_by = "nobody" if target is ANYTHING else "state"
            row = fit.row(name, path)
            LoadPreview(tree.item.path, [row], asked_by=asked_by).check()
        assert fit.plan is not None
        if fit.note:
            warn(f"{location}: the dtype asked for loses values: {name}: {fit.note}")
        operation, passing_bytes = tree.operation, fit.plan.passing_bytes
        entering(WAITING)
        async with operation.passing(passing_bytes):
            begun = fit.plan.begin(position, path, HostMemory())
            entering("reading it")
            tally = tally_of(operation, tree.item, [(position, fit.plan.read_bytes)])
            reading = read_item(operation, tree.item, begun.requests, tally)
            await operation.finished(operation.submit(reading))
            entering("placing it")
            with in_mesh(settings.loading.mesh):
                value = Placing(operation.processes).place(begun)
            if passing_bytes and isinstance(value, jax.Array):
                settle([value])
            if tally is not None:
                tally.finish()
            return value

    told, report = reported("load", location, settings, in_background=False)

    async def read() -> Any:
        return await read_tree(location, told, checkpointable_name, read_leaf)

    with report.telling():
        return drive_in_time(read, settings, f"load of {name!r} of {location}")


def _fit(
    tree: NamedTree,
    name: str,
    form: LeafForm,
    index: Any,
    target: Any,
    settings: Settings,
) -> LeafFit:
    view = None
    if index is not None:
        if form.dtype is None:
            article = "an" if form.kind == "integer" else "a"
            raise LeafIndexError(
                f"leaf {name!r} is {article} {form.kind}, and has no slices"
            )
        with at_leaf(name):
            extra = int(form.prng_impl is not None)
            view = view_of(index, form.shape, extra=extra)
    with in_mesh(settings.loading.mesh):
        return fit_leaf(
            form,
            target,
            name,
            settings.loading,
            tree.operation.processes,
            Leaves(settings.leaf_handlers),
            view,
        )


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise InvalidNameError(
            f"the name of a leaf is a string, such as 'params.w'; found {name!r}. "
            "`stowax.preview_load(path)` shows them all"
        )


def find_leaf(leaves: Sequence[LeafEntry], name: str, path: str) -> int:
    """Position of the leaf of a name.

    Raises:
        LeafNotFoundError: The tree has none; proposes near names.
    """
    for position, entry in enumerate(leaves):
        if entry.name == name:
            return position
    names = [entry.name for entry in leaves]
    near = near_name(name, names)
    below = [n for n in names if n.startswith(f"{name}.")]
    if below:
        hint = f"it is a container, with {below[0]!r} in it"
    elif near is not None:
        hint = f"near it is {near!r}"
    else:
        hint = f"it has {', '.join(map(repr, names[:8]))}" + ", …" * (len(names) > 8)
    raise LeafNotFoundError(
        f"the tree at {path} has no leaf {name!r}; {hint}. `stowax.preview_load(path)` "
        "shows them all"
    )
