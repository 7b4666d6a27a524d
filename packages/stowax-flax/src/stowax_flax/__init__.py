"""NNX modules in Stowax checkpoints.

stowax.save_checkpointables(path, {"model": stowax_flax.Module(model)})
"""

from stowax_flax._abstract import abstract_state as abstract_state
from stowax_flax._module import EPHEMERAL as EPHEMERAL
from stowax_flax._module import Module as Module

__all__ = ["EPHEMERAL", "Module", "abstract_state"]

for _public in (Module, abstract_state):
    _public.__module__ = __name__
del _public
