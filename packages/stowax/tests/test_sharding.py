"""Shardings written down and read again."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from sample_trees import mesh, shardings

from stowax._box import Box
from stowax._sharding import boxes_by_device, describe, restore


@pytest.mark.parametrize("name", shardings())
def test_there_and_back(name):
    """A sharding over a mesh is the same one after JSON."""
    sharding = shardings()[name]

    document = json.loads(json.dumps(describe(sharding)))

    assert restore(document, jax.devices()) == sharding


def test_order_of_devices():
    """The order of the devices in the mesh is kept."""
    grid = np.array(jax.devices())[::-1].reshape(2, 4)
    sharding = NamedSharding(Mesh(grid, ("a", "b")), P("b", "a"))

    assert restore(describe(sharding), jax.devices()) == sharding


def test_single_device():
    """One device is known by platform and number."""
    sharding = SingleDeviceSharding(jax.devices()[5])

    assert restore(describe(sharding), jax.devices()) == sharding


def test_kinds_without_words():
    """A kind that the document cannot say is not described."""
    abstract = NamedSharding(jax.sharding.AbstractMesh((8,), ("x",)), P("x"))

    assert describe(abstract) is None
    assert restore(None, jax.devices()) is None
    assert restore({"sharding_type": "Unheard"}, jax.devices()) is None
    assert restore([1], jax.devices()) is None


def test_fewer_devices():
    """On a run without those devices, nothing is restored and nothing is raised."""
    document = describe(shardings()["both"])

    assert restore(document, jax.devices()[:4]) is None
    assert restore(describe(SingleDeviceSharding(jax.devices()[5])), []) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [3]},
        {"shape": None},
        {"axis_names": ["a"]},
        {"partition_spec": [["nobody"]]},
        {"partition_spec": 3},
        {"partition_spec": ["x", "x"]},
        {"axis_types": [1, 1]},
        {"axis_types": ["AxisType.Unheard"] * 2},
        {"device_mesh": {"mesh": "text"}},
        {"device_mesh": {"mesh": [[{"no": 1}]]}},
    ],
    ids=str,
)
def test_damaged_document(damage):
    """A document that no sharding can be made of is no error: it is a wish."""
    assert restore({**describe(shardings()["both"]), **damage}, jax.devices()) is None


def test_document_without_devices():
    """Of a document without device ids, the devices of the run stand in their order."""
    sharding = NamedSharding(mesh(8), P("x"))
    document = describe(sharding)
    del document["device_mesh"]

    assert restore(document, jax.devices()) == sharding


def test_boxes():
    """Every device holds its part."""
    devices = jax.devices()

    found = boxes_by_device(NamedSharding(mesh(4, 2), P("x")), (8, 3))

    assert found[devices[0]] == found[devices[1]] == Box((0, 0), (2, 3))
    assert found[devices[7]] == Box((6, 0), (8, 3))
