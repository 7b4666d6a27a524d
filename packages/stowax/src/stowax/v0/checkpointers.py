"""Checkpointers of the older API."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._abstract_checkpointer import (
    AbstractCheckpointer as AbstractCheckpointer,
)
from stowax.v0._async_checkpointer import AsyncCheckpointer as AsyncCheckpointer
from stowax.v0._checkpointer import Checkpointer as Checkpointer
from stowax.v0._tree_checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
from stowax.v0._tree_checkpointers import StandardCheckpointer as StandardCheckpointer

__all__ = [
    "AbstractCheckpointer",
    "AsyncCheckpointer",
    "Checkpointer",
    "PyTreeCheckpointer",
    "StandardCheckpointer",
]

_claim(globals())
