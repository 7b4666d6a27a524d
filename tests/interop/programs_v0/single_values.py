"""Arrays, numbers, JSON and random keys have handlers of their own."""

import jax
import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Each alone, at a path of its own."""
    args = ocp.args
    items = {
        "array": (ocp.ArrayCheckpointHandler(), args.ArraySave(jnp.arange(6.0))),
        "number": (ocp.ArrayCheckpointHandler(), args.ArraySave(3)),
        "json": (ocp.JsonCheckpointHandler(), args.JsonSave({"a": [1, None, "x"]})),
        "file": (ocp.JsonCheckpointHandler("config"), args.JsonSave({"b": 2.5})),
        "key": (
            ocp.JaxRandomKeyCheckpointHandler(),
            args.JaxRandomKeySave(jax.random.key(7)),
        ),
        "numpy": (
            ocp.NumpyRandomKeyCheckpointHandler(),
            args.NumpyRandomKeySave(np.random.RandomState(7).get_state()),
        ),
    }
    for name, (handler, item) in items.items():
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path / name, args=item)


def load(ocp, path):
    """The streams of random numbers go on where they were."""

    def restored(name, handler, args=None):
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path / name, args=args)

    args = ocp.args
    host = args.ArrayRestore(restore_args=ocp.RestoreArgs(restore_type=np.ndarray))
    random_state = np.random.RandomState()
    random_state.set_state(
        restored(
            "numpy",
            ocp.NumpyRandomKeyCheckpointHandler(),
            args.NumpyRandomKeyRestore(),
        )
    )
    key = restored(
        "key", ocp.JaxRandomKeyCheckpointHandler(), args.JaxRandomKeyRestore()
    )
    return {
        "array": restored("array", ocp.ArrayCheckpointHandler(), args.ArrayRestore()),
        "on the host": restored("array", ocp.ArrayCheckpointHandler(), host),
        "number": restored("number", ocp.ArrayCheckpointHandler(), args.ArrayRestore()),
        "json": restored("json", ocp.JsonCheckpointHandler(), args.JsonRestore()),
        "file": restored(
            "file", ocp.JsonCheckpointHandler("config"), args.JsonRestore()
        ),
        "jax": jax.random.uniform(key, (3,)),
        "numpy": random_state.rand(3),
    }
