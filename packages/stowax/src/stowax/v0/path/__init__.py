"""Paths of checkpoints, and how they become visible."""

from __future__ import annotations

from stowax.v0.path import atomicity as atomicity

__all__ = ["atomicity"]
