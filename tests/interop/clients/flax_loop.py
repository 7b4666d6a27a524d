"""A training loop with `flax.training.checkpoints`: which steps stay, and resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import errors
from flax.training import checkpoints
from flax.training.train_state import TrainState


def state_at(step):
    """A state with an optimizer, that can tell its step."""
    params = {
        "dense": {"kernel": jnp.full((3, 4), step, jnp.float32), "bias": jnp.zeros(4)},
        "scale": jnp.full((2,), step, jnp.bfloat16),
    }
    state = TrainState.create(apply_fn=max, params=params, tx=optax.adam(0.1))
    return state.replace(step=step)


def refused(function, *args, **kwargs):
    """The name of the error that a call raises."""
    try:
        function(*args, **kwargs)
    except (errors.FlaxError, ValueError) as error:
        return type(error).__name__ if isinstance(error, errors.FlaxError) else "value"
    return None


def save(path):
    """Steps 1 to 6, of which some are removed; one of them again."""
    for step in range(1, 7):
        checkpoints.save_checkpoint(
            path / "loop", state_at(step), step, keep=2, keep_every_n_steps=3
        )
    checkpoints.save_checkpoint(
        path / "again", {"a": np.arange(3), "b": 7, "name": "x"}, 1, prefix="run_"
    )
    again = refused(
        checkpoints.save_checkpoint, path / "again", {"a": np.zeros(1)}, 1, "run_"
    )
    checkpoints.save_checkpoint(
        path / "again", {"a": np.arange(4.0)}, 1, prefix="run_", overwrite=True, keep=3
    )
    single = refused(checkpoints.save_checkpoint, path / "single", jnp.ones(3), 1)
    checkpoints.save_checkpoint(
        path / "array",
        jnp.arange(3.0),
        1,
        orbax_checkpointer=ocp.Checkpointer(ocp.ArrayCheckpointHandler()),
    )
    return {
        "steps": checkpoints.available_steps(path / "loop"),
        "again": [again, single],
        "found": sorted(each.name for each in (path / "again").iterdir()),
    }


def load(path):
    """The last step, an older one, without a target, and where there is none."""
    target = jax.tree.map(jnp.zeros_like, state_at(0).params)
    blank = state_at(0).replace(params=target)
    loop = path / "loop"
    state = checkpoints.restore_checkpoint(loop, blank)
    array = ocp.Checkpointer(ocp.ArrayCheckpointHandler())
    return {
        "latest": checkpoints.latest_checkpoint(loop).removeprefix(str(path)),
        "state": [type(state).__name__, state.step, state.params, state.opt_state],
        "array": checkpoints.restore_checkpoint(
            path / "array", None, orbax_checkpointer=array
        ),
        "older": checkpoints.restore_checkpoint(loop, blank, step=5).step,
        "plain": checkpoints.restore_checkpoint(loop, None),
        "again": checkpoints.restore_checkpoint(path / "again", None, prefix="run_"),
        "nothing": checkpoints.restore_checkpoint(path / "nothing", {"a": 1}),
        "missing": refused(checkpoints.restore_checkpoint, loop, blank, step=99),
    }
