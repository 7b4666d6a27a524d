"""Checkpointers of the older API."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._async_checkpointer import AsyncCheckpointer as AsyncCheckpointer
from stowax.v0._async_checkpointer import StandardCheckpointer as StandardCheckpointer
from stowax.v0._checkpointer import AbstractCheckpointer as AbstractCheckpointer
from stowax.v0._checkpointer import Checkpointer as Checkpointer
from stowax.v0._checkpointer import PyTreeCheckpointer as PyTreeCheckpointer

__all__ = [
    "AbstractCheckpointer",
    "AsyncCheckpointer",
    "Checkpointer",
    "PyTreeCheckpointer",
    "StandardCheckpointer",
]

_claim(globals())
