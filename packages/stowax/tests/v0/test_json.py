"""JSON values of the older API: where they lie, and what is none."""

import json

import pytest

from stowax import v0
from stowax.errors import CheckpointNotFoundError, InvalidJsonError


@pytest.mark.parametrize("name", ["metadata", "data.json", "alone.json"])
def test_another_file_than_was_named(tmp_path, name):
    """A name that the user gave means that file, and no other in its place."""
    (tmp_path / name).write_text(json.dumps({"whose": name}))

    with pytest.raises(CheckpointNotFoundError, match=rf"cfg\.json.*{name}") as caught:
        v0.JsonCheckpointHandler("cfg.json").restore(tmp_path)

    assert isinstance(caught.value, FileNotFoundError)
    assert v0.JsonCheckpointHandler(name).restore(tmp_path) == {"whose": name}
    assert v0.JsonCheckpointHandler().restore(tmp_path) == {"whose": name}


def test_each_handler_has_its_file(tmp_path):
    """Two handlers with names of their own share a directory."""
    first, second = map(v0.JsonCheckpointHandler, ("a.json", "b.json"))

    first.save(tmp_path, {"depth": 1})
    second.save(tmp_path, {"depth": 2})

    assert (first.restore(tmp_path), second.restore(tmp_path)) == (
        {"depth": 1},
        {"depth": 2},
    )


def test_no_json(tmp_path):
    """What JSON cannot say is a `TypeError`, too, and nothing is left of it."""
    with (
        v0.Checkpointer(v0.JsonCheckpointHandler()) as checkpointer,
        pytest.raises(InvalidJsonError, match="no JSON value") as caught,
    ):
        checkpointer.save(tmp_path / "c", {"a": object()})

    assert isinstance(caught.value, TypeError)
    assert list(tmp_path.iterdir()) == []
