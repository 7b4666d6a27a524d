"""Every transform of Optax survives a save and a load."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import stowax
import stowax_optax

MASK = {"w": True, "b": False}
LABELS = {"w": "matrix", "b": "vector"}

TRANSFORMS = {
    "adabelief": optax.adabelief(0.1),
    "adadelta": optax.adadelta(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.1),
    "adam in bfloat16": optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "adamax": optax.adamax(0.1),
    "adamw": optax.adamw(0.1),
    "ademamix": contrib.ademamix(0.1),
    "adopt": contrib.adopt(0.1),
    "adan": optax.adan(0.1),
    "add_noise": optax.add_noise(0.1, 0.5, key=0),
    "amsgrad": optax.amsgrad(0.1),
    "apply_every": optax.apply_every(2),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "chain": optax.chain(optax.clip(1.0), optax.adam(0.1), optax.scale(2.0)),
    "cocob": contrib.cocob(),
    "conditionally": optax.conditionally_transform(
        optax.adam(0.1), lambda step: step < 2
    ),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dowg": contrib.dowg(),
    "ema": optax.ema(0.9),
    "flatten": optax.flatten(optax.adam(0.1)),
    "fromage": optax.fromage(0.1),
    "identity": optax.identity(),
    "inject": optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "lamb": optax.lamb(0.1),
    "lars": optax.lars(0.1),
    "lbfgs": optax.lbfgs(),
    "lion": optax.lion(0.1),
    "lookahead": optax.lookahead(optax.adam(0.1), 2, 0.5),
    "masked": optax.masked(optax.adam(0.1), MASK),
    "mechanize": contrib.mechanize(optax.adam(0.1)),
    "momo": contrib.momo(),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), 2),
    "muon": contrib.muon(0.1),
    "nadam": optax.nadam(0.1),
    "named_chain": optax.named_chain(
        ("clip", optax.clip(1.0)), ("adam", optax.adam(0.1))
    ),
    "noisy_sgd": optax.noisy_sgd(0.1, key=0),
    "normalize_by_update_norm": optax.normalize_by_update_norm(),
    "novograd": optax.novograd(0.1),
    "partition": optax.partition(
        {"matrix": optax.adam(0.1), "vector": optax.sgd(0.1, 0.9)}, LABELS
    ),
    "prodigy": contrib.prodigy(0.1),
    "reduce_on_plateau": contrib.reduce_on_plateau(),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
    "rprop": optax.rprop(0.1),
    "sam": contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
    "schedule": optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "schedule_free": contrib.schedule_free_adamw(0.1),
    "sgd": optax.sgd(0.1),
    "sgd with momentum": optax.sgd(0.1, momentum=0.9),
    "sm3": optax.sm3(0.1),
    "sophia": contrib.sophia(0.1, jax.random.PRNGKey(0)),
    "yogi": optax.yogi(0.1),
    "zero-size": optax.trace(0.9),
}
"""One of each kind of state; 'identity' and 'sgd' have no array."""

if hasattr(contrib, "galore"):  # Since Optax 0.2.7; its state has arrays of size zero.
    TRANSFORMS["galore"] = contrib.galore(0.1, rank=2)
if hasattr(optax, "optimistic_adam_v2"):  # Since Optax 0.2.7.
    TRANSFORMS["optimistic_adam"] = optax.optimistic_adam_v2(0.1)


def _params(name):
    params = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(4)}
    return params if name != "zero-size" else {**params, "none": jnp.ones((0, 4))}


def _other_values(state):
    """The state with other numbers, as if it had been trained."""

    def change(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(leaf, 1)[0]
        return (leaf + jnp.ones_like(leaf)).astype(leaf.dtype)

    return jax.tree.map(change, state)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_round_trips(name, tmp_path):
    """Types, structure, dtypes and every value of the state return."""
    fresh = TRANSFORMS[name].init(_params(name))
    state = _other_values(fresh)
    path = tmp_path / "checkpoint"
    stowax.save_checkpointables(path, {"opt": stowax_optax.State(state)})

    wrapped = stowax_optax.State(fresh)
    stowax.load_checkpointables(path, {"opt": wrapped})

    assert jax.tree.structure(wrapped.value) == jax.tree.structure(state)
    for loaded, saved in zip(
        jax.tree.leaves(wrapped.value), jax.tree.leaves(state), strict=True
    ):
        assert loaded.dtype == saved.dtype
        if jnp.issubdtype(loaded.dtype, jax.dtypes.prng_key):
            loaded, saved = jax.random.key_data(loaded), jax.random.key_data(saved)
        assert loaded.weak_type == saved.weak_type
        np.testing.assert_array_equal(loaded, saved)
