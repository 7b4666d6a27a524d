"""Of every leaf it can be said how it is saved, and as what it is restored."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """One leaf in half the bytes, one in chunks, the others as they are."""
    tree = {"w": jnp.arange(16.0), "v": np.arange(16.0), "label": "text", "n": 3}
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(), tree)
    save_args["w"] = ocp.SaveArgs(dtype=np.dtype(jnp.bfloat16))
    save_args["v"] = ocp.SaveArgs(chunk_byte_size=32)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeSave(tree, save_args=save_args)
        checkpointer.save(path / "tree", args=args)


def load(ocp, path):
    """As arrays of JAX or NumPy, placed and converted as the arguments say."""
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.P("x"))
    with ocp.PyTreeCheckpointer() as checkpointer:
        restore_args = {
            "w": ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32),
            "v": ocp.ArrayRestoreArgs(sharding=spread, dtype=jnp.float32),
            "label": ocp.RestoreArgs(),
            "n": ocp.RestoreArgs(restore_type=float),
        }
        restored = checkpointer.restore(path / "tree", restore_args=restore_args)
        as_saved = checkpointer.restore(path / "tree")
    return {
        "restored": restored,
        "spread": restored["v"].sharding == spread,
        "as saved": as_saved,
    }
