"""With `partial_load` an abstract state may be smaller than what is stored."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """A model with a head that not everybody wants."""
    state = {
        "body": [{"w": jnp.full((2, 2), i)} for i in range(3)],
        "head": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)},
        "step": 41,
    }
    ocp.save(path / "state", state)


def load(ocp, path):
    """The head alone, or nothing but the step; without the option that is an error."""
    head = {"head": {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
    partly = ocp.Context()
    partly.pytree.loading.partial_load = True
    with partly:
        found = [
            ocp.load(path / "state", head),
            ocp.load(path / "state", {"step": int}),
            ocp.load_checkpointables(path / "state", {"state": {"step": 0}}),
        ]
    try:
        ocp.load(path / "state", {"head": {"b": np.zeros(3, np.float32)}})
    except ValueError:
        found.append("refused")
    return found
