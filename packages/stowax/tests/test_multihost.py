"""Which process am I, asked through the face and answered by the Context's runtime."""

import asyncio

import jax
import pytest

import stowax
from stowax._runtime import Runtime
from stowax.errors import UnsupportedOptionError
from stowax.multihost import sync_global_processes as meet_at
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
            asyncio.run(meet_at("point", operation_id="test"))
            return len(came)

    with SimulatedCluster(3) as cluster:
        assert cluster.run(meet) == [3, 3, 3]


def test_some_processes_cannot_meet_alone():
    """What is not built is refused, not ignored."""
    with pytest.raises(UnsupportedOptionError):
        asyncio.run(meet_at("p", operation_id="o", processes={0}))


def test_the_wait_is_told_to_jax():
    """`jax.monitoring` hears how long the processes waited, also if clocks are set."""
    told = []
    times_nsecs = iter(range(10**18, 0, -(10**9)))
    runtime = Runtime(clock_nsecs=lambda: next(times_nsecs))

    def listen(event, duration_secs, **_):
        told.append((event, duration_secs >= 0))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with stowax.Context(runtime=runtime):
            asyncio.run(meet_at("p", operation_id="t", record_event_name="/test/met"))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    assert ("/test/met", True) in told
