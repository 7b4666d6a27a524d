"""An item of an adapter: a tree that anyone reads, and a document beside it."""

import asyncio
import json

import numpy as np
import pytest

import stowax
from stowax.adapters import (
    corrupt_document,
    load_item,
    open_item,
    save_item,
)
from stowax.errors import CorruptCheckpointError, InvalidLayoutError, StowaxError
from stowax.handlers import PyTreeHandler

TREE = {"layers": [np.arange(3), np.ones(2)], "nothing": None, "step": 7}


class Thing:
    """An adapter around a tree."""

    def __init__(self, tree=None, document=None, wanted=None):
        self.tree = tree
        self.document = {"kind": "thing", **(document or {})}
        self.wanted = wanted

    async def save(self, directory):
        return await save_item(directory, self.tree, "thing.json", self.document)

    async def load(self, directory):
        stored = await open_item(directory, "thing.json", "thing")
        self.document = stored.document
        self.names = set(stored.leaves)
        wanted = self.names if self.wanted is None else self.wanted
        requests = {name: stored.leaves[name] for name in wanted}
        loading = await load_item(stored, requests)

        async def finish():
            self.leaves = await loading

        return finish()


def open_with(directory, text):
    """Opens an item that is no part of a checkpoint, where digests guard the text."""

    async def write_and_open():
        await (await PyTreeHandler().save(directory, TREE))
        (directory / "thing.json").write_text(text)
        return await open_item(directory, "thing.json", "thing")

    return asyncio.run(write_and_open())


def test_item_returns(place):
    """Document and leaves come back, by name, from any store."""
    stowax.save_checkpointables(place / "c", {"x": Thing(TREE, {"about": ["ä", 1]})})

    thing = stowax.load_checkpointables(place / "c", {"x": Thing()})["x"]

    assert thing.document == {"format": 1, "kind": "thing", "about": ["ä", 1]}
    assert thing.names == thing.leaves.keys()
    assert thing.leaves["layers", "0"].tolist() == [0, 1, 2]
    assert thing.leaves["nothing",] is None
    assert thing.leaves["step",] == 7


def test_tree_is_complete_without_the_document(place):
    """Who knows nothing of the adapter loads the tree."""
    stowax.save_checkpointables(place / "c", {"x": Thing(TREE)})

    tree = stowax.load(place / "c", checkpointable_name="x")

    assert tree["step"] == 7
    assert tree["layers"][1].tolist() == [1, 1]


def test_tree_needs_no_document(place):
    """A tree that no adapter saved is opened, without a document."""
    stowax.save(place / "c", TREE, checkpointable_name="x")

    thing = stowax.load_checkpointables(place / "c", {"x": Thing()})["x"]

    assert thing.document is None
    assert thing.leaves["step",] == 7


def test_only_what_is_asked_for_is_loaded(place):
    """Every other leaf is a placeholder; None stays None."""
    stowax.save_checkpointables(place / "c", {"x": Thing(TREE)})

    wanted = Thing(wanted=[("layers", "1")])
    leaves = stowax.load_checkpointables(place / "c", {"x": wanted})["x"].leaves

    assert leaves["layers", "1"].tolist() == [1, 1]
    assert leaves["layers", "0"] is leaves["step",] is stowax.PLACEHOLDER
    assert leaves["nothing",] is None


def test_nothing_else_is_left(tmp_path):
    """The document is written as a whole under its name; no draft of it remains."""
    stowax.save_checkpointables(tmp_path / "c", {"x": Thing(TREE)})
    stowax.save(tmp_path / "plain", TREE, checkpointable_name="x")

    files = {path.name for path in (tmp_path / "c" / "x").iterdir()}
    plain = {path.name for path in (tmp_path / "plain" / "x").iterdir()}

    assert files - plain == {"thing.json"}


def test_document_is_plain_json(tmp_path):
    """Keys are sorted and the format version is among them, for diffs and readers."""
    stowax.save_checkpointables(tmp_path / "c", {"x": Thing(TREE, {"a": 1})})

    text = (tmp_path / "c" / "x" / "thing.json").read_text()

    assert text == json.dumps({"a": 1, "format": 1, "kind": "thing"})


def test_document_that_is_no_json_is_refused(place):
    """Nothing is written of an item whose document cannot be."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        stowax.save_checkpointables(place / "c", {"x": Thing(TREE, {"a": {1}})})
    with pytest.raises(stowax.errors.CheckpointNotFoundError):
        stowax.load(place / "c")


def test_changed_document_of_a_checkpoint_is_found(tmp_path):
    """The document is covered by digests like every other file."""
    stowax.save_checkpointables(tmp_path / "c", {"x": Thing(TREE, {"about": "a"})})
    path = tmp_path / "c" / "x" / "thing.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))

    with pytest.raises(CorruptCheckpointError):
        stowax.load_checkpointables(tmp_path / "c", {"x": Thing()})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"format": 2, "kind": "thing"}', InvalidLayoutError),
        ('{"format": 1, "kind": "other"}', InvalidLayoutError),
        ('{"format": 1}', InvalidLayoutError),
        ('{"kind": "thing"}', CorruptCheckpointError),
        ('{"format": "1", "kind": "thing"}', CorruptCheckpointError),
        ('{"format": true, "kind": "thing"}', CorruptCheckpointError),
        ('{"format": 1, "kind": "thing"', CorruptCheckpointError),
        ("[]", CorruptCheckpointError),
        ("", CorruptCheckpointError),
    ],
)
def test_document_is_read_strictly(tmp_path, text, error):
    """Another version, another kind or a damaged document is an error with a path."""
    with pytest.raises(error, match=r"thing\.json"):
        open_with(tmp_path, text)


def test_document_of_the_right_kind_is_read(tmp_path):
    """What the adapter does not know of is left to it."""
    stored = open_with(tmp_path, '{"format": 1, "kind": "thing", "more": []}')
    assert stored.document == {"format": 1, "kind": "thing", "more": []}


def test_directory_without_a_tree_is_refused(tmp_path):
    """A document alone is no item."""
    (tmp_path / "thing.json").write_text('{"format": 1, "kind": "thing"}')
    with pytest.raises(InvalidLayoutError):
        asyncio.run(open_item(tmp_path, "thing.json", "thing"))


def test_corrupt_document_is_named_and_has_a_way_out(tmp_path):
    """The error says which file, what is wrong, and what still works."""
    error = corrupt_document(tmp_path / "thing.json", "no leaves")

    assert isinstance(error, StowaxError)
    assert str(error).startswith(f"{tmp_path / 'thing.json'}: no leaves.")
    assert "stowax.load" in str(error)
