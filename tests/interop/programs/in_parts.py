"""A checkpoint saved in several calls, the last of them by another job."""

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Two calls; until they are finalized nothing can be loaded."""
    response = ocp.partial.save_async(
        path / "model",
        {"layers": {"0": {"w": jnp.ones((3, 2))}}, "step": 7},
        custom_metadata={"author": "first", "tags": {"a": 1}},
    )
    response.result()  # Orbax has one place for drafts: what overlaps may fail.
    ocp.partial.save(path / "model", {"layers": {"1": {"w": jnp.zeros(4)}}})
    found = []
    try:
        ocp.load(path / "model")
    except ocp.errors.InvalidLayoutError:
        found.append("nothing there")
    try:
        ocp.partial.finalize(path / "other")
    except FileNotFoundError:
        found.append("no session")
    return found


def load(ocp, path):
    """Adds what is missing, finalizes, and loads; twice is refused."""
    found = []
    ocp.partial.save(
        path / "model",
        {"head": [np.arange(3), {"name": "linear"}]},
        custom_metadata={"author": "second", "tags": {"b": 2}},
    )
    ocp.partial.finalize(path / "model")
    for call in (
        lambda: ocp.partial.finalize(path / "model"),
        lambda: ocp.partial.save(path / "model", {"more": 1}),
    ):
        try:
            call()
        except FileExistsError:
            found.append("refused")
    found.append(ocp.load(path / "model"))
    found.append(ocp.checkpointables_metadata(path / "model").custom_metadata)
    return found
