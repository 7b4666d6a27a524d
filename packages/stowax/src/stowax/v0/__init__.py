"""The older API of Orbax over the operations of this library.

`import stowax.v0 as ocp` runs code that was written for `import orbax.checkpoint`.

Checkpointers save and restore by handlers, all or nothing; what they write is read by
Orbax, and what Orbax wrote by them.

    Checkpointer, AsyncCheckpointer,
    StandardCheckpointer, PyTreeCheckpointer     save, restore, metadata
    handlers                                     who saves and restores what
    args                                         what handlers are given
    SaveArgs, RestoreArgs, ArrayRestoreArgs      the same for single leaves
    Transform, apply_transformations             trees that have changed since the save
    checkpoint_utils, transform_utils, utils, tree, type_handlers, metadata, options,
    test_utils
"""

from stowax._uncollected import uncollected as _uncollected

# See `stowax`.
with _uncollected():
    from stowax._public import claim as _claim
    from stowax.tree import PLACEHOLDER as PLACEHOLDER
    from stowax.v0 import args as args
    from stowax.v0 import checkpoint_args as checkpoint_args
    from stowax.v0 import checkpoint_utils as checkpoint_utils
    from stowax.v0 import checkpointers as checkpointers
    from stowax.v0 import future as future
    from stowax.v0 import handlers as handlers
    from stowax.v0 import metadata as metadata
    from stowax.v0 import multihost as multihost
    from stowax.v0 import options as options
    from stowax.v0 import path as path
    from stowax.v0 import test_utils as test_utils
    from stowax.v0 import transform_utils as transform_utils
    from stowax.v0 import tree as tree
    from stowax.v0 import type_handlers as type_handlers
    from stowax.v0 import utils as utils
    from stowax.v0._arguments import ArrayRestoreArgs as ArrayRestoreArgs
    from stowax.v0._arguments import RestoreArgs as RestoreArgs
    from stowax.v0._arguments import SaveArgs as SaveArgs
    from stowax.v0._composite_handler import CompositeOptions as CompositeOptions
    from stowax.v0._handler import AsyncCheckpointHandler as AsyncCheckpointHandler
    from stowax.v0._handler import CheckpointHandler as CheckpointHandler
    from stowax.v0.checkpointers import AbstractCheckpointer as AbstractCheckpointer
    from stowax.v0.checkpointers import AsyncCheckpointer as AsyncCheckpointer
    from stowax.v0.checkpointers import Checkpointer as Checkpointer
    from stowax.v0.checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
    from stowax.v0.checkpointers import StandardCheckpointer as StandardCheckpointer
    from stowax.v0.future import Future as Future
    from stowax.v0.handlers import ArrayCheckpointHandler as ArrayCheckpointHandler
    from stowax.v0.handlers import (
        CheckpointHandlerRegistry as CheckpointHandlerRegistry,
    )
    from stowax.v0.handlers import (
        CompositeCheckpointHandler as CompositeCheckpointHandler,
    )
    from stowax.v0.handlers import (
        DefaultCheckpointHandlerRegistry as DefaultCheckpointHandlerRegistry,
    )
    from stowax.v0.handlers import (
        JaxRandomKeyCheckpointHandler as JaxRandomKeyCheckpointHandler,
    )
    from stowax.v0.handlers import JsonCheckpointHandler as JsonCheckpointHandler
    from stowax.v0.handlers import (
        NumpyRandomKeyCheckpointHandler as NumpyRandomKeyCheckpointHandler,
    )
    from stowax.v0.handlers import ProtoCheckpointHandler as ProtoCheckpointHandler
    from stowax.v0.handlers import PyTreeCheckpointHandler as PyTreeCheckpointHandler
    from stowax.v0.handlers import (
        StandardCheckpointHandler as StandardCheckpointHandler,
    )
    from stowax.v0.options import AsyncOptions as AsyncOptions
    from stowax.v0.transform_utils import RestoreTransform as RestoreTransform
    from stowax.v0.transform_utils import Transform as Transform
    from stowax.v0.transform_utils import apply_transformations as apply_transformations
    from stowax.v0.transform_utils import merge_trees as merge_trees

__version__ = "0.12.8"
"""The release of Orbax whose older API this is: programs compare it."""

__all__ = [  # noqa: RUF022 sorted as Python sorts, not by kind
    "AbstractCheckpointer",
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "AsyncCheckpointHandler",
    "AsyncCheckpointer",
    "AsyncOptions",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "DefaultCheckpointHandlerRegistry",
    "Future",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler",
    "PLACEHOLDER",
    "ProtoCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "RestoreArgs",
    "RestoreTransform",
    "SaveArgs",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "Transform",
    "apply_transformations",
    "args",
    "checkpoint_args",
    "checkpoint_utils",
    "checkpointers",
    "future",
    "handlers",
    "merge_trees",
    "metadata",
    "multihost",
    "options",
    "path",
    "test_utils",
    "transform_utils",
    "tree",
    "type_handlers",
    "utils",
]

_claim(globals())
