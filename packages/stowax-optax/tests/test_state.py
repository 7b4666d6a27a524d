"""What `stowax_optax.State` saves, what it gives back, and what it refuses."""

import asyncio
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stowax
import stowax_optax
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.handlers import PyTreeHandler

PARAMS = {
    "dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4)},
    "layers": [{"scale": jnp.ones(2)} for _ in range(2)],
}


def save(path, state, params=None, **options):
    """Saves a state as the one checkpointable `opt`."""
    stowax.save_checkpointables(
        path, {"opt": stowax_optax.State(state, params, **options)}
    )


def load(path, state, params=None, **options):
    """The state after a load into one like `state`."""
    wrapped = stowax_optax.State(state, params, **options)
    stowax.load_checkpointables(path, {"opt": wrapped})
    return wrapped.value


def trained(tx, params=PARAMS, steps=2):
    """A state that has seen a few gradients."""
    state = tx.init(params)
    gradients = jax.tree.map(lambda leaf: leaf * 0.1 + 1.0, params)
    for _ in range(steps):
        _, state = tx.update(gradients, state, params)
    return state


def assert_same(one, other):
    """Fails unless types, structure and every value are equal."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


@pytest.fixture
def path(tmp_path):
    """Where the checkpoint goes."""
    return tmp_path / "checkpoint"


def test_named_tuples_return(path):
    """The loaded state has the types that Optax gave it."""
    tx = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 10)))
    state = trained(tx)
    save(path, state)

    loaded = load(path, tx.init(PARAMS))

    assert isinstance(loaded[1][0], optax.ScaleByAdamState)
    assert isinstance(loaded[0], optax.EmptyState)
    assert_same(loaded, state)


def test_target_may_be_abstract(path):
    """A state that was never initialised is loaded all the same."""
    tx = optax.adam(0.1)
    state = trained(tx)
    save(path, state)
    assert_same(load(path, stowax_optax.abstract_state(tx, PARAMS)), state)


def test_plain_tree_has_no_optax_in_it(path):
    """Without the adapter the item is nested dicts and lists of arrays."""
    save(path, trained(optax.adam(0.1)))

    plain = stowax.load(path, checkpointable_name="opt")

    (adam,) = plain["opt_state"]
    assert set(adam) == {"count", "mu", "nu"}
    assert int(adam["count"]) == 2
    assert len(adam["mu"]["layers"]) == 2


def test_orbax_reads_the_tree(path):
    """The item is a tree of Orbax's, which loads it without this package."""
    peer = pytest.importorskip("orbax.checkpoint").v1
    state = trained(optax.adam(0.1))
    save(path, state)

    (adam,) = peer.load(path, checkpointable_name="opt")["opt_state"]

    np.testing.assert_array_equal(
        adam["mu"]["dense"]["kernel"], state[0].mu["dense"]["kernel"]
    )


def test_edit_that_changes_no_array(path):
    """Transforms without state come and go: adamw's state is adam's."""
    state = trained(optax.adam(0.1))
    save(path, state)

    loaded = load(path, optax.adamw(0.1).init(PARAMS))

    assert_same(loaded[0], state[0])


def test_other_optimizer_is_refused(path):
    """AdaBelief does not take Adam's moments; both are named, for every leaf."""
    save(path, trained(optax.adam(0.1)))

    with pytest.raises(TreeMismatchError) as caught:
        load(path, optax.adabelief(0.1).init(PARAMS))

    assert "asked optax:ScaleByBeliefState.mu" in str(caught.value)
    assert "stored optax:ScaleByAdamState.mu" in str(caught.value)
    assert len(caught.value.problems) == 9


def test_every_problem_is_named(path):
    """Missing, extra, shape and dtype problems come in one error."""
    tx = optax.trace(0.9)
    save(path, tx.init({"a": jnp.ones(2), "b": jnp.ones(2), "extra": jnp.ones(1)}))
    fresh = tx.init(
        {"a": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16), "missing": jnp.ones(1)}
    )

    with pytest.raises(TreeMismatchError) as caught:
        load(path, fresh)

    names = [line.split()[0] for line in caught.value.problems]
    assert names == [f"opt_state.trace.{n}" for n in ("a", "b", "extra", "missing")]
    assert "asked float32[3]   stored float32[2]" in str(caught.value)
    assert "asked bfloat16[2]   stored float32[2]" in str(caught.value)


