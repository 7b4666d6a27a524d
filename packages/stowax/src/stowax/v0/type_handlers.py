"""Arguments of single leaves, where programs of the older API look for them.

Types of leaves are taught by `stowax.options.PyTreeOptions.leaf_handlers`; there is no
registry of handlers for types.
"""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.tree import PLACEHOLDER as PLACEHOLDER
from stowax.v0._arguments import ArrayRestoreArgs as ArrayRestoreArgs
from stowax.v0._arguments import RestoreArgs as RestoreArgs
from stowax.v0._arguments import SaveArgs as SaveArgs
from stowax.v0._arguments import (
    SingleReplicaArrayRestoreArgs as SingleReplicaArrayRestoreArgs,
)

__all__ = [  # noqa: RUF022 - by code point, as in every public module
    "ArrayRestoreArgs",
    "PLACEHOLDER",
    "RestoreArgs",
    "SaveArgs",
    "SingleReplicaArrayRestoreArgs",
]

_claim(globals())
