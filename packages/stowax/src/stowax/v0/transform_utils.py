"""Transformations between trees of different structure."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._transforms import RestoreTransform as RestoreTransform
from stowax.v0._transforms import Transform as Transform
from stowax.v0._transforms import apply_transformations as apply_transformations
from stowax.v0._transforms import intersect_trees as intersect_trees
from stowax.v0._transforms import merge_trees as merge_trees

__all__ = [
    "RestoreTransform",
    "Transform",
    "apply_transformations",
    "intersect_trees",
    "merge_trees",
]

_claim(globals())
