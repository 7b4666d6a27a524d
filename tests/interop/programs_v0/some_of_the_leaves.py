"""Of a large tree only some leaves are restored."""

import numpy as np


def save(ocp, path):
    """A tree of two parts."""
    tree = {"params": {"w": np.ones((2, 2)), "b": np.zeros(2)}, "moments": [1.5, 2.5]}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "tree", tree)


def load(ocp, path):
    """What the item names; or all but what it marks."""
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    named = checkpointer.restore(
        path / "tree",
        args=ocp.args.PyTreeRestore({"params": {"b": 0}}, partial_restore=True),
    )
    marked = checkpointer.restore(
        path / "tree",
        args=ocp.args.PyTreeRestore(
            {"params": {"w": ocp.PLACEHOLDER, "b": 0}, "moments": [0, 0]}
        ),
    )
    is_left_out = marked["params"].pop("w") is ocp.PLACEHOLDER
    return {"named": named, "marked": marked, "left out": is_left_out}
