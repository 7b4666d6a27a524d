"""A program of one process that is written for many."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """All processes save together; one of them says so."""
    processes = ocp.multihost
    context = ocp.Context()
    context.multiprocessing.primary_host = 0
    context.multiprocessing.barrier_sync_key_prefix = "one_of_many"
    with context:
        ocp.save(path / "state", {"w": jnp.arange(4.0)})
    asyncio.run(processes.sync_global_processes("saved", operation_id="one_of_many"))
    if processes.is_primary_host(0):
        (path / "done.txt").write_text("done")
    return [processes.process_index(), processes.process_count()]


def load(ocp, path):
    """Every process asks for its part, of the shape that an example has."""
    example = {"w": np.zeros(4, np.float32)}
    abstract = jax.tree.map(ocp.arrays.to_shape_dtype_struct, example)
    return [
        (path / "done.txt").read_text(),
        [abstract["w"].shape, abstract["w"].dtype],
        ocp.load(path / "state", abstract),
        ocp.multihost.is_pathways_backend(),
    ]
