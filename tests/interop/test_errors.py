"""Who catches what Orbax raises catches what we raise: situation by situation.

Every situation is run on both libraries.  Our error is one of `stowax.errors`, and it
is also the built-in exception that Orbax raises, and its public class where it raises
one: `except` clauses written for Orbax work.  Where what Orbax raises makes no sense,
the situation says why we do not follow.

`docs/from-orbax.md` shows the same table; each row is compared with what happens.
"""

import asyncio
import gc
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from page_tables import FROM_ORBAX, table
from sample_trees import mesh

import stowax
from stowax.errors import StowaxError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Something that goes wrong."""

    text: str
    """As on the page, where it is a row of the table."""

    bring_about: Callable[[Any, Path], object]
    """Takes a library and an empty directory."""

    why_not: str | None = None
    """Why what Orbax raises makes no sense; None if it does."""

    known: type[Exception] | None = None
    """What Orbax raises, where it is better not run: after some failures its threads
    wait five minutes for a directory that nobody makes, and the process with them."""


SITUATIONS: dict[str, Situation] = {}

Bringer = Callable[[Any, Path], object]


def situation(
    text: str,
    why_not: str | None = None,
    known: type[Exception] | None = None,
) -> Callable[[Bringer], Bringer]:
    """Adds a situation to the table."""

    def add(bring_about: Bringer) -> Bringer:
        assert text not in SITUATIONS
        SITUATIONS[text] = Situation(
            text=text, bring_about=bring_about, why_not=why_not, known=known
        )
        return bring_about

    return add


STATE = {"a": np.ones((2, 3), np.float32), "b": {"c": 1, "d": "text"}}

STORED = {
    "a": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "b": {"c": int, "d": str},
}
"""The abstract state that fits `STATE` saved with a `jax.Array`."""


def saved(ocp: Any, directory: Path) -> Path:
    """Saves a checkpoint with a state."""
    path = directory / "checkpoint"
    ocp.save(path, {**STATE, "a": jnp.asarray(STATE["a"])})
    return path


def begin_deletion(path: Path, name: str) -> None:
    """What Orbax writes before it deletes one checkpointable."""
    before = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    handlers = {k: v for k, v in before["item_handlers"].items() if k != name}
    record = {
        "checkpointable_name": name,
        "destination": None,
        "operation_id": "0" * 32,
        "original_metadata": before,
        "updated_metadata": before | {"item_handlers": handlers},
    }
    (path / "_CHECKPOINT_DELETION").write_text(json.dumps(record))


# --- saving ---------------------------------------------------------------------------


@situation("`save`: the path exists")
def _(ocp, directory):
    saved(ocp, directory)
    saved(ocp, directory)


@situation("`save_async`: the path exists")
def _(ocp, directory):
    saved(ocp, directory)
    ocp.save_async(directory / "checkpoint", STATE).result()


@situation("`save`: the path is a file")
def _(ocp, directory):
    (directory / "checkpoint").write_text("kept")
    ocp.save(directory / "checkpoint", STATE)


@situation("`save(overwrite=True)`: a directory of something else")
def _(ocp, directory):
    (directory / "thesis").mkdir()
    (directory / "thesis" / "chapter1.tex").write_text("kept")
    ocp.save(directory / "thesis", STATE, overwrite=True)


@situation("`save`: the state is None")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", None)


@situation("`save`: a leaf of a type that nobody knows")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"a": object()})


@situation("`save`: a function as a leaf")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"activation": jax.nn.relu})


@situation("`save`: an array of Python objects")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"a": np.array([None, 1], object)})


@situation("`save`: an abstract leaf")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", STORED)


@situation("`save`: `PLACEHOLDER` as a leaf")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"a": ocp.PLACEHOLDER})


@situation("`save`: an array that was deleted or donated", known=RuntimeError)
def _(ocp, directory):
    array = jnp.ones(3)
    array.delete()
    ocp.save(directory / "checkpoint", {"a": array})


@situation("`save`: a masked array")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"a": np.ma.masked_array([1, 2], [0, 1])})


@situation("`save`: two leaves with one name")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", {"a.b": 1, "a": {"b": 2}})


@situation(
    "`save`: a tree that contains itself", "it is an error inside the interpreter"
)
def _(ocp, directory):
    tree: dict[str, Any] = {}
    tree["a"] = tree
    ocp.save(directory / "checkpoint", tree)


@situation("`save`: custom metadata that are no dict")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", STATE, custom_metadata=[1])


@situation("`save`: custom metadata that JSON cannot say")
def _(ocp, directory):
    ocp.save(directory / "checkpoint", STATE, custom_metadata={"a": object()})


@situation("`save`: a path that marks unfinished saves")
def _(ocp, directory):
    ocp.save(directory / "a.orbax-checkpoint-tmp", STATE)


@situation("`save`: the empty path")
def _(ocp, directory):
    ocp.save("", STATE)


@situation("`save`: no path but a number", "it is a slip inside Orbax")
def _(ocp, directory):
    ocp.save(3, STATE)


@situation("`save_checkpointables`: no handler can save an object")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"a": object()})


@situation("`save_checkpointables`: None")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"a": None})


@situation("`save_checkpointables`: an empty name")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"": STATE})


@situation("`save_checkpointables`: a name that is no string")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {3: STATE})


@situation("`save_checkpointables`: a reserved name")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"metrics": STATE})


@situation("`save_checkpointables`: the name `..`", "it has begun to write by then")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"..": Slow(0)})


@situation("`save_checkpointables`: a name with `/`", "it has begun to write by then")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"a/b": Slow(0)})


@situation(
    "`save_checkpointables`: the name of a document", "it has begun to write by then"
)
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"_CHECKPOINT_METADATA": STATE})


class Slow:
    """Takes its time to save itself."""

    def __init__(self, delay_secs: float) -> None:
        self.delay_secs = delay_secs

    async def save(self, directory):
        return asyncio.sleep(self.delay_secs)

    async def load(self, directory): ...


@situation("`result(timeout=)`: not done in time")
def _(ocp, directory):
    response = ocp.save_checkpointables_async(directory / "checkpoint", {"s": Slow(1)})
    try:
        response.result(timeout=0.01)
    finally:
        response.result()


@situation("`AsyncOptions.timeout_secs` is over")
def _(ocp, directory):
    context = ocp.Context()
    context.asynchronous.timeout_secs = 1
    with context:
        ocp.save_checkpointables(directory / "checkpoint", {"s": Slow(1.5)})


# --- loading and looking --------------------------------------------------------------

LOOKS = ["load", "load_checkpointables", "metadata"]


def looking(text: str, why_not: str | None = None, looks: list[str] = LOOKS):
    """Adds a situation for each way to look at a path, which the function returns."""

    def add(prepare: Callable[[Any, Path], Path]) -> None:
        for look in looks:
            situation(f"`{look}`: {text}", why_not)(
                lambda ocp, directory, look=look: getattr(ocp, look)(
                    prepare(ocp, directory)
                )
            )

    return add


@looking("nothing is at the path")
def _(ocp, directory):
    return directory / "nothing"


@looking("a file is at the path")
def _(ocp, directory):
    (directory / "file").write_text("text")
    return directory / "file"


@looking("a directory of something else")
def _(ocp, directory):
    (directory / "thesis").mkdir()
    (directory / "thesis" / "chapter1.tex").write_text("kept")
    return directory / "thesis"


@looking("the directory of the steps", looks=["load"])
def _(ocp, directory):
    with ocp.training.Checkpointer(directory / "run") as checkpointer:
        checkpointer.save(1, STATE, force=True)
    return directory / "run"


@looking("an unfinished save", looks=["load"])
def _(ocp, directory):
    return GOLDEN / "v1_interrupted_rename" / "checkpoint.orbax-checkpoint-tmp"


@looking("only an unfinished save is beside it", looks=["load"])
def _(ocp, directory):
    return GOLDEN / "v1_interrupted_rename" / "checkpoint"


@situation("`load(checkpointable_name=)`: there is none of that name")
def _(ocp, directory):
    ocp.load(saved(ocp, directory), checkpointable_name="other")


@situation("`metadata(checkpointable_name=)`: there is none of that name")
def _(ocp, directory):
    ocp.metadata(saved(ocp, directory), checkpointable_name="other")


@situation("`load(checkpointable_name=None)`: the path is no tree")
def _(ocp, directory):
    ocp.load(saved(ocp, directory), checkpointable_name=None)


@situation('`load`: several trees, none of them named or called "state"')
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"m": STATE, "n": STATE})
    ocp.load(directory / "checkpoint")


@situation("`load_checkpointables`: there is none of that name")
def _(ocp, directory):
    ocp.load_checkpointables(saved(ocp, directory), {"other": None})


class Own:
    """An object that writes a file of its own."""

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            (path / "file").write_text("text")

        return write()

    async def load(self, directory): ...


@situation("`load_checkpointables`: an object that saved itself, without the object")
def _(ocp, directory):
    ocp.save_checkpointables(directory / "checkpoint", {"own": Own()})
    ocp.load_checkpointables(directory / "checkpoint", {"own": None})


# --- abstract states ------------------------------------------------------------------


def mismatch(text: str, target: Any, why_not: str | None = None) -> None:
    """Adds a situation: an abstract state that does not fit what is stored."""
    situation(f"abstract state: {text}", why_not)(
        lambda ocp, directory: ocp.load(
            saved(ocp, directory), target(ocp) if callable(target) else target
        )
    )


mismatch("a leaf is not stored", {**STORED, "e": int})
mismatch("a stored leaf is left out", {"a": STORED["a"]})
mismatch("another shape", {**STORED, "a": jax.ShapeDtypeStruct((3, 2), jnp.float32)})
mismatch("another rank", {**STORED, "a": jax.ShapeDtypeStruct((6,), jnp.float32)})
mismatch("a list for a dict", [STORED["a"], STORED["b"]])
mismatch("a leaf for a container", {**STORED, "b": int})
mismatch("a container for a leaf", {**STORED, "a": {"x": int}})
mismatch("a number for an array", {**STORED, "a": int})
mismatch("a string for an array", {**STORED, "a": str})
mismatch("an array for a string", {**STORED, "b": {"c": int, "d": STORED["a"]}})
mismatch("a number for a string", {**STORED, "b": {"c": int, "d": int}})
mismatch("a string for a number", {**STORED, "b": {"c": str, "d": str}})
mismatch("`jax.Array` for a string", {**STORED, "b": {"c": int, "d": jax.Array}})
mismatch("a leaf that asks for nothing known", {**STORED, "a": object})
mismatch(
    "a sharding that does not divide the shape",
    lambda _: {
        **STORED,
        "a": jax.ShapeDtypeStruct(
            (2, 3), jnp.float32, sharding=NamedSharding(mesh(8), P("x"))
        ),
    },
)

# --- damage ---------------------------------------------------------------------------

_NO_HANDLER = "it says that no handler fits"


def damage(case: str, text: str) -> None:
    """Adds situations: a damaged checkpoint that Orbax wrote."""
    path = GOLDEN / case / "checkpoint"
    situation(f"`load`: {text}")(lambda ocp, _: ocp.load(path))
    situation(f"`load_checkpointables`: {text}", _NO_HANDLER)(
        lambda ocp, _: ocp.load_checkpointables(path)
    )


damage("corrupt_bad_json_metadata", "`_METADATA` is no JSON")
damage("corrupt_missing_metadata", "`_METADATA` is missing")
damage("corrupt_flipped_byte_btree", "a flipped bit in the OCDBT index")
damage("corrupt_flipped_byte_manifest", "a flipped bit in `manifest.ocdbt`")
damage("corrupt_missing_manifest", "`manifest.ocdbt` is missing")
damage("corrupt_truncated_data_file", "a data file that is cut short")


@situation("`metadata`: `_METADATA` is no JSON")
def _(ocp, directory):
    ocp.metadata(GOLDEN / "corrupt_bad_json_metadata" / "checkpoint")


# --- partial saves --------------------------------------------------------------------


@situation("`partial.save`: the path exists")
def _(ocp, directory):
    ocp.partial.save(saved(ocp, directory), {"x": 1})


@situation("`partial.save`: a leaf that the session has")
def _(ocp, directory):
    ocp.partial.save(directory / "checkpoint", {"a": np.arange(3)})
    ocp.partial.save(directory / "checkpoint", {"a": np.arange(4)})


@situation("`partial.save`: a leaf below one that the session has")
def _(ocp, directory):
    ocp.partial.save(directory / "checkpoint", {"a": np.arange(3)})
    ocp.partial.save(directory / "checkpoint", {"a": {"b": np.arange(4)}})


@situation("`partial.finalize`: the path exists")
def _(ocp, directory):
    ocp.partial.save(directory / "checkpoint", {"a": np.arange(3)})
    ocp.save(directory / "checkpoint", STATE)
    ocp.partial.finalize(directory / "checkpoint")


@situation("`partial.finalize`: it is finalized already")
def _(ocp, directory):
    ocp.partial.save(directory / "checkpoint", {"a": np.arange(3)})
    ocp.partial.finalize(directory / "checkpoint")
    ocp.partial.finalize(directory / "checkpoint")


@situation("`partial.finalize`: there is no session")
def _(ocp, directory):
    ocp.partial.finalize(directory / "checkpoint")


# --- deleting -------------------------------------------------------------------------


@looking("nothing is at the path", looks=["delete"])
def _(ocp, directory):
    return directory / "nothing"


@looking("a file is at the path", looks=["delete"])
def _(ocp, directory):
    (directory / "file").write_text("text")
    return directory / "file"


@looking("a directory of something else", looks=["delete"])
def _(ocp, directory):
    (directory / "thesis").mkdir()
    (directory / "thesis" / "chapter1.tex").write_text("kept")
    return directory / "thesis"


@looking("a part of a checkpoint", looks=["delete"])
def _(ocp, directory):
    return saved(ocp, directory) / "state"


@situation("`delete`: there is no such checkpointable")
def _(ocp, directory):
    ocp.delete(saved(ocp, directory), checkpointable_name="other")


@situation("`delete`: the only checkpointable")
def _(ocp, directory):
    ocp.delete(saved(ocp, directory), checkpointable_name="state")


@situation("`delete`: what cannot be the name of a checkpointable")
def _(ocp, directory):
    ocp.delete(saved(ocp, directory), checkpointable_name="a/b")


@situation("`load`: a checkpointable that is being deleted")
def _(ocp, directory):
    v1.save_checkpointables(directory / "checkpoint", {"a": STATE, "b": STATE})
    begin_deletion(directory / "checkpoint", "a")
    ocp.load(directory / "checkpoint", checkpointable_name="a")


@situation("`delete`: another checkpointable is being deleted")
def _(ocp, directory):
    v1.save_checkpointables(directory / "checkpoint", {"a": STATE, "b": STATE})
    begin_deletion(directory / "checkpoint", "a")
    ocp.delete(directory / "checkpoint", checkpointable_name="b")


# --- options, trees and registries ----------------------------------------------------


@situation("an option is assigned while its Context is active")
def _(ocp, directory):
    with ocp.Context() as context:
        context.array.saving.use_ocdbt = False


@situation("`Context.checkpoint_layout` is assigned while it is active")
def _(ocp, directory):
    with ocp.Context() as context:
        context.checkpoint_layout = "auto"


@situation("`Context(checkpoint_layout=)`: there is no such layout")
def _(ocp, directory):
    ocp.Context(checkpoint_layout="papyrus")


@situation("`RegulatorOptions(profiler=None)`")
def _(ocp, directory):
    ocp.options.MemoryOptions.RegulatorOptions(max_memory_limit_gib=1, profiler=None)


@situation("`tree.merge`: two trees hold one leaf")
def _(ocp, directory):
    ocp.tree.merge({"a": 1}, {"a": 2})


@situation("`tree.merge`: containers of different types")
def _(ocp, directory):
    ocp.tree.merge({"a": [1]}, {"a": {"b": 2}})


@situation("`registry.get`: no handler is tied to the name")
def _(ocp, directory):
    ocp.handlers.local_registry().get("other")


# --- steps ----------------------------------------------------------------------------


def step_situation(text: str, why_not: str | None = None):
    """Adds a situation of a `training.Checkpointer`, which the function gets."""

    def add(bring_about: Callable[[Any], object]) -> None:
        def open_and_bring_about(ocp: Any, directory: Path) -> None:
            with ocp.training.Checkpointer(directory / "run") as checkpointer:
                bring_about(checkpointer)

        situation(f"`Checkpointer.{text}", why_not)(open_and_bring_about)

    return add


@step_situation("save`: the step exists")
def _(checkpointer):
    checkpointer.save(1, STATE, force=True)
    checkpointer.save(1, STATE, force=True)


@step_situation("save`: a negative step")
def _(checkpointer):
    checkpointer.save(-1, STATE, force=True)


@step_situation("save_checkpointables`: metrics that JSON cannot say")
def _(checkpointer):
    parts = {"own": Slow(0)}
    checkpointer.save_checkpointables(1, parts, metrics={"loss": object()}, force=True)


@step_situation("load`: there is no such step")
def _(checkpointer):
    checkpointer.load(7)


@step_situation("load`: there is no step at all")
def _(checkpointer):
    checkpointer.load()


@step_situation("load(checkpointable_name=)`: there is none of that name")
def _(checkpointer):
    checkpointer.save(1, STATE, force=True)
    checkpointer.load(1, checkpointable_name="other")


@step_situation("metadata`: there is no such step")
def _(checkpointer):
    checkpointer.metadata(7)


@step_situation("delete`: there is no such step")
def _(checkpointer):
    checkpointer.delete(7)


# --- the promise ----------------------------------------------------------------------

PAGE = {row[0]: row for row in table(FROM_ORBAX, "Errors")}

PUBLIC = {
    name: (theirs, getattr(ours, name))
    for theirs_module, ours in (
        (v1.errors, stowax.errors),
        (v1.training.errors, stowax.training.errors),
    )
    for name, theirs in vars(theirs_module).items()
    if isinstance(theirs, type) and hasattr(ours, name)
}
"""Exceptions that both libraries have under one name."""


@pytest.fixture
def _quiet():
    """Orbax says a lot before it raises."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()  # Coroutines of Orbax that were never awaited say so now.
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("text", SITUATIONS)
def test_except_clauses_work(tmp_path, text):
    """Ours is what Orbax raises, and one of ours; the page says it."""
    this = SITUATIONS[text]

    theirs = this.known or raised(this, v1, tmp_path / "theirs")
    ours = raised(this, stowax, tmp_path / "ours")

    assert ours is not None
    assert issubclass(ours, StowaxError)
    if theirs is not None:
        asked = _asked_for(theirs)
        assert issubclass(ours, asked) == (this.why_not is None), (theirs, asked)
    assert PAGE[text] == (text, _theirs_cell(this, theirs), *_ours_cells(ours))


