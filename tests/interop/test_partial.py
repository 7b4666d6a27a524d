"""Sessions of partial saves, begun by one library and finished by the other."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
from golden_cases import compare, load_case
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from sample_trees import bits, differences, mesh

import stowax
from stowax._session_records import session_of
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    KeyPathCollisionError,
    NoChecksumsError,
    PartialSaveReplacementError,
)
from stowax.options import ArrayOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]

LIBRARIES = [stowax, v1]


def encoder():
    """One part of a state."""
    sharded = jax.device_put(bits("float32", (8, 4), 1), NamedSharding(mesh(4), P("x")))
    return {"encoder": {"w": sharded, "n": 3}, "host": np.arange(6)}


def decoder():
    """Another one, below a key of the first, with a key and no text."""
    large = jnp.arange(30_000, dtype=jnp.bfloat16).reshape(300, 100)
    return {"encoder": {"b": large}, "key": jax.random.key(1), "rate": 0.5}


def head():
    """A third."""
    return {"head": [jnp.ones(3), {"x": 1}], "empty": {}}


def whole():
    """All of it."""
    state = encoder() | decoder() | head()
    state["encoder"] = encoder()["encoder"] | decoder()["encoder"]
    return state


@pytest.mark.parametrize("end", LIBRARIES, ids=["stowax", "orbax"])
@pytest.mark.parametrize("third", LIBRARIES, ids=["stowax", "orbax"])
@pytest.mark.parametrize("second", LIBRARIES, ids=["stowax", "orbax"])
@pytest.mark.parametrize("first", LIBRARIES, ids=["stowax", "orbax"])
def test_sessions_of_both(tmp_path, first, second, third, end):
    """Whoever saves which part, and whoever finishes: both load all of it."""
    path = tmp_path / "checkpoint"
    first.partial.save(path, encoder(), custom_metadata={"a": 1, "b": {"c": 1}})
    second.partial.save(path, decoder())
    third.partial.save(path, head(), custom_metadata={"a": 2, "b": {"d": 2}})
    end.partial.finalize(path)

    for library in LIBRARIES:
        assert differences(whole(), library.load(path, whole())) == []
        metadata = library.checkpointables_metadata(path)
        assert metadata.custom_metadata == {"a": 2, "b": {"c": 1, "d": 2}}
    if {first, second, third, end} == {stowax}:
        assert not stowax.verify(path).unvouched
    else:  # Nobody vouches for what was Orbax's, so nobody claims to.
        with pytest.raises(NoChecksumsError):
            stowax.verify(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "saving",
    [
        {"use_zarr3": False},
        {"use_compression": True},
        {"storage_options": {"chunk_byte_size": 400}},
        {"ocdbt_target_data_file_size": 300},
    ],
    ids=str,
)
@pytest.mark.parametrize("first", LIBRARIES, ids=["stowax", "orbax"])
def test_ways_to_store_arrays(tmp_path, saving, first):
    """What Orbax stored in its ways is found where it lies; so is what we did."""
    path = tmp_path / "checkpoint"
    for library, state in ((first, encoder()), (v1, decoder()), (stowax, head())):
        given = dict(saving)
        options = library.options.ArrayOptions.Saving
        if "storage_options" in given:
            given["storage_options"] = options.StorageOptions(
                **given["storage_options"]
            )
        array = library.options.ArrayOptions(saving=options(**given))
        with library.Context(array_options=array):
            library.partial.save(path, state)
    stowax.partial.finalize(path)

    for library in LIBRARIES:
        assert differences(whole(), library.load(path, whole())) == []


def test_texts_of_two_calls(tmp_path):
    """Orbax cannot finish a session with texts from two calls; ours can."""
    for library in LIBRARIES:
        path = tmp_path / library.__name__
        v1.partial.save(path, {"a": "one", "x": 1})
        v1.partial.save(path, {"b": "two", "y": 2})
        aside = tmp_path / f"{library.__name__}_aside"
        shutil.copytree(session_of(str(path)), session_of(str(aside)))
        if library is v1:
            with pytest.raises((OSError, ValueError)):
                library.partial.finalize(path)
        else:
            library.partial.finalize(path)
            for each in LIBRARIES:
                assert each.load(path) == {"a": "one", "b": "two", "x": 1, "y": 2}


def test_interrupted_in_the_middle(tmp_path):
    """Killed while it finalizes, Orbax leaves nothing to finish; ours goes on."""
    for library in LIBRARIES:
        path = tmp_path / library.__name__
        library.partial.save(path, {"a": np.arange(3)})
        library.partial.save(path, {"b": np.arange(4)})
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, library.__name__, path], check=False
        )
        assert killed.returncode == 9
        assert not path.exists()
        if library is stowax:
            stowax.partial.finalize(path)
            assert stowax.load(path).keys() == {"a", "b"}
            stowax.verify(path)
        else:
            with pytest.raises(ValueError, match="missing"):
                v1.partial.finalize(path)
            with pytest.raises(InvalidLayoutError, match="Orbax has begun to finalize"):
                stowax.partial.finalize(path)


KILLED = """
import importlib, os, sys
name, path = sys.argv[1:]
if name == "stowax":
    import stowax as ocp
    from stowax._stores._local import LocalStore as place
    method = "publish"
