"""A handler in the global registry serves every program that imports it."""

import functools
import json

import jax.numpy as jnp


class Schedule:
    """A learning rate for every phase."""

    def __init__(self, **rates):
        self.rates = rates


class AbstractSchedule:
    """Which phases to load; None for all of them."""

    def __init__(self, *phases):
        self.phases = phases


@functools.cache  # Once in a program, as a decorator would.
def register(ocp):
    """Puts the handler into the global registry."""

    class ScheduleHandler(ocp.handlers.CheckpointableHandler):
        async def save(self, directory, checkpointable):
            text = json.dumps(checkpointable.rates)

            async def write():
                await directory.await_creation()
                (directory.path / "schedule").write_text(text)

            return write()

        async def load(self, directory, abstract_checkpointable=None):
            async def read():
                rates = json.loads((directory / "schedule").read_text())
                phases = getattr(abstract_checkpointable, "phases", rates)
                return Schedule(**{phase: rates[phase] for phase in phases})

            return read()

        async def metadata(self, directory):
            return AbstractSchedule(*json.loads((directory / "schedule").read_text()))

        def is_handleable(self, checkpointable):
            return isinstance(checkpointable, Schedule)

        def is_abstract_handleable(self, abstract_checkpointable):
            return isinstance(abstract_checkpointable, AbstractSchedule)

    found = ocp.handlers.register_handler(
        ScheduleHandler, secondary_typestrs=["an_older_name.ScheduleHandler"]
    )
    return found is ScheduleHandler


def save(ocp, path):
    """No context is needed."""
    assert register(ocp)
    schedule = Schedule(warm=0.125, main=1.0, cool=0.25)
    parts = {"params": {"w": jnp.arange(2)}, "schedule": schedule}
    ocp.save_checkpointables(path / "parts", parts)


def load(ocp, path):
    """All of it, or what the abstract one asks for."""
    assert register(ocp)
    asked = {"schedule": AbstractSchedule("main")}
    described = ocp.checkpointables_metadata(path / "parts").metadata["schedule"]
    return {
        "all": ocp.load_checkpointables(path / "parts")["schedule"].rates,
        "main": ocp.load_checkpointables(path / "parts", asked)["schedule"].rates,
        "phases": described.phases,
    }
