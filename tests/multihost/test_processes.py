"""Meetings of real JAX processes, over the coordination service."""

import asyncio
import os
import signal

import jax
import pytest
from jax._src.distributed import global_state

from stowax._processes import default_processes
from stowax.errors import DeadlineError


def _failure(coroutine):
    """Returns what a meeting that must miss its deadline says."""
    with pytest.raises(DeadlineError) as caught:
        asyncio.run(coroutine)
    return str(caught.value)


def _meet(index):
    async def meetings():
        processes = default_processes()
        await processes.barrier("op/start", timeout_secs=20)
        plan = b"\x00plan\xff" if index == 0 else None
        return (
            await processes.broadcast("op/plan", plan, timeout_secs=20),
            await processes.gather("op/done", bytes([index, 255]), timeout_secs=20),
        )

    return asyncio.run(meetings())


@pytest.mark.parametrize("count", [2, 4])
def test_all_learn_what_the_others_say(launch, count):
    """Broadcast and gather bring any bytes to every process, in order."""
    results = launch(count, _meet)

    everybody = tuple(bytes([index, 255]) for index in range(count))
    assert results == [(b"\x00plan\xff", everybody)] * count


def _identity(index):
    processes = default_processes()
    owners = [processes.owner(device) for device in jax.devices()]
    is_kept = processes is default_processes()
    return processes.index, processes.count, processes.is_primary, owners, is_kept


def test_identity_is_that_of_jax(launch):
    """Index, count and the owners of devices are those of `jax.distributed`."""
    results = launch(2, _identity, devices=3)

    owners = [0, 0, 0, 1, 1, 1]
    assert results == [(0, 2, True, owners, True), (1, 2, False, owners, True)]


def _stay_away(index, absent):
    if index in absent:
        return None
    return _failure(default_processes().barrier("op/a step", timeout_secs=1))


@pytest.mark.parametrize(
    ("count", "absent", "who"),
    [
        (2, [1], "process 1 is missing"),
        (2, [0], "process 0 is missing"),
        (4, [1, 3], "processes 1, 3 are missing"),
    ],
)
def test_missed_deadline_names_the_missing(launch, count, absent, who):
    """Every process that waits in vain learns for whom, and where."""
    results = launch(count, _stay_away, absent)

    message = f"{who}: waited 1 s at 'op/a step'"
    assert results == [None if index in absent else message for index in range(count)]


def _come_late(index):
    processes = default_processes()
    if index == 0:
        early = _failure(processes.barrier("op/step", timeout_secs=1))
        asyncio.run(processes.broadcast("op/over", b"", timeout_secs=20))
        return early
    asyncio.run(processes.broadcast("op/over", None, timeout_secs=20))
    return _failure(processes.barrier("op/step", timeout_secs=20))


def test_late_peer_cannot_pass(launch):
    """A process that comes after the others gave up fails too, without waiting."""
    early, late = launch(2, _come_late)

    assert early.startswith("process 1 is missing")
    assert late.startswith("all processes came, but too late")


def _miss_the_primary(index):
    if index == 0:
        return None
    return _failure(default_processes().broadcast("plan", None, timeout_secs=1))


def test_broadcast_names_the_primary(launch):
    """A broadcast that does not come names the process that should have sent it."""
    results = launch(2, _miss_the_primary)

    assert results == [None, "process 0 is missing: waited 1 s at 'plan'"]


def _stop_the_service(index):
    processes = default_processes()
    pid = str(os.getpid()).encode()
    pid_of_service, _ = asyncio.run(processes.gather("pids", pid, timeout_secs=20))
    if index == 0:
        asyncio.run(processes.barrier("continued", timeout_secs=20))
        return None
    # Not by itself: it would stop before it has answered this process.
    os.kill(int(pid_of_service), signal.SIGSTOP)
    try:
        failure = _failure(processes.barrier("step", timeout_secs=1))
    finally:
        os.kill(int(pid_of_service), signal.SIGCONT)
    asyncio.run(processes.barrier("continued", timeout_secs=20))
    return failure


def test_stopped_service_is_no_hang(launch):
    """The deadline holds when the process that runs the service stands still."""
    _, message = launch(2, _stop_the_service)

    assert message.startswith("the coordination service does not answer (process 0")


def _say_twice(index):
    processes = default_processes()
    asyncio.run(processes.gather("op", b"once", timeout_secs=20))
    with pytest.raises(ValueError, match="'op' was used before"):
        asyncio.run(processes.gather("op", b"twice", timeout_secs=20))


def test_name_is_used_once(launch):
    """A name that was used before is refused, instead of mixing two meetings up."""
    launch(2, _say_twice)


def _cross(index):
    processes = default_processes()

    async def meetings():
        names = ["a", "b", "a/b"] if index else ["a/b", "b", "a"]
        values = await asyncio.gather(
            *(processes.gather(n, n.encode(), timeout_secs=20) for n in names)
        )
        return dict(zip(names, values, strict=True))

    return asyncio.run(meetings())


def test_meetings_do_not_wait_for_each_other(launch):
    """Operations side by side meet in any order, each under its own name."""
    results = launch(2, _cross)

    expected = {"a": (b"a",) * 2, "b": (b"b",) * 2, "a/b": (b"a/b",) * 2}
    assert results == [expected, expected]


def _meet_often(index):
    async def meetings():
        processes = default_processes()
        for step in range(100):
            await processes.barrier(f"{step}/start", timeout_secs=20)
            plan = bytes(1000) if index == 0 else None
            await processes.broadcast(f"{step}/plan", plan, timeout_secs=20)
            await processes.gather(f"{step}/done", bytes(1000), timeout_secs=20)

    asyncio.run(meetings())
    return len(global_state.client.key_value_dir_get_bytes("stowax/"))


def test_keys_are_deleted(launch):
    """What the service keeps does not grow with the number of saves."""
    primary_sees, _ = launch(2, _meet_often)

    # Those of the last three meetings, of at most four keys each.
    assert primary_sees <= 12
