"""What is told of a stored leaf."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.v0._leaf_metadata import ArrayMetadata as ArrayMetadata
from stowax.v0._leaf_metadata import BytesMetadata as BytesMetadata
from stowax.v0._leaf_metadata import Metadata as Metadata
from stowax.v0._leaf_metadata import ScalarMetadata as ScalarMetadata
from stowax.v0._leaf_metadata import StorageMetadata as StorageMetadata
from stowax.v0._leaf_metadata import StringMetadata as StringMetadata

__all__ = [
    "ArrayMetadata",
    "BytesMetadata",
    "Metadata",
    "ScalarMetadata",
    "StorageMetadata",
    "StringMetadata",
]

_claim(globals())
