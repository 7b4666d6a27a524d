"""What all kinds of leaves have in common, and what each says of itself."""

import jax
import numpy as np
import pytest
from sample_trees import all_kinds, bits, keys, mesh, sharded_arrays

from stowax._box import Box, whole
from stowax._leaves._base import Holding
from stowax._leaves._bytes import BytesLeaf
from stowax._leaves._jax_array import JaxArrayLeaf, key_dtype, key_impl_name
from stowax._leaves._numpy import NumpyLeaf
from stowax._leaves._registry import (
    Leaves,
    default_target,
    kind_of_target,
    metadata,
)
from stowax._leaves._scalar import ScalarLeaf
from stowax._leaves._string import StringLeaf
from stowax._manifest import LeafForm
from stowax._processes import OneProcess
from stowax.arrays import ArrayMetadata, NumpyMetadata
from stowax.errors import UnsupportedLeafError
from stowax.testing import SimulatedCluster

ONE = OneProcess()
LEAVES = Leaves()
ENTRY = LeafForm(kind="scalar", dtype="int64")
SAMPLES = {
    f"{family}-{name}": value
    for family in ("jax", "sharded", "keys", "numpy", "scalars", "strings")
    for name, value in all_kinds()[family].items()
}


def entry_of(description, **changes):
    """The stored leaf of a description."""
    return LeafForm(
        kind=description.kind,
        dtype=None if description.dtype is None else description.dtype.name,
        shape=description.shape,
        chunk_shape=tuple(max(1, n) for n in description.shape),
        text=description.text,
        prng_impl=description.prng_impl,
        sharding=description.sharding,
        **changes,
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_parts_cover_the_array(name):
    """Holdings cover every element once; what is staged has their shapes and dtype."""
    value = SAMPLES[name]
    kind = LEAVES.encode(value).kind

    found = kind.describe(value, ONE)
    boxes = [holding.box for holding in found.holdings]
    staged = kind.stage(value, boxes, ONE, borrow=True) if boxes else []

    if found.dtype is not None:
        covered = np.zeros(found.shape, int)
        for box in boxes:
            covered[box.within(whole(found.shape))] += 1
        assert (covered == 1).all()
    assert [part.shape for part in staged] == [box.shape for box in boxes]
    assert all(part.dtype == found.dtype for part in staged)


@pytest.mark.parametrize("name", SAMPLES)
def test_metadata_is_a_target(name):
    """What is shown of a stored leaf can be asked for, by the same kind."""
    value = SAMPLES[name]
    kind = LEAVES.encode(value).kind
    entry = entry_of(kind.describe(value, ONE))

    for target in (metadata(entry), default_target(entry), value):
        assert LEAVES.ask(target, entry).target is target
        assert kind_of_target(target) is kind
        wanted = kind.want(target, entry, ONE)
        assert wanted.shape in (None, entry.shape)
        assert wanted.prng_impl == entry.prng_impl


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, ScalarLeaf),
        (1, ScalarLeaf),
        (np.float64(1), ScalarLeaf),
        (np.float32(1), NumpyLeaf),
        (np.int64(1), NumpyLeaf),
        (np.zeros(1), NumpyLeaf),
        ("text", StringLeaf),
        (np.str_("text"), StringLeaf),
        (b"text", BytesLeaf),
        (np.bytes_(b"text"), BytesLeaf),
        (2**64, ScalarLeaf),
        (jax.device_put(1), JaxArrayLeaf),
    ],
)
def test_kind_of_a_value(value, kind):
    """Every value has one kind."""
    assert type(LEAVES.encode(value).kind) is kind


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *((int, ScalarLeaf), (bool, ScalarLeaf), (0.5, ScalarLeaf), (str, StringLeaf)),
        *(("any", StringLeaf), (np.zeros(1), NumpyLeaf)),
        *((bytes, BytesLeaf), (b"any", BytesLeaf), (2**64, ScalarLeaf)),
        (NumpyMetadata(shape=(1,), dtype=np.int8), NumpyLeaf),
        (ArrayMetadata(shape=(1,), dtype=np.int8), JaxArrayLeaf),
        (jax.ShapeDtypeStruct((1,), np.int8), JaxArrayLeaf),
    ],
)
def test_kind_of_a_target(target, kind):
    """Every target has one kind."""
    assert type(kind_of_target(target)) is kind


