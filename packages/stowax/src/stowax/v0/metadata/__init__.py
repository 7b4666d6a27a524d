"""What is told of checkpoints without loading them."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._metadata_store import MetadataStore as MetadataStore
from stowax.v0._metadata_store import metadata_store as metadata_store
from stowax.v0._sharding_metadata import NamedShardingMetadata as NamedShardingMetadata
from stowax.v0._sharding_metadata import ShardingError as ShardingError
from stowax.v0._sharding_metadata import ShardingMetadata as ShardingMetadata
from stowax.v0._sharding_metadata import (
    SingleDeviceShardingMetadata as SingleDeviceShardingMetadata,
)
from stowax.v0._step_metadata import StepMetadata as StepMetadata
from stowax.v0._step_metadata import get_step_metadata as get_step_metadata
from stowax.v0._tree_metadata import TreeMetadata as TreeMetadata
from stowax.v0.metadata import value as value
from stowax.v0.metadata.value import ArrayMetadata as ArrayMetadata
from stowax.v0.metadata.value import BytesMetadata as BytesMetadata
from stowax.v0.metadata.value import Metadata as Metadata
from stowax.v0.metadata.value import ScalarMetadata as ScalarMetadata
from stowax.v0.metadata.value import StorageMetadata as StorageMetadata
from stowax.v0.metadata.value import StringMetadata as StringMetadata

__all__ = [
    "ArrayMetadata",
    "BytesMetadata",
    "Metadata",
    "MetadataStore",
    "NamedShardingMetadata",
    "ScalarMetadata",
    "ShardingError",
    "ShardingMetadata",
    "SingleDeviceShardingMetadata",
    "StepMetadata",
    "StorageMetadata",
    "StringMetadata",
    "TreeMetadata",
    "get_step_metadata",
    "metadata_store",
    "value",
]

_claim(globals())
