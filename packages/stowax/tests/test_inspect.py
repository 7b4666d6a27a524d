"""What can be known of a checkpoint without loading it."""

import dataclasses
import datetime as dt

import jax
import numpy as np
import pytest
from sample_trees import Layer, Nothing, bits, shardings

import stowax
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
)
from stowax.handlers import JsonHandler
from stowax.options import CheckpointablesOptions


def test_tree(place):
    """Every leaf is described: arrays by shape and dtype, numbers by their zero."""
    sharding = shardings()["both"]
    state = {
        "w": jax.device_put(bits("bfloat16", (8, 16)), sharding),
        "host": bits("int64", (2, 0)),
        "numbers": (3, 2.5, True, 1j),
        "text": "some text",
        "nothing": [None, {}, Nothing()],
        "layer": Layer(1, 2),
    }
    stowax.save(place / "checkpoint", state)

    found = stowax.metadata(place / "checkpoint").metadata

    assert found["w"].shape == (8, 16)
    assert found["w"].dtype == jax.numpy.bfloat16
    assert found["w"].sharding == sharding
    assert found["w"].storage_metadata.chunk_shape == (2, 8)
    assert found["w"].storage_metadata.write_shape == (2, 8)
    assert found["host"].shape == (2, 0)
    assert found["host"].dtype == np.int64
    assert "sharding" not in {f.name for f in dataclasses.fields(found["host"])}
    assert repr(found["numbers"]) == "(0, 0.0, False, 0j)"
    assert found["text"] == "string"
    assert found["nothing"] == [None, {}, None]
    assert found["layer"] == {"kernel": 0, "bias": 0}


def test_prng_keys(place):
    """Typed PRNG keys are described as keys."""
    keys = jax.random.wrap_key_data(bits("uint32", (5, 2)), impl="threefry2x32")
    stowax.save(place / "checkpoint", {"k": keys})

    found = stowax.metadata(place / "checkpoint").metadata["k"]

    assert (found.shape, found.dtype) == ((5,), keys.dtype)


def test_leaves_may_be_changed(place):
    """`dataclasses.replace` makes another abstract leaf of a metadata leaf."""
    stowax.save(place / "checkpoint", {"w": jax.device_put(bits("float32", (3,)))})
    found = stowax.metadata(place / "checkpoint").metadata

    asked = {"w": dataclasses.replace(found["w"], dtype=np.dtype("float16"))}
    with pytest.warns(UserWarning, match="float32 to float16"):
        loaded = stowax.load(place / "checkpoint", asked)

    assert loaded["w"].dtype == np.float16


def test_facts_of_the_checkpoint(place):
    """Path, times and the user's metadata are known."""
    before = dt.datetime.now(dt.UTC)
    stowax.save(place / "checkpoint", {"a": 1}, custom_metadata={"note": "kept"})
    after = dt.datetime.now(dt.UTC)

    found = stowax.metadata(place / "checkpoint")

    assert str(found.path) == place / "checkpoint"
    second = dt.timedelta(seconds=1)
    assert before - second < found.init_timestamp <= found.commit_timestamp
    assert found.commit_timestamp < after + second
    assert found.custom_metadata == {"note": "kept"}
    assert "note" in repr(found)


def test_all_checkpointables(place):
    """All are described by name; None where only the value itself would tell."""
    options = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
    with place.context(checkpointables=options):
        parts = {"model": {"w": 1}, "config": {"a": 1}}
        stowax.save_checkpointables(place / "checkpoint", parts)

    found = stowax.checkpointables_metadata(place / "checkpoint")

    assert found.metadata == {"model": {"w": 0}, "config": None}


def test_item(place):
    """With the name None the path is the directory of a tree."""
    stowax.save(place / "checkpoint", {"a": 1})

    found = stowax.metadata(place / "checkpoint/state", None)

    assert found.metadata == {"a": 0}


def test_no_data_is_read(tmp_path):
    """Looking needs no data files."""
    stowax.save(tmp_path / "checkpoint", {"a": np.ones(3)})
    (tmp_path / "checkpoint/state/d/data-0").unlink()

    assert stowax.metadata(tmp_path / "checkpoint").metadata["a"].shape == (3,)


@pytest.mark.parametrize(
    "look", [stowax.metadata, stowax.checkpointables_metadata], ids=["one", "all"]
)
def test_errors(tmp_path, look):
    """The errors are those of a load."""
    stowax.save(tmp_path / "checkpoint", {"a": 1})
    manifest = tmp_path / "checkpoint/state/stowax.manifest"
    manifest.write_bytes(manifest.read_bytes().replace(b'"a"', b'"b"'))

    with pytest.raises(CheckpointNotFoundError):
        look(tmp_path / "nothing")
    with pytest.raises(InvalidLayoutError):
        look(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=str(manifest)):
        look(tmp_path / "checkpoint")


def test_is_orbax_checkpoint(place):
    """It answers for anything that may be at a path, and never raises."""
    stowax.save(place / "checkpoint", {"a": 1})

    assert stowax.is_orbax_checkpoint(place / "checkpoint")
    for other in (place.directory, place / "no", place / "checkpoint/stowax.json"):
        assert not stowax.is_orbax_checkpoint(other)
