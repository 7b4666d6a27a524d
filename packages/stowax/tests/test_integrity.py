"""Never silently wrong: what damage is called, and what else may stand on a disk.

`test_corruption` damages every file in every way.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import warnings

import jax
import numpy as np
import orbax.checkpoint as orbax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_guests import Notes
from sample_trees import Point, bits, differences, mesh, plain

import stowax
from stowax._stores._base import REPLACEMENT_SUFFIX
from stowax.errors import CorruptCheckpointError, DamageError, StowaxError
from stowax.handlers import JsonHandler
from stowax.options import CheckpointablesOptions, IntegrityOptions

CUSTOM = {"note": "kept", "numbers": [1, 2.5, None]}


def state():
    """A small tree with a leaf of every kind and every document on disk."""
    return {
        "w": jax.device_put(bits("float32", (8, 4)), NamedSharding(mesh(2), P("x"))),
        "half": jax.device_put(bits("bfloat16", (5,))),
        "host": bits("int64", (3, 2)),
        "key": jax.random.key(7),
        "step": 12,
        "name": "größe",
        "nested": Point(x=None, y=[{}, 0.5]),
    }


def context(*, verify=True):
    """A Context in which "config" is JSON."""
    return stowax.Context(
        checkpointables=CheckpointablesOptions.create_with_handlers(config=JsonHandler),
        integrity=IntegrityOptions(verify=verify),
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A small checkpoint with a tree, a JSON document and a guest's file."""
    path = tmp_path_factory.mktemp("pristine") / "checkpoint"
    with context():
        stowax.save_checkpointables(
            path,
            {"state": state(), "config": {"depth": 3}, "notes": Notes("my notes")},
            custom_metadata=CUSTOM,
        )
    return path


@pytest.fixture
def checkpoint(pristine, tmp_path):
    """A copy to damage."""
    return pathlib.Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


def load_all(path):
    """Everything that a reader can ask for."""
    notes = Notes()
    targets = {"state": None, "config": None, "notes": notes}
    with context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = stowax.load_checkpointables(path, targets)
        with_target = stowax.load(path, state())
        custom = stowax.checkpointables_metadata(path).custom_metadata
        alone = stowax.load(path / "state", checkpointable_name=None)
    return loaded, with_target, notes.text, custom, alone


def wrong(path):
    """What comes out wrong although nothing is raised; an error of ours is right."""
    try:
        loaded, with_target, text, custom, alone = load_all(path)
    except StowaxError as error:
        return [] if str(path) in str(error) else [f"no path in: {error}"]
    except Exception as error:  # noqa: BLE001 any other is what this test looks for
        return [f"untyped: {type(error).__name__}: {error}"]
    found = differences(plain(state()), loaded["state"])
    found += differences(plain(state()), alone)
    found += differences(state(), with_target, placement=True)
    if (loaded["config"], text, custom) != ({"depth": 3}, "my notes", CUSTOM):
        found.append(f"{loaded['config']} {text} {custom}")
    return found


def damaged_files(path):
    """The files that `verify` finds damaged."""
    with pytest.raises(DamageError) as caught:
        stowax.verify(path)
    return {damage.file for damage in caught.value.report.damages}


def files_of(path):
    """Every file of a checkpoint."""
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip(file, position, mask):
    """Flips bits of one byte in place; returns the function that flips them back."""
    content = bytearray(file.read_bytes())
    content[position] ^= mask
    file.write_bytes(content)


def test_the_whole_is_loaded(checkpoint):
    """Without damage everything is right, and every kind of file is there."""
    assert wrong(checkpoint) == []
    load_all(checkpoint)
    names = {str(file.relative_to(checkpoint)) for file in files_of(checkpoint)}
    assert names >= {
        *("stowax.json", "_CHECKPOINT_METADATA", "commit_success.txt"),
        *("state/stowax.manifest", "state/stowax.chunks.0", "state/d/data-0"),
        *("state/d/index", "state/manifest.ocdbt", "state/_METADATA"),
        *("state/_sharding", "state/_strings.json", "state/array_metadatas/process_0"),
        *("config/data.json", "notes/notes.txt", "orbax.checkpoint"),
    }


