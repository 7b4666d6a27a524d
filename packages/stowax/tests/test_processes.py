"""One process alone; groups of real ones are tested in tests/multihost."""

import asyncio
from types import SimpleNamespace

import jax
import pytest

from stowax._processes import OneProcess, default_processes
from stowax.errors import ProcessesError


def test_alone_without_jax_distributed():
    """Where `jax.distributed` is not used, the process is alone and primary."""
    processes = default_processes()

    assert isinstance(processes, OneProcess)
    assert (processes.index, processes.count, processes.primary) == (0, 1, 0)
    assert processes.is_primary
    assert {processes.owner(device) for device in jax.devices()} == {0}


def test_meetings_of_one_are_over_at_once():
    """One process hears what it said itself."""

    async def meetings():
        processes = OneProcess()
        await processes.barrier("start", timeout_secs=0)
        return (
            await processes.broadcast("plan", b"p", timeout_secs=0),
            await processes.gather("done", b"d", timeout_secs=0),
        )

    assert asyncio.run(meetings()) == (b"p", (b"d",))


def test_primary_must_broadcast_something():
    """A primary without a value to broadcast is told, by the name of the meeting."""
    with pytest.raises(ValueError, match="'plan'"):
        asyncio.run(OneProcess().broadcast("plan", None, timeout_secs=0))


def test_device_of_an_unknown_process_is_refused():
    """Several processes that do not know of each other do not all act as the first."""
    foreign = SimpleNamespace(process_index=3)

    with pytest.raises(ProcessesError, match=r"process 3.*jax\.distributed"):
        OneProcess().owner(foreign)
