"""A run that is about to be stopped saves one more step, the same in every process."""

import os
import signal

import jax.numpy as jnp

import stowax

STEP_LIMIT = 100_000


def train_until_preempted(rank, directory):
    """Trains until a step is saved; process 1 is told to stop after a few steps."""
    policy = stowax.training.save_decision_policies.PreemptionCheckpointingPolicy()
    with stowax.training.Checkpointer(
        directory, save_decision_policy=policy
    ) as checkpointer:
        for step in range(STEP_LIMIT):
            if rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if checkpointer.save(step, {"step": jnp.int32(step)}):
                return step
    return None


def test_preempted_run_saves_one_step(launch, tmp_path):
    """SIGTERM to one process makes all of them save the same step."""
    saved = launch(2, train_until_preempted, str(tmp_path))

    assert saved[0] is not None
    assert saved[0] == saved[1]
    assert stowax.load(tmp_path / str(saved[0]))["step"] == saved[0]
