"""A placeholder leaves a leaf where it is."""

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """A state with moments that only training needs."""
    state = {
        "params": {"w": jnp.arange(4.0), "b": jnp.zeros(2)},
        "moments": [jnp.ones(4), jnp.ones(2)],
        "step": 9,
    }
    ocp.save(path / "state", state)


def load(ocp, path):
    """Parameters alone; and all but one leaf, by way of the metadata."""
    skip = ocp.PLACEHOLDER
    params = {
        "params": {"w": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)},
        "moments": [skip, skip],
        "step": skip,
    }
    described = ocp.metadata(path / "state").metadata
    described["params"]["b"] = skip
    found = ocp.load(path / "state", params)
    return {
        "params": found,
        "is left out": found["step"] is ocp.PLACEHOLDER,
        "all but one": ocp.load(path / "state", described),
    }
