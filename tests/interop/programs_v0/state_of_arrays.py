"""A state of arrays is saved, and restored as an abstract state says."""

import jax
import jax.numpy as jnp
import numpy as np


def state():
    """Weights, a moment for each, and how far the training came."""
    weights = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}
    return {"params": weights, "moments": [np.ones((2, 3)), np.ones(3)], "step": 12}


def save(ocp, path):
    """Twice to one path: the second time it has to be said."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state())
        checkpointer.wait_until_finished()
        refused = False
        try:
            checkpointer.save(path / "state", state())
            checkpointer.wait_until_finished()
        except ValueError:
            refused = True
        changed = {**state(), "step": 13}
        checkpointer.save(path / "state", changed, force=True)
    return {"refused": refused}


def load(ocp, path):
    """As it was saved, as numbers of NumPy, and in another dtype."""
    with ocp.StandardCheckpointer() as checkpointer:
        as_saved = checkpointer.restore(path / "state")
        abstract = jax.tree.map(np.zeros_like, state())
        abstract["step"] = 0
        on_host = checkpointer.restore(path / "state", abstract)
        half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), state())
        half = {**half, "step": 0}
        return {
            "as saved": as_saved,
            "on the host": on_host,
            "half": checkpointer.restore(path / "state", half),
        }
