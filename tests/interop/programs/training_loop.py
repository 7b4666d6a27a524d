"""A training loop that saves some of its steps, and keeps some of these."""

import jax.numpy as jnp
import numpy as np


def checkpointer(ocp, path):
    """Every other step is saved; the latest two and every sixth are kept."""
    saves, keeps = (
        ocp.training.save_decision_policies,
        ocp.training.preservation_policies,
    )
    return ocp.training.Checkpointer(
        path / "run",
        save_decision_policy=saves.AnySavePolicy(
            [saves.FixedIntervalPolicy(2), saves.SpecificStepsPolicy([5])]
        ),
        preservation_policy=keeps.AnyPreservationPolicy(
            [keeps.LatestN(2), keeps.EveryNSteps(6)]
        ),
        custom_metadata={"purpose": "demonstration"},
    )


def train(ocp, path, stop):
    """Goes on from the latest step, if there is one."""
    saved = []
    with checkpointer(ocp, path) as steps:
        if steps.latest is None:
            first, state = 0, {"w": jnp.zeros(3), "count": 0}
        else:
            first = steps.latest.step + 1
            abstract = {"w": np.zeros(3, np.float32), "count": int}
            state = steps.load(abstract_state=abstract)
        for step in range(first, stop):
            state = {"w": state["w"] + step, "count": state["count"] + 1}
            saved.append(steps.save(step, state, metrics={"loss": 1 / (1 + step)}))
        return [first, saved, state, kept(steps)]


def kept(steps):
    """What is known of every step that is there."""
    return [(each.step, each.metrics, each.path.name) for each in steps.checkpoints]


def save(ocp, path):
    """Until something comes in between."""
    return train(ocp, path, 6)


def load(ocp, path):
    """And from there to the end."""
    found = train(ocp, path, 11)
    with checkpointer(ocp, path) as steps:
        return [
            found,
            kept(steps),
            steps.root_metadata().custom_metadata,
            steps.should_save(11),
            steps.should_save(12),
            steps.load(6),
        ]
