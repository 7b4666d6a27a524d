"""What a checkpoint holds is told without restoring it."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """With words of one's own about the checkpoint, and about the tree."""
    tree = {"w": jnp.ones((2, 3)), "list": [np.arange(4), 2.5], "name": "text"}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeSave(tree, custom_metadata={"by": "me"})
        checkpointer.save(path / "tree", args=args, custom_metadata={"run": [1, 2]})


def load(ocp, path):
    """Shapes and dtypes of leaves, times, and the words; and a target made of it."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.metadata(path / "tree")
        tree = found.item_metadata
        empty = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype),
            {"w": tree["w"], "list": tree["list"]},
        )
        restored = checkpointer.restore(
            path / "tree", args=ocp.args.PyTreeRestore(tree.tree)
        )
    return {
        "words": (found.custom_metadata, tree.custom_metadata),
        "in order": found.init_timestamp_nsecs <= found.commit_timestamp_nsecs,
        "handler": found.item_handlers,
        "kinds": {name: type(leaf).__name__ for name, leaf in tree.tree.items()},
        "empty": empty,
        "names": [tree["w"].name, tree["list"][0].name],
        "keys": sorted(tree.keys()),
        "restored": restored,
    }
