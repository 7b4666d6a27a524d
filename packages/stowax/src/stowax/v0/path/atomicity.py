"""The ways in which a checkpoint becomes visible, for `temporary_path_class`."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._temporary_path import (
    AtomicRenameTemporaryPath as AtomicRenameTemporaryPath,
)
from stowax.v0._temporary_path import CommitFileTemporaryPath as CommitFileTemporaryPath
from stowax.v0._temporary_path import TemporaryPath as TemporaryPath

__all__ = ["AtomicRenameTemporaryPath", "CommitFileTemporaryPath", "TemporaryPath"]

_claim(globals())
