"""Trees taken apart into flat dictionaries, and put together again."""

from __future__ import annotations

from stowax._public import claim as _claim
from stowax.tree import JsonType as JsonType
from stowax.tree import PyTree as PyTree
from stowax.tree import PyTreeKey as PyTreeKey
from stowax.tree import PyTreeKeyPath as PyTreePath
from stowax.tree import PyTreeOf as PyTreeOf
from stowax.tree import merge as merge_trees
from stowax.v0._flat import deserialize_tree as deserialize_tree
from stowax.v0._flat import from_flat_dict as from_flat_dict
from stowax.v0._flat import get_param_names as get_param_names
from stowax.v0._flat import is_flat_dict as is_flat_dict
from stowax.v0._flat import serialize_tree as serialize_tree
from stowax.v0._flat import str_keypath as str_keypath
from stowax.v0._flat import to_flat_dict as to_flat_dict
from stowax.v0._restore_args import to_shape_dtype_struct as to_shape_dtype_struct

__all__ = [
    "JsonType",
    "PyTree",
    "PyTreeKey",
    "PyTreeOf",
    "PyTreePath",
    "deserialize_tree",
    "from_flat_dict",
    "get_param_names",
    "is_flat_dict",
    "merge_trees",
    "serialize_tree",
    "str_keypath",
    "to_flat_dict",
    "to_shape_dtype_struct",
]

_claim(globals())
