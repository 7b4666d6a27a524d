"""An NNX module as something that `stowax.save_checkpointables` can save and load."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stowax.adapters import (
    StoredName,
    load_item,
    nest,
    open_item,
    place_leaf,
    save_item,
    show_path,
    storable_leaf,
)
from stowax.errors import HandlerError, TreeMismatchError
from stowax.path import Path, PathAwaitingCreation

from . import _compat, _document
from ._match import LoadPlan, Match, plan_load
from ._walk import alias_groups, walk

EPHEMERAL = nnx.Any(nnx.Cache, nnx.Intermediate)
"""Variables that the next call computes again: caches, intermediates, perturbations."""


class Module:
    """An NNX module in a checkpoint: every Variable that a resumed run needs.

    Parameters, batch statistics, PRNG keys and counters, Variables of your own types
    and plain arrays are saved; caches and intermediates are not, unless asked for.
    Shared Variables are saved once, and stay shared through a load.

    A load assigns to the module that was given.  It happens as a whole or not at all:
    names, shapes, dtypes, PRNG implementations and Variable types of all Variables are
    compared before the first is touched.  Values arrive with the shardings of the
    module; what is not committed to a device yet stays so.  The structure of the
    module, its static attributes and Variable metadata are its own, never loaded.

    On disk the item is an ordinary tree (`tree["layers"][0]["kernel"]`), which
    `stowax.load` and Orbax read without Flax, with a document `nnx.json` beside it.  A
    tree without that document loads too; then Variable types are not compared, and
    weights that were tied are found only if the module ties them as it did.

    An `nnx.Optimizer` is refused: `stowax_optax.State` knows which optimizer it is.

    Example:
        >>> import stowax, stowax_flax, tempfile
        >>> from flax import nnx
        >>> path = tempfile.mkdtemp() + "/checkpoint"
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> stowax.save_checkpointables(path, {"model": stowax_flax.Module(model)})
        >>> other = nnx.Linear(2, 3, rngs=nnx.Rngs(1))
        >>> _ = stowax.load_checkpointables(path, {"model": stowax_flax.Module(other)})
        >>> bool((other.kernel[...] == model.kernel[...]).all())
        True
    """

    def __init__(self, module: Any, *, only: Any = None, exclude: Any = EPHEMERAL):
        """Wraps a module.

        Args:
            module: An NNX module, `nnx.Rngs`, metrics, or a tuple or dict of these.
            only: NNX filter: save or load these Variables alone.  What is stored for
                others of the module is then left on disk.
            exclude: NNX filter: leave these out.  `None` leaves out nothing.

        Raises:
            HandlerError: `module` is an `nnx.Optimizer`.
        """
        if isinstance(module, nnx.Optimizer):
            raise HandlerError(
                "An nnx.Optimizer is saved with `stowax_optax.State(optimizer)`: it "
                "checks that the stored state belongs to the same kind of optimizer, "
                "which NNX cannot see."
            )
        self._module = module
        self._filter = selection(only, exclude)

    @property
    def value(self) -> Any:
        """The module itself."""
        return self._module

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Captures every Variable; what it returns writes them.

        Raises:
            UnsupportedLeafError: A Variable holds an object that is neither an array, a
                number, text nor None.
        """
        held = walk(self._module, self._filter)
        tree = nest(
            (path, storable_leaf(leaf)) for h in held for path, leaf, _ in h.leaves
        )
        document = _document.describe(self._module, held, walk(self._module))
        return await save_item(directory, tree, _document.NAME, document)

    async def load(self, directory: Path) -> Awaitable[None]:
        """Compares everything; what it returns loads and assigns to the module.

        Raises:
            TreeMismatchError: Names every leaf that does not fit; nothing was changed.
            InvalidLayoutError: `nnx.json` has another format version.
            CorruptCheckpointError: `nnx.json` is damaged.
        """
        stored = await open_item(directory, _document.NAME, _document.KIND)
        plan = plan_load(
            stored,
            _document.parse(stored),
            selected=walk(self._module, self._filter),
            everything=walk(self._module),
            live_groups=alias_groups(self._module),
        )
        return self._assign(plan, await load_item(stored, plan.requests(stored)))

    async def _assign(
        self, plan: LoadPlan, loaded: Awaitable[Mapping[StoredName, Any]]
    ) -> None:
        values = await loaded
        taken: set[StoredName] = set()
        nodes = {
            held.path: held.with_values(
                [_value(match, values, taken, plan) for match in matches]
            )
            for held, matches in plan.targets
        }
        _compat.update(self._module, nodes)


def selection(only: Any, exclude: Any) -> Any:
    """The NNX filter that `only` and `exclude` mean together."""
    wanted = ... if only is None else only
    return wanted if exclude is None else nnx.All(wanted, nnx.Not(exclude))


def _value(
    match: Match,
    values: Mapping[StoredName, Any],
    taken: set[StoredName],
    plan: LoadPlan,
) -> Any:
    first, *others = match.sources
    value = values[first]
    for other in others:
        if not _equal(value, values[other]):
            line = (
                f"{show_path(match.path)}   tied in the module   stored apart and "
                f"different as {show_path(first)} and {show_path(other)}"
            )
            raise TreeMismatchError(
                f"The checkpoint at {plan.directory} does not fit the module:\n"
                f"  {line}\nThe module was not changed. Untie the weights in it.",
                [line],
            )
    if first in taken and hasattr(value, "copy"):
        # Two Variables must not hold one array: donating one would delete the other.
        value = value.copy()
    taken.add(first)
    return place_leaf(match.live, value, match.note)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    if isinstance(one, jax.Array):
        return bool(jnp.array_equal(one, other, equal_nan=True))
    return bool(np.array_equal(one, other))
