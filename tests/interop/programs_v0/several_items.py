"""A checkpoint of several items: a state, its configuration, where the data stood."""

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Each item has arguments of its own, which say who saves it."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path / "all",
            ocp.args.Composite(
                state=ocp.args.StandardSave({"w": jnp.ones((2, 2)), "step": 3}),
                config=ocp.args.JsonSave({"layers": [64, 64], "rate": 1e-3}),
                position=ocp.args.ArraySave(np.array([4, 2])),
            ),
        )
        return {"kinds": sorted(checkpointer.metadata(path / "all").item_handlers)}


def load(ocp, path):
    """All of them, one of them, and one alone by its own directory."""
    found = {}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path / "all")
        found["all"] = {name: restored[name] for name in sorted(restored)}
        args = ocp.args.Composite(config=ocp.args.JsonRestore())
        some = checkpointer.restore(path / "all", args=args)
        found["one"] = (some.config, "state" in some)
        try:
            args = ocp.args.Composite(other=ocp.args.JsonRestore())
            checkpointer.restore(path / "all", args=args)
        except KeyError:
            found["no such item"] = True
    with ocp.StandardCheckpointer() as checkpointer:
        found["alone"] = checkpointer.restore(path / "all" / "state")
    return found
