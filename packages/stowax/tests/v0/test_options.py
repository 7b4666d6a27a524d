"""Options of checkpointers and handlers: followed, or refused by name."""

import jax.numpy as jnp
import numpy as np
import pytest

import stowax
from stowax import v0
from stowax.errors import InvalidArgumentError, UnsupportedOptionError
from stowax.testing import SimulatedCluster
from stowax.v0.options import (
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)


def save(path, **options):
    """Saves with options of a checkpointer."""
    with v0.Checkpointer(v0.PyTreeCheckpointHandler(), **options) as checkpointer:
        checkpointer.save(path, {"x": 1})
        return checkpointer.restore(path)


@pytest.mark.parametrize(
    "options",
    [
        {"multiprocessing_options": MultiprocessingOptions(primary_host=None)},
        {"multiprocessing_options": MultiprocessingOptions(active_processes={0})},
        {
            "multiprocessing_options": MultiprocessingOptions(
                barrier_sync_key_prefix="a"
            )
        },
        {"file_options": FileOptions(skip_sync_file_validations=True)},
        {"atomicity_options": AtomicityOptions(AtomicityMode.ATOMIC_RENAME)},
        {"temporary_path_class": v0.path.atomicity.AtomicRenameTemporaryPath},
    ],
    ids=str,
)
def test_followed(tmp_path, options):
    """What means the same as the default, to one process alone, is accepted."""
    assert save(tmp_path / "c", **options) == {"x": 1}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"multiprocessing_options": MultiprocessingOptions(3)}, "primary_host"),
        (
            {"multiprocessing_options": MultiprocessingOptions(active_processes={4})},
            "active_processes",
        ),
        ({"atomicity_options": AtomicityOptions(AtomicityMode.COMMIT_FILE)}, "mode"),
        (
            {"temporary_path_class": v0.path.atomicity.CommitFileTemporaryPath},
            "temporary_path_class",
        ),
        ({"temporary_path_class": dict}, "temporary_path_class"),
    ],
    ids=str,
)
def test_refused(tmp_path, options, named):
    """What cannot be followed is refused by its name, and nothing is written."""
    with pytest.raises(UnsupportedOptionError, match=named):
        save(tmp_path / "c", **options)

    assert list(tmp_path.iterdir()) == []


def test_refused_in_the_background(tmp_path):
    """So are options of a save in the background."""
    options = AsyncOptions(barrier_sync_fn=print)
    checkpointer = v0.StandardCheckpointer(async_options=options)

    with pytest.raises(UnsupportedOptionError, match="barrier_sync_fn"):
        checkpointer.save(tmp_path / "c", {"x": 1})


def test_refused_in_several_processes(tmp_path):
    """What is the same for one process alone may not be so for several."""

    def refused(index):
        options = MultiprocessingOptions(primary_host=None)
        with stowax.Context(runtime=cluster.runtimes[index]):
            try:
                save(tmp_path / "c", multiprocessing_options=options)
            except UnsupportedOptionError as error:
                return "primary_host" in str(error)

    with SimulatedCluster(2) as cluster:
        assert cluster.run(refused) == [True, True]


def test_permissions(tmp_path):
    """The directory of a checkpoint gets the bits that it was given."""
    save(tmp_path / "c", file_options=FileOptions(path_permission_mode=0o711))

    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o711


def test_the_context_counts(tmp_path):
    """A Context around it counts where the options say nothing."""
    with stowax.Context(
        file=stowax.options.FileOptions(store=stowax.testing.MemoryStore())
    ):
        save("/runs/c")

    assert list(tmp_path.iterdir()) == []


def test_metadata_store(tmp_path):
    """A store of the user writes what stands at the root, which is sealed then."""

    class Store:
        written = ()

        def is_blocking_writer(self):
            return True

        def write(self, file_path, metadata):
            self.written += (metadata["custom_metadata"],)
            metadata["custom_metadata"] = {"by": "me"}
            inner.write(file_path, metadata)

        def read(self, file_path):
            return inner.read(file_path)

        def wait_until_finished(self):
            self.written += ("all",)

    inner = v0.metadata.metadata_store(enable_write=True, blocking_write=True)
    store = Store()
    for name, handler, args in (
        ("direct", v0.PyTreeCheckpointHandler(), v0.args.PyTreeSave({"x": 1})),
        (
            "composite",
            v0.CompositeCheckpointHandler(),
            v0.args.Composite(state=v0.args.PyTreeSave({"x": 1})),
        ),
    ):
        options = {"checkpoint_metadata_store": store}
        with v0.Checkpointer(handler, **options) as checkpointer:
            checkpointer.save(tmp_path / name, args, custom_metadata={"run": 1})
            found = checkpointer.metadata(tmp_path / name)

        assert found.custom_metadata == {"by": "me"}
        assert stowax.verify(tmp_path / name).unvouched == ()
    assert store.written == ({"run": 1}, "all", {"run": 1}, "all")