def test_tag_tells_equal_types_apart(path):
    """Adamax keeps its moments in Adam's state type; a tag keeps them apart."""
    save(path, trained(optax.adamax(0.1)), tag="adamax")
    fresh = optax.adam(0.1).init(PARAMS)

    with pytest.raises(TreeMismatchError, match="asked None   stored 'adamax'"):
        load(path, fresh)
    assert int(load(path, fresh, tag="adamax")[0].count) == 2


def test_state_type_of_the_user_may_move(path):
    """A state type that is not Optax's is known by its name alone."""

    def state_type(module):
        class Mine(NamedTuple):
            moment: jax.Array

        Mine.__module__ = module
        return Mine

    save(path, state_type("before")(jnp.ones(2)))
    assert float(load(path, state_type("after")(jnp.zeros(2))).moment[0]) == 1.0


def test_object_in_a_state_is_refused(path):
    """A leaf that no checkpoint can hold is named, and nothing is written."""
    with pytest.raises(UnsupportedLeafError, match=r"opt_state\.0: object"):
        save(path, (object(),))
    assert not path.exists()


def test_document_names_owner_and_parameter(path):
    """`optax.json` says which transform and parameter each leaf belongs to."""
    tx = optax.MultiSteps(optax.adam(0.1), 2)
    save(path, tx.init(PARAMS), PARAMS)

    document = json.loads((path / "opt" / "optax.json").read_text())
    entries = {tuple(entry["path"]): entry for entry in document["leaves"]}

    nu = ("opt_state", "inner_opt_state", 0, "nu", "layers", 1, "scale")
    assert entries[nu] == {
        "path": list(nu),
        "owner": "optax:ScaleByAdamState",
        "field": "nu",
        "param": ["layers", 1, "scale"],
    }
    assert entries["opt_state", "mini_step"]["owner"] == "optax:MultiStepsState"
    assert entries["opt_state", "mini_step"]["param"] is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"format": 2, "kind": "optax"}', InvalidLayoutError),
        ('{"format": 1, "kind": "flax.nnx"}', InvalidLayoutError),
        ("{", CorruptCheckpointError),
        ('{"format": 1, "kind": "optax"}', CorruptCheckpointError),
        ('{"format": 1, "kind": "optax", "tag": 3}', CorruptCheckpointError),
        (
            '{"format": 1, "kind": "optax", "tag": null, "leaves": [{"path": []}]}',
            CorruptCheckpointError,
        ),
    ],
)
def test_document_is_read_strictly(tmp_path, text, error):
    """An unknown version, another kind or a damaged document is an error."""
    # Not in a checkpoint, where digests would find the other text first.
    state = stowax_optax.State(optax.trace(0.9).init(PARAMS))

    async def write_and_load():
        await (await PyTreeHandler().save(tmp_path, {"opt_state": {"trace": PARAMS}}))
        (tmp_path / "optax.json").write_text(text)
        await state.load(tmp_path)

    with pytest.raises(error, match=r"optax\.json"):
        asyncio.run(write_and_load())


def test_tree_without_a_document(path):
    """An item that is a tree alone loads; then owners are not compared."""
    stowax.save_checkpointables(
        path, {"opt": {"opt_state": {"trace": {"w": jnp.ones(2)}}}}
    )
    fresh = optax.trace(0.9).init({"w": jnp.zeros(2)})
    assert float(load(path, fresh).trace["w"][0]) == 1.0


# Placement.


@pytest.fixture
def spread():
    """A sharding over all devices."""
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(auto,))
    return jax.NamedSharding(mesh, jax.P("data"))


