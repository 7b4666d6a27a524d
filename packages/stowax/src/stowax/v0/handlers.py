"""Handlers of the older API, their arguments and registries of them."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0 import _handler_registry as handler_registration
from stowax.v0._array_handler import ArrayCheckpointHandler as ArrayCheckpointHandler
from stowax.v0._array_handler import ArrayRestoreArgs as ArrayRestoreArgs
from stowax.v0._array_handler import ArraySaveArgs as ArraySaveArgs
from stowax.v0._composite_handler import CompositeArgs as CompositeArgs
from stowax.v0._composite_handler import CompositeArgs as CompositeResults
from stowax.v0._composite_handler import (
    CompositeCheckpointHandler as CompositeCheckpointHandler,
)
from stowax.v0._handler import AsyncCheckpointHandler as AsyncCheckpointHandler
from stowax.v0._handler import CheckpointHandler as CheckpointHandler
from stowax.v0._handler_registry import (
    CheckpointHandlerRegistry as CheckpointHandlerRegistry,
)
from stowax.v0._handler_registry import (
    DefaultCheckpointHandlerRegistry as DefaultCheckpointHandlerRegistry,
)
from stowax.v0._handler_registry import (
    create_default_handler_registry as create_default_handler_registry,
)
from stowax.v0._json_handler import JsonCheckpointHandler as JsonCheckpointHandler
from stowax.v0._json_handler import JsonRestoreArgs as JsonRestoreArgs
from stowax.v0._json_handler import JsonSaveArgs as JsonSaveArgs
from stowax.v0._proto_handler import ProtoCheckpointHandler as ProtoCheckpointHandler
from stowax.v0._proto_handler import ProtoRestoreArgs as ProtoRestoreArgs
from stowax.v0._proto_handler import ProtoSaveArgs as ProtoSaveArgs
from stowax.v0._random_key_handler import (
    JaxRandomKeyCheckpointHandler as JaxRandomKeyCheckpointHandler,
)
from stowax.v0._random_key_handler import (
    JaxRandomKeyRestoreArgs as JaxRandomKeyRestoreArgs,
)
from stowax.v0._random_key_handler import JaxRandomKeySaveArgs as JaxRandomKeySaveArgs
from stowax.v0._random_key_handler import (
    NumpyRandomKeyCheckpointHandler as NumpyRandomKeyCheckpointHandler,
)
from stowax.v0._random_key_handler import (
    NumpyRandomKeyRestoreArgs as NumpyRandomKeyRestoreArgs,
)
from stowax.v0._random_key_handler import (
    NumpyRandomKeySaveArgs as NumpyRandomKeySaveArgs,
)
from stowax.v0._standard_handler import (
    StandardCheckpointHandler as StandardCheckpointHandler,
)
from stowax.v0._standard_handler import StandardRestoreArgs as StandardRestoreArgs
from stowax.v0._standard_handler import StandardSaveArgs as StandardSaveArgs
from stowax.v0._tree_args import PyTreeRestoreArgs as PyTreeRestoreArgs
from stowax.v0._tree_args import PyTreeSaveArgs as PyTreeSaveArgs
from stowax.v0._tree_handler import PyTreeCheckpointHandler as PyTreeCheckpointHandler

__all__ = [
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "ArraySaveArgs",
    "AsyncCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CompositeArgs",
    "CompositeCheckpointHandler",
    "CompositeResults",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JaxRandomKeyRestoreArgs",
    "JaxRandomKeySaveArgs",
    "JsonCheckpointHandler",
    "JsonRestoreArgs",
    "JsonSaveArgs",
    "NumpyRandomKeyCheckpointHandler",
    "NumpyRandomKeyRestoreArgs",
    "NumpyRandomKeySaveArgs",
    "ProtoCheckpointHandler",
    "ProtoRestoreArgs",
    "ProtoSaveArgs",
    "PyTreeCheckpointHandler",
    "PyTreeRestoreArgs",
    "PyTreeSaveArgs",
    "StandardCheckpointHandler",
    "StandardRestoreArgs",
    "StandardSaveArgs",
    "create_default_handler_registry",
    "handler_registration",
]

_claim(globals())
