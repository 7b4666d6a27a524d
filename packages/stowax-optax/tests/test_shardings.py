"""`stowax_optax.shardings` places every leaf of an optimizer state."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optax import contrib

import stowax_optax


@pytest.fixture
def params():
    """A matrix over both axes of a mesh and a vector over one."""
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(auto, auto))

    def leaf(shape, *axes):
        sharding = jax.NamedSharding(mesh, P(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    return {"d": {"w": leaf((8, 4), "data", "model"), "b": leaf((4,), "model")}}


def specs(tx, params):
    """The spec of every leaf by its name, and the report."""
    state = jax.eval_shape(tx.init, params)
    tree, report = stowax_optax.shardings(state, params)
    assert jax.tree.structure(tree) == jax.tree.structure(state)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): sharding.spec
        for path, sharding in leaves
    }
    return found, report


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.masked(tx, {"d": {"w": True, "b": False}}),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.partition({"one": tx}, {"d": {"w": "one", "b": "one"}}),
    ],
    ids=["bare", "chain", "masked", "MultiSteps", "apply_if_finite", "partition"],
)
def test_moments_follow_their_parameter(wrap, params):
    """Below any wrapper, moments are sharded like the parameter, counters are not."""
    found, report = specs(wrap(optax.adam(0.1)), params)

    moments = {name: spec for name, spec in found.items() if name.endswith("mu.d.w")}
    assert set(moments.values()) == {P("data", "model")}
    counts = {spec for name, spec in found.items() if name.endswith("count")}
    assert counts == {P()}
    assert report == stowax_optax.ShardingReport()


def test_factored_moments(params):
    """Adafactor's rows and columns keep the axis of the dimension that is left."""
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    found, report = specs(tx, params)

    assert _one(found, "v_row.d.w") == P("model")
    assert _one(found, "v_col.d.w") == P("data")
    assert report.ambiguous == ()


def test_square_factors_are_reported(params):
    """Which dimension of a square matrix was dropped cannot be known from shapes."""
    mesh = params["d"]["b"].sharding.mesh
    sharding = jax.NamedSharding(mesh, P("data", "model"))
    square = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}

    found, report = specs(optax.adafactor(0.1, min_dim_size_to_factor=2), square)

    assert _one(found, "v_row.w") == P()
    assert len(report.ambiguous) == 2
    assert "v_row.w float32[8]" in str(report)


def test_history_in_front(params):
    """Leading dimensions, as in the memory of L-BFGS, are not sharded."""
    found, _ = specs(contrib_free_lbfgs(), params)
    assert _one(found, "diff_params_memory.d.w") == P(None, "data", "model")


def contrib_free_lbfgs():
    """L-BFGS without its line search."""
    return optax.scale_by_lbfgs(memory_size=3)


def test_what_follows_no_parameter_is_reported(params):
    """One vector of all parameters is replicated, and said to be."""
    found, report = specs(optax.flatten(optax.trace(0.9)), params)

    assert set(found.values()) == {P()}
    assert [line.split()[1] for line in report.unmatched] == ["float32[36]"]


def test_sharding_of_muon(params):
    """A state that splits the parameters by kind is matched all the same."""
    found, _ = specs(contrib.muon(0.1), params)
    assert {s for n, s in found.items() if n.endswith("mu.d.w")} == {P("data", "model")}


def test_no_mesh_no_sharding():
    """Parameters without shardings give a state without any."""
    params = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    tree, report = stowax_optax.shardings(
        jax.eval_shape(optax.adam(0.1).init, params), params
    )
    assert jax.tree.leaves(tree) == []
    assert report == stowax_optax.ShardingReport()


def test_abstract_state_is_placed_and_not_allocated(params):
    """`abstract_state` describes `tx.init` with the shardings in place."""
    before = len(jax.live_arrays())

    state = stowax_optax.abstract_state(optax.adam(0.1), params)

    assert isinstance(state[0], optax.ScaleByAdamState)
    assert state[0].mu["d"]["w"].sharding == params["d"]["w"].sharding
    assert state[0].count.sharding.spec == P()
    assert len(jax.live_arrays()) == before


def _one(found, suffix):
    """The only spec whose name ends so."""
    (spec,) = [spec for name, spec in found.items() if name.endswith(suffix)]
    return spec
