"""Somebody is told when a background save is done."""

import threading

import numpy as np


def save(ocp, path):
    """By a callback of the response; by one of the options, for every step of a run."""
    is_told = threading.Event()
    response = ocp.save_async(path / "state", {"w": np.arange(4)})
    response.on_complete(lambda result: is_told.set())
    response.result()

    said = []
    context = ocp.Context()
    context.asynchronous.post_finalization_callback = lambda: said.append("done")
    context.asynchronous.timeout_secs = 60
    with ocp.training.Checkpointer(path / "run", context=context) as steps:
        steps.save(1, {"w": np.arange(3)})
        steps.save_async(2, {"w": np.arange(2)}, force=True).result()
    return [is_told.wait(timeout=60), said]


def load(ocp, path):
    """All of them are there then."""
    with ocp.training.Checkpointer(path / "run") as steps:
        return [ocp.load(path / "state"), steps.load(1), steps.load(2)]