else:
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint._src.path import async_path as place
    method = "rmtree"
real = getattr(place, method)

async def die(*args, **kwargs):
    os._exit(9)

setattr(place, method, die)
ocp.partial.finalize(path if name == "stowax" else __import__("pathlib").Path(path))
"""


def test_session_of_a_release(tmp_path, golden):
    """The session that Orbax left in the golden checkpoints is finished."""
    case = load_case("v1_partial_pending")
    session = Path(shutil.copytree(case.directory, tmp_path / "case"))

    stowax.partial.finalize(session / "checkpoint")

    expected = case.expected["after_finalize"]["state"]["tree"]
    assert compare(expected, stowax.load(session / "checkpoint")) == []
    assert compare(expected, v1.load(session / "checkpoint")) == []


def test_orbax_does_not_finish_what_replaces(tmp_path):
    """It stops before it touches anything, and ours finishes the session then."""
    path = tmp_path / "checkpoint"
    stowax.partial.save(path, encoder())
    stowax.partial.save(path, {"host": np.zeros(2)}, replace=True)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ValueError, match="finalize-with-stowax"):
        v1.partial.finalize(path)

    assert sorted(tmp_path.rglob("*")) == before
    stowax.partial.finalize(path)
    assert stowax.load(path)["host"].tolist() == [0, 0]
    assert v1.load(path)["host"].tolist() == [0, 0]


def test_replaced_in_a_session_of_orbax(tmp_path):
    """What Orbax saved can be replaced, and Orbax reads the outcome."""
    path = tmp_path / "checkpoint"
    v1.partial.save(path, encoder() | {"name": "one"})
    with pytest.raises(PartialSaveReplacementError, match="'name'"):
        stowax.partial.save(path, {"name": "two"})
    stowax.partial.save(
        path, {"name": "two", "encoder": {"w": np.ones(3)}}, replace=True
    )
    stowax.partial.finalize(path)

    for library in LIBRARIES:
        loaded = library.load(path)
        assert loaded["name"] == "two"
        assert np.asarray(loaded["encoder"]["w"]).tolist() == [1, 1, 1]
        assert loaded["encoder"]["n"] == 3


@pytest.mark.parametrize("saving", [{}, {"use_zarr3": False}], ids=str)
def test_a_checkpoint_of_orbax_in_place(tmp_path, saving):
    """A session begins from what Orbax published, too; nothing is read of the rest."""
    path = tmp_path / "checkpoint"
    for library in (v1, stowax):
        array = library.options.ArrayOptions(
            saving=library.options.ArrayOptions.Saving(**saving)
        )
        with library.Context(array_options=array):
            if library is v1:
                v1.save(path, whole(), custom_metadata={"made": "by orbax"})
            else:
                stowax.partial.save(path, {"rate": 0.25, "new": "text"}, replace=True)
    stowax.partial.finalize(path)

    expected = whole() | {"rate": 0.25, "new": "text"}
    for library in LIBRARIES:
        assert differences(expected, library.load(path, expected)) == []
        metadata = library.checkpointables_metadata(path)
        assert metadata.custom_metadata == {"made": "by orbax"}
    with pytest.raises(NoChecksumsError):
        stowax.verify(path)


def test_a_checkpoint_of_ours_in_place(tmp_path):
    """Orbax reads what we changed in place."""
    path = tmp_path / "checkpoint"
    stowax.save(path, whole())
    stowax.partial.save(path, {"encoder": {"w": jnp.zeros((2, 2))}}, replace=True)
    stowax.partial.finalize(path)

    loaded = v1.load(path)
    assert np.asarray(loaded["encoder"]["w"]).tolist() == [[0, 0], [0, 0]]
    assert differences(decoder()["encoder"]["b"], loaded["encoder"]["b"]) == []


def test_arrays_without_a_database(tmp_path):
    """Of Orbax's arrays in directories no session is made; the error says so."""
    path = tmp_path / "checkpoint"
    array = v1.options.ArrayOptions(
        saving=v1.options.ArrayOptions.Saving(use_ocdbt=False)
    )
    with v1.Context(array_options=array):
        v1.save(path, {"w": np.ones(3)})

    context = stowax.Context(
        array=ArrayOptions(saving=ArrayOptions.Saving(use_ocdbt=False))
    )
    with context, pytest.raises(InvalidLayoutError, match="without OCDBT"):
        stowax.partial.save(path, {"x": 1}, replace=True)
    assert stowax.load(path)["w"].tolist() == [1, 1, 1]


