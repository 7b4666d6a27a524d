"""The steps of a training run: when to save, what to keep, where to resume."""

from stowax._public import claim as _claim
from stowax.training import errors as errors
from stowax.training import preservation_policies as preservation_policies
from stowax.training import save_decision_policies as save_decision_policies
from stowax.training._checkpointer import Checkpointer as Checkpointer
from stowax.training._steps import CheckpointMetadata as CheckpointMetadata
from stowax.training._steps import RootMetadata as RootMetadata

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "RootMetadata",
    "errors",
    "preservation_policies",
    "save_decision_policies",
]

_claim(globals())
