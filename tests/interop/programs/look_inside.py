"""What is in a directory: a checkpoint or not, its parts, its notes, its age."""

import time

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Notes about a checkpoint are JSON values."""
    began = time.time_ns()
    notes = {"run": "r7", "scores": [0.5, None, {"best": True}], "who": "Zoë"}
    parts = {
        "params": {"w": jnp.ones((4, 2)), "b": np.zeros(3, np.int8)},
        "progress": {"epoch": 3},
    }
    ocp.save_checkpointables(path / "parts", parts, custom_metadata=notes)
    ocp.save(path / "plain", parts["params"])
    (path / "notes.txt").write_text("no checkpoint")
    described = ocp.metadata(path / "plain")
    return [
        began // 10**9 <= described.init_timestamp.timestamp(),
        described.init_timestamp_nsecs <= described.commit_timestamp_nsecs,
        described.commit_timestamp_nsecs <= time.time_ns(),
    ]


def load(ocp, path):
    """No array is read for any of this."""
    parts = ocp.checkpointables_metadata(path / "parts")
    names = ("parts", "plain", "notes.txt", "nowhere")
    return {
        "is a checkpoint": [ocp.is_orbax_checkpoint(path / name) for name in names],
        "parts": sorted(parts.metadata),
        "w": facts(parts.metadata["params"]["w"]),
        "b": facts(parts.metadata["params"]["b"]),
        "epoch": parts.metadata["progress"]["epoch"],
        "notes": parts.custom_metadata,
        "no notes": ocp.metadata(path / "plain").custom_metadata,
        "name": parts.path.name,
        "one of them": facts(ocp.metadata(path / "parts", "params").metadata["w"]),
        "loaded": ocp.load_checkpointables(path / "parts", parts),
    }


def facts(leaf):
    """What is known of an array."""
    return [leaf.shape, leaf.dtype]
