"""`stowax_flax.abstract_state` describes what was never built."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stowax
import stowax_flax

AXES = ("data", "model")


def make_mesh(kind):
    """Four by two devices."""
    axis = getattr(jax.sharding.AxisType, kind)
    return jax.make_mesh((4, 2), AXES, axis_types=(axis, axis))


class Annotated(nnx.Module):
    """Parameters with mesh axes, with logical axes and without any."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        init = nnx.initializers.lecun_normal()
        column = nnx.with_partitioning(init, (None, "model"))
        logical = nnx.with_partitioning(
            init, ("embed", "mlp"), sharding_rules=(("embed", None), ("mlp", "model"))
        )
        self.layers = nnx.List(
            [nnx.Linear(8, 8, kernel_init=column, rngs=rngs) for _ in range(2)]
        )
        self.logical = nnx.Linear(8, 8, kernel_init=logical, rngs=rngs)
        self.plain = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.bare = nnx.data(jnp.ones((8, 8)))


class Ruled(nnx.Module):
    """A parameter whose logical axes mean something only with rules."""

    def __init__(self):
        init = nnx.with_partitioning(nnx.initializers.ones, ("embed", "mlp"))
        self.linear = nnx.Linear(8, 8, kernel_init=init, rngs=nnx.Rngs(0))


class Typed(nnx.Module):
    """A parameter whose axes are in its type alone, with no metadata."""

    def __init__(self):
        ones = jnp.ones((8, 8))
        self.weight = nnx.Param(jax.sharding.reshard(ones, jax.P(None, "model")))


def flat(tree):
    """Leaves by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def live(node):
    """The live state in the same plain form."""
    arrays = nnx.to_pure_dict(nnx.state(node))
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def spec_of(leaf):
    """The axes of a leaf, trailing ones that are None left away; any one device: ()."""
    axes = list(getattr(leaf.sharding, "spec", ()))
    while axes and axes[-1] is None:
        axes.pop()
    return tuple(axes)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_abstract_specs_are_the_live_ones(kind):
    """Every leaf gets the sharding that the live model and optimizer have."""
    mesh = make_mesh(kind)

    def build():
        model = Annotated()
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    with jax.set_mesh(mesh):
        expected = live(build())

    abstract = flat(stowax_flax.abstract_state(build, mesh))

    assert abstract.keys() == expected.keys()
    assert spec_of(abstract["[0]['layers'][1]['kernel']"]) == (None, "model")
    for name, leaf in abstract.items():
        assert leaf.sharding.mesh == mesh, name
        assert spec_of(leaf) == spec_of(expected[name]), name
        assert (leaf.shape, leaf.dtype) == (expected[name].shape, expected[name].dtype)


def test_axes_in_a_type_are_seen():
    """On an explicit mesh an array without metadata keeps the sharding of its type."""
    mesh = make_mesh("Explicit")

    abstract = stowax_flax.abstract_state(Typed, mesh)

    assert spec_of(abstract["weight"]) == (None, "model")


def test_rules_name_the_axes():
    """Logical axes become those of the mesh by the rules that are given."""
    mesh = make_mesh("Auto")
    rules = (("embed", "data"), ("mlp", "model"))

    abstract = stowax_flax.abstract_state(Ruled, mesh, rules)

    assert abstract["linear"]["kernel"].sharding == jax.NamedSharding(
        mesh, jax.P("data", "model")
    )


def test_no_mesh_no_sharding():
    """Annotated models are described without a mesh too."""
    abstract = stowax_flax.abstract_state(Annotated)
    assert {leaf.sharding for leaf in jax.tree.leaves(abstract)} == {None}


def test_nothing_is_allocated():
    """A model of a petabyte is described in no memory."""

    def build():
        side = 2**22
        return nnx.List([nnx.Linear(side, side, rngs=nnx.Rngs(0)) for _ in range(16)])

    gc.collect()  # What other tests have left behind may go at any moment.
    before = len(jax.live_arrays())
    abstract = stowax_flax.abstract_state(build)

    assert abstract[15]["kernel"].shape == (2**22, 2**22)
    assert len(jax.live_arrays()) == before


def test_ephemeral_variables_are_left_out():
    """What `Module` does not save is not described either."""

    class Cached(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(1))
            self.cache = nnx.Cache(jnp.ones(1))

    assert set(stowax_flax.abstract_state(Cached)) == {"weight"}


def test_abstract_state_loads_the_plain_tree(tmp_path):
    """The weights go straight onto the mesh, without a module."""
    mesh = make_mesh("Auto")
    with jax.set_mesh(mesh):
        model = Annotated()
    path = tmp_path / "checkpoint"
    stowax.save_checkpointables(path, {"model": stowax_flax.Module(model)})

    abstract = stowax_flax.abstract_state(Annotated, mesh)
    loaded = stowax.load(path, abstract, checkpointable_name="model")

    kernel = loaded["layers"][1]["kernel"]
    assert kernel.sharding == jax.NamedSharding(mesh, jax.P(None, "model"))
    np.testing.assert_array_equal(kernel, model.layers[1].kernel[...])
    assert loaded["dropout"]["rngs"]["key"].dtype == jax.random.key(0).dtype