def raised(this: Situation, ocp: Any, directory: Path) -> type[Exception] | None:
    """What a library raises in a situation, if anything."""
    directory.mkdir()
    try:
        this.bring_about(ocp, directory)
    except Exception as error:  # noqa: BLE001 whatever it is, it is compared
        return type(error)
    return None


def _asked_for(theirs: type[Exception]) -> type[Exception]:
    """What a clause catches: the class of Orbax if it is public, else a built-in."""
    for cls in theirs.__mro__:
        for theirs_public, ours_public in PUBLIC.values():
            if cls is theirs_public:
                return ours_public
        if cls.__module__ == "builtins":
            return cls
    raise AssertionError(theirs)


def _theirs_cell(this: Situation, theirs: type[Exception] | None) -> str:
    if theirs is None:
        return "nothing"
    reason = f": {this.why_not}" if this.why_not else ""
    return f"`{theirs.__name__}`{reason}"


def _ours_cells(ours: type[Exception]) -> tuple[str, str]:
    too_general = (Exception, BaseException, object, LookupError, OSError)
    built_in = [
        cls
        for cls in ours.__mro__
        if cls.__module__ == "builtins" and cls not in too_general
    ]
    return f"`{ours.__name__}`", ", ".join(f"`{cls.__name__}`" for cls in built_in)


