"""Configurations are JSON files or protocol buffers, under names of one's choice."""

import json

import jax.numpy as jnp
from google.protobuf.struct_pb2 import Struct

CONFIG = {"depth": 3, "widths": [8, 16.5, None], "name": "Größe", "is_causal": True}


def context(ocp):
    """Files that other programs find, too."""

    class ConfigHandler(ocp.handlers.JsonHandler):
        def __init__(self):
            super().__init__(filename="config.json")

    class LimitsHandler(ocp.handlers.ProtoHandler):
        def __init__(self):
            super().__init__(filename="limits.pbtxt")

    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="dataset")
    registry.add(ConfigHandler, checkpointable_name="config")
    registry.add(LimitsHandler, checkpointable_name="limits")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def limits():
    """A message."""
    message = Struct()
    message.update({"tokens": 4096, "languages": ["de", "zh"]})
    return message


def save(ocp, path):
    """A state, and all that describes it."""
    parts = {
        "state": {"w": jnp.ones(2)},
        "dataset": {"shards": ["a", "b"], "rows": 12},
        "config": CONFIG,
        "limits": limits(),
    }
    with context(ocp):
        ocp.save_checkpointables(path / "run", parts)
    return json.loads((path / "run" / "config" / "config.json").read_text())


def load(ocp, path):
    """The class of the message has to be told."""
    asked = {"dataset": None, "config": None, "limits": Struct}
    with context(ocp):
        found = ocp.load_checkpointables(path / "run", asked)
    return {
        "dataset": found["dataset"],
        "config": found["config"],
        "is equal": found["limits"] == limits(),
        "state": ocp.load(path / "run"),
    }
