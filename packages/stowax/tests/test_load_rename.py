"""Loading under other names, and a part of a tree alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import Layer, Nothing, Point, differences, trees

import stowax
from stowax.errors import RenameError, TreeMismatchError
from stowax.options import FileOptions, PyTreeOptions
from stowax.testing import MemoryStore, RecordingStore

STATE = {
    "model": {
        "blocks": [{"kernel": np.full(2, i)} for i in range(3)],
        "head": Point(np.arange(2), {"bias": 1.5}),
        "empty": {},
    },
    "step": 7,
}

DOTTED = {"sd": {"layer.0.w": 1, "layer.1.w": 3}, "step": 7, "blank": {"": 4}}


@pytest.fixture
def saved(place):
    """A saved state; the path."""
    stowax.save(place / "checkpoint", STATE)
    return place / "checkpoint"


def renaming(rename, **options):
    """Options with rules."""
    loading = PyTreeOptions.Loading(rename=rename, **options)
    return {"pytree": PyTreeOptions(loading=loading)}


class TestWithAnAbstractState:
    def test_prefix(self, place, saved):
        """Leaves are looked up under the names that the rules give them."""
        asked = {
            "net": {
                "layers": {str(i): {"w": np.zeros(2, int)} for i in range(3)},
                "out": {"x": np.zeros(2, int), "y": {"b": 0.0}},
            },
            "step": int,
        }
        rules = {
            "net.layers.*.w": "model.blocks.*.kernel",
            "net.out.y.b": "model.head.y.bias",
            "net.out": "model.head",
        }

        with place.context(**renaming(rules)):
            loaded = stowax.load(saved, asked)

        assert loaded["net"]["layers"]["2"]["w"].tolist() == [2, 2]
        assert loaded["net"]["out"]["x"].tolist() == [0, 1]
        assert (loaded["net"]["out"]["y"]["b"], loaded["step"]) == (1.5, 7)

    def test_part(self, place, saved):
        """A part of the tree is loaded as if it were all, with `partial_load`."""
        asked = {"x": np.zeros(2, int), "y": {"bias": 0.0}}

        with place.context(**renaming({"": "model.head"}, partial_load=True)):
            loaded = stowax.load(saved, asked)

        assert differences({"x": np.arange(2), "y": {"bias": 1.5}}, loaded) == []
        with (
            place.context(**renaming({"": "model.head"})),
            pytest.raises(TreeMismatchError, match="partial_load=True"),
        ):
            stowax.load(saved, asked)

    def test_one_for_two(self, place):
        """A stored leaf may be loaded twice."""
        stowax.save(place / "tied", {"embed": np.ones(2)})

        with place.context(**renaming({"*": "embed"})):
            loaded = stowax.load(
                place / "tied", {"in": np.zeros(2), "out": np.zeros(2)}
            )

        assert loaded["in"].tolist() == loaded["out"].tolist() == [1, 1]
        loaded["in"][0] = 5
        assert loaded["out"].tolist() == [1, 1]

    def test_placeholder(self, place, saved):
        """A placeholder stands for what is stored under the name of its path."""
        with place.context(**renaming({"net": "model"})):
            assert stowax.load(saved, {"net": ..., "step": int}) == {
                "net": ...,
                "step": 7,
            }

    def test_missing(self, place, saved):
        """A leaf that is not there says where it was looked for, and what is near."""
        rules = {"net": "model"}
        asked = {"net": {"head": {"x": ..., "y": {"bais": 0.0}}}, "step": ...}

        with (
            place.context(**renaming(rules, partial_load=True)),
            pytest.raises(TreeMismatchError) as caught,
        ):
            stowax.load(saved, asked)

        (problem,) = caught.value.problems
        assert problem == (
            "net.head.y.bais: asked float, not stored; looked for as "
            "'model.head.y.bais', near it is 'model.head.y.bias'"
        )
        assert "rename={'net.head.y.bais': 'model.head.y.bias'}" in str(caught.value)

    def test_mismatch(self, place, saved):
        """A leaf that does not fit is named by both names."""
        with (
            place.context(**renaming({"steps": "step"}, partial_load=True)),
            pytest.raises(TreeMismatchError) as caught,
        ):
            stowax.load(saved, {"steps": str})

        assert caught.value.problems == (
            "steps (stored as 'step'): asked string, stored int",
        )

    def test_rule_that_fits_nothing(self, place, saved):
        """A rule that no leaf is looked up by is an error: it is probably misspelt."""
        with (
            place.context(**renaming({"step": "step", "modle": "model"})),
            pytest.raises(TreeMismatchError) as caught,
        ):
            stowax.load(saved, {"model": ..., "step": int})

        assert caught.value.problems == (
            "the rule 'modle': 'model': fits no leaf of the abstract state",
        )

    def test_the_proposed_rule_helps(self, place, saved):
        """The rules that an error proposes, pasted, make the load work."""
        asked = {
            "model": {
                "bloks": [{"kernel": np.zeros(2, int)} for _ in range(3)],
                "head": ...,
            },
            "step": int,
        }
        with pytest.raises(TreeMismatchError) as caught:
            stowax.load(saved, asked)

        proposed = re.search(r"rename=(\{.*\})", str(caught.value))[1]
        with place.context(**renaming(eval(proposed))):
            assert stowax.load(saved, asked)["model"]["bloks"][2]["kernel"][0] == 2


class TestWithout:
    @pytest.mark.parametrize(
        ("rename", "expected"),
        [
            ({"": "model.head"}, {"x": np.arange(2), "y": {"bias": 1.5}}),
            ({"a": "step"}, {"a": 7}),
            ({"": "step"}, 7),
            ({"b": "model.blocks"}, {"b": STATE["model"]["blocks"]}),
            ({"b": "model.blocks.1"}, {"b": {"kernel": np.full(2, 1)}}),
            (
                {"*": "model.blocks.*.kernel"},
                {str(i): np.full(2, i) for i in range(3)},
            ),
            ({"e": "model.empty"}, {"e": {}}),
            (
                {"b_*": "model.blocks.*"},
                {f"b_{i}": {"kernel": np.full(2, i)} for i in range(3)},
            ),
            (
                {"b.1": "step", "b": "model.blocks"},
                {"b": [{"kernel": np.full(2, 0)}, 7, {"kernel": np.full(2, 2)}]},
            ),
            (
                {"h.z": "step", "h": "model.head"},
                {"h": {"z": 7, "x": np.arange(2), "y": {"bias": 1.5}}},
            ),
            ({"a": "step", "b.c": "step"}, {"a": 7, "b": {"c": 7}}),
        ],
    )
    def test_exactly_what_the_rules_map(self, place, saved, rename, expected):
        """Whole subtrees keep their containers; what rules make up are plain dicts."""
        with place.context(**renaming(rename)):
            loaded = stowax.load(saved)

        assert differences(expected, loaded) == []

    @pytest.mark.parametrize(
        ("rename", "expected"),
        [
            ({"x": "sd"}, {"x": {"layer.0.w": 1, "layer.1.w": 3}}),
            ({"x": ""}, {"x": DOTTED}),
            ({"": "sd"}, {"layer.0.w": 1, "layer.1.w": 3}),
            ({"x": "sd.layer"}, {"x": {"0": {"w": 1}, "1": {"w": 3}}}),
            ({"": "blank"}, {"": 4}),
        ],
    )
    def test_keys_with_dots(self, place, rename, expected):
        """A key with a dot in it stays one key, unless the rule ends within it."""
        stowax.save(place / "checkpoint", DOTTED)

        with place.context(**renaming(rename)):
            assert stowax.load(place / "checkpoint") == expected

    def test_nothing_else_is_read(self):
        """Only what the rules map is read."""
        store = RecordingStore(MemoryStore())
        big = {"big": np.zeros(1 << 20), "small": np.ones(2)}
        with stowax.Context(file=FileOptions(store=store), **renaming({"a": "small"})):
            stowax.save("/checkpoint", big)
            count = len(store.calls)
            stowax.load("/checkpoint")

        data = [call for call in store.calls[count:] if "/d/" in call.paths[0]]
        assert sum(call.size_bytes for call in data) == 16

    @given(trees(st.integers(0, 9)))
    @settings(max_examples=40, deadline=None)
    def test_any_tree(self, tree):
        """The rule that changes nothing gives the tree; one level down, the subtree."""
        with stowax.Context(file=FileOptions(store=MemoryStore())) as context:
            stowax.save("/checkpoint", {"sub": tree, "other": 1})
            plain = stowax.load("/checkpoint")
        for rename, expected in (
            ({"": ""}, plain),
            ({"": "sub"}, plain["sub"]),
            ({"x.y": "sub"}, {"x": {"y": plain["sub"]}}),
        ):
            with stowax.Context(context, **renaming(rename)):
                assert differences(expected, stowax.load("/checkpoint")) == []

    def test_bad_rules(self, place, saved):
        """Rules that lead nowhere, or that no tree could follow, are named."""
        for rename, error, why in (
            ({"a": "step.*"}, RenameError, "must be the same"),
            ({"a.*": "step"}, RenameError, "abstract state"),
            ({"a": "steps"}, TreeMismatchError, "'a': 'steps': fits no leaf"),
            (
                {"a.b": "model.head.x", "a": "step"},
                TreeMismatchError,
                "a: is to be the stored leaf 'step', and is to hold 'a.b'",
            ),
        ):
            with (
                place.context(**renaming(rename)),
                pytest.raises(error, match=re.escape(why)),
            ):
                stowax.load(saved)

    @pytest.mark.parametrize(
        "rename",
        [{3: "step"}, {"x": 3}, {"x": None}, [("x", "step")], "x", 3, False],
        ids=repr,
    )
    def test_no_rules(self, place, saved, rename):
        """What is no mapping of names is refused, with or without an abstract state."""
        context = place.context()
        context.pytree.loading.rename = rename
        for state in (None, {"x": int}):
            with context, pytest.raises(RenameError, match=r"string|must be a mapping"):
                stowax.load(saved, state)

    def test_containers_of_all_kinds(self, place):
        """Lists, tuples, dataclasses and empty containers arrive as without rules."""
        state = {"s": {"t": (1, [2]), "d": Layer(1, 2), "n": Nothing(), 5: None}}
        stowax.save(place / "kinds", state)

        with place.context(**renaming({"": "s"})):
            assert stowax.load(place / "kinds") == {
                "t": (1, [2]),
                "d": {"kernel": 1, "bias": 2},
                "n": None,
                5: None,
            }


@pytest.mark.parametrize(
    "call",
    [
        lambda path: stowax.load(path),
        lambda path: stowax.load_async(path).result(),
        lambda path: stowax.load_checkpointables(path)["state"],
        lambda path: stowax.load(f"{path}/state", checkpointable_name=None),
    ],
    ids=["load", "async", "checkpointables", "item"],
)
def test_everywhere(place, saved, call):
    """Rules are followed by all ways to load."""
    with place.context(**renaming({"count": "step"})):
        assert call(saved) == {"count": 7}


def test_steps(place):
    """Rules of a Checkpointer's Context are followed."""
    with stowax.training.Checkpointer(
        place / "run", context=place.context(**renaming({"w": "params.w"}))
    ) as steps:
        steps.save(0, {"params": {"w": jnp.ones(3)}})

        assert steps.load(0)["w"].shape == (3,)
        asked = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
        assert steps.load_async(0, asked).result()["w"].shape == (3,)
