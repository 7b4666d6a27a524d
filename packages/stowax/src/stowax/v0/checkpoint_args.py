"""Arguments of handlers, and which handler takes which."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._checkpoint_args import CheckpointArgs as CheckpointArgs
from stowax.v0._checkpoint_args import (
    get_registered_args_cls as get_registered_args_cls,
)
from stowax.v0._checkpoint_args import (
    get_registered_handler_cls as get_registered_handler_cls,
)
from stowax.v0._checkpoint_args import has_registered_args as has_registered_args
from stowax.v0._checkpoint_args import register_with_handler as register_with_handler

__all__ = [
    "CheckpointArgs",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]

_claim(globals())
