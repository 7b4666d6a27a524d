"""Functions that programs with checkpoints need."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.tree import PLACEHOLDER as PLACEHOLDER
from stowax.v0._restore_args import STANDARD_ARRAY_TYPES as STANDARD_ARRAY_TYPES
from stowax.v0._restore_args import construct_restore_args as construct_restore_args

__all__ = ["PLACEHOLDER", "STANDARD_ARRAY_TYPES", "construct_restore_args"]

_claim(globals())
