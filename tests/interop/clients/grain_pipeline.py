"""A model and the place in its data, saved together with Grain's own handler."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from grain import checkpoint as grain_checkpoint
from grain import python as grain


def dataset():
    """Numbers in a certain order, two at a time."""
    return grain.MapDataset.range(20).shuffle(seed=3).batch(2).to_iter_dataset()


def loader():
    """The same numbers by the older class of Grain."""
    source = grain.RangeDataSource(start=0, stop=20, step=1)
    sampler = grain.SequentialSampler(20, shard_options=grain.NoSharding())
    return grain.DataLoader(data_source=source, sampler=sampler, worker_count=0)


def take(iterator, count):
    """The next elements."""
    return [np.asarray(next(iterator)).tolist() for _ in range(count)]


def save(path):
    """After a few steps, by the name of an item, in the background, and alone."""
    data, numbers = iter(dataset()), iter(loader())
    seen = [take(data, 3), take(numbers, 5)]
    state = {"w": jnp.arange(3.0), "step": 3}
    handler = ocp.CompositeCheckpointHandler("state", "data", "numbers")
    with ocp.AsyncCheckpointer(handler) as checkpointer:
        checkpointer.save(
            path / "together",
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain_checkpoint.CheckpointSave(data),
                numbers=grain_checkpoint.CheckpointSave(numbers),
            ),
        )
        checkpointer.wait_until_finished()
    with ocp.Checkpointer(grain_checkpoint.CheckpointHandler()) as checkpointer:
        checkpointer.save(path / "alone", args=grain_checkpoint.CheckpointSave(data))
    return {"seen": seen, "next": [take(data, 2), take(numbers, 2)]}


def load(path):
    """What comes next is what came next."""
    data, numbers = iter(dataset()), iter(loader())
    handler = ocp.CompositeCheckpointHandler("state", "data", "numbers")
    with ocp.Checkpointer(handler) as checkpointer:
        found = checkpointer.restore(
            path / "together",
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore({"w": jnp.zeros(3), "step": 0}),
                data=grain_checkpoint.CheckpointRestore(data),
                numbers=grain_checkpoint.CheckpointRestore(numbers),
            ),
        )
    answers = {
        "state": found["state"],
        "is_same": [found.data is data, found["numbers"] is numbers],
        "next": [take(data, 2), take(numbers, 2)],
    }
    alone = iter(dataset())
    with ocp.Checkpointer(grain_checkpoint.CheckpointHandler()) as checkpointer:
        checkpointer.restore(
            path / "alone", args=grain_checkpoint.CheckpointRestore(alone)
        )
    return {**answers, "alone": take(alone, 2)}
