"""Optax states in Stowax checkpoints.

stowax.save_checkpointables(path, {"opt": stowax_optax.State(opt_state)})
"""

from stowax_optax._shardings import ShardingReport as ShardingReport
from stowax_optax._shardings import abstract_state as abstract_state
from stowax_optax._shardings import shardings as shardings
from stowax_optax._state import State as State

__all__ = ["ShardingReport", "State", "abstract_state", "shardings"]

for _public in (ShardingReport, State, abstract_state, shardings):
    _public.__module__ = __name__
del _public
