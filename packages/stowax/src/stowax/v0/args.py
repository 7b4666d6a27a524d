"""Arguments of the handlers of the older API."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._array_handler import ArrayRestoreArgs as ArrayRestore
from stowax.v0._array_handler import ArraySaveArgs as ArraySave
from stowax.v0._composite_handler import CompositeArgs as Composite
from stowax.v0._json_handler import JsonRestoreArgs as JsonRestore
from stowax.v0._json_handler import JsonSaveArgs as JsonSave
from stowax.v0._proto_handler import ProtoRestoreArgs as ProtoRestore
from stowax.v0._proto_handler import ProtoSaveArgs as ProtoSave
from stowax.v0._random_key_handler import JaxRandomKeyRestoreArgs as JaxRandomKeyRestore
from stowax.v0._random_key_handler import JaxRandomKeySaveArgs as JaxRandomKeySave
from stowax.v0._random_key_handler import (
    NumpyRandomKeyRestoreArgs as NumpyRandomKeyRestore,
)
from stowax.v0._random_key_handler import NumpyRandomKeySaveArgs as NumpyRandomKeySave
from stowax.v0._standard_handler import StandardRestoreArgs as StandardRestore
from stowax.v0._standard_handler import StandardSaveArgs as StandardSave
from stowax.v0._tree_args import PyTreeRestoreArgs as PyTreeRestore
from stowax.v0._tree_args import PyTreeSaveArgs as PyTreeSave
from stowax.v0.checkpoint_args import CheckpointArgs as CheckpointArgs
from stowax.v0.checkpoint_args import (
    get_registered_args_cls as get_registered_args_cls,
)
from stowax.v0.checkpoint_args import (
    get_registered_handler_cls as get_registered_handler_cls,
)
from stowax.v0.checkpoint_args import has_registered_args as has_registered_args
from stowax.v0.checkpoint_args import register_with_handler as register_with_handler

__all__ = [
    "ArrayRestore",
    "ArraySave",
    "CheckpointArgs",
    "Composite",
    "JaxRandomKeyRestore",
    "JaxRandomKeySave",
    "JsonRestore",
    "JsonSave",
    "NumpyRandomKeyRestore",
    "NumpyRandomKeySave",
    "ProtoRestore",
    "ProtoSave",
    "PyTreeRestore",
    "PyTreeSave",
    "StandardRestore",
    "StandardSave",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]

_claim(globals())
