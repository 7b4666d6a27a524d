"""Two checkpoints make one model: a body from here, a head from there."""

import jax.numpy as jnp


def save(ocp, path):
    """Two runs."""
    for name, fill in (("old", 1), ("new", 2)):
        model = {
            "body": {"w": jnp.full((2, 2), fill)},
            "head": {"w": jnp.full(2, fill), "b": jnp.full(1, fill)},
        }
        ocp.save(path / name, {"model": model, "step": fill})


def load(ocp, path):
    """Trees are merged; what two of them have must be meant to be replaced."""
    partly = ocp.Context()
    partly.pytree.loading.partial_load = True
    old = ocp.metadata(path / "old").metadata["model"]
    with partly:
        body = ocp.load(path / "old", {"model": {"body": old["body"]}})
        head = ocp.load(path / "new", {"model": {"head": {"w": old["head"]["w"]}}})
    extra = {"model": {"head": {"b": jnp.zeros(1)}}, "step": 0}
    found = [
        ocp.tree.merge(body, head, extra),
        ocp.tree.merge(ocp.load(path / "new"), head, extra, overwrite=True),
    ]
    try:
        ocp.tree.merge(body, ocp.load(path / "new"))
    except ValueError:
        found.append("refused")
    return found
