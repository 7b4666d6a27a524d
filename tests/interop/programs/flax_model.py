"""The state of a Flax NNX model, saved without and loaded into the model."""

import jax
import jax.numpy as jnp
from flax import nnx


class Network(nnx.Module):
    """A small network with parameters, statistics and a stream of random numbers."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.noise = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.noise(nnx.relu(self.norm(self.first(x)))))


@jax.jit
def train():
    """The state of a network that has seen a batch."""
    model = Network(nnx.Rngs(0))
    model(jnp.arange(6.0).reshape(2, 3))
    return nnx.state(model)


@nnx.jit
def answer(model):
    """What a network says of a batch, and of the same one again."""
    x = jnp.arange(12.0).reshape(4, 3)
    return model(x), model(x)


def save(ocp, path):
    """The state as it is, and as plain dicts of arrays."""
    state = train()
    ocp.save(path / "state", state)
    ocp.save(path / "plain", nnx.to_pure_dict(nnx.filter_state(state, nnx.Param)))
    model = nnx.eval_shape(lambda: Network(nnx.Rngs(1)))
    nnx.update(model, state)
    return answer(model)


def load(ocp, path):
    """No weights are made only to be replaced."""
    model = nnx.eval_shape(lambda: Network(nnx.Rngs(1)))
    definition, abstract = nnx.split(model)
    state = ocp.load(path / "state", abstract)
    params = ocp.load(path / "plain")
    return {
        "state": jax.tree.leaves(state),
        "types": [type(state), type(state["first"]["kernel"])],
        "params": params,
        "answers": answer(nnx.merge(definition, state)),
    }