def test_placeholders_in_place(tmp_path):
    """A checkpoint with leaves that have no value is not changed; the error says so."""
    path = tmp_path / "checkpoint"
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        args = v0.args.Composite(state=v0.args.PyTreeSave({"a": ..., "w": np.ones(3)}))
        checkpointer.save(path, args=args)

    with pytest.raises(InvalidLayoutError, match=r"leaf 'a' .* is a placeholder"):
        stowax.partial.save(path, {"x": 1}, replace=True)
    assert stowax.load(path)["a"] is ...


def test_a_stray_file_in_an_update_of_orbax(tmp_path):
    """It is told of, and nothing that was saved is left out because of it."""
    path = tmp_path / "checkpoint"
    v1.partial.save(path, {"a": np.arange(3)})
    v1.partial.save(path, {"b": np.arange(3)})
    first = min(Path(session_of(str(path))).iterdir())
    (first / "state" / ".DS_Store").write_text("stray")

    with pytest.raises(InvalidLayoutError, match=r"\.DS_Store"):
        stowax.partial.finalize(path)
    (first / "state" / ".DS_Store").unlink()
    stowax.partial.finalize(path)
    assert stowax.load(path).keys() == {"a", "b"}


def test_an_update_of_orbax_without_its_root(tmp_path):
    """Without the document that names its items, it is damaged, and not empty."""
    path = tmp_path / "checkpoint"
    v1.partial.save(path, {"a": np.arange(3)})
    (document,) = tmp_path.rglob("_CHECKPOINT_METADATA")
    document.unlink()

    with pytest.raises(CorruptCheckpointError, match="_CHECKPOINT_METADATA is missing"):
        stowax.partial.finalize(path)


def test_names_that_collide_over_libraries(tmp_path):
    """What Orbax takes for two leaves, and is one on disk, is refused."""
    path = tmp_path / "checkpoint"
    stowax.partial.save(path, {"a": {"b": "x"}, "k": 1})
    v1.partial.save(path, {"a.b": "y"})

    with pytest.raises(KeyPathCollisionError, match=r"a\.b"):
        stowax.partial.finalize(path)


def test_errors_are_theirs(tmp_path):
    """Where both refuse, `except` clauses written for Orbax work."""
    for library in LIBRARIES:
        path = tmp_path / library.__name__
        with pytest.raises(FileNotFoundError):
            library.partial.finalize(path)
        library.partial.save(path, {"a": np.arange(3)})
        with pytest.raises(Exception, match=r"'a'|previous partial save"):
            library.partial.save(path, {"a": np.arange(4)})
        library.partial.finalize(path)
        for call in (
            lambda ocp=library, at=path: ocp.partial.save(at, {"b": 1}),
            lambda ocp=library, at=path: ocp.partial.finalize(at),
        ):
            with pytest.raises(FileExistsError):
                call()
