"""Handlers: who saves and loads which checkpointable."""

from typing import Any as _Any

from stowax._handlers._base import CheckpointableHandler as CheckpointableHandler
from stowax._handlers._base import StatefulCheckpointable as StatefulCheckpointable
from stowax._handlers._json import JsonHandler as JsonHandler
from stowax._handlers._proto import ProtoHandler as ProtoHandler
from stowax._handlers._pytree import PyTreeHandler as PyTreeHandler
from stowax._handlers._registry import (
    CheckpointableHandlerRegistry as CheckpointableHandlerRegistry,
)
from stowax._handlers._registry import global_registry as global_registry
from stowax._handlers._registry import local_registry as local_registry
from stowax._handlers._registry import register_handler as register_handler
from stowax._leaves._abstract import CustomLeafMetadata as CustomLeafMetadata
from stowax._leaves._base import LeafHandler as LeafHandler
from stowax._public import claim as _claim

Checkpointable = _Any
"""Whatever a handler can save."""

AbstractCheckpointable = _Any
"""Whatever says what to load: an abstract state, an object to load into, or None."""

__all__ = [
    "AbstractCheckpointable",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "CustomLeafMetadata",
    "JsonHandler",
    "LeafHandler",
    "ProtoHandler",
    "PyTreeHandler",
    "StatefulCheckpointable",
    "global_registry",
    "local_registry",
    "register_handler",
]

_claim(globals())