def test_directory_in_place_of_a_file(checkpoint):
    """A directory that has the name of a file is an error of ours, or does no harm."""
    faults = []
    for file in files_of(checkpoint):
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        faults += [f"{file.name}: {fault}" for fault in wrong(checkpoint)]
        assert file.relative_to(checkpoint).as_posix() in damaged_files(checkpoint)
        file.rmdir()
        file.write_bytes(content)

    assert faults == []


def test_damaged_data_names_leaf_and_file(checkpoint):
    """The error says which leaf, which part of it, which file, and the way out."""
    file = checkpoint / "state/d/data-0"
    content = file.read_bytes()
    flip(file, content.index(np.asarray(state()["host"]).tobytes()), 1)

    with pytest.raises(CorruptCheckpointError, match="leaf 'host'") as caught:
        stowax.load(checkpoint)

    assert str(file) in str(caught.value)
    assert "[0:3, 0:2]" in str(caught.value)
    assert "IntegrityOptions(verify=False)" in str(caught.value)
    target = {**dict.fromkeys(state(), ...), "w": state()["w"]}
    assert differences(state()["w"], stowax.load(checkpoint, target)["w"]) == []


def test_cut_file_names_what_is_lost(tmp_path):
    """Of many leaves that are read at once, those behind the end of the file."""
    stowax.save(tmp_path / "c", {f"leaf{i:02}": np.arange(8) for i in range(20)})
    file = tmp_path / "c/state/d/data-0"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CorruptCheckpointError, match="'leaf19'") as caught:
        stowax.load(tmp_path / "c")

    assert "leaf00" not in str(caught.value)


def test_damaged_data_without_verification(checkpoint):
    """With `verify=False` the bytes come as they are; the other leaves are right."""
    file = checkpoint / "state/d/data-0"
    content = file.read_bytes()
    flip(file, content.index(np.asarray(state()["host"]).tobytes()), 1)

    with context(verify=False):
        loaded = stowax.load(checkpoint)

    wrong_leaf = np.asarray(state()["host"]).copy()
    wrong_leaf.view(np.uint8)[0, 0] ^= 1
    expected = plain({**state(), "host": wrong_leaf})
    assert differences(expected, loaded) == []


@pytest.mark.parametrize(
    "names",
    [
        ["stowax.json"],
        ["state/stowax.manifest"],
        ["stowax.json", "state/stowax.manifest"],
        ["state/stowax.chunks.0"],
        ["stowax.json", "state/stowax.manifest", "state/stowax.chunks.0"],
    ],
    ids=" ".join,
)
def test_our_records_removed(checkpoint, names):
    """Without our records it is an error, never a load without checksums.

    With `verify=False` the documents of Orbax say what there is.
    """
    for name in names:
        (checkpoint / name).unlink()

    with pytest.raises(CorruptCheckpointError, match="verify=False") as caught:
        stowax.load(checkpoint)
    assert str(checkpoint) in str(caught.value)
    with context(verify=False):
        assert differences(plain(state()), stowax.load(checkpoint)) == []


@pytest.mark.parametrize("name", ["stowax.json", "state/stowax.manifest"])
def test_our_records_damaged_without_verification(checkpoint, name):
    """With `verify=False`, damaged records are passed over."""
    flip(checkpoint / name, 5, 0xFF)

    with context(verify=False):
        assert differences(plain(state()), stowax.load(checkpoint)) == []


def test_record_of_a_newer_release(checkpoint):
    """A format that this release does not know is refused, with the cure."""
    from stowax._codecs._checksum import seal, unseal

    document = unseal((checkpoint / "stowax.json").read_bytes())
    document["version"] += 1
    (checkpoint / "stowax.json").write_bytes(seal(document))

    with pytest.raises(CorruptCheckpointError, match="pip install --upgrade stowax"):
        stowax.load(checkpoint)


