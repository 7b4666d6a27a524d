"""What an `nnx.Optimizer` is, seen from here.

An optimizer of NNX can only exist where Flax was imported, so Flax is looked up among
the imported modules and never imported: Optax users without it need none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax

from stowax.adapters import KeyPath, StoredName, stored_name

from ._params import is_variable

_OWN = ("opt_state", "step")
"""What an optimizer holds itself; some releases let it hold the model too."""


def is_optimizer(value: Any) -> bool:
    """Whether the value is an `nnx.Optimizer`."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Optimizer)


def state_of(optimizer: Any) -> dict[str, Any]:
    """The optimizer's own state, with its NamedTuples and without Variables."""
    return {name: _plain(getattr(optimizer, name)) for name in _OWN}


def parameter_paths(optimizer: Any) -> frozenset[StoredName]:
    """The paths of the parameters, as the optimizer repeats them in its state."""
    nnx = sys.modules["flax.nnx"]
    parts = jax.tree.leaves(
        optimizer.opt_state, is_leaf=lambda part: isinstance(part, nnx.State)
    )
    return frozenset(
        stored_name(path)
        for part in parts
        if isinstance(part, nnx.State)
        for path, _ in nnx.to_flat_state(part)
    )


def assign(optimizer: Any, values: Mapping[KeyPath, Any]) -> None:
    """Puts the values into the Variables of the optimizer, which stay the same."""
    nnx = sys.modules["flax.nnx"]
    live = dict(nnx.to_flat_state(nnx.state(optimizer)))
    nnx.update(
        optimizer,
        nnx.from_flat_state(
            {path: live[path].replace(value) for path, value in values.items()}
        ),
    )


def _plain(tree: Any) -> Any:
    return jax.tree.map(
        lambda part: _value(part) if is_variable(part) else part,
        tree,
        is_leaf=is_variable,
    )


def _value(variable: Any) -> Any:
    value = variable.get_raw_value()
    metadata = variable.get_metadata()
    # A mutable array is stored as the array it refers to; the second name is the older.
    return value[...] if metadata.get("ref") or metadata.get("has_ref") else value
