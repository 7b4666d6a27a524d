"""A state that was spread over one mesh is restored onto another."""

import jax
import jax.numpy as jnp


def state():
    """Two arrays."""
    return {"w": jnp.arange(32.0).reshape(8, 4), "b": jnp.arange(8.0)}


def spread(shape, names, specs):
    """Shardings over a mesh."""
    mesh = jax.make_mesh(shape, names)
    return {k: jax.sharding.NamedSharding(mesh, spec) for k, spec in specs.items()}


def save(ocp, path):
    """Over eight devices in a row."""
    shardings = spread((8,), ("x",), {"w": jax.P("x"), "b": jax.P("x")})
    placed = jax.tree.map(jax.device_put, state(), shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", placed)


def load(ocp, path):
    """In a grid, by a target or by arguments; and as it was."""
    shardings = spread((4, 2), ("x", "y"), {"w": jax.P("y", "x"), "b": jax.P(None)})
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        state(),
        shardings,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        by_target = checkpointer.restore(path / "state", target)
        as_saved = checkpointer.restore(path / "state")
    restore_args = ocp.checkpoint_utils.construct_restore_args(state(), shardings)
    with ocp.PyTreeCheckpointer() as checkpointer:
        by_args = checkpointer.restore(path / "state", restore_args=restore_args)
    return {
        "by target": by_target,
        "by arguments": by_args,
        "as saved": as_saved,
        "places": [
            str(leaf.sharding.spec)
            for tree in (by_target, by_args, as_saved)
            for leaf in jax.tree.leaves(tree)
        ],
    }
