"""Stowax: checkpoints for JAX that are never silently wrong.

Save and load trees of arrays, or several named checkpointables at once; in the
background; from one process or many; onto any mesh.  The names are those of Orbax v1:
`import stowax as ocp` runs code that was written for it.

    save, save_async, load, load_async           one state: a tree
    save_checkpointables(_async),
    load_checkpointables(_async)                 several parts, one atomic checkpoint
    metadata, checkpointables_metadata           what is stored, without loading it
    preview_load, load_leaf                      what a load would do; one leaf alone
    verify                                       whether every byte is as it was saved
    partial                                      checkpoints that grow, or are changed
    Context, options                             how all of these behave
    training.Checkpointer                        the steps of a training run
    events                                       what operations do, while they do it
    handlers, adapters, arrays, tree, path, multihost, errors
"""

import importlib as _importlib
from typing import Any as _Any

from stowax._uncollected import uncollected as _uncollected

# JAX has so many objects that one collection takes a third of the time of all this.
with _uncollected():
    from stowax import adapters as adapters
    from stowax import arrays as arrays
    from stowax import errors as errors
    from stowax import events as events
    from stowax import handlers as handlers
    from stowax import multihost as multihost
    from stowax import options as options
    from stowax import partial as partial
    from stowax import path as path
    from stowax import training as training
    from stowax import tree as tree
    from stowax._context import Context as Context
    from stowax._damage import Damage as Damage
    from stowax._damage import VerifyReport as VerifyReport
    from stowax._delete import delete as delete
    from stowax._delete import delete_async as delete_async
    from stowax._deprecated import load_pytree as load_pytree
    from stowax._deprecated import load_pytree_async as load_pytree_async
    from stowax._deprecated import pytree_metadata as pytree_metadata
    from stowax._deprecated import save_pytree as save_pytree
    from stowax._deprecated import save_pytree_async as save_pytree_async
    from stowax._handlers._base import CheckpointableHandler as CheckpointableHandler
    from stowax._handlers._base import StatefulCheckpointable as StatefulCheckpointable
    from stowax._inspect import checkpointables_metadata as checkpointables_metadata
    from stowax._inspect import is_orbax_checkpoint as is_orbax_checkpoint
    from stowax._inspect import metadata as metadata
    from stowax._load import load as load
    from stowax._load import load_async as load_async
    from stowax._load import load_checkpointables as load_checkpointables
    from stowax._load import load_checkpointables_async as load_checkpointables_async
    from stowax._load_leaf import load_leaf as load_leaf
    from stowax._metadata import CheckpointMetadata as CheckpointMetadata
    from stowax._opened import OpaqueCheckpointable as OpaqueCheckpointable
    from stowax._plan._rows import LeafPreview as LeafPreview
    from stowax._plan._rows import LoadPreview as LoadPreview
    from stowax._preview import preview_load as preview_load
    from stowax._public import claim as _claim
    from stowax._response import AsyncResponse as AsyncResponse
    from stowax._save import save as save
    from stowax._save import save_async as save_async
    from stowax._save import save_checkpointables as save_checkpointables
    from stowax._save import save_checkpointables_async as save_checkpointables_async
    from stowax._verify import verify as verify
    from stowax.handlers import AbstractCheckpointable as AbstractCheckpointable
    from stowax.handlers import Checkpointable as Checkpointable
    from stowax.tree import PLACEHOLDER as PLACEHOLDER
    from stowax.tree import PyTreeMetadata as PyTreeMetadata

__all__ = [  # noqa: RUF022 sorted as Python sorts, not by kind
    "AbstractCheckpointable",
    "AsyncResponse",
    "CheckpointMetadata",
    "Checkpointable",
    "CheckpointableHandler",
    "Context",
    "Damage",
    "LeafPreview",
    "LoadPreview",
    "OpaqueCheckpointable",
    "PLACEHOLDER",
    "PyTreeMetadata",
    "StatefulCheckpointable",
    "VerifyReport",
    "adapters",
    "arrays",
    "checkpointables_metadata",
    "delete",
    "delete_async",
    "errors",
    "events",
    "handlers",
    "is_orbax_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_leaf",
    "load_pytree",
    "load_pytree_async",
    "metadata",
    "multihost",
    "options",
    "partial",
    "path",
    "preview_load",
    "pytree_metadata",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
    "training",
    "tree",
    "verify",
]

_claim(globals())


def __getattr__(name: str) -> _Any:
    # The older API, for who asks for it: most programs never do.
    if name == "v0":
        return _importlib.import_module("stowax.v0")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
