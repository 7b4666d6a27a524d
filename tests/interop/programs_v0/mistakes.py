"""What cannot be done is refused, by errors that a program can tell apart."""

import jax.numpy as jnp
import numpy as np


def refused(kind, call, *args):
    """Whether a call ends with an error of a kind."""
    try:
        call(*args)
    except kind:
        return True
    return False


def save(ocp, path):
    """Saves that are refused change nothing at the path."""
    args = ocp.args
    trees = ocp.PyTreeCheckpointer()
    trees.save(path / "there", {"w": jnp.ones(2), "b": np.ones(3)})
    several = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    several.save(path / "several", args.Composite(x=args.PyTreeSave({"a": 1})))

    def standard(item):
        checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        there = path / f"a {type(item).__name__}"
        checkpointer.save(there, args=args.StandardSave(item))

    def composite(item):
        there = path / f"several {type(item).__name__}"
        several.save(there, args.Composite(x=item))

    found = {
        "there": refused(ValueError, trees.save, path / "there", {"w": 1}),
        "a text": refused(ValueError, standard, {"a": "text"}),
        "one array": refused(ValueError, standard, jnp.ones(2)),
        "nobody's arguments": refused(ValueError, composite, args.CheckpointArgs()),
        "other arguments": refused(ValueError, composite, args.JsonSave({"a": 1})),
    }
    return found, sorted(each.name for each in (path / "there").glob("_METADATA"))


def load(ocp, path):
    """Restores that are refused say what is missing."""
    trees, standard = ocp.PyTreeCheckpointer(), ocp.StandardCheckpointer()
    several = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    there = path / "there"
    other = ocp.args.Composite(y=ocp.args.PyTreeRestore())
    leaves, shapes = {"w": 0, "c": 0}, {"w": jnp.ones(5), "b": np.ones(3)}
    return {
        "nothing there": refused(FileNotFoundError, trees.restore, path / "nowhere"),
        "no such item": refused(KeyError, several.restore, path / "several", other),
        "no tree": refused(FileNotFoundError, trees.restore, path / "several"),
        "another tree": refused(ValueError, trees.restore, there, leaves),
        "another shape": refused(ValueError, standard.restore, there, shapes),
    }
