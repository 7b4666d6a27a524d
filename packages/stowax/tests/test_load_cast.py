"""What happens when a dtype that is asked for cannot hold what is stored."""

import asyncio
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stowax
from stowax.errors import TreeMismatchError
from stowax.options import ArrayOptions

SAFE = ArrayOptions(loading=ArrayOptions.Loading(casting="safe"))

STATE = {
    "count": 300,
    "rate": 2.5,
    "w": jnp.ones(3),
    "n": np.arange(3),
}
LOSING = {
    "count": bool,
    "rate": int,
    "w": jax.ShapeDtypeStruct((3,), jnp.int16),
    "n": np.zeros(3, np.int8),
}
KEEPING = {
    "count": float,
    "rate": complex,
    "w": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    "n": np.zeros(3, np.float16),
}


def test_safe(place):
    """With safe casting every leaf that would lose range or kind is a mismatch."""
    stowax.save(place / "checkpoint", STATE)

    with place.context(array=SAFE), pytest.raises(TreeMismatchError) as caught:
        stowax.load(place / "checkpoint", LOSING)

    assert [problem.split("; ") for problem in caught.value.problems] == [
        [
            "count: asked bool, stored int",
            "int64 to bool keeps only whether a value is zero",
        ],
        [
            "n: asked int8[3], stored int64[3]",
            "int64 to int8 cannot hold values beyond -128 to 127",
        ],
        ["rate: asked int, stored float", "float64 to int64 drops fractions"],
        ["w: asked int16[3], stored float32[3]", "float32 to int16 drops fractions"],
    ]
    assert "casting='unsafe'" in str(caught.value)


def test_safe_lets_precision_go(place):
    """What loses no more than precision is converted, without a word."""
    stowax.save(place / "checkpoint", {**STATE, "n": np.arange(3, dtype=np.int8)})

    with place.context(array=SAFE):
        loaded = stowax.load(place / "checkpoint", KEEPING)

    assert (loaded["count"], loaded["rate"]) == (300.0, 2.5 + 0j)
    assert loaded["w"].dtype == jnp.bfloat16
    assert loaded["n"].tolist() == [0, 1, 2]


class TestWithout64Bits:
    """Stored arrays of 64 bits where JAX has 32: the way out is named."""

    @pytest.fixture
    def path(self, place):
        with jax.enable_x64(True):
            stowax.save(place / "checkpoint", {"d": jnp.zeros(3, "float64")})
        return place / "checkpoint"

    @pytest.mark.parametrize(
        "load", [stowax.load, lambda path: stowax.load_leaf(path, "d")]
    )
    def test_safe(self, place, path, load):
        """No abstract state is blamed where there is none."""
        with place.context(array=SAFE), pytest.raises(TreeMismatchError) as caught:
            load(path)

        (problem,) = caught.value.problems
        assert problem.startswith("d: stored float64[3]; float64 to float32 cannot")
        for word in ("jax_enable_x64", "numpy.ndarray", "as_numpy", "'unsafe'"):
            assert word in str(caught.value)
        assert "abstract" not in str(caught.value)

    def test_unsafe(self, path):
        """The warning names it, too."""
        with pytest.warns(UserWarning, match="jax_enable_x64 is off, `np.ndarray`"):
            stowax.load(path)

    def test_asked_for(self, place, path):
        """Who asks for 32 bits is told of the cast alone."""
        asked = {"d": jax.ShapeDtypeStruct((3,), np.float32)}
        with place.context(array=SAFE), pytest.raises(TreeMismatchError) as caught:
            stowax.load(path, asked)

        assert "x64" not in str(caught.value)
        assert "ask for the stored dtype" in str(caught.value)


def test_adapters_cast_safely(place):
    """An item of an adapter is never converted at a loss, whatever the options are."""
    stowax.save_checkpointables(place / "checkpoint", {"words": _Item()})

    with pytest.raises(TreeMismatchError, match="drops fractions"):
        stowax.load_checkpointables(place / "checkpoint", {"words": _Item()})


def test_adapters_read_what_was_saved(place):
    """Options that change a tree leave the items of adapters alone."""
    item = _Item(asked=jax.ShapeDtypeStruct((3,), np.float32))
    stowax.save_checkpointables(place / "checkpoint", {"words": item})
    context = place.context(
        array=ArrayOptions(loading=ArrayOptions.Loading(as_numpy=True))
    )
    context.pytree.loading.rename = {"w": "other"}

    with context:
        stowax.load_checkpointables(place / "checkpoint", {"words": item})

    assert isinstance(item.loaded["w",], jax.Array)


class _Item:
    """What an adapter makes."""

    def __init__(self, asked=None):
        self.asked = np.zeros(3, np.int32) if asked is None else asked

    async def save(self, directory):
        tree, document = {"w": jnp.full(3, 0.5)}, {"kind": "words"}
        return await stowax.adapters.save_item(directory, tree, "words.json", document)

    async def load(self, directory):
        stored = await stowax.adapters.open_item(directory, "words.json", "words")
        rest = await stowax.adapters.load_item(stored, {("w",): self.asked})

        async def finish():
            self.loaded = await rest

        return finish()


ASKED = {"w": jax.ShapeDtypeStruct((3,), jnp.int16)}


class TestTheLine:
    """The warning points at the line of the program that asked."""

    @pytest.fixture
    def path(self, place):
        stowax.save(place / "checkpoint", {"w": jnp.ones(3)})
        return place / "checkpoint"

    def line_of(self, call):
        """The line on which a call, made on one line, warns."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        (warning,) = caught
        assert "w: float32 to int16 drops fractions" in str(warning.message)
        assert warning.filename == __file__
        return warning.lineno - call.__code__.co_firstlineno

    def test_load(self, path):
        """Of a load."""
        assert self.line_of(lambda: stowax.load(path, ASKED)) == 0

    def test_checkpointables(self, path):
        """Of a load of several."""
        asked = {"state": ASKED}
        assert self.line_of(lambda: stowax.load_checkpointables(path, asked)) == 0

    def test_leaf(self, path):
        """Of a load of one leaf."""
        leaf = ASKED["w"]
        assert (
            self.line_of(lambda: stowax.load_leaf(path, "w", abstract_leaf=leaf)) == 0
        )

    def test_background(self, path):
        """Of a load in the background, where it was started."""

        def call():
            response = stowax.load_async(path, ASKED)
            response.result()

        assert self.line_of(call) == 1

    def test_directory(self, path):
        """Of a load of a tree's own directory, in the background too."""

        def call():
            directory = f"{path}/state"
            stowax.load_async(directory, ASKED, checkpointable_name=None).result()

        assert self.line_of(call) == 2

    def test_steps(self, place):
        """Of a step, loaded here or in the background."""
        with stowax.training.Checkpointer(place / "run") as steps:
            steps.save(0, {"w": jnp.ones(3)})

            assert self.line_of(lambda: steps.load(0, ASKED)) == 0
            assert self.line_of(lambda: steps.load_async(0, ASKED).result()) == 0

    def test_handler(self, path):
        """Of a handler that is used alone."""

        async def read():
            handler = stowax.handlers.PyTreeHandler()
            return await (await handler.load(f"{path}/state", ASKED))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(read())
        assert caught[0].lineno == read.__code__.co_firstlineno + 2

    def test_once_per_line(self, path):
        """By default a line warns once, however often it is passed."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                stowax.load(path, ASKED)

        assert len(caught) == 1