def test_metadata_store_that_does_not_write(tmp_path):
    """Without it the checkpoint has its metadata all the same."""
    store = v0.metadata.metadata_store(enable_write=False, blocking_write=True)

    save(tmp_path / "c", checkpoint_metadata_store=store)

    assert v0.metadata.get_step_metadata(tmp_path / "c").commit_timestamp_nsecs


def test_metadata_store_that_writes_later():
    """A checkpointer that returns when all is written needs one that does, too."""
    store = v0.metadata.metadata_store(enable_write=True)

    with pytest.raises(InvalidArgumentError, match="blocking_write"):
        v0.Checkpointer(v0.JsonCheckpointHandler(), checkpoint_metadata_store=store)
    v0.StandardCheckpointer(checkpoint_metadata_store=store).close()


def test_store_of_files(tmp_path):
    """It reads nothing where nothing is, and updates key by key."""
    store = v0.metadata.metadata_store(enable_write=True)

    assert store.read(tmp_path / "document") is None
    store.update(tmp_path / "document", a=1)
    store.update(tmp_path / "document", b=2)
    store.wait_until_finished()

    assert store.read(tmp_path / "document") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "name", ["type_handler_registry", "handler_impl", "array_metadata_validator"]
)
def test_parts_of_the_peer(name):
    """What is an object of Orbax's own is refused, with what to do instead."""
    with pytest.raises(UnsupportedOptionError, match=name):
        v0.PyTreeCheckpointHandler(**{name: object()})


def test_legacy_transform(tmp_path):
    """So is a function that works on such objects."""
    checkpointer = v0.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "c", {"x": 1})

    with pytest.raises(UnsupportedOptionError, match="transforms"):
        checkpointer.restore(tmp_path / "c", legacy_transform_fn=lambda *args: args)


def test_first_leaves(tmp_path):
    """`is_prioritized_key_fn` is asked of every leaf."""
    asked = []
    handler = v0.PyTreeCheckpointHandler(
        is_prioritized_key_fn=lambda path: bool(asked.append(path[0].key))
    )
    with v0.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": 1, "b": 2})

    assert sorted(asked) == ["a", "b"]


def test_rich_types(tmp_path):
    """`support_rich_types` has tuples told to Orbax."""
    options = stowax.options.PyTreeMetadataOptions(support_rich_types=True)
    handler = v0.PyTreeCheckpointHandler(pytree_metadata_options=options)
    with v0.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": (1, 2)})

    assert "value_metadata_tree" in (tmp_path / "c" / "_METADATA").read_text()


def test_compression(tmp_path):
    """Chunks are compressed unless it is said that they are not."""
    zeros = {"w": jnp.zeros(100_000)}
    sizes = []
    for use_compression in (True, False):
        with v0.PyTreeCheckpointer(use_compression=use_compression) as checkpointer:
            path = tmp_path / str(use_compression)
            checkpointer.save(path, zeros)
        files = [file for file in path.rglob("*") if file.is_file()]
        sizes.append(sum(file.stat().st_size for file in files))

    assert sizes[0] < 100_000 < 400_000 < sizes[1]


def test_size_of_data_files(tmp_path):
    """`ocdbt_target_data_file_size` bounds them."""
    args = v0.args.PyTreeSave(
        {str(i): np.arange(1000) for i in range(10)}, ocdbt_target_data_file_size=8000
    )
    with v0.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(tmp_path / "c", args)

    assert len(list((tmp_path / "c" / "d").iterdir())) > 5


def test_save_args_of_another_tree(tmp_path):
    """Leaves of which `save_args` says nothing are named."""
    checkpointer = v0.PyTreeCheckpointer()
    with pytest.raises(ValueError, match="'b'"):
        checkpointer.save(
            tmp_path / "c", {"a": 1, "b": 2}, save_args={"a": v0.SaveArgs()}
        )
    with pytest.raises(ValueError, match="'a'"):
        checkpointer.save(tmp_path / "c", {"a": 1}, save_args={"a": 3})
