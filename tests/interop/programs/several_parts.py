"""A checkpoint of several parts, each of which can be loaded alone."""

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Parts are named; the names are up to the program."""
    parts = {
        "params": {"w": jnp.arange(6.0).reshape(2, 3)},
        "moments": {"w": jnp.full((2, 3), 0.5), "count": 4},
        "data": {"position": 128, "seed": np.array([3, 1], np.uint32)},
    }
    ocp.save_checkpointables(path / "now", parts)
    response = ocp.save_checkpointables_async(path / "later", parts)
    ocp.save(path / "one", parts["params"], checkpointable_name="params")
    return response.result()


def load(ocp, path):
    """All parts, one of them, or those that are asked for."""
    abstract = {"w": np.zeros((2, 3), np.float32)}
    return {
        "all": ocp.load_checkpointables(path / "now"),
        "two": ocp.load_checkpointables(path / "later", {"data": None, "params": None}),
        "as asked": ocp.load_checkpointables(path / "now", {"params": abstract}),
        "by name": ocp.load(path / "now", checkpointable_name="moments"),
        "one": ocp.load(path / "one", checkpointable_name="params"),
    }
