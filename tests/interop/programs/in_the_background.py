"""Training goes on while a state is being saved."""

import asyncio

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """The state may be changed at once; `result` waits, and raises what went wrong."""
    weights = np.arange(6, dtype=np.float32)
    first = ocp.save_async(path / "first", {"w": weights})
    weights[:] = -1
    second = ocp.save_async(path / "second", {"w": weights}, custom_metadata={"n": 2})

    async def notebook():
        response = ocp.save_async(path / "third", {"w": jnp.ones((2, 2))})
        await asyncio.sleep(0)  # Others may run.
        return response.result(timeout=60)

    return [second.result(), first.result(timeout=60), asyncio.run(notebook())]


def load(ocp, path):
    """Each of them has what there was when it was called."""
    states = {name: ocp.load(path / name) for name in ("first", "second", "third")}
    return [states, ocp.metadata(path / "second").custom_metadata]
