"""Programs that know the first names of v1 go on, and are told the new ones."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Options may be given whole, as they used to be."""
    storage = ocp.options.ArrayOptions.Saving.StorageOptions(dtype=jnp.bfloat16)
    options = ocp.options.ArrayOptions(
        saving=ocp.options.ArrayOptions.Saving(storage_options=storage)
    )
    with warnings.catch_warnings(action="ignore"):
        ocp.save_pytree(path / "now", {"w": jnp.ones(3), "step": 1})
        ocp.save_pytree_async(path / "later", {"w": jnp.zeros(3)}).result()
        with ocp.Context(array_options=options) as context:
            ocp.save(path / "halves", {"w": np.ones(3, np.float32)})
            return context.array_options.saving.storage_options.dtype


def load(ocp, path):
    """The same answers as under the new names."""
    partly = ocp.options.PyTreeOptions(
        loading=ocp.options.PyTreeOptions.Loading(partial_load=True)
    )
    with warnings.catch_warnings(action="ignore"):
        described = ocp.pytree_metadata(path / "halves").metadata["w"]
        with ocp.Context(pytree_options=partly):
            part = ocp.load_pytree(
                path / "now", {"w": jax.ShapeDtypeStruct((3,), "f4")}
            )
        return [
            ocp.load_pytree(path / "now"),
            ocp.load_pytree(path / "later", {"w": np.zeros(3, np.float32)}),
            part,
            [described.shape, described.dtype],
        ]
