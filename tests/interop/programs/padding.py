"""Arrays may be loaded longer or shorter than they were saved, if that is wanted."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def save(ocp, path):
    """A vocabulary that has since grown."""
    state = {"table": jnp.arange(1, 22, dtype=jnp.float32).reshape(7, 3)}
    ocp.save(path / "state", state)


def load(ocp, path):
    """Zeros are added, or the end is cut off; otherwise the shape must be right."""
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), P("x"))
    found = []
    pads = ocp.Context()
    pads.array.loading.enable_padding_and_truncation = True
    with pads:
        for shape, sharding in (((9, 3), None), ((8, 4), rows), ((4, 2), None)):
            asked = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
            found.append(ocp.load(path / "state", {"table": asked}))
    try:
        ocp.load(path / "state", {"table": jax.ShapeDtypeStruct((9, 3), jnp.float32)})
    except ValueError:
        found.append("refused")
    return found