def test_counters_mix_with_sharded_moments(path, spread):
    """After a load the count meets moments on any mesh in one jitted update."""
    tx = optax.adam(0.1)
    params = {"w": jax.device_put(jnp.ones(8), spread)}
    save(path, tx.init(params))

    state = load(path, tx.init(params))
    _, state = jax.jit(tx.update)(params, state, params)

    assert state[0].mu["w"].sharding == spread
    assert int(state[0].count) == 1


def test_abstract_state_loads_onto_the_mesh(path, spread):
    """Moments arrive sharded like their parameters, counters replicated."""
    tx = optax.adam(0.1)
    save(path, trained(tx, {"w": jnp.ones(8)}))
    params = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=spread)}

    state = load(path, stowax_optax.abstract_state(tx, params))

    assert state[0].nu["w"].sharding == spread
    assert state[0].count.sharding.is_equivalent_to(
        jax.NamedSharding(spread.mesh, jax.P()), 0
    )


# nnx.Optimizer.


class Network(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])


def optimizer_of(model, tx=None):
    """Clipping and a schedule around adamw, or the given transform."""
    tx = tx or optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(0.01, 100)),
    )
    return nnx.Optimizer(model, tx, wrt=nnx.Param)


def train(model, optimizer, steps):
    """Takes steps down the sum of squares."""
    for _ in range(steps):
        gradients = nnx.grad(
            lambda m: sum((layer.kernel[...] ** 2).sum() for layer in m.layers)
        )(model)
        optimizer.update(model, gradients)


def test_nnx_optimizer_is_loaded_in_place(path):
    """State and step return into the Variables that the optimizer has."""
    model = Network(0)
    optimizer = optimizer_of(model)
    train(model, optimizer, 3)
    save(path, optimizer)

    fresh = optimizer_of(Network(1))
    step, moments = fresh.step, fresh.opt_state[1][0].mu
    loaded = load(path, fresh)

    assert loaded is fresh
    assert fresh.step is step
    assert int(step[...]) == 3
    assert isinstance(fresh.opt_state[1][0], optax.ScaleByAdamState)
    for left, right in zip(
        jax.tree.leaves(nnx.state(optimizer)),
        jax.tree.leaves(nnx.state(fresh)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(
        moments["layers"][2]["kernel"].get_value(),
        optimizer.opt_state[1][0].mu["layers"][2]["kernel"].get_value(),
    )


def test_nnx_optimizer_knows_its_parameters(path):
    """Without being told, the document names the parameter of every moment."""
    save(path, optimizer_of(Network(0)))

    document = json.loads((path / "opt" / "optax.json").read_text())

    params = [e["param"] for e in document["leaves"] if e["field"] == "nu"]
    assert ["layers", 2, "kernel"] in params


def test_other_nnx_optimizer_is_refused(path):
    """The kind of optimizer is compared, and the optimizer is left as it was."""
    model = Network(0)
    save(path, optimizer_of(model, optax.adam(0.1)))
    other = optimizer_of(model, optax.adabelief(0.1))
    train(model, other, 1)

    with pytest.raises(TreeMismatchError, match="ScaleByBeliefState"):
        load(path, other)
    assert int(other.step[...]) == 1


def test_state_of_nnx_parameters(path):
    """A state over Variables is saved as one over their values, and keeps its types."""
    params = nnx.state(Network(0), nnx.Param)
    tx = optax.adam(0.1)
    state = tx.init(params)
    save(path, state, params)

    plain = stowax.load(path, checkpointable_name="opt")
    loaded = load(path, tx.init(params))

    assert plain["opt_state"][0]["mu"]["layers"][2]["kernel"].shape == (3, 3)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)


def test_bare_state_from_an_nnx_optimizer(path):
    """The state of an `nnx.Optimizer` loads without NNX; its step has no place."""
    model = Network(0)
    optimizer = optimizer_of(model, optax.adam(0.1))
    train(model, optimizer, 2)
    save(path, optimizer)

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    loaded = load(path, optax.adam(0.1).init(params))

    assert int(loaded[0].count) == 2
    np.testing.assert_array_equal(
        loaded[0].mu["layers"][2]["kernel"],
        optimizer.opt_state[0].mu["layers"][2]["kernel"].get_value(),
    )
