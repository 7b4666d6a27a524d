"""Errors propose what the older API has, by its own names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stowax import v0
from stowax.errors import (
    CheckpointExistsError,
    InvalidArgumentError,
    TreeMismatchError,
    UnsupportedLeafError,
)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of two arrays."""
    path = tmp_path / "saved"
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": np.ones(3, np.float32), "b": np.ones(2)})
    return path


def said(error_type, call, *args, **kwargs):
    """The message of a call that fails, with its notes."""
    with pytest.raises(error_type) as caught:
        call(*args, **kwargs)
    error = caught.value
    return "\n".join([str(error), *getattr(error, "__notes__", ())]), error


def is_ours(message):
    """Whether a message says nothing of the newer API."""
    newer = ("Loading(", "preview_load", "stowax.metadata", "stowax.PLACEHOLDER")
    return not any(each in message for each in (*newer, "checkpointable"))


def test_not_asked_for(saved):
    """Leaves that are not asked for are left out by an argument of the restore."""
    args = v0.args.PyTreeRestore({"w": np.ones(3)})
    message, error = said(
        TreeMismatchError, v0.PyTreeCheckpointer().restore, saved, args
    )

    assert "PyTreeRestore(partial_restore=True)" in message
    assert ": metadata(path)" in message
    assert is_ours(message)
    assert "not asked for" in "".join(error.problems)

    args.partial_restore = True
    assert v0.PyTreeCheckpointer().restore(saved, args)["w"].tolist() == [1, 1, 1]


def test_another_shape(saved):
    """An array of another shape is cut or padded by the arguments of its leaf."""
    strict = v0.ArrayRestoreArgs(global_shape=(5,))
    message, _ = said(
        TreeMismatchError,
        v0.PyTreeCheckpointer().restore,
        saved,
        restore_args={"w": strict, "b": v0.RestoreArgs()},
    )

    assert "ArrayRestoreArgs(strict=False)" in message
    assert is_ours(message)


TARGET = {"w": jax.ShapeDtypeStruct((4,), jnp.float32), "c": 1}


def test_another_target(saved):
    """The standard handler proposes the same."""
    message, _ = said(
        TreeMismatchError, v0.StandardCheckpointer().restore, saved, TARGET
    )

    assert "PyTreeRestore(partial_restore=True)" in message
    assert is_ours(message)


def test_an_item_of_several(tmp_path):
    """So does a handler of several items, for one of them."""
    with v0.Checkpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        item = v0.args.StandardSave({"w": np.ones(3)})
        checkpointer.save(tmp_path / "c", v0.args.Composite(state=item))
        args = v0.args.Composite(state=v0.args.StandardRestore(TARGET))
        message, _ = said(TreeMismatchError, checkpointer.restore, tmp_path / "c", args)

    assert "PLACEHOLDER in its place" in message
    assert "the item 'state'" in message
    assert is_ours(message)


def test_another_name(tmp_path):
    """A leaf whose name has changed is found by a transformation."""
    with v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"kernel_0": np.ones(3)})
        args = v0.args.PyTreeRestore({"kernel_1": np.ones(3)})
        message, _ = said(TreeMismatchError, checkpointer.restore, tmp_path / "c", args)

    assert "'kernel_1': 'kernel_0'" in message
    assert "Transform(original_key=...)" in message
    assert is_ours(message)


def test_a_handler_alone(saved):
    """A handler that is called by itself is a door of this API as well."""
    message, _ = said(
        TreeMismatchError, v0.PyTreeCheckpointHandler().restore, saved, {"w": 1}
    )

    assert "PyTreeRestore(partial_restore=True)" in message
    assert is_ours(message)


def test_a_checkpoint_is_there(saved):
    """The error of a save in the background is no exception."""
    with v0.AsyncCheckpointer(v0.PyTreeCheckpointHandler()) as checkpointer:
        message, _ = said(CheckpointExistsError, checkpointer.save, saved, {"x": 1})

    assert "`force=True`" in message


def test_a_leaf_of_another_type(tmp_path):
    """Types of leaves are taught by an option of the other API, which counts here."""
    message, error = said(
        UnsupportedLeafError,
        v0.PyTreeCheckpointer().save,
        tmp_path / "c",
        {"x": object()},
    )

    assert "`stowax.options.PyTreeOptions.leaf_handlers`" in message
    assert len(error.problems) == 1
    assert "the item" in message
    assert is_ours(message)


class Failing(v0.CheckpointHandler):
    """A handler that fails in all it does."""

    def save(self, directory, args):
        """Fails."""
        raise RuntimeError("no disk")

    async def async_save(self, directory, args):
        """Fails later."""
        return [self]

    def result(self, timeout=None):
        """Fails now."""
        raise RuntimeError("no disk")

    def restore(self, directory, args=None):
        """Fails."""


@v0.args.register_with_handler(Failing, for_save=True, for_restore=True)
class FailingArgs(v0.args.CheckpointArgs):
    """Its arguments."""


@pytest.mark.parametrize("kind", [v0.Checkpointer, v0.AsyncCheckpointer])
def test_a_single_item_has_no_name(tmp_path, kind):
    """What lies at the path itself is called the item."""

    def save():
        with kind(Failing()) as checkpointer:
            checkpointer.save(tmp_path / "c", FailingArgs())

    message, _ = said(RuntimeError, save)

    assert "the item" in message
    assert "''" not in message
    assert is_ours(message)


def test_an_item_that_fails_in_the_background(tmp_path):
    """One of several is called an item too, by its name."""
    with v0.AsyncCheckpointer(v0.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", v0.args.Composite(state=FailingArgs()))
        message, _ = said(RuntimeError, checkpointer.wait_until_finished)

    assert "the item 'state'" in message
    assert is_ours(message)


@pytest.mark.parametrize(
    ("handler", "args", "expected"),
    [
        (v0.PyTreeCheckpointHandler, v0.args.StandardRestore({}), "PyTreeRestore"),
        (v0.PyTreeCheckpointHandler, v0.args.JsonRestore(), "PyTreeRestore"),
        (v0.PyTreeCheckpointHandler, v0.args.Composite(), "PyTreeRestore"),
        (v0.StandardCheckpointHandler, v0.args.PyTreeRestore(), "StandardRestore"),
    ],
)
def test_arguments_of_another_handler(saved, handler, args, expected):
    """Arguments that say nothing of what is asked are refused, with the right ones."""
    for call in (v0.Checkpointer(handler()).restore, handler().restore):
        message, error = said(InvalidArgumentError, call, saved, args=args)

        assert isinstance(error, ValueError)
        assert isinstance(error, TypeError)
        assert f"{handler.__name__} is given {type(args).__name__}" in message
        assert f"`ocp.args.{expected}`" in message


def test_arguments_of_another_handler_for_a_save(tmp_path):
    """So they are in a save, which writes nothing."""
    args = v0.args.JsonSave({"x": 1})
    message, _ = said(
        InvalidArgumentError, v0.PyTreeCheckpointer().save, tmp_path / "c", args
    )

    assert "`ocp.args.PyTreeSave`" in message
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_will_do(saved, tmp_path):
    """Those of another handler are taken where they say all that is asked."""
    with v0.Checkpointer(v0.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", v0.args.PyTreeSave({"x": 1}))
        assert checkpointer.restore(tmp_path / "c") == {"x": 1}

    class Quiet(v0.args.PyTreeRestore):
        """One that is derived."""

    assert {*v0.PyTreeCheckpointer().restore(saved, Quiet())} == {"w", "b"}
