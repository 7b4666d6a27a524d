"""Random keys come back as the keys they were, of the implementation they were."""

import jax
import jax.numpy as jnp
import numpy as np


def state():
    """Keys of both kinds: typed ones, and plain integers as in old programs."""
    return {
        "dropout": jax.random.key(7),
        "workers": jax.random.split(jax.random.key(1), 3),
        "fast": jax.random.key(2, impl="rbg"),
        "old": jnp.asarray(np.array([0, 42], np.uint32)),
        "step": 2,
    }


def save(ocp, path):
    """Keys are leaves like others."""
    ocp.save(path / "state", state())


def load(ocp, path):
    """And draw the numbers that they would have drawn."""
    abstract = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        state(),
    )
    found = [ocp.load(path / "state"), ocp.load(path / "state", abstract)]
    return [
        *found,
        [jax.random.uniform(tree["dropout"], (3,)) for tree in found],
        [jax.random.key_impl(tree["fast"]) for tree in found],
    ]