@pytest.mark.parametrize("value", [object(), len, [1], bytearray(), None, ...])
def test_unknown_values(value):
    """What no kind accepts is refused, as a value and as a target."""
    with pytest.raises(UnsupportedLeafError, match="cannot be saved; "):
        LEAVES.encode(value)
    with pytest.raises(UnsupportedLeafError, match="asks for nothing"):
        kind_of_target(value)


def test_replicas_have_several_holders():
    """Every process that has a replica of a part is named as its holder."""
    array = jax.device_put(
        bits("int8", (8, 4)),
        jax.sharding.NamedSharding(mesh(4, 2), jax.sharding.PartitionSpec("y")),
    )
    with SimulatedCluster(4) as cluster:
        described = [JaxArrayLeaf().describe(array, p) for p in cluster.processes]

    assert described[0].holdings == (
        Holding(box=Box((0, 0), (4, 4)), processes=(0, 1, 2, 3)),
        Holding(box=Box((4, 0), (8, 4)), processes=(0, 1, 2, 3)),
    )
    assert all(found == described[0] for found in described)


def test_shards_belong_to_their_process():
    """A process stages its own shards, and wants those of its own devices."""
    array = sharded_arrays()["rows"]
    handler = JaxArrayLeaf()
    with SimulatedCluster(4) as cluster:
        for process in cluster.processes:
            found = handler.describe(array, process)
            mine = [
                holding.box
                for holding in found.holdings
                if holding.processes == (process.index,)
            ]
            staged = handler.stage(array, mine, process, borrow=True)
            wanted = handler.want(array, entry_of(found), process)

            start = 2 * process.index
            assert [box.start[0] for box in mine] == [start, start + 1]
            assert set(wanted.boxes) == set(mine)
            expected = np.asarray(array)[start : start + 2]
            assert np.concatenate(staged).tobytes() == expected.tobytes()


def test_host_values_belong_to_the_primary():
    """NumPy arrays and numbers are written by the primary process alone."""
    with SimulatedCluster(2) as cluster:
        for process in cluster.processes:
            for value in (np.ones(3), 3):
                kind = LEAVES.encode(value).kind
                (holding,) = kind.describe(value, process).holdings
                assert holding.processes == (0,)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_prng_implementations(impl):
    """The name of an implementation and its dtype belong together."""
    assert key_impl_name(key_dtype(impl)) == impl
    key = jax.random.key(0, impl=impl)
    assert JaxArrayLeaf().describe(key, ONE).prng_impl == impl


def test_prng_keys_keep_their_data_whole():
    """The data of a key is never split, however the keys are spread."""
    found = JaxArrayLeaf().describe(keys()["sharded"], ONE)

    assert found.shape == (8, 2)
    assert [h.box.shape for h in found.holdings] == [(1, 2)] * 8
    assert found.sharding["partition_spec"] == ["x"]


def test_sharding_that_this_run_cannot_have():
    """A recorded sharding without its devices, or that does not fit, is dropped."""
    found = JaxArrayLeaf().describe(sharded_arrays()["rows"], ONE)
    elsewhere = {**found.sharding, "device_mesh": {"mesh": [{"id": 99}] * 8}}

    for entry in (
        LeafForm(kind="jax.Array", dtype="float32", shape=(8, 16),
                  sharding=elsewhere),
        LeafForm(kind="jax.Array", dtype="float32", shape=(7,),
                  sharding=found.sharding),
    ):  # fmt: skip
        assert metadata(entry).sharding is None
