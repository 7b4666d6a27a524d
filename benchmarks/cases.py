"""What is saved: trees of weights, as shapes and dtypes, and noise to fill them with.

A tree is described without its values, so that a process that loads needs none of the
memory of the one that saved.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

Tree = Any

_POOL_BYTES = 16 << 20
"""More than compressors look back, so that repeating it does not help them."""


def _leaves(count: int, size_bytes: int, dtype: str = "float32") -> Tree:
    """Equal vectors on the first device."""
    here = SingleDeviceSharding(jax.devices()[0])
    shape = (size_bytes // np.dtype(jnp.dtype(dtype)).itemsize,)
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)
    return {f"leaf{i}": leaf for i in range(count)}


def _on_mesh(count: int, rows: int, *, is_sharded: bool) -> Tree:
    """Matrices on a mesh of simulated devices, cut into parts or whole on each."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), devices=jax.devices("cpu")[:8])
    spec = PartitionSpec("data", "model") if is_sharded else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    leaf = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=sharding)
    return {f"leaf{i}": leaf for i in range(count)}


def _training_state(width: int, depth: int) -> Tree:
    """A Flax NNX network and its Adam state."""
    import optax
    from flax import nnx

    def make() -> Tree:
        layers = [nnx.Linear(width, width, rngs=nnx.Rngs(i)) for i in range(depth)]
        params = nnx.to_pure_dict(nnx.state(nnx.Sequential(*layers), nnx.Param))
        adam = optax.adam(1e-3).init(params)
        return {"params": params, "mu": adam[0].mu, "nu": adam[0].nu}

    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(make),
    )


CASES: dict[str, Callable[[], Tree]] = {
    "8 x 128 MiB": functools.partial(_leaves, 8, 128 << 20),
    "200 x 5 MiB bfloat16": functools.partial(_leaves, 200, 5 << 20, "bfloat16"),
    "200 x 5 MiB float32": functools.partial(_leaves, 200, 5 << 20),
    "5,000 x 100 kB": functools.partial(_leaves, 5_000, 100_000),
    "10,000 x 1 KiB": functools.partial(_leaves, 10_000, 1 << 10),
    "8 devices, sharded": functools.partial(_on_mesh, 16, 16 << 10, is_sharded=True),
    "8 devices, replicated": functools.partial(_on_mesh, 16, 4 << 10, is_sharded=False),
    "NNX and Adam": functools.partial(_training_state, 2048, 20),
}

QUICK_CASES: dict[str, Callable[[], Tree]] = {
    "8 x 32 MiB": functools.partial(_leaves, 8, 32 << 20),
    "200 x 1 MiB": functools.partial(_leaves, 200, 1 << 20),
    "1,000 x 100 kB": functools.partial(_leaves, 1_000, 100_000),
    "2,000 x 1 KiB": functools.partial(_leaves, 2_000, 1 << 10),
    "8 devices, sharded": functools.partial(_on_mesh, 8, 4 << 10, is_sharded=True),
}


def size_bytes(tree: Tree) -> int:
    """Bytes of all leaves, each counted once however many devices hold it."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def fill(tree: Tree) -> Tree:
    """Arrays of noise, because weights hardly compress either."""
    noise = np.random.default_rng(0).standard_normal(_POOL_BYTES // 4, np.float32)

    def make(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        count = math.prod(leaf.shape)
        values = np.resize(noise[:count].astype(leaf.dtype), leaf.shape)
        return jax.device_put(values, leaf.sharding)

    return jax.block_until_ready(jax.tree.map(make, tree))
