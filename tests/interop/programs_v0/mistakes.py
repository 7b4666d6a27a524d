"""What cannot be done is refused, by errors that a program can tell apart."""

import jax.numpy as jnp
import numpy as np


def refused(kind, call):
    """Whether a call ends with an error of a kind."""
    try:
        call()
    except kind:
        return True
    return False


def save(ocp, path):
    """Saves that are refused leave nothing at the path."""
    trees = ocp.PyTreeCheckpointer()
    trees.save(path / "there", {"w": jnp.ones(2), "b": np.ones(3)})
    standard = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    several = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    args = ocp.args
    found = {
        "there": refused(ValueError, lambda: trees.save(path / "there", {"w": 1})),
        "a text": refused(
            ValueError,
            lambda: standard.save(path / "a", args=args.StandardSave({"a": "text"})),
        ),
        "one array": refused(
            ValueError,
            lambda: standard.save(path / "b", args=args.StandardSave(jnp.ones(2))),
        ),
        "nobody's arguments": refused(
            ValueError,
            lambda: several.save(path / "c", args.Composite(x=args.CheckpointArgs())),
        ),
    }
    several.save(path / "several", args.Composite(x=args.PyTreeSave({"a": 1})))
    found["other arguments"] = refused(
        ValueError,
        lambda: several.save(path / "d", args.Composite(x=args.JsonSave({"a": 1}))),
    )
    return found, (path / "there").exists()


def load(ocp, path):
    """Restores that are refused say what is missing."""
    trees = ocp.PyTreeCheckpointer()
    standard = ocp.StandardCheckpointer()
    several = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    args = ocp.args
    other = args.Composite(y=args.PyTreeRestore())
    return {
        "nothing there": refused(
            FileNotFoundError, lambda: trees.restore(path / "nowhere")
        ),
        "no such item": refused(
            KeyError, lambda: several.restore(path / "several", other)
        ),
        "no tree": refused(FileNotFoundError, lambda: trees.restore(path / "several")),
        "another tree": refused(
            ValueError, lambda: trees.restore(path / "there", item={"w": 0, "c": 0})
        ),
        "another shape": refused(
            ValueError,
            lambda: standard.restore(
                path / "there", {"w": jnp.ones(5), "b": np.ones(3)}
            ),
        ),
    }
