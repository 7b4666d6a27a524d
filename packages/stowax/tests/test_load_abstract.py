"""Every kind of abstract leaf, and what it makes of the stored one."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import bits, differences, mesh, shardings

import stowax
from stowax.errors import (
    TreeMismatchError,
    UnsupportedLeafError,
    UnsupportedOptionError,
)
from stowax.handlers import PyTreeHandler
from stowax.options import ArrayOptions, PyTreeOptions

HOST = bits("float32", (8, 16))
ABSTRACT = AbstractMesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def auto_mesh(*shape, names=("x", "y")):
    """A mesh that `jax.set_mesh` accepts."""
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def over(sharding, dtype=np.float32):
    """An abstract array of the shape of `HOST`."""
    return jax.ShapeDtypeStruct(HOST.shape, dtype, sharding=sharding)


@pytest.fixture
def saved(place):
    """A saved state with one leaf of every kind; the path."""
    state = {
        "w": jax.device_put(HOST, shardings()["both"]),
        "host": bits("int32", (3,)),
        "step": 3,
        "rate": 0.5,
        "name": "text",
        "nothing": None,
        "pair": {"a": 1, "b": 2},
        "zero_d": jnp.float32(4),
    }
    stowax.save(place / "checkpoint", state)
    return place / "checkpoint"


def load(path, **asked):
    """Loads some leaves, with placeholders for all others."""
    every = ("host", "name", "nothing", "pair", "rate", "step", "w", "zero_d")
    loaded = stowax.load(path, {**dict.fromkeys(every, ...), **asked})
    return {name: loaded[name] for name in asked}


class TestNone:
    @pytest.mark.parametrize("name", ["w", "host", "step", "name", "nothing"])
    def test_in_place_of_a_leaf(self, saved, name):
        """None for a leaf, or for a stored None, is None; nothing is loaded for it."""
        assert load(saved, **{name: None}) == {name: None}

    def test_in_place_of_a_tree(self, saved):
        """None does not pass over a whole subtree."""
        with pytest.raises(TreeMismatchError) as caught:
            load(saved, pair=None)

        assert caught.value.problems == (
            "pair.a: stored int, not asked for",
            "pair.b: stored int, not asked for",
        )

    def test_where_nothing_is_stored(self, saved):
        """None where there is nothing stays None."""
        assert load(saved, more=None) == {"more": None}

    def test_a_leaf_in_place_of_none(self, saved):
        """A leaf that was saved as None is not stored."""
        with pytest.raises(TreeMismatchError, match="nothing: asked int, not stored"):
            load(saved, nothing=int)


class TestTypes:
    def test_kinds_of_arrays(self, saved):
        """`jax.Array` and `numpy.ndarray` ask for an array as it is stored."""
        loaded = load(saved, w=np.ndarray, host=jax.Array, zero_d=np.ndarray)

        assert differences(HOST, loaded["w"]) == []
        assert isinstance(loaded["host"], jax.Array)
        assert loaded["host"].tolist() == bits("int32", (3,)).tolist()
        assert differences(np.array(4, np.float32), loaded["zero_d"]) == []

    def test_as_it_was_placed(self, saved):
        """`jax.Array` is placed as an array without sharding is."""
        assert load(saved, w=jax.Array)["w"].sharding == shardings()["both"]

    def test_scalar_types_of_numpy(self, saved):
        """A scalar type of NumPy asks for a 0-d array of that dtype."""
        loaded = load(saved, rate=np.complex128, step=np.int64, zero_d=np.float64)

        assert differences(np.array(0.5 + 0j), loaded["rate"]) == []
        assert differences(np.array(3), loaded["step"]) == []
        assert differences(np.array(4.0), loaded["zero_d"]) == []

    @pytest.mark.parametrize("target", [np.floating, dict, object, jnp.float32])
    def test_others(self, saved, target):
        """Types that no leaf is of are refused."""
        with pytest.raises(UnsupportedLeafError, match="'rate'"):
            load(saved, rate=target)

    def test_numbers_and_arrays(self, saved):
        """A number may become a 0-d array of either kind, and back."""
        asked = jax.ShapeDtypeStruct((), np.float32)
        loaded = load(saved, step=asked, zero_d=float, rate=np.array(0.0))

        assert (loaded["step"].dtype, int(loaded["step"])) == (np.float32, 3)
        assert (type(loaded["zero_d"]), loaded["zero_d"]) == (float, 4.0)
        assert differences(np.array(0.5), loaded["rate"]) == []


class TestLikeAnArray:
    @pytest.mark.parametrize(
        ("sharding", "kind"), [({}, np.ndarray), ({"sharding": None}, jax.Array)]
    )
    def test_shape_and_dtype_are_enough(self, saved, sharding, kind):
        """Any object with a shape and a dtype is an abstract array, of NumPy.

        With a sharding, even if that is None, it is one of JAX, as in Orbax.
        """
        asked = SimpleNamespace(shape=(8, 16), dtype=np.dtype("float64"), **sharding)
        if kind is jax.Array:
            asked.dtype = np.dtype("bfloat16")

        loaded = load(saved, w=asked, host=SimpleNamespace(shape=None, dtype=None))

        assert isinstance(loaded["w"], kind)
        assert loaded["w"].dtype == asked.dtype
        assert differences(bits("int32", (3,)), loaded["host"]) == []

    def test_keys(self, place):
        """The dtype of PRNG keys is one of JAX alone."""
        keys = jax.random.split(jax.random.key(0), 3)
        stowax.save(place / "keys", keys)

        loaded = stowax.load(
            place / "keys", SimpleNamespace(shape=(3,), dtype=keys.dtype)
        )

        assert loaded.dtype == keys.dtype

    def test_none_means_as_stored(self, saved):
        """Shape and dtype of an abstract array may be left open."""
        asked = SimpleNamespace(shape=None, dtype=None, sharding=None)
        described = stowax.metadata(saved).metadata

        loaded = load(
            saved,
            w=asked,
            host=dataclasses.replace(described["host"], shape=None, dtype=None),
        )

        assert differences(HOST, np.asarray(loaded["w"])) == []
        assert differences(bits("int32", (3,)), loaded["host"]) == []

    def test_metadata_is_an_abstract_state(self, saved):
        """What `metadata` shows may be given to `load`, as it is and changed."""
        found = stowax.metadata(saved)
        other = shardings()["rows"]
        changed = {
            **found.metadata,
            "w": dataclasses.replace(found.metadata["w"], sharding=other),
        }

        assert stowax.load(saved, found)["w"].sharding == shardings()["both"]
        assert stowax.load(saved, changed)["w"].sharding == other

    def test_orbaxs_name_of_the_sharding(self, saved):
        """The sharding of a metadata leaf is known by the name that Orbax has, too."""
        leaf = stowax.metadata(saved).metadata["w"]
        other = shardings()["rows"]

        changed = dataclasses.replace(leaf, sharding_metadata=other)

        assert leaf.sharding_metadata == leaf.sharding == shardings()["both"]
        assert changed.sharding == changed.sharding_metadata == other
        assert load(saved, w=changed)["w"].sharding == other
        with pytest.raises(TypeError, match="shardings"):
            dataclasses.replace(leaf, shardings=other)

    def test_shardings_in_an_object(self, saved):
        """A sharding may be an object that can make one, as in Orbax's metadata."""
        sharding = shardings()["rows"]
        asked = SimpleNamespace(
            shape=(8, 16),
            dtype=np.float32,
            sharding_metadata=SimpleNamespace(to_jax_sharding=lambda: sharding),
        )

        assert load(saved, w=asked)["w"].sharding == sharding

    def test_leaves_that_are_stored_alike(self, place):
        """Each is loaded as its own leaf asks, whatever is asked of the others."""
        count, described = 12, stowax.arrays.ArrayMetadata
        stowax.save(
            place / "c", {str(i): bits("float32", (8, 16)) for i in range(count)}
        )
        makes_rows = SimpleNamespace(to_jax_sharding=lambda: shardings()["rows"])
        kinds = [
            (described(shape=(8, 16), dtype=np.float32), jnp.float32, None),
            (described(shape=(8, 16), dtype=np.float16), jnp.float16, None),
            (over(shardings()["columns"]), jnp.float32, "columns"),
            (
                described(shape=(8, 16), dtype=np.float32, sharding=makes_rows),
                jnp.float32,
                "rows",
            ),
        ]
        asked = {str(i): kinds[i % len(kinds)] for i in range(count)}

        with pytest.warns(UserWarning, match="lose values"):
            loaded = stowax.load(
                place / "c", {name: target for name, (target, *_) in asked.items()}
            )

        for name, (_, dtype, spread) in asked.items():
            assert loaded[name].dtype == dtype
            if spread is not None:
                assert loaded[name].sharding == shardings()[spread]


