"""Arrays over several devices, saved in the background by Flax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.training import checkpoints, orbax_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))


def spread(value, *spec):
    """An array over the mesh."""
    return jax.device_put(value, NamedSharding(MESH, P(*spec)))


def state():
    """Arrays that are spread, replicated and on the host."""
    return {
        "spread": spread(jnp.arange(128.0).reshape(8, 16), "x", "y"),
        "replicated": spread(jnp.arange(4)),
        "host": np.arange(5, dtype=np.int16),
        "step": 3,
    }


def save(path):
    """Several steps, each of which is changed as soon as the call returns."""
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), timeout_secs=60)
    current = state()
    for step in range(3):
        checkpoints.save_checkpoint_multiprocess(
            path, current, step, keep=2, orbax_checkpointer=checkpointer
        )
        current["host"] += 1
        current["spread"] = current["spread"] + 1
    checkpointer.wait_until_finished()
    checkpointer.close()
    return sorted(each.name for each in path.iterdir())


def load(path):
    """Onto the mesh of the target, which is another one."""
    target = state()
    target["spread"] = spread(jnp.zeros((8, 16)), "y")
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    found = checkpoints.restore_checkpoint(
        path, target, orbax_checkpointer=checkpointer
    )
    older = checkpoints.restore_checkpoint(path, target, step=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args = orbax_utils.restore_args_from_target(
            {"spread": target["spread"]}, mesh=MESH
        )
    alone = checkpointer.restore(
        path / "checkpoint_2",
        args=ocp.args.PyTreeRestore(
            {"spread": 0}, restore_args=args, partial_restore=True
        ),
    )
    checkpointer.close()
    return {
        "found": found,
        "specs": [str(each["spread"].sharding.spec) for each in (found, alone)],
        "older": older,
        "alone": alone,
        "warned": any("deprecated" in str(each.message) for each in caught),
    }
