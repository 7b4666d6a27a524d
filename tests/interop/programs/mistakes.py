"""What goes wrong is told by exceptions that a program can catch."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """What cannot be saved is refused, and nothing is left of it."""
    ocp.save(path / "state", {"w": jnp.ones((2, 3)), "step": 1})
    ocp.save_checkpointables(path / "parts", {"params": {"w": jnp.ones(2)}})
    (path / "empty").mkdir()
    (path / "file").write_text("no checkpoint")
    return [
        raised(ValueError, ocp.save, path / "none", None),
        raised(ValueError, ocp.save, path / "object", {"fn": print}),
        raised(ValueError, ocp.save, path / "state", {"w": 1}),
        [(path / name).exists() for name in ("none", "object")],
    ]


def load(ocp, path):
    """What does not fit is refused."""
    nothing = (FileNotFoundError, ValueError)
    layout = ocp.errors.InvalidLayoutError
    w = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    misshapen = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    return [
        raised(nothing, ocp.load, path / "nowhere"),
        raised(nothing, ocp.metadata, path / "nowhere"),
        raised(layout, ocp.load, path / "empty"),
        raised(layout, ocp.load, path / "file"),
        raised(ValueError, ocp.load, path / "state", {"w": misshapen, "step": 0}),
        raised(ValueError, ocp.load, path / "state", {"w": w}),
        raised(ValueError, ocp.load, path / "state", {"w": w, "step": 0, "v": w}),
        raised(KeyError, ocp.load_checkpointables, path / "parts", {"other": None}),
        ocp.load(path / "state", {"w": np.zeros((2, 3), np.float32), "step": 0}),
    ]


def raised(error, call, *args):
    """Whether a call raises an error of some kind."""
    try:
        call(*args)
    except error:
        return True
    except Exception as other:  # noqa: BLE001 it is what the answer is about
        return f"{type(other).__mro__} instead of {error}"
    return False
