"""Shardings for the leaves of an optimizer state, from those of the parameters.

A leaf that belongs to a parameter (`_params`) is sharded as far as its shape says how:
the same shape, the same shape behind leading dimensions, or the shape with exactly one
dimension dropped that only one dimension can be.  Whatever remains is replicated, which
is always correct, and reported, because it may cost memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from stowax.adapters import KeyPath, StoredName, show_path, stored_name

from ._params import named_leaves, parameter_of, parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingReport:
    """What could not be sharded like its parameter; all of it is replicated."""

    ambiguous: tuple[str, ...] = ()
    """Leaves that lack one dimension of their parameter, and several may be meant."""
    unmatched: tuple[str, ...] = ()
    """Leaves with dimensions that follow from no parameter."""

    def __str__(self) -> str:
        lines = [f"ambiguous: {line}" for line in self.ambiguous]
        lines += [f"unmatched: {line}" for line in self.unmatched]
        return "\n".join(lines) or "every leaf is sharded like its parameter"


def shardings(
    abstract_opt_state: Any, abstract_params: Any
) -> tuple[Any, ShardingReport]:
    """Derives a sharding for every leaf of an optimizer state.

    Works by the paths of the leaves alone, so for every transform and wrapper.

    Args:
        abstract_opt_state: For instance `jax.eval_shape(tx.init, abstract_params)`.
        abstract_params: Parameters with `NamedSharding`s, abstract or concrete.

    Returns:
        A tree like the state with a sharding for every leaf (None if no parameter has
        a `NamedSharding`), and what had to be replicated for want of a rule.

    Example:
        >>> import jax, optax, stowax_optax
        >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        >>> spread = jax.NamedSharding(mesh, jax.P("data"))
        >>> params = {"w": jax.ShapeDtypeStruct((4,), "float32", sharding=spread)}
        >>> abstract = jax.eval_shape(optax.adam(1e-3).init, params)
        >>> tree, report = stowax_optax.shardings(abstract, params)
        >>> tree[0].mu["w"] == spread
        True
        >>> print(report)
        every leaf is sharded like its parameter
    """
    found, report = _derive(abstract_opt_state, abstract_params)
    treedef = jax.tree.structure(abstract_opt_state)
    return treedef.unflatten(found), report


def abstract_state(tx: Any, abstract_params: Any) -> Any:
    """Describes `tx.init(params)` without allocating it, sharded like the parameters.

    Give it to `State` to load an optimizer state straight onto a mesh.  What had to be
    replicated for want of a rule is told by `shardings`.

    Args:
        tx: An Optax transformation.
        abstract_params: Parameters, abstract or concrete.

    Returns:
        The optimizer state with `jax.ShapeDtypeStruct` leaves.

    Example:
        >>> import jax, optax, stowax_optax
        >>> params = {"w": jax.ShapeDtypeStruct((4,), "float32")}
        >>> stowax_optax.abstract_state(optax.adam(1e-3), params)[0].mu["w"].shape
        (4,)
    """
    state = jax.eval_shape(tx.init, abstract_params)
    found, _ = _derive(state, abstract_params)
    leaves, treedef = jax.tree.flatten(state)
    return treedef.unflatten(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for leaf, sharding in zip(leaves, found, strict=True)
    )


def _derive(
    state: Any, abstract_params: Any
) -> tuple[list[NamedSharding | None], ShardingReport]:
    """A sharding for every leaf, in JAX's order, and the report."""
    params = parameters(abstract_params)
    leaves = list(named_leaves(state))
    named = map(_named_sharding, params.values())
    meshes = [sharding.mesh for sharding in named if sharding is not None]
    if not meshes:
        return [None] * len(leaves), ShardingReport()
    ambiguous: list[str] = []
    unmatched: list[str] = []
    found: list[NamedSharding | None] = []
    for path, leaf in leaves:
        shape = tuple(leaf.shape)
        specs = _candidates(path, shape, params)
        if len(specs) > 1:
            ambiguous.append(f"{show_path(path)} {leaf.dtype}{list(shape)}")
        elif not specs and math.prod(shape) > 1:
            unmatched.append(f"{show_path(path)} {leaf.dtype}{list(shape)}")
        spec = specs[0] if len(specs) == 1 else PartitionSpec()
        found.append(NamedSharding(meshes[0], spec))
    return found, ShardingReport(ambiguous=tuple(ambiguous), unmatched=tuple(unmatched))


def _candidates(
    path: KeyPath, shape: tuple[int, ...], params: Mapping[StoredName, Any]
) -> list[PartitionSpec]:
    """Every spec that the shape allows; one, if the answer is certain."""
    name = parameter_of(path, params)
    if not shape:
        return [PartitionSpec()]
    if name is None:
        return []
    param = params[stored_name(name)]
    sharding = _named_sharding(param)
    spec = () if sharding is None else tuple(sharding.spec)
    full = tuple(param.shape)
    if shape == full:
        return [PartitionSpec(*spec)]
    leading = len(shape) - len(full)
    if leading > 0 and shape[leading:] == full:
        return [PartitionSpec(*(None,) * leading, *spec)]
    axes = (*spec, *(None,) * (len(full) - len(spec)))
    without = {
        axes[:dropped] + axes[dropped + 1 :]
        for dropped in range(len(full))
        if full[:dropped] + full[dropped + 1 :] == shape
    }
    return [PartitionSpec(*kept) for kept in sorted(without, key=str)]


def _named_sharding(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None
