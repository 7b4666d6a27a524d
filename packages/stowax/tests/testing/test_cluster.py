"""Simulated processes meet, miss each other and end as real ones do."""

import asyncio
import contextvars
import threading

import jax
import pytest

from stowax.errors import DeadlineError, PeerFailedError
from stowax.testing._cluster import SimulatedCluster

variable = contextvars.ContextVar("variable")


@pytest.fixture
def cluster():
    """Three simulated processes."""
    with SimulatedCluster(3) as cluster:
        yield cluster


def in_every(cluster, meeting):
    """Runs `meeting(processes)` on the runtime of every process."""
    return cluster.run(
        lambda index: cluster.runtimes[index].run(meeting(cluster.processes[index]))
    )


def test_run_returns_by_index(cluster):
    """`run` calls the function once per process and orders the results."""
    variable.set("context")

    results = cluster.run(lambda index, x: (index, x, variable.get()), "x")

    assert results == [(index, "x", "context") for index in range(3)]


def test_identity(cluster):
    """Every process knows its index, the count, and that the first is primary."""
    results = in_every(cluster, lambda p: asyncio.sleep(0, (p.index, p.count)))

    assert results == [(0, 3), (1, 3), (2, 3)]
    assert [p.is_primary for p in cluster.processes] == [True, False, False]
    assert [r.processes for r in cluster.runtimes] == list(cluster.processes)


def test_all_learn_what_the_others_say(cluster):
    """Gather and broadcast bring the same bytes to every process."""

    async def meeting(processes):
        own = bytes([processes.index])
        return (
            await processes.broadcast("a", own, timeout_secs=30),
            await processes.gather("b", own, timeout_secs=30),
        )

    assert in_every(cluster, meeting) == [(b"\0", (b"\0", b"\1", b"\2"))] * 3


def test_barrier_holds_until_all_are_there(cluster):
    """Nobody passes a barrier before everybody has come."""
    came, passed = [], []

    async def meeting(processes):
        came.append(processes.index)
        await processes.barrier("a", timeout_secs=30)
        passed.append(len(came))

    in_every(cluster, meeting)

    assert passed == [3, 3, 3]


def test_primary_does_not_wait_to_broadcast(cluster):
    """A broadcast holds up nobody who has the value."""

    async def meeting(processes):
        await processes.broadcast("a", b"x", timeout_secs=30)

    cluster.runtimes[0].run(meeting(cluster.processes[0]))
    cluster.runtimes[2].run(meeting(cluster.processes[2]))


def test_meetings_do_not_wait_for_each_other(cluster):
    """Operations side by side meet in any order, each under its own name."""

    async def meeting(processes):
        names = ["a", "b", "c"]
        names = names[processes.index :] + names[: processes.index]
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(processes.barrier(name, timeout_secs=30))

    in_every(cluster, meeting)


def test_missed_deadline_names_the_missing(cluster):
    """Every process that waits in vain learns for whom, and where."""

    async def meeting(processes):
        if processes.index == 0:
            with pytest.raises(DeadlineError) as caught:
                await processes.barrier("op/step", timeout_secs=0.01)
            return str(caught.value)
        return None

    message, *_ = in_every(cluster, meeting)

    assert message == "processes 1, 2 are missing: waited 0.01 s at 'op/step'"


def test_late_peer_cannot_pass(cluster):
    """A process that comes after the others gave up fails at once, and all alike."""

    async def meeting(processes):
        with pytest.raises(DeadlineError):
            await processes.barrier("a", timeout_secs=0.01)

    async def late(processes):
        with pytest.raises(DeadlineError):
            await processes.barrier("a", timeout_secs=3600)

    for index, coroutine in [(0, meeting), (1, late), (2, late)]:
        cluster.runtimes[index].run(coroutine(cluster.processes[index]))


def test_failed_process_is_missed_at_once(cluster):
    """Nobody waits for a process that has failed, neither before nor after."""

    async def meeting(processes):
        if processes.index == 1:
            raise OSError("disk full")
        with pytest.raises(PeerFailedError, match="process 1 is missing"):
            await processes.barrier("a", timeout_secs=3600)
        with pytest.raises(PeerFailedError, match="process 1 is missing"):
            await processes.barrier("b", timeout_secs=3600)

    with pytest.raises(ExceptionGroup) as caught:
        in_every(cluster, meeting)

    (error,) = caught.value.exceptions
    assert str(error) == "disk full"
    assert error.__notes__ == ["in simulated process 1"]
    in_every(cluster, lambda processes: processes.barrier("c", timeout_secs=30))


def test_name_is_used_once(cluster):
    """A name that was used before is refused, instead of mixing two meetings up."""

    async def meeting(processes):
        await processes.barrier("a", timeout_secs=30)
        with pytest.raises(ValueError, match="'a' was used before"):
            await processes.barrier("a", timeout_secs=30)

    in_every(cluster, meeting)


def test_devices_are_shared_out_in_order():
    """Process `i` of `n` owns the `i`-th of `n` equal parts of the devices."""
    devices = jax.devices()[:6]

    with SimulatedCluster(3, devices=devices) as cluster:
        owners = [cluster.processes[2].owner(device) for device in devices]

    assert owners == [0, 0, 1, 1, 2, 2]


def test_devices_that_do_not_divide():
    """A number of processes that does not divide the devices is refused."""
    cluster = SimulatedCluster(3, devices=jax.devices()[:4])

    with pytest.raises(ValueError, match=r"4 devices .* 3 simulated"):
        cluster.processes[0].owner(jax.devices()[0])


def test_close_ends_all_threads():
    """A closed cluster leaves no thread behind."""
    before = set(threading.enumerate())

    with SimulatedCluster(4) as cluster:
        in_every(cluster, lambda processes: processes.barrier("a", timeout_secs=30))

    assert set(threading.enumerate()) == before