@pytest.mark.parametrize("item", ["notes", "config"])
def test_item_deleted_with_orbax(checkpoint, item):
    """An item that Orbax deleted is missed; with `verify=False` the rest is loaded."""
    orbax.v1.delete(checkpoint, checkpointable_name=item)

    with pytest.raises(CorruptCheckpointError, match=item) as caught:
        stowax.load(checkpoint)
    assert "deleting an item with Orbax" in str(caught.value)
    with context(verify=False):
        assert differences(plain(state()), stowax.load(checkpoint)) == []
        targets = {name: None for name in ("state", "config") if name != item}
        loaded = stowax.load_checkpointables(checkpoint, targets)
        assert loaded.keys() == targets.keys()
        assert item not in stowax.load_checkpointables(checkpoint)


def test_item_added(checkpoint):
    """A tree that was put there later is not loaded as if it were verified."""
    shutil.copytree(checkpoint / "state", checkpoint / "other")

    with pytest.raises(CorruptCheckpointError, match="other"):
        stowax.load(checkpoint, checkpointable_name="other")


def test_names_never_lead_out(checkpoint):
    """A manifest that names files elsewhere is refused, even with right checksums."""
    from stowax._codecs._checksum import seal, unseal

    secret = checkpoint.parent / "secret"
    secret.write_bytes(b"secret")
    for name in ("../secret", str(secret), "state/../../secret"):
        document = unseal((checkpoint / "stowax.json").read_bytes())
        document["manifests"][f"{name}/stowax.manifest"] = [6, "00000000"]
        (checkpoint / "stowax.json").write_bytes(seal(document))

        with pytest.raises(StowaxError):
            stowax.load(checkpoint, checkpointable_name=name)


def test_moved_checkpoint(checkpoint):
    """A checkpoint may be moved or copied as a directory."""
    moved = checkpoint.rename(checkpoint.parent / "elsewhere")

    assert wrong(moved) == []
    load_all(moved)


def test_read_only_checkpoint(checkpoint):
    """A load needs no permission to write."""
    for path in (checkpoint, *checkpoint.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert wrong(checkpoint) == []
        load_all(checkpoint)
    finally:
        for path in (checkpoint, *checkpoint.rglob("*")):
            if path.is_dir():
                os.chmod(path, 0o755)


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": [1 << 50, 2]},
        {"shape": [4, 2]},
        {"shape": [1 << 50, 2], "chunk": [1 << 50, 2]},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_shape_says_what_is_stored(checkpoint, facts):
    """A shape that the stored chunks do not fill is refused, and no memory taken."""
    from stowax._codecs._checksum import seal, unseal

    # With checksums that hold: only the chunk tables can tell.
    (checkpoint / "stowax.json").unlink()
    manifest = checkpoint / "state/stowax.manifest"
    document = unseal(manifest.read_bytes())
    (leaf,) = (e for e in document["forms"] if e["kind"] == "np.ndarray")
    leaf.update(facts)
    manifest.write_bytes(seal(document))

    with pytest.raises(CorruptCheckpointError, match="leaf 'host'") as caught:
        stowax.load(checkpoint / "state", checkpointable_name=None)

    assert str(manifest) in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": [0, 1 << 62]},
        {"shape": [0, 1 << 64]},
        {"shape": [0, 1 << 62], "chunk": [1, 1 << 62]},
        {"shape": [0] * 65, "chunk": [1] * 65},
    ],
    ids=lambda facts: str(facts)[:40],
)
@pytest.mark.parametrize(
    "read",
    [stowax.load, stowax.metadata, stowax.preview_load],
    ids=lambda read: read.__name__,
)
def test_shape_that_no_array_has(tmp_path, read, facts):
    """Nothing is stored of an empty array, and still its shape must be possible."""
    from stowax._codecs._checksum import seal, unseal

    stowax.save(tmp_path / "c", {"empty": np.zeros((0, 3)), "x": 1})
    manifest = tmp_path / "c/state/stowax.manifest"
    document = unseal(manifest.read_bytes())
    document["forms"][0].update(facts)
    manifest.write_bytes(seal(document))

    with pytest.raises(CorruptCheckpointError, match="leaf 'empty' has the shape"):
        read(tmp_path / "c/state", checkpointable_name=None)


