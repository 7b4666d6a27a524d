"""A model that has changed since it was saved is restored by transformations."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Two layers, a counter, and an array that is not needed any more."""
    state = {
        "layer_1": {"kernel": jnp.arange(4.0), "bias": jnp.zeros(2)},
        "layer_2": {"kernel": jnp.arange(4.0, 8.0), "bias": jnp.ones(2)},
        "step": 5,
        "unused": jnp.ones(3),
    }
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "old", state)


def load(ocp, path):
    """Renamed, joined, made anew, and doubled."""
    target = {
        "dense_1": {"kernel": np.zeros(4), "bias": np.zeros(2)},
        "joined": np.zeros(8),
        "step": 0,
        "fresh": np.full(2, 7.0),
    }
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), target)
    restore_args["step"] = ocp.RestoreArgs(int)
    host = ocp.RestoreArgs(restore_type=np.ndarray)

    def join(name, tree, args):
        kernels = [tree[layer]["kernel"] for layer in ("layer_1", "layer_2")]
        return np.concatenate(kernels)

    transforms = {
        r"dense_(\d+)/(.*)": ocp.Transform(original_key=r"layer_\1/\2"),
        "joined": ocp.RestoreTransform(
            multi_value_fn=join,
            multi_value_fn_input_args={r"layer_\d/kernel": host},
        ),
        "step": ocp.Transform(value_fn=lambda step: step * 2),
        "fresh": ocp.Transform(use_fallback=True),
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            path / "old",
            args=ocp.args.PyTreeRestore(
                item=target, restore_args=restore_args, transforms=transforms
            ),
        )
    tree = {"a": 1, "b": {"c": 2}}
    renamed = ocp.apply_transformations(
        tree, {"x": ocp.Transform(original_key="b/c")}, {"x": 0, "a": 0}
    )
    return {"restored": restored, "in memory": renamed}
