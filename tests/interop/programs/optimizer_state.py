"""Training goes on after a load as if it had never stopped."""

import jax
import jax.numpy as jnp
import optax


def optimizer():
    """A chain with state in several of its links."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.linear_schedule(0.1, 0.0, 10)),
        optax.ema(0.5),
    )


@jax.jit
def step(params, moments):
    """A step towards zero."""
    updates, moments = optimizer().update(params, moments, params)
    return optax.apply_updates(params, updates), moments


def train(params, moments, steps):
    """Some steps."""
    for _ in range(steps):
        params, moments = step(params, moments)
    return params, moments


@jax.jit
def start():
    """Parameters and the state of the optimizer before the first step."""
    params = {"w": jnp.arange(4.0).reshape(2, 2), "b": jnp.ones(2)}
    return params, optimizer().init(params)


def save(ocp, path):
    """After three steps."""
    params, moments = train(*start(), 3)
    ocp.save_checkpointables(path / "3", {"params": params, "moments": moments})
    ocp.save(path / "both", {"params": params, "moments": moments, "step": 3})


def load(ocp, path):
    """Two more, from what was saved; parameters can be had alone."""
    params, moments = jax.eval_shape(start)
    parts = ocp.load_checkpointables(path / "3", {"params": params, "moments": moments})
    both = {"params": params, "moments": moments, "step": int}
    return {
        "parts": parts,
        "both": ocp.load(path / "both", both),
        "params": ocp.load(path / "3", params, checkpointable_name="params"),
        "later": train(parts["params"], parts["moments"], 2),
        "without a stop": train(*start(), 5),
    }
