"""Saves go on while the program changes what they save."""

import numpy as np


def save(ocp, path):
    """A loop that saves every step, and changes its weights at once."""
    weights, seen = np.zeros(4), []
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.AsyncCheckpointer(handler, timeout_secs=100) as checkpointer:
        for step in range(3):
            args = ocp.args.PyTreeSave({"w": weights, "step": step})
            checkpointer.save(path / str(step), args=args)
            weights += 1
            checkpointer.check_for_errors()
        checkpointer.wait_until_finished()
        seen = sorted(each.name for each in path.iterdir())
        try:
            checkpointer.save(path / "0", args=ocp.args.PyTreeSave({"w": weights}))
            checkpointer.wait_until_finished()
        except ValueError:
            seen.append("refused")
    return seen


def load(ocp, path):
    """Every step has the weights of its time."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return [checkpointer.restore(path / str(step)) for step in range(3)]
