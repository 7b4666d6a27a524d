"""Paths, as handlers receive them."""

import os as _os

from etils.epath import Path as Path

from stowax._handlers._base import PathAwaitingCreation as PathAwaitingCreation
from stowax._public import claim as _claim

PathLike = str | _os.PathLike[str]
"""Whatever names a path."""

__all__ = ["Path", "PathAwaitingCreation", "PathLike"]

_claim(globals())
