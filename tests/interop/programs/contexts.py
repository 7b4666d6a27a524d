"""Options hold inside of a context, and nowhere else."""

import concurrent.futures

import jax.numpy as jnp
import numpy as np

STATE = {"w": np.arange(8, dtype=np.float32), "n": np.arange(4)}


def save(ocp, path):
    """A new context starts with the defaults, or with what another one has."""
    small = ocp.Context()
    small.array.saving.storage_options.dtype = jnp.bfloat16
    with small as active:
        ocp.save(path / "small", STATE)
        with ocp.Context():
            ocp.save(path / "default", STATE)
        chunked = ocp.Context(active)
        chunked.array.saving.storage_options.chunk_byte_size = 4
        with chunked:
            ocp.save(path / "chunked", STATE)
        ocp.save(path / "small again", STATE)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            threads.submit(ocp.save, path / "thread", STATE).result()
        try:
            active.array.saving.storage_options.chunk_byte_size = 2
        except RuntimeError:
            is_frozen = True
        else:
            is_frozen = False
    ocp.save(path / "outside", STATE)
    return is_frozen


def load(ocp, path):
    """What each of them was saved as."""
    names = ("small", "default", "chunked", "small again", "thread", "outside")
    described = {name: ocp.metadata(path / name).metadata["w"] for name in names}
    return {
        name: [leaf.dtype, leaf.storage_metadata.chunk_shape]
        for name, leaf in described.items()
    }
