"""A training loop that does not wait for its checkpoints."""

import jax.numpy as jnp
import numpy as np


def save(ocp, path):
    """Several parts in each step; the best two by score and the latest are kept."""
    policies = ocp.training.save_decision_policies
    keeps = ocp.training.preservation_policies
    best = keeps.BestN(get_metric_fn=lambda metrics: metrics["score"], n=2)
    answers = []
    with ocp.training.Checkpointer(
        path / "run",
        save_decision_policy=policies.FixedIntervalPolicy(1),
        preservation_policy=keeps.AnyPreservationPolicy([best, keeps.LatestN(1)]),
    ) as steps:
        for step, score in enumerate([0.1, 0.9, 0.3, 0.7, 0.2]):
            parts = {"params": {"w": jnp.full(2, step)}, "data": {"at": step * 10}}
            response = steps.save_checkpointables_async(
                step, parts, metrics={"score": score}, custom_metadata={"no": step}
            )
            answers.append(response is not None)
        steps.wait()
        answers.append(steps.is_saving_in_progress())
        try:
            steps.save(4, {"w": jnp.zeros(2)}, force=True)
        except FileExistsError:
            answers.append("there already")
        answers.append([each.step for each in steps.checkpoints])
    return answers


def load(ocp, path):
    """The latest step, the best one, a part of one, and what is known of it."""
    with ocp.training.Checkpointer(path / "run") as steps:
        best = max(steps.checkpoints, key=lambda each: each.metrics["score"])
        asked = {"params": {"w": np.zeros(2, np.int32)}}
        described = steps.checkpointables_metadata(best)
        found = [
            steps.latest.step,
            best.step,
            steps.load_checkpointables()["data"],
            steps.load_checkpointables(best, asked),
            steps.load(best.step, checkpointable_name="params"),
            described.custom_metadata,
            described.step,
            described.metadata["params"]["w"].shape,
        ]
        try:
            steps.load(77)
        except FileNotFoundError:
            found.append("no such step")
        steps.delete(best.step)
        return [*found, [each.step for each in steps.checkpoints]]
