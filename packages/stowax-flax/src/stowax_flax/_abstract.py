"""The abstract state of a module that was never built."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from stowax.adapters import flatten, nest

from . import _compat
from ._module import EPHEMERAL, selection


def abstract_state(
    build: Callable[[], Any],
    mesh: jax.sharding.Mesh | None = None,
    rules: Sequence[tuple[str, Any]] = (),
    *,
    only: Any = None,
    exclude: Any = EPHEMERAL,
) -> Any:
    """Describes the state of `build()` as it is on disk, without allocating it.

    Use it to load a module's weights straight onto a mesh, as a plain tree.

    With a mesh every leaf has the sharding that the live module would have on it: the
    one in its type if that names an axis, else the one in the metadata of its Variable,
    else replication.  Without a mesh the leaves have no sharding.

    Args:
        build: Makes the module, or a tuple of modules and optimizers.
        mesh: The mesh to load onto.
        rules: Logical axis names and the mesh axes they stand for, as for
            `nnx.logical_axis_rules`.
        only: NNX filter, as for `Module`.
        exclude: NNX filter, as for `Module`.

    Returns:
        Nested dicts and lists of `jax.ShapeDtypeStruct`.

    Example:
        >>> from flax import nnx
        >>> import stowax_flax
        >>> build = lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> stowax_flax.abstract_state(build)["kernel"].shape
        (2, 3)
    """
    with contextlib.ExitStack() as stack:
        if mesh is None:
            # Annotated Variables ask for a mesh at once, unless told not to.
            stack.enter_context(nnx.use_eager_sharding(False))
        else:
            stack.enter_context(jax.set_mesh(mesh))
        if rules:
            stack.enter_context(nnx.logical_axis_rules(rules))
        # The state is taken inside: what `nnx.eval_shape` returns has lost the plain
        # arrays, in some releases.
        state = jax.eval_shape(lambda: _compat.state(build(), selection(only, exclude)))
        return nest(
            ((*path, *inner), _with_sharding(node, leaf, mesh))
            for path, node in _compat.flatten_state(state)
            for inner, leaf in flatten(_value(node))
        )


def _value(node: Any) -> Any:
    return _compat.raw_value(node) if isinstance(node, nnx.Variable) else node


def _with_sharding(node: Any, leaf: Any, mesh: jax.sharding.Mesh | None) -> Any:
    if not hasattr(leaf, "shape"):
        return leaf
    if mesh is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    # Types first, if they name an axis: Flax reports empty specs for arrays whose live
    # sharding comes from logical names, and metadata is silent about explicit meshes.
    if isinstance(node, nnx.Variable) and not any(spec or ()):
        spec = nnx.get_partition_spec(node).get_value()
    sharding = jax.NamedSharding(mesh, spec or jax.P())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
