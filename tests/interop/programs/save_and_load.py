"""A state is a tree of arrays and numbers: saved by one call, loaded by another."""

import jax
import jax.numpy as jnp
import numpy as np


def state():
    """What is known at some step."""
    return {
        "layers": [
            {"kernel": jnp.linspace(0, 1, 12).reshape(3, 4), "bias": jnp.zeros(4)},
            {"kernel": jnp.eye(4, 2, dtype=jnp.bfloat16), "bias": jnp.ones(2)},
        ],
        "seen": np.arange(5, dtype=np.int64),
        "step": 12,
        "rate": 1e-3,
        "is_warm": True,
        "phase": "warm-up",
    }


def save(ocp, path):
    """A whole tree; a single array is a state, too."""
    ocp.save(path / "state", state())
    ocp.save(path / "array", jnp.arange(3))


def load(ocp, path):
    """As it was saved, and as an abstract state asks for it."""
    abstract = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        state(),
    )
    return {
        "as saved": ocp.load(path / "state"),
        "as asked": ocp.load(path / "state", abstract),
        "like this one": ocp.load(path / "state", state()),
        "array": ocp.load(path / "array"),
    }