def replace_with_pipe(file):
    """Puts a named pipe, whose readers wait for a writer, in the place of a file."""
    file.unlink()
    os.mkfifo(file)


def replace_with_device(file):
    """Puts a link to a device without end in the place of a file."""
    file.unlink()
    file.symlink_to("/dev/zero")


def replace_with_socket(file):
    """Puts a socket in the place of a file."""
    file.unlink()
    here = os.getcwd()
    os.chdir(file.parent)  # The names of sockets are short.
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.skipif(os.name == "nt", reason="Windows has none of them")
@pytest.mark.parametrize(
    "replace", [replace_with_pipe, replace_with_device, replace_with_socket]
)
def test_what_is_no_file(checkpoint, replace):
    """No load waits for a pipe, a socket or a device in the place of any file."""
    hidden = checkpoint.parent / "hidden"
    for file in files_of(checkpoint):
        file.rename(hidden)
        file.touch()
        replace(file)
        assert wrong(checkpoint) == []
        assert damaged_files(checkpoint) == {file.relative_to(checkpoint).as_posix()}
        for verify in (True, False):
            with context(verify=verify):
                assert isinstance(stowax.is_orbax_checkpoint(checkpoint), bool)
                with contextlib.suppress(CorruptCheckpointError):
                    stowax.checkpointables_metadata(checkpoint)
                with contextlib.suppress(StowaxError):
                    stowax.load_checkpointables(checkpoint, {"state": None})
        file.unlink()
        hidden.rename(file)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes by name")
def test_record_that_is_no_file(checkpoint):
    """Nor does a save for what looks like the record of an unfinished overwrite."""
    os.mkfifo(f"{checkpoint}{REPLACEMENT_SUFFIX}")

    with pytest.raises(
        CorruptCheckpointError, match="no file, but a directory, a pipe"
    ):
        stowax.save(checkpoint, {"x": 1}, overwrite=True)
    assert wrong(checkpoint) == []
    shutil.rmtree(checkpoint)
    with pytest.raises(StowaxError, match="nothing is at"):
        stowax.load(checkpoint)


def refusing(call, *arguments, **options):
    """Whether a call finds the damage."""
    try:
        call(*arguments, **options)
    except CorruptCheckpointError:
        return True
    return False


@pytest.mark.parametrize("left", ["nothing", "a planted file"])
def test_emptied_item_is_no_other_item(tmp_path, left):
    """Files that are gone, or were planted, do not make a sealed item another one."""
    path = tmp_path / "checkpoint"
    stowax.save_checkpointables(path, {"state": {"w": 1}, "config": {"lr": 0.1}})
    for file in files_of(path / "state"):
        file.unlink()
    if left != "nothing":
        (path / "state/metadata").write_text('{"evil": 1}')

    assert refusing(stowax.load, path)
    assert refusing(stowax.load, path, checkpointable_name="state")
    assert refusing(stowax.load_checkpointables, path)
    assert refusing(stowax.metadata, path)
    assert refusing(stowax.preview_load, path)
    assert refusing(stowax.load_leaf, path, "lr")


def test_manifest_alone_makes_a_tree(tmp_path):
    """A tree without the documents of others is still the tree that is loaded."""
    path = tmp_path / "checkpoint"
    stowax.save_checkpointables(path, {"state": {"w": 1}, "config": {"lr": 0.1}})
    (path / "state/_METADATA").unlink()

    assert stowax.load(path) == {"w": 1}


def test_planted_tree_is_not_read(checkpoint):
    """A JSON value stays one, whatever somebody lays beside its file."""
    for file in ("_METADATA", "stowax.manifest"):
        shutil.copy(checkpoint / "state" / file, checkpoint / "config")

    with context():
        assert stowax.load_checkpointables(checkpoint, {"config": None}) == {
            "config": {"depth": 3}
        }
