"""The comparison with golden checkpoints, judged by the library that wrote them."""

import copy
import math

import jax
import numpy as np
import pytest
from golden_cases import all_cases, compare, load_case
from orbax.checkpoint import v1 as orbax


@pytest.mark.parametrize(
    "name", ["v1_basic", "v1_containers", "v1_odd_keys", "v1_prng", "v1_scalars"]
)
def test_nothing_differs_from_what_orbax_reads(name):
    """What Orbax itself loads from a case equals the case's description."""
    (node, loaded) = _described_and_loaded(name)

    assert compare(node, loaded) == []


def test_every_change_is_a_difference():
    """A leaf or container that is changed in any one way is named by its path."""
    node, loaded = _described_and_loaded("v1_basic")
    params = {**loaded["params"], "w": loaded["params"]["w"].at[0, 0].add(1)}
    changes = {
        "['params']['w']": {"params": params},
        "['host']": {"host": jax.numpy.asarray(loaded["host"])},
        "['step']": {"step": np.int64(12)},
        "['done']": {"done": 0},
        "['note']": {"note": "hello"},
        "['nothing']": {"nothing": {}},
        "['empty_list']": {"empty_list": ()},
        "['layers']": {"layers": loaded["layers"][:-1]},
    }

    for path, change in changes.items():
        (difference,) = compare(node, {**loaded, **change})
        assert difference.startswith(f"{path}: expected ")


@pytest.mark.parametrize("value", [0.0, -0.0, float("inf"), float("nan"), True, 1])
def test_scalars_are_told_apart(value):
    """Signed zeros, bools and non-finite numbers are not taken for their equals."""
    described = value if math.isfinite(value) else {"nonfinite": repr(value)}
    leaf = {"kind": "scalar", "python_type": type(value).__name__, "value": described}
    others = [0.0, -0.0, float("inf"), float("nan"), True, 1, 0, 1.0]

    same = [other for other in others if not compare({"leaf": leaf}, other)]
    assert [repr(other) for other in same] == [repr(value)]


def test_a_different_key_implementation_is_a_difference():
    """The same key data under another implementation is another key."""
    node, loaded = _described_and_loaded("v1_prng")
    data = jax.random.key_data(loaded["rbg"])
    loaded["rbg"] = jax.random.wrap_key_data(data, impl="unsafe_rbg")

    (difference,) = compare(node, loaded)
    assert difference.startswith("['rbg']: expected implementation rbg")


def test_unknown_nodes_are_refused():
    """A description that the comparison does not understand is no agreement."""
    node = copy.deepcopy(_tree("v1_basic"))
    node["dict"]["step"] = {"set": []}

    with pytest.raises(ValueError, match="no such node"):
        compare(node["dict"]["step"], 12)


def test_all_cases_are_there():
    """The folder holds readable, unfinished and damaged checkpoints."""
    statuses = [case.status for case in all_cases()]

    assert {s: statuses.count(s) for s in ("ok", "incomplete", "corrupt")} == {
        "ok": 34,
        "incomplete": 2,
        "corrupt": 8,
    }


def _tree(name):
    (content,) = load_case(name).checkpoints.values()
    return content["items"]["state"]["tree"]


def _described_and_loaded(name):
    (path,) = load_case(name).checkpoints
    return _tree(name), orbax.load(path, checkpointable_name="state")