class TestWhatIsNone:
    """Abstract leaves that ask for nothing there is."""

    @pytest.mark.parametrize(
        "target",
        [
            np.zeros(3, "U3"),
            np.zeros(3, "S4"),
            np.zeros(3, "M8[s]"),
            np.zeros(3, "i4,f4"),
            np.zeros(3, object),
            np.zeros(3, np.longdouble),
            SimpleNamespace(shape=(3,), dtype="nonsense"),
            SimpleNamespace(shape=(3,), dtype="U3", sharding=None),
            *(np.str_, np.bytes_, np.void, np.object_, np.datetime64, np.longdouble),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("name", ["host", "w", "step", "name"])
    def test_dtypes(self, saved, name, target):
        """A dtype that no checkpoint holds is refused, whatever is stored."""
        with pytest.raises(UnsupportedLeafError, match=f"'{name}'"):
            load(saved, **{name: target})

    @pytest.mark.parametrize("shape", [3, (8.0, 16), (-1, 16), "ab"])
    @pytest.mark.parametrize("more", [{}, {"sharding": None}])
    def test_shapes(self, saved, shape, more):
        """What is no shape is refused."""
        asked = SimpleNamespace(shape=shape, dtype=np.float32, **more)

        with pytest.raises(UnsupportedLeafError, match=r"'w'.* is no shape"):
            load(saved, w=asked)
        with pytest.raises(TreeMismatchError, match="more: asked float32"):
            load(saved, more=asked)

    @pytest.mark.parametrize(
        "sharding",
        [jax.P("x"), auto_mesh(2, 4), jax.devices()[0], "x", 3],
        ids=["spec", "mesh", "device", "text", "number"],
    )
    def test_shardings(self, saved, sharding):
        """What is no sharding is a mismatch; it says what to give."""
        leaf = stowax.metadata(saved).metadata["w"]

        with pytest.raises(TreeMismatchError) as caught:
            load(saved, w=dataclasses.replace(leaf, sharding=sharding))

        (problem,) = caught.value.problems
        assert problem.startswith("w: asked ")
        assert f"its sharding is a {type(sharding).__name__}; give" in problem

    @pytest.mark.parametrize("mesh", ["x", 3, ABSTRACT], ids=["text", "number", "abs"])
    def test_meshes(self, place, saved, mesh):
        """What is no mesh with devices is refused as an option."""
        context = place.context()
        context.array.loading.mesh = mesh

        with (
            context,
            pytest.raises(UnsupportedOptionError, match=r"loading\.mesh must"),
        ):
            stowax.load(saved)

    def test_too_many_axes(self, saved):
        """A sharding of more axes than the array has is a mismatch."""
        sharding = jax.NamedSharding(auto_mesh(2, 4), jax.P(None, None, "x"))
        leaf = stowax.metadata(saved).metadata["w"]

        with pytest.raises(TreeMismatchError, match=r"w: .*cannot be placed"):
            load(saved, w=dataclasses.replace(leaf, sharding=sharding))


class TestAbstractMesh:
    def test_in_scope(self, saved):
        """A sharding over an abstract mesh is put on the mesh in scope, by its axes."""
        sharding = NamedSharding(ABSTRACT, P("y", "x"), memory_kind="pinned_host")
        real = auto_mesh(2, 4)

        with jax.set_mesh(real):
            loaded = load(saved, w=over(sharding))["w"]

        expected = NamedSharding(real, P("y", "x"), memory_kind="pinned_host")
        assert loaded.sharding == expected
        assert differences(HOST, np.asarray(loaded)) == []

    def test_given(self, place, saved):
        """The mesh of the Context goes before the one in scope."""
        real = auto_mesh(4, 2)
        options = ArrayOptions(loading=ArrayOptions.Loading(mesh=real))

        with place.context(array=options), jax.set_mesh(auto_mesh(2, 4)):
            loaded = load(saved, w=over(NamedSharding(ABSTRACT, P("x"))))["w"]

        assert loaded.sharding == NamedSharding(real, P("x"))

    def test_partition_spec_alone(self, place, saved):
        """A partition spec takes its mesh from the same place."""
        real = auto_mesh(4, 2)
        options = ArrayOptions(loading=ArrayOptions.Loading(mesh=real))

        with place.context(array=options):
            loaded = load(saved, w=over(P("x")))["w"]

        assert loaded.sharding == NamedSharding(real, P("x"))

    def test_none_in_scope(self, saved):
        """Without a mesh every such leaf is named, with what to do."""
        with pytest.raises(TreeMismatchError, match=r"jax\.set_mesh") as caught:
            load(saved, w=over(NamedSharding(ABSTRACT, P("x"))), step=str)

        assert [line.split(":")[0] for line in caught.value.problems] == ["step", "w"]
        assert "no mesh is in scope" in caught.value.problems[1]
        assert "ArrayOptions.Loading(mesh=mesh)" in str(caught.value)

    def test_without_the_axis(self, saved):
        """A mesh that lacks an axis of the sharding is a mismatch of the leaf."""
        with (
            jax.set_mesh(auto_mesh(4, 2, names=("a", "b"))),
            pytest.raises(TreeMismatchError, match="cannot be placed"),
        ):
            load(saved, w=over(NamedSharding(ABSTRACT, P("x"))))

    @pytest.mark.parametrize(
        "start",
        [
            lambda path, asked: stowax.load_async(path, asked).result(),
            lambda path, asked: stowax.load_async(
                f"{path}/state", asked, checkpointable_name=None
            ).result(),
            lambda path, asked: stowax.load_checkpointables(path, {"state": asked})[
                "state"
            ],
        ],
        ids=["async", "async_item", "checkpointables"],
    )
    def test_from_everywhere(self, place, start):
        """The mesh of the caller's thread reaches loads in the background, too."""
        stowax.save(place / "one", {"w": HOST})
        real = auto_mesh(4, 2)

        with jax.set_mesh(real):
            loaded = start(place / "one", {"w": over(NamedSharding(ABSTRACT, P("x")))})[
                "w"
            ]

        assert loaded.sharding == NamedSharding(real, P("x"))

    def test_steps_in_the_background(self, place):
        """So do those of a Checkpointer."""
        real = auto_mesh(4, 2)
        asked = {"w": over(NamedSharding(ABSTRACT, P("x")))}
        with stowax.training.Checkpointer(place / "run") as checkpointer:
            checkpointer.save(0, {"w": HOST})
            with jax.set_mesh(real):
                response = checkpointer.load_async(0, asked)

            assert response.result()["w"].sharding == NamedSharding(real, P("x"))


class TestLayout:
    FORMAT = Format(Layout((1, 0)), NamedSharding(mesh(4, 2), P("x", "y")))

    def test_kept(self, saved):
        """The memory layout of a Format is that of the loaded array."""
        loaded = load(saved, w=over(self.FORMAT))["w"]

        assert loaded.format.layout.major_to_minor == (1, 0)
        assert loaded.sharding == self.FORMAT.sharding
        assert differences(HOST, np.asarray(loaded)) == []

    def test_of_metadata_and_live_arrays(self, saved):
        """So is that of a metadata leaf's Format, and of a live array."""
        leaf = stowax.metadata(saved).metadata["w"]
        live = jax.device_put(HOST, self.FORMAT)

        for asked in (dataclasses.replace(leaf, sharding=self.FORMAT), live):
            loaded = load(saved, w=asked)["w"]
            assert loaded.format.layout.major_to_minor == (1, 0)

    def test_nothing_inside(self, saved):
        """A Format that says nothing asks for nothing."""
        loaded = load(saved, w=over(Format()))["w"]

        assert loaded.sharding == shardings()["both"]

    def test_of_a_deleted_array(self, saved):
        """An array that was donated still says where another goes."""
        live = jax.device_put(HOST, shardings()["rows"])
        live.delete()

        assert load(saved, w=live)["w"].sharding == shardings()["rows"]


class TestPartial:
    OPTIONS = PyTreeOptions(loading=PyTreeOptions.Loading(partial_load=True))

    @pytest.mark.parametrize(
        ("asked", "loaded"),
        [
            ({}, {}),
            ({"step": int}, {"step": 3}),
            ({"step": int, "w": ...}, {"step": 3, "w": ...}),
            ({"pair": {"b": int}}, {"pair": {"b": 2}}),
            ({"pair": None, "w": None}, {"pair": None, "w": None}),
            ({"new": ..., "step": 0}, {"new": ..., "step": 3}),
            (..., ...),
        ],
    )
    def test_what_is_left_out(self, place, saved, asked, loaded):
        """Stored leaves may be left out; placeholders and None stay what they are."""
        with place.context(pytree=self.OPTIONS):
            assert stowax.load(saved, asked) == loaded

    def test_what_is_not_stored(self, place, saved):
        """What is asked for and not stored is an error; no abstract leaf comes back."""
        with (
            place.context(pytree=self.OPTIONS),
            pytest.raises(
                TreeMismatchError, match=r"PLACEHOLDER in its place"
            ) as caught,
        ):
            stowax.load(saved, {"new": over(None), "step": int})

        assert caught.value.problems == ("new: asked float32[8, 16], not stored",)

    def test_not_a_leaf(self, place, saved):
        """A leaf in place of a subtree, and the other way round, is a mismatch."""
        with place.context(pytree=self.OPTIONS):
            for asked in ({"pair": int}, {"step": {"deep": int}}):
                with pytest.raises(TreeMismatchError, match="not stored"):
                    stowax.load(saved, asked)


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        (over(None), "float32[8, 16]"),
        (np.zeros(3), "float64[3]"),
        (jax.Array, "an array"),
        (np.ndarray, "an array"),
    ],
)
def test_array_for_a_string(place, asked, form):
    """A string is no array: a mismatch among the others, not an error about dtypes."""
    stowax.save(place / "checkpoint", {"text": "a", "step": 3})

    with pytest.raises(TreeMismatchError, match="text") as caught:
        stowax.load(place / "checkpoint", {"text": asked, "step": str})

    assert [p.rpartition("asked ")[2] for p in caught.value.problems] == [
        "string, stored int",
        f"{form}, stored string",
    ]


class Careful:
    """Loads itself with options of its own, inside the load of somebody else."""

    def __init__(self, **loading):
        self.context = stowax.Context()
        self.context.pytree.loading = PyTreeOptions.Loading(**loading)
        self.loaded = None

    async def save(self, directory):
        return await PyTreeHandler().save(directory, {"a": 1, "b": 2})

    async def load(self, directory):
        handler = PyTreeHandler(context=self.context)
        rest = await handler.load(directory, {"a": int})

        async def finish():
            self.loaded = await rest

        return finish()


def test_a_handlers_own_context(place):
    """How a tree is read is up to the handler's Context, also in a load under way."""
    stowax.save_checkpointables(place / "checkpoint", {"own": Careful()})
    allowed = Careful(partial_load=True)

    stowax.load_checkpointables(place / "checkpoint", {"own": allowed})

    assert allowed.loaded == {"a": 1}
    with (
        place.context(pytree=TestPartial.OPTIONS),
        pytest.raises(TreeMismatchError, match="b"),
    ):
        stowax.load_checkpointables(place / "checkpoint", {"own": Careful()})
