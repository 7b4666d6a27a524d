"""An optimizer state as something that `stowax.save_checkpointables` can save."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import jax

from stowax.adapters import (
    StoredName,
    load_item,
    nest,
    open_item,
    place_leaf,
    save_item,
    storable_leaf,
    stored_name,
)
from stowax.path import Path, PathAwaitingCreation

from . import _document, _nnx
from ._match import plan_requests
from ._params import parameters
from ._walk import OwnedLeaf, walk


class State:
    """The state of an Optax optimizer, or of an `nnx.Optimizer`, in a checkpoint.

    After a load `value` holds the state with exactly the types it had before: named
    tuples, `EmptyState`, `MaskedNode`.  An `nnx.Optimizer` is loaded in place, its step
    included.  Leaves arrive with the shardings of the state that was given, which may
    be abstract; what is not committed to a device yet stays so.

    Every leaf is saved with the name of the transform that owns it, and a load compares
    the owners: Adam's moments are not loaded into AdaBelief, although they look alike.
    Transforms that share a state type, as `adamax` does with `adam`, are told apart by
    a `tag` of yours.  A load happens as a whole or not at all.

    On disk the item is an ordinary tree (`tree["opt_state"][0]["mu"]`), which
    `stowax.load` and Orbax read without Optax, with a document `optax.json` beside it.
    A tree without that document loads too; then owners and tags are not compared.

    Example:
        >>> import jax.numpy as jnp, optax, stowax, stowax_optax, tempfile
        >>> path = tempfile.mkdtemp() + "/checkpoint"
        >>> state = optax.adam(1e-3).init({"w": jnp.ones(2)})
        >>> stowax.save_checkpointables(path, {"opt": stowax_optax.State(state)})
        >>> loaded = stowax_optax.State(state)
        >>> _ = stowax.load_checkpointables(path, {"opt": loaded})
        >>> type(loaded.value[0]).__name__
        'ScaleByAdamState'
    """

    def __init__(self, opt_state: Any, params: Any = None, *, tag: str | None = None):
        """Wraps a state.

        Args:
            opt_state: What `tx.init(params)` or `tx.update` returned, the abstract form
                of it, or an `nnx.Optimizer`.
            params: The parameters, concrete or abstract: lets the document say which
                parameter each leaf belongs to.  An `nnx.Optimizer` knows by itself.
            tag: A name of yours for the optimizer; must be the same at save and load.
        """
        self._value = opt_state
        self._params = frozenset(() if params is None else parameters(params))
        self._tag = tag

    @property
    def value(self) -> Any:
        """The state as it was given, and after a load the loaded one."""
        return self._value

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Captures every leaf; what it returns writes them.

        Raises:
            UnsupportedLeafError: A leaf is neither an array nor a number.
        """
        leaves = self._leaves()
        tree = nest((leaf.path, storable_leaf(leaf.live)) for leaf in leaves)
        document = _document.describe(leaves, self._tag)
        return await save_item(directory, tree, _document.NAME, document)

    async def load(self, directory: Path) -> Awaitable[None]:
        """Compares everything; what it returns loads and replaces the state.

        Raises:
            TreeMismatchError: Names every leaf that does not fit; nothing was changed.
            InvalidLayoutError: `optax.json` has another format version.
            CorruptCheckpointError: `optax.json` is damaged.
        """
        stored = await open_item(directory, _document.NAME, _document.KIND)
        document = _document.parse(stored)
        leaves = self._leaves()
        requests = plan_requests(stored, document, leaves, tag=self._tag)
        notes = document.leaves if document is not None else {}
        return self._assign(leaves, notes, await load_item(stored, requests))

    def _leaves(self) -> list[OwnedLeaf]:
        if _nnx.is_optimizer(self._value):
            params = self._params or _nnx.parameter_paths(self._value)
            return walk(_nnx.state_of(self._value), params)
        return walk({"opt_state": self._value}, self._params)

    async def _assign(
        self,
        leaves: list[OwnedLeaf],
        notes: Mapping[StoredName, Mapping[str, Any]],
        loaded: Awaitable[Mapping[StoredName, Any]],
    ) -> None:
        stored = await loaded
        values = {}
        for leaf in leaves:
            name = stored_name(leaf.path)
            values[leaf.path] = place_leaf(leaf.live, stored[name], notes.get(name, {}))
        if _nnx.is_optimizer(self._value):
            _nnx.assign(self._value, values)
        else:
            treedef = jax.tree.structure(self._value)
            self._value = jax.tree.unflatten(treedef, list(values.values()))
