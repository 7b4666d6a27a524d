"""Tuples, NamedTuples and dataclasses come back if the abstract state has them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
    mean: Any
    variance: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    params: Any
    moments: Moments
    step: int
    name: str = dataclasses.field(default="run", metadata={"static": True})


def state(fill):
    """A state whose arrays are all filled with one number."""
    return TrainState(
        params={"w": jnp.full((2, 3), fill), "pair": (jnp.full(2, fill), 1)},
        moments=Moments(mean=jnp.full(3, fill), variance=None),
        step=int(fill),
    )


def save(ocp, path):
    """Containers need not be known to the library."""
    ocp.save(path / "state", state(4.0))
    ocp.save(path / "moments", Moments(mean=np.arange(3), variance={}))


def load(ocp, path):
    """The same containers, or plain ones."""
    abstract = jax.eval_shape(lambda: state(0.0))
    asked = dataclasses.replace(
        abstract, step=int, params={**abstract.params, "pair": (np.zeros(2, "f4"), int)}
    )
    found = ocp.load(path / "state", asked)
    return {
        "state": found,
        "types": [type(found), type(found.moments), type(found.params["pair"])],
        "static": found.name,
        "plain": ocp.load(path / "moments"),
        "own": ocp.load(path / "moments", Moments(np.zeros(3, np.int64), {})),
    }
