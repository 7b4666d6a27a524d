"""Metadata says what there is to load, and may be changed before it is asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh():
    """All devices in a row."""
    return Mesh(np.array(jax.devices()), ("x",))


def save(ocp, path):
    """Arrays over all devices, on one device, on the host; and numbers."""
    rows = NamedSharding(mesh(), P("x"))
    state = {
        "embed": {"table": jax.device_put(np.ones((16, 4), np.float32), rows)},
        "norm": jnp.arange(4, dtype=jnp.float16),
        "host": np.arange(3, dtype=np.int16),
        "step": 5,
        "rate": 0.25,
        "name": "small",
    }
    ocp.save(path / "state", state)


def load(ocp, path):
    """What is there; all of it as described; and a table of bfloat16 columns."""
    described = ocp.metadata(path / "state")
    table = described.metadata["embed"]["table"]
    norm = described.metadata["norm"]

    columns = NamedSharding(mesh(), P(None))
    changed = {
        **described.metadata,
        "embed": {
            "table": jax.ShapeDtypeStruct(table.shape, jnp.bfloat16, sharding=columns)
        },
        "norm": dataclasses.replace(norm, dtype=np.dtype(np.float32)),
    }
    as_described = ocp.load(path / "state", described.metadata)
    as_changed = ocp.load(path / "state", changed)
    return {
        "table": [table.shape, table.dtype, table.storage_metadata.chunk_shape],
        "norm": [norm.shape, norm.dtype],
        "host": [described.metadata["host"].shape, described.metadata["host"].dtype],
        "others": [described.metadata[name] for name in ("step", "rate", "name")],
        "as described": as_described,
        "as it is": ocp.load(path / "state", described),
        "changed": as_changed,
        "shardings": [
            tree["embed"]["table"].sharding for tree in (as_described, as_changed)
        ],
    }