def test_page_has_no_other_rows():
    """The table of the page is this table, in the same order."""
    assert list(PAGE) == list(SITUATIONS)
    assert len(PAGE) == len(table(FROM_ORBAX, "Errors"))


class Failing:
    """Raises what it was made with, in one of the phases of a save."""

    def __init__(self, error: Exception, *, later: bool) -> None:
        self.error, self.later = error, later

    async def save(self, directory):
        if not self.later:
            raise self.error

        async def write():
            raise self.error

        return write()

    async def load(self, directory): ...


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("ocp", [v1, stowax], ids=["theirs", "ours"])
def test_errors_of_users_pass(tmp_path, ocp, later):
    """What the code of a user raises comes out as it is, in both libraries."""
    error = LookupError("its own")

    with pytest.raises(LookupError) as caught:
        ocp.save_checkpointables(
            tmp_path / "checkpoint", {"own": Failing(error, later=later)}
        )

    assert caught.value is error


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("ocp", [v1, stowax], ids=["theirs", "ours"])
def test_errors_of_the_system_pass(tmp_path, ocp):
    """What the operating system says comes out as it is, in both libraries."""
    (tmp_path / "file").write_text("text")

    # Not a tree, because threads of Orbax would wait for its directory.
    with pytest.raises(NotADirectoryError):
        ocp.save_checkpointables(tmp_path / "file" / "checkpoint", {"s": Slow(0)})
