"""What was saved on one mesh is loaded onto another."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

TABLE = np.arange(128, dtype=np.float32).reshape(8, 16)


def mesh(*shape):
    """A mesh of the first devices."""
    count = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[:count]).reshape(shape), ("data", "model"))


def save(ocp, path):
    """Every device holds a block of the table, or the whole of it."""
    blocks = NamedSharding(mesh(4, 2), P("data", "model"))
    everywhere = NamedSharding(mesh(4, 2), P())
    state = {
        "table": jax.device_put(TABLE, blocks),
        "scale": jax.device_put(TABLE[0], everywhere),
    }
    ocp.save(path / "state", state)


def load(ocp, path):
    """On another mesh, on one device, in host memory, and where it was."""
    turned = NamedSharding(mesh(2, 4), P("model", "data"))
    halves = NamedSharding(mesh(2, 1), P("data"))
    alone = SingleDeviceSharding(jax.devices()[3])
    found = {
        "turned": ocp.load(path / "state", like(turned, turned=P(None))),
        "halves": ocp.load(path / "state", like(halves)),
        "alone": ocp.load(path / "state", like(alone)),
        "as saved": ocp.load(path / "state"),
    }
    host = {"table": np.zeros_like(TABLE), "scale": np.zeros(16, np.float32)}
    return {
        **found,
        "shardings": {
            name: [tree["table"].sharding, tree["scale"].sharding]
            for name, tree in found.items()
        },
        "host": ocp.load(path / "state", host),
    }


def like(sharding, turned=None):
    """The state, to be laid out in some way."""
    scale = sharding if turned is None else NamedSharding(sharding.mesh, turned)
    return {
        "table": jax.ShapeDtypeStruct((8, 16), np.float32, sharding=sharding),
        "scale": jax.ShapeDtypeStruct((16,), np.float32, sharding=scale),
    }
