"""Which process am I, asked through the face and answered by the Context's runtime."""

import pytest

import stowax
from stowax.errors import UnsupportedOptionError
from stowax.testing import SimulatedCluster


def test_identity_follows_the_context():
    """Each simulated process knows its own index."""

    def ask(index):
        with stowax.Context(runtime=cluster.runtimes[index]):
            return (
                stowax.multihost.process_index(),
                stowax.multihost.process_count(),
                stowax.multihost.is_primary_host(),
            )

    with SimulatedCluster(3) as cluster:
        answers = cluster.run(ask)

    assert answers == [(0, 3, True), (1, 3, False), (2, 3, False)]


def test_all_processes_meet():
    """Nobody goes on before everybody has come."""
    came = []

    def meet(index):
        with stowax.Context(runtime=cluster.runtimes[index]):
            came.append(index)
            stowax.multihost.sync_global_processes("point", operation_id="test")
            return len(came)

    with SimulatedCluster(3) as cluster:
        assert cluster.run(meet) == [3, 3, 3]


def test_some_processes_cannot_meet_alone():
    """What is not built is refused, not ignored."""
    with pytest.raises(UnsupportedOptionError):
        stowax.multihost.sync_global_processes("p", operation_id="o", processes={0})
