"""How arrays lie on the disk: their dtype, and what is read at once."""

import jax
import jax.numpy as jnp
import numpy as np


def state():
    """Arrays that are needed in different ways."""
    return {
        "table": np.arange(512, dtype=np.float32).reshape(64, 8),
        "params": {"w": jnp.linspace(0, 1, 32).reshape(4, 8), "b": jnp.ones(8)},
    }


def save(ocp, path):
    """All of them in half the bytes; or each one in its own way."""
    halves = ocp.Context()
    halves.array.saving.storage_options.dtype = jnp.bfloat16
    halves.array.saving.storage_options.chunk_byte_size = 64
    with halves:
        ocp.save(path / "halves", state())

    def choose(keypath, value):
        options = ocp.options.ArrayOptions.Saving.StorageOptions
        if jax.tree_util.keystr(keypath) == "['table']":
            return options(shard_axes=(0,), chunk_byte_size=32)
        return options(dtype=jnp.bfloat16) if value.ndim > 1 else None

    chosen = ocp.Context()
    chosen.array.saving.scoped_storage_options_creator = choose
    chosen.array.saving.use_compression = False
    with chosen:
        ocp.save(path / "chosen", state())


def load(ocp, path):
    """What is stored, and what is loaded: as stored, or as asked for."""
    return {
        name: [
            jax.tree.map(
                lambda leaf: [leaf.dtype, leaf.storage_metadata.chunk_shape],
                ocp.metadata(path / name).metadata,
                is_leaf=lambda leaf: hasattr(leaf, "dtype"),
            ),
            ocp.load(path / name),
            ocp.load(path / name, state()),
        ]
        for name in ("halves", "chosen")
    }
