"""What the older API tells of a tree, given back to a restore."""

import numpy as np
import pytest

from stowax import v0
from stowax.v0.metadata import BytesMetadata, ScalarMetadata, StringMetadata

TREE = {"raw": b"abc", "none": b"", "large": 2**70, "low": -(2**80), "n": 3, "s": "x"}


@pytest.fixture
def path(tmp_path):
    """Leaves that Orbax cannot save, among others."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", TREE)
    return tmp_path / "c"


def test_what_is_told(path):
    """Bytes are no string, and an integer beyond 64 bits has no dtype of 64 bits."""
    told = v0.PyTreeCheckpointer().metadata(path).item_metadata

    assert type(told["raw"]) is BytesMetadata
    assert type(told["s"]) is StringMetadata
    assert type(told["large"]) is type(told["n"]) is ScalarMetadata
    assert (told["large"].dtype, told["low"].dtype) == (np.dtype(object),) * 2
    assert told["n"].dtype == np.int64


def test_arguments_of_what_is_told(path):
    """The arguments that are made of it restore what was saved."""
    checkpointer = v0.PyTreeCheckpointer()
    told = checkpointer.metadata(path).item_metadata.tree
    args = v0.checkpoint_utils.construct_restore_args(told)

    restored = checkpointer.restore(path, restore_args=args)

    assert restored == TREE
    assert {key: type(leaf) for key, leaf in restored.items()} == {
        key: type(leaf) for key, leaf in TREE.items()
    }


@pytest.mark.parametrize("is_asked", [False, True])
def test_standard_restore(path, is_asked):
    """So does the handler that makes them itself."""
    checkpointer = v0.StandardCheckpointer()
    told = checkpointer.metadata(path).item_metadata.tree

    assert checkpointer.restore(path, told if is_asked else None) == TREE
