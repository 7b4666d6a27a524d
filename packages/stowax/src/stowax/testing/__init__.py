"""What tests of checkpoints need: stores, simulated processes, contract suites."""

from stowax._public import claim as _claim
from stowax.testing._cluster import SimulatedCluster as SimulatedCluster
from stowax.testing._memory_store import MemoryStore as MemoryStore
from stowax.testing._recording_store import RecordingStore as RecordingStore
from stowax.testing._recording_store import durability_faults as durability_faults

__all__ = [
    "MemoryStore",
    "RecordingStore",
    "SimulatedCluster",
    "durability_faults",
]

_claim(globals())
