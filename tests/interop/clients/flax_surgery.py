"""A model that has changed since it was saved, restored by Flax."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import struct
from flax.training import checkpoints, orbax_utils


@struct.dataclass
class Layer:
    """What the model is made of now."""

    weights: object
    scale: object = 1.0


def save(path):
    """With the arguments that Flax makes, and with some of one's own."""
    state = {
        "params": {"w": jnp.arange(6.0).reshape(2, 3), "b": np.ones(3)},
        "old": {"unused": np.arange(4)},
        "step": 7,
    }
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(
        path / "checkpoint_0",
        state,
        save_args=orbax_utils.save_args_from_target(state),
    )
    save_args = orbax_utils.save_args_from_target(state)
    save_args["params"]["w"] = ocp.SaveArgs(dtype=jnp.dtype(jnp.bfloat16))
    checkpointer.save(path / "checkpoint_1", state, save_args=save_args)
    return orbax_utils.is_multi_device_array(state["params"]["w"])


def load(path):
    """Renamed, doubled, kept as they are in the target, and left out."""
    target = {
        "model": Layer(weights=jnp.zeros((2, 3))),
        "new": np.full(2, 9.0),
        "step": 0,
        "gone": None,
    }
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    transforms = {
        "model/weights": ocp.Transform(original_key="params/w"),
        r"(\w+)ep": ocp.Transform(original_key=r"\1ep", value_fn=lambda n: n * 2),
        "new": ocp.Transform(use_fallback=True),
    }
    item = {"params": {"w": jnp.zeros((2, 3))}, "step": None}
    return {
        "transforms": checkpoints.restore_checkpoint(
            path,
            target,
            step=0,
            orbax_checkpointer=checkpointer,
            orbax_transforms=transforms,
        ),
        "fewer": checkpoints.restore_checkpoint(path, item, step=0),
        "half": checkpoints.restore_checkpoint(path, None, step=1),
        "arguments": checkpointer.restore(
            path / "checkpoint_0",
            item={"params": target["model"], "step": 1},
            restore_args=orbax_utils.restore_args_from_target(
                {"params": target["model"], "step": 1}
            ),
            transforms={
                "params/weights": ocp.RestoreTransform(
                    multi_value_fn=lambda key, tree, args: tree["params"]["w"] + 1,
                    multi_value_fn_input_args={"params/w": ocp.RestoreArgs()},
                ),
                "params/scale": ocp.Transform(original_key="step"),
            },
        ),
    }
