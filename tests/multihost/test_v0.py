"""Several processes save and restore by the older API; so do several of Orbax."""

import jax
import numpy as np
import orbax.checkpoint as orbax

from multihost import trees
from multihost.test_interop import global_abstract, global_arrays, global_values
from stowax import v0


class RankHandler(v0.CheckpointHandler):
    """Every process writes a file; one counts them at the end."""

    def save(self, directory, item):
        (directory / f"rank-{item}").write_text(str(item))

    def restore(self, directory):
        return (directory / "count").read_text()

    def finalize(self, directory):
        ranks = [p for p in directory.iterdir() if p.name.startswith("rank-")]
        (directory / "count").write_text(str(len(ranks)))


def _restore_args(library, abstract):
    return jax.tree.map(
        lambda leaf: library.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        abstract,
    )


def _restore(library, path):
    """What differs in what a library restores onto either mesh."""
    found = []
    for is_turned in (False, True):
        abstract = global_abstract(is_turned=is_turned)
        handler = library.PyTreeCheckpointHandler()
        with library.Checkpointer(handler) as checkpointer:
            args = library.args.PyTreeRestore(
                restore_args=_restore_args(library, abstract)
            )
            loaded = checkpointer.restore(path, args=args)
        found += trees.differences(loaded, global_values())
    return found


def _save_ours(index, path):
    del index
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, global_arrays())
    return _restore(v0, path) + _restore(orbax, path)


def test_two_save(launch, tmp_path):
    """What two processes save, two restore, and two of Orbax, onto any mesh."""
    assert launch(2, _save_ours, tmp_path / "c") == [[], []]


def _save_theirs(index, path):
    del index
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, global_arrays())
    return _restore(v0, path)


def test_two_of_orbax_save(launch, tmp_path):
    """What two processes of Orbax save, two restore."""
    assert launch(2, _save_theirs, tmp_path / "c") == [[], []]


def _save_several(index, path):
    with v0.AsyncCheckpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        args = v0.args.Composite(
            state=v0.args.PyTreeSave(global_arrays()),
            config=v0.args.JsonSave({"depth": 3}),
            key=v0.args.NumpyRandomKeySave(np.random.RandomState(7).get_state()),
        )
        checkpointer.save(path / "several", args=args)
        checkpointer.wait_until_finished()
        args = v0.args.Composite(config=v0.args.JsonRestore())
        config = checkpointer.restore(path / "several", args=args).config
    with v0.Checkpointer(RankHandler()) as checkpointer:
        checkpointer.save(path / "ranks", index)
        return config, checkpointer.restore(path / "ranks")


def test_items_and_guests(launch, tmp_path):
    """Items are written by all together, and guests are finished by one."""
    found = launch(2, _save_several, tmp_path)

    assert found == [({"depth": 3}, "2")] * 2
