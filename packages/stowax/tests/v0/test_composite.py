"""Several items in one checkpoint, each by its own handler."""

import dataclasses
import json

import numpy as np
import pytest

import stowax
from stowax import v0
from stowax.errors import (
    CheckpointableNotFoundError,
    HandlerError,
    HandlerNotFoundError,
    InvalidArgumentError,
    InvalidNameError,
    UnsupportedLeafError,
)
from stowax.v0.args import Composite, JsonRestore, JsonSave, PyTreeRestore, PyTreeSave
from stowax.v0.handlers import handler_registration


def checkpointer_of(*names, **handlers):
    """A checkpointer of several items."""
    return v0.Checkpointer(v0.CompositeCheckpointHandler(*names, **handlers))


def both():
    """Two items."""
    return Composite(state=PyTreeSave({"x": 1}), config=JsonSave({"depth": 3}))


def asked():
    """The same two, as what they are restored."""
    return Composite(state=PyTreeRestore(), config=JsonRestore())


def test_all_or_nothing(tmp_path):
    """One item that cannot be saved keeps all from being there."""
    args = Composite(a=PyTreeSave({"x": 1}), b=PyTreeSave({"x": object()}))
    with pytest.raises(UnsupportedLeafError) as caught:
        checkpointer_of().save(tmp_path / "c", args)

    assert any("'b'" in note for note in caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_some_of_the_items(tmp_path):
    """Of the items that are there, those are restored that are asked for."""
    checkpointer = checkpointer_of()
    checkpointer.save(tmp_path / "c", both())

    restored = checkpointer.restore(tmp_path / "c", Composite(config=JsonRestore()))

    assert dict(restored) == {"config": {"depth": 3}}


def test_all_of_the_items(tmp_path):
    """Without arguments all are, by a new checkpointer, too."""
    checkpointer_of().save(tmp_path / "c", both())

    for args in ((), (Composite(),)):
        restored = checkpointer_of().restore(tmp_path / "c", *args)
        assert (restored.state, restored.config) == ({"x": 1}, {"depth": 3})


def test_an_item_that_is_not_there(tmp_path):
    """The error is the one that callers expect, and says what is there."""
    checkpointer = checkpointer_of()
    checkpointer.save(tmp_path / "c", both())

    with pytest.raises(CheckpointableNotFoundError, match=r"config.*state") as caught:
        checkpointer.restore(tmp_path / "c", Composite(extra=JsonRestore()))

    assert isinstance(caught.value, KeyError)


def test_an_item_whose_handler_nobody_knows(tmp_path):
    """It can be restored by its arguments alone, and the others with it."""
    checkpointer_of().save(tmp_path / "c", both())
    document = tmp_path / "c" / "_CHECKPOINT_METADATA"
    found = json.loads(document.read_text())
    found["item_handlers"]["config"] = "my.own.Handler"
    document.write_text(json.dumps(found))

    unverified = stowax.options.IntegrityOptions(verify=False)
    with stowax.Context(integrity=unverified):
        with pytest.raises(HandlerNotFoundError, match=r"my\.own"):
            checkpointer_of().restore(tmp_path / "c")
        args = Composite(config=JsonRestore())
        assert checkpointer_of().restore(tmp_path / "c", args).config == {"depth": 3}
        found = checkpointer_of().metadata(tmp_path / "c")

    assert found.item_handlers["config"] == "my.own.Handler"
    assert found.item_metadata["config"] is None


def test_a_handler_stays(tmp_path):
    """An item that was saved by one handler is not saved by another one later."""
    checkpointer = checkpointer_of()
    checkpointer.save(tmp_path / "a", Composite(state=PyTreeSave({"x": 1})))

    with pytest.raises(HandlerError, match="JsonSave") as caught:
        checkpointer.save(tmp_path / "b", Composite(state=JsonSave({"x": 1})))

    assert isinstance(caught.value, ValueError)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_named_items(tmp_path):
    """Only those may be there that the handler was made for."""
    checkpointer = checkpointer_of("state", config=v0.JsonCheckpointHandler("c"))

    checkpointer.save(tmp_path / "c", both())
    with pytest.raises(HandlerError, match="extra"):
        checkpointer.save(tmp_path / "d", Composite(extra=JsonSave({})))

    assert (tmp_path / "c" / "config" / "c").exists()
    assert checkpointer.restore(tmp_path / "c").state == {"x": 1}


def test_registry(tmp_path):
    """A registry says who serves an item, or all with certain arguments."""
    registry = v0.DefaultCheckpointHandlerRegistry()
    registry.add("config", JsonSave, v0.JsonCheckpointHandler("mine"))
    registry.add(None, PyTreeSave, v0.PyTreeCheckpointHandler(use_ocdbt=False))
    checkpointer = checkpointer_of(handler_registry=registry)

    args = Composite(state=PyTreeSave({"x": np.ones(2)}), config=JsonSave({"depth": 3}))
    checkpointer.save(tmp_path / "c", args)

    assert (tmp_path / "c" / "config" / "mine").exists()
    assert (tmp_path / "c" / "state" / "x" / ".zarray").exists()
    assert not registry.has("state", PyTreeSave)  # It is ours, and stays as it was.


def test_registry_and_names():
    """Who serves an item is said in one place."""
    registry = v0.DefaultCheckpointHandlerRegistry()
    for names, handlers in ((("state",), {}), ((), {"state": None})):
        with pytest.raises(InvalidArgumentError, match="registry"):
            v0.CompositeCheckpointHandler(*names, handler_registry=registry, **handlers)


def test_entries_of_a_registry():
    """An entry is there once, and one that is not there is an error."""
    registry = v0.DefaultCheckpointHandlerRegistry()
    registry.add("state", PyTreeSave)
    with pytest.raises(handler_registration.AlreadyExistsError):
        registry.add("state", PyTreeSave({}))
    with pytest.raises(handler_registration.NoEntryError):
        registry.get("state", PyTreeRestore)

    @dataclasses.dataclass
    class Args(v0.args.CheckpointArgs):
        pass

    with pytest.raises(ValueError, match="register_with_handler"):
        registry.add("state", Args)

    class Handler(v0.JsonCheckpointHandler):
        def __init__(self, needed):
            super().__init__(needed)

    with pytest.raises(ValueError, match="instance"):
        registry.add("other", Args, Handler)
    assert isinstance(registry.get("state", PyTreeSave({})), v0.PyTreeCheckpointHandler)


def test_none_for_an_item(tmp_path):
    """None stands for the arguments of a restore where the handler is known."""
    checkpointer = checkpointer_of()
    checkpointer.save(tmp_path / "c", both())
    with pytest.raises(ValueError, match="'state' is given None; give what is to be"):
        checkpointer.save(tmp_path / "d", Composite(state=None))

    restored = checkpointer.restore(tmp_path / "c", Composite(state=None, config=None))
    assert dict(restored.items()) == {"state": {"x": 1}, "config": {"depth": 3}}
    with pytest.raises(HandlerNotFoundError, match="'config'"):
        checkpointer_of().restore(tmp_path / "c", Composite(config=None))


def test_what_one_handler_saved(tmp_path):
    """It has no items, and is not taken for a composite without any."""
    v0.PyTreeCheckpointer().save(tmp_path / "one", {"a": 1})
    checkpointer_of().save(tmp_path / "several", both())

    for path in (tmp_path / "one", tmp_path / "several" / "state"):
        for call in (checkpointer_of().restore, checkpointer_of().metadata):
            with pytest.raises(ValueError, match="saved by one handler"):
                call(path)


def test_arguments_of_the_other_verb(tmp_path):
    """Arguments of a save restore nothing, and the other way round."""
    for checkpointer, save, restore in (
        (checkpointer_of(), both(), asked()),
        (v0.PyTreeCheckpointer(), PyTreeSave({"x": 1}), PyTreeRestore()),
    ):
        path = tmp_path / type(save).__name__
        with pytest.raises(InvalidArgumentError, match="given to a restore"):
            checkpointer.save(path, restore)
        checkpointer.save(path, save)
        with pytest.raises(InvalidArgumentError, match="given to a save"):
            checkpointer.restore(path, save)


def test_arguments_of_one_item(tmp_path):
    """Arguments of an item without its name are refused, with what to do."""
    checkpointer = checkpointer_of()
    with pytest.raises(InvalidArgumentError, match="name the item"):
        checkpointer.save(tmp_path / "c", PyTreeSave({"x": 1}))
    checkpointer.save(tmp_path / "c", both())
    with pytest.raises(InvalidArgumentError, match="name the item"):
        checkpointer.restore(tmp_path / "c", PyTreeRestore())


def test_items_of_the_newer_api(tmp_path):
    """What `stowax.save_checkpointables` saved is found without arguments."""
    options = stowax.options.CheckpointablesOptions.create_with_handlers(
        config=stowax.handlers.JsonHandler
    )
    with stowax.Context(checkpointables=options):
        parts = {"state": {"x": 1}, "config": {"depth": 3}}
        stowax.save_checkpointables(tmp_path / "c", parts)

    restored = checkpointer_of().restore(tmp_path / "c")

    assert dict(restored) == parts


def test_nothing_to_save(tmp_path):
    """A checkpoint without an item is refused."""
    with pytest.raises(ValueError, match="no item"):
        checkpointer_of().save(tmp_path / "c", Composite())


@pytest.mark.parametrize("name", ["a/b", "..", "AUTO", "stowax.json", ""])
def test_bad_names(tmp_path, name):
    """An item has a name that a directory can have, and no other meaning."""
    with pytest.raises(InvalidNameError):
        checkpointer_of().save(tmp_path / "c", Composite(**{name: JsonSave({})}))

    assert list(tmp_path.iterdir()) == []


def test_metrics_are_an_item(tmp_path):
    """An item may be called so, whatever the newer API keeps under that name."""
    args = Composite(metrics=JsonSave({"loss": 1.5}), state=PyTreeSave({"x": 1}))
    checkpointer_of().save(tmp_path / "c", args)

    assert checkpointer_of().restore(tmp_path / "c").metrics == {"loss": 1.5}
    assert stowax.load(tmp_path / "c") == {"x": 1}


def test_alone(tmp_path):
    """The handler alone writes directories as they are, and reads them."""
    handler = v0.CompositeCheckpointHandler()

    handler.save(tmp_path / "c", both())
    handler.finalize(tmp_path / "c")

    assert handler.restore(tmp_path / "c", asked()).config == {"depth": 3}
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "config",
        "state",
    ]


def test_within(tmp_path):
    """One may be an item of another."""
    inner = v0.CompositeCheckpointHandler()
    checkpointer = checkpointer_of(inner=inner)

    checkpointer.save(tmp_path / "c", Composite(inner=both()))
    restored = checkpointer.restore(tmp_path / "c", Composite(inner=asked()))

    assert restored.inner.config == {"depth": 3}
    assert stowax.verify(tmp_path / "c").unvouched == ()


def test_the_arguments_are_a_mapping():
    """They are read by key and as attributes, joined and cut, and never changed."""
    args = both()

    assert list(args) == ["state", "config"]
    assert len(args) == 2
    assert "state" in args
    assert args.get("extra") is None
    assert (args | {"extra": 1})["extra"] == 1
    assert list(args & {"config": 0}) == ["config"]
    assert "config" in repr(args)
    with pytest.raises(KeyError):
        _ = args.extra
    with pytest.raises(ValueError, match="changed"):
        args.extra = 1
    with pytest.raises(ValueError, match="__x"):
        Composite(__x=1)
    assert dict(Composite(keys=1, items=2)) == {"keys": 1, "items": 2}
