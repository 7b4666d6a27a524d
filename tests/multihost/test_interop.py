"""Several processes read what Orbax wrote in several, and Orbax reads ours."""

import jax
import pytest
from golden_cases import compare, load_case
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as orbax

import stowax
from multihost import trees

REFUSED_BY_ORBAX = {"global": ("empty",), "plain": ("complex",)}


def for_orbax(tree):
    """A tree of `trees` without the leaves that Orbax cannot hold."""
    return {
        part: (
            {k: v for k, v in leaves.items() if k not in REFUSED_BY_ORBAX[part]}
            if part in REFUSED_BY_ORBAX
            else leaves
        )
        for part, leaves in tree.items()
    }


def global_arrays():
    """The arrays that span all processes, and Orbax can hold."""
    return for_orbax(trees.state())["global"]


def global_values():
    """What they hold."""
    return for_orbax(trees.expected())["global"]


def global_abstract(*, is_turned):
    """What to ask for to get them onto a mesh."""
    mesh = trees.global_mesh(is_turned=is_turned)
    return for_orbax({"global": trees.abstract_arrays(mesh)})["global"]


def with_shardings(metadata, choose):
    """An abstract state out of metadata, with the sharding chosen for every array."""

    def target(leaf):
        if not hasattr(leaf, "sharding"):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=choose(leaf))

    return jax.tree.map(target, metadata)


def _load_golden(index, is_turned):
    ((path, content),) = load_case("mp2_basic").checkpoints.items()
    mesh = trees.global_mesh(is_turned=is_turned)

    def spread(leaf):
        divides = leaf.shape and leaf.shape[0] % 2 == 0
        return NamedSharding(mesh, P("process") if divides else P())

    def put_together(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, P())).addressable_data(0)

    abstract = with_shardings(stowax.metadata(path).metadata, spread)
    loaded = stowax.load(path, abstract)
    whole = jax.tree.map(put_together, loaded)
    strays = [
        name
        for name, leaf in loaded.items()
        if isinstance(leaf, jax.Array) and leaf.sharding != spread(leaf)
    ]
    return strays + compare(content["items"]["state"]["tree"], whole)


@pytest.mark.parametrize("is_turned", [False, True])
def test_two_read_what_two_of_orbax_wrote(launch, is_turned):
    """A fixture that two processes of a released Orbax wrote loads onto two."""
    assert launch(2, _load_golden, is_turned) == [[], []]


def _save_with_orbax(index, path):
    orbax.save(path, global_arrays())
    found = []
    for is_turned in (False, True):
        abstract = global_abstract(is_turned=is_turned)
        loaded = stowax.load(path, abstract)
        found += trees.differences(loaded, global_values())
        found += trees.misplaced(loaded, abstract)
    return found


def test_reads_what_orbax_writes(launch, tmp_path):
    """What two processes of the installed Orbax write, two and one can load."""
    results = launch(2, _save_with_orbax, tmp_path / "checkpoint")
    loaded = stowax.load(tmp_path / "checkpoint")

    assert results == [[], []]
    assert trees.differences(loaded, global_values()) == []


def _load_with_orbax(index, path):
    stowax.save(path, global_arrays())
    found = []
    for is_turned in (False, True):
        loaded = orbax.load(path, global_abstract(is_turned=is_turned))
        found += trees.differences(loaded, global_values())
    return found


def test_two_of_orbax_read_ours(launch, tmp_path):
    """What two processes save, two processes of Orbax load, onto any mesh."""
    assert launch(2, _load_with_orbax, tmp_path / "checkpoint") == [[], []]


def _save_for_orbax(index, path):
    stowax.save(path, for_orbax(trees.state()))


def test_one_of_orbax_reads_ours(launch, tmp_path):
    """What four processes save, Orbax loads in one: every kind of leaf."""
    path = tmp_path / "checkpoint"
    launch(4, _save_for_orbax, path)

    # Without a sharding, Orbax looks for the devices of the save.
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = with_shardings(stowax.metadata(path).metadata, lambda _: here)
    loaded = orbax.load(path, abstract)

    assert trees.differences(loaded, for_orbax(trees.expected())) == []
