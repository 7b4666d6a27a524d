"""One directory, two libraries: each lists, loads and continues what both saved."""

import json

import golden_cases
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

import stowax
from stowax import training

STATE = {"w": jnp.arange(6.0).reshape(2, 3), "b": {"x": np.arange(4)}}
LIBRARIES = {"stowax": stowax, "orbax": orbax}


def save_steps(library, directory, steps):
    """Saves steps with all that can be kept beside a state."""
    with library.training.Checkpointer(directory, custom_metadata={"run": 7}) as run:
        for step in steps:
            state = {"w": STATE["w"] + step, "b": STATE["b"]}
            metrics = {"loss": 1 / (1 + step)}
            tag = {"tag": f"step {step}"}
            run.save(step, state, metrics=metrics, custom_metadata=tag)


@pytest.mark.parametrize("writer", LIBRARIES)
@pytest.mark.parametrize("reader", LIBRARIES)
def test_steps_of_both(tmp_path, writer, reader):
    """Steps, metrics and metadata are the same, whoever wrote or reads them."""
    save_steps(LIBRARIES[writer], tmp_path, [1, 5, 12])

    with LIBRARIES[reader].training.Checkpointer(tmp_path) as run:
        assert [c.step for c in run.checkpoints] == [1, 5, 12]
        assert run.latest.step == 12
        assert [c.metrics["loss"] for c in run.checkpoints] == [1 / 2, 1 / 6, 1 / 13]
        assert run.latest.path == tmp_path / "12"
        assert run.metadata(5).custom_metadata == {"tag": "step 5"}
        assert run.root_metadata().custom_metadata == {"run": 7}
        for step in (1, 5, 12):
            loaded = run.load(step, STATE)
            np.testing.assert_array_equal(loaded["w"], STATE["w"] + step)
            np.testing.assert_array_equal(loaded["b"]["x"], STATE["b"]["x"])


@pytest.mark.parametrize("first", LIBRARIES)
def test_taking_turns(tmp_path, first):
    """A run that goes on with the other library has one sequence of steps."""
    second = next(name for name in LIBRARIES if name != first)
    save_steps(LIBRARIES[first], tmp_path, [1, 2])
    save_steps(LIBRARIES[second], tmp_path, [3])
    save_steps(LIBRARIES[first], tmp_path, [4])

    for library in LIBRARIES.values():
        with library.training.Checkpointer(tmp_path) as run:
            assert [c.step for c in run.checkpoints] == [1, 2, 3, 4]
            for step in (1, 2, 3, 4):
                loaded = run.load(step, STATE)
                np.testing.assert_array_equal(loaded["w"], STATE["w"] + step)


def test_deleting_what_the_other_saved(tmp_path):
    """A preservation policy counts the steps of both, and Orbax sees what is left."""
    save_steps(orbax, tmp_path, [1, 2])
    latest_two = training.preservation_policies.LatestN(2)
    with training.Checkpointer(tmp_path, preservation_policy=latest_two) as run:
        run.save(3, STATE)

    with orbax.training.Checkpointer(tmp_path) as run:
        assert [c.step for c in run.checkpoints] == [2, 3]


def test_several_checkpointables(tmp_path):
    """Orbax loads the checkpointables of a step by name."""
    with training.Checkpointer(tmp_path) as run:
        run.save_checkpointables(1, {"model": STATE, "data": {"at": 5}})

    with orbax.training.Checkpointer(tmp_path) as run:
        loaded = run.load_checkpointables(1)
    assert sorted(loaded) == ["data", "model"]
    np.testing.assert_array_equal(loaded["model"]["w"], STATE["w"])


@pytest.mark.parametrize("name", ["v1_training", "v0_manager"])
def test_golden_runs(name):
    """Runs of released Orbax versions: every step, its values and metrics."""
    case = golden_cases.load_case(name)
    run = training.Checkpointer(
        case.directory / "checkpoint", lightweight_initialize=True
    )
    described = {int(path.name): said for path, said in case.checkpoints.items()}

    assert [c.step for c in run.checkpoints] == sorted(described)
    for step, said in described.items():
        found = run.checkpointables_metadata(step)
        assert found.metrics == said["metrics"]
        assert found.custom_metadata == said.get("custom_metadata", {})
        trees = {k: v for k, v in said["items"].items() if v["kind"] == "pytree"}
        loaded = run.load_checkpointables(step)
        assert trees
        for item, tree in trees.items():
            assert golden_cases.compare(tree["tree"], loaded[item]) == []
    path = case.directory / "checkpoint" / "metadata" / "_ROOT_METADATA"
    document = json.loads(path.read_text())
    assert run.root_metadata().custom_metadata == document["custom_metadata"]


def test_a_manager_step_loads_without_a_name():
    """The only tree of an older step is found, whatever it was called."""
    case = golden_cases.load_case("v0_manager")
    run = training.Checkpointer(case.directory / "checkpoint")

    loaded = run.load()

    [(_, said)] = [c for c in case.checkpoints.items() if c[0].name == "2"]
    assert golden_cases.compare(said["items"]["default"]["tree"], loaded) == []
