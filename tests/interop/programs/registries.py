"""Which handler serves what: the one that was registered last, or for the name."""

import jax.numpy as jnp


def save(ocp, path):
    """A tree of strings is JSON where a name, or the order, says so."""
    json_handler = ocp.handlers.JsonHandler
    tree_handler = ocp.handlers.PyTreeHandler

    named = ocp.handlers.local_registry()
    named.add(json_handler, checkpointable_name="labels")
    ordered = ocp.handlers.local_registry(include_global_registry=False)
    ordered.add(tree_handler).add(json_handler)
    copied = ocp.handlers.local_registry(named, include_global_registry=False)

    parts = {"labels": {"0": "cat", "1": "dog"}, "others": {"2": "fox"}}
    registries = {"named": named, "ordered": ordered, "copied": copied}
    for name in ("named", "ordered"):
        context = ocp.Context()
        context.checkpointables.registry = registries[name]
        with context:
            ocp.save_checkpointables(path / name, parts)
    ocp.save_checkpointables(path / "usual", {**parts, "model": {"w": jnp.ones(2)}})
    files = {
        f"{name}/{part}": (path / name / part / "data.json").exists()
        for name in ("named", "ordered", "usual")
        for part in parts
    }
    has = {
        name: [registry.has("labels"), registry.has("others")]
        for name, registry in registries.items()
    }
    entries = [(cls.__name__, name) for cls, name in ordered.get_all_entries()]
    is_got = named.get("labels") is json_handler
    return [files, has, entries, is_got, ocp.handlers.global_registry().has("labels")]


def load(ocp, path):
    """The checkpoint recorded what saved each part."""
    names = ("named", "ordered", "usual")
    return {name: ocp.load_checkpointables(path / name) for name in names}
