"""A checkpoint is replaced or deleted only by a program that says so."""

import jax.numpy as jnp


def save(ocp, path):
    """The second save is refused, the third one replaces the first."""
    ocp.save(path / "best", {"score": 0.5, "w": jnp.zeros(2)})
    said = []
    try:
        ocp.save(path / "best", {"score": 0.6, "w": jnp.ones(2)})
    except ValueError:
        said.append("refused")
    try:
        ocp.save_checkpointables(path / "best", {"other": {"x": 1}})
    except ValueError:
        said.append("refused again")
    said.append(ocp.load(path / "best"))
    ocp.save(path / "best", {"score": 0.7, "other": jnp.ones(3)}, overwrite=True)
    for name in ("first", "second"):
        ocp.save_checkpointables(path / name, {"state": {"name": name}})
    response = ocp.save_async(path / "first", {"name": "new"}, overwrite=True)
    response.result()
    return said


def load(ocp, path):
    """What is there now, and what is left after a deletion."""
    best = ocp.load(path / "best")
    deleted = [
        ocp.delete(path / "best"),
        ocp.delete_async(path / "second").result(),
        ocp.delete(path / "best", missing_ok=True),
    ]
    try:
        ocp.delete(path / "best")
    except FileNotFoundError:
        deleted.append("not there")
    left = sorted(child.name for child in path.iterdir())
    return [best, deleted, left, ocp.load(path / "first")]
