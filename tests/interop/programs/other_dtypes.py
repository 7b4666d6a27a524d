"""The dtype that the abstract state names is the dtype that comes back."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Full precision is kept on disk."""
    state = {
        "w": jnp.linspace(-2, 2, 9),
        "ids": jnp.arange(7, dtype=jnp.int32),
        "table": np.arange(4, dtype=np.float64) / 3,
        "step": 300,
        "rate": 0.5,
    }
    ocp.save(path / "state", state)


def load(ocp, path):
    """Half of it is enough for inference; numbers become arrays, and the reverse."""
    half = {
        "w": jax.ShapeDtypeStruct((9,), jnp.bfloat16),
        "ids": jax.ShapeDtypeStruct((7,), jnp.float32),
        "table": np.zeros(4, np.float32),
        "step": float,
        "rate": float,
    }
    whole = {
        "w": jax.ShapeDtypeStruct((9,), jnp.int8),
        "ids": jax.ShapeDtypeStruct((7,), jnp.uint8),
        "table": np.zeros(4, np.float64),
        "step": int,
        "rate": int,
    }
    with warnings.catch_warnings(action="ignore"):
        # A library may say that fractions get lost.
        return [ocp.load(path / "state", half), ocp.load(path / "state", whole)]
