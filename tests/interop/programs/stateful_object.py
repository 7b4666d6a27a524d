"""An object with `save` and `load` needs no handler."""

import json

import jax.numpy as jnp


class Batches:
    """Data of a run, with a position in it."""

    def __init__(self, position=0):
        self.position = position

    def __next__(self):
        self.position += 1
        return self.position * 0.5

    async def save(self, directory):
        position = self.position

        async def write():
            here = await directory.await_creation()
            (here / "position.json").write_text(json.dumps(position))

        return write()

    async def load(self, directory):
        async def read():
            self.position = json.loads((directory / "position.json").read_text())

        return read()


def save(ocp, path):
    """Saved in the middle of an epoch, which goes on meanwhile."""
    batches = Batches()
    drawn = [next(batches), next(batches)]
    parts = {"state": {"w": jnp.ones(2)}, "batches": batches}
    response = ocp.save_checkpointables_async(path / "run", parts)
    drawn.append(next(batches))
    response.result()
    return [drawn, isinstance(batches, ocp.StatefulCheckpointable)]


def load(ocp, path):
    """A new object takes up the position; the state can do without it."""
    batches = Batches()
    ocp.load_checkpointables(path / "run", {"batches": batches})
    return [batches.position, next(batches), ocp.load(path / "run")]
