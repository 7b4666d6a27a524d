"""Loads beside those of Orbax: the same checkpoint, the same question, the same answer.

Where the answers differ on purpose, the test says how; `docs/from-orbax.md` says why.
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import Point, differences, shardings

import stowax
from stowax.errors import TreeMismatchError

ocp = pytest.importorskip("orbax.checkpoint").v1

HOST = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
BOTH = pytest.mark.parametrize("library", [stowax, ocp], ids=["stowax", "orbax"])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One state, saved by either library."""
    directory = tmp_path_factory.mktemp("loading")
    state = {
        "w": jax.device_put(HOST, shardings()["both"]),
        "v": jnp.arange(1.0, 7.0),
        "keys": jax.random.split(jax.random.key(0), 3),
        "host": np.arange(1, 5),
        "step": 3,
        "rate": 1.5,
        "name": "text",
        "nothing": None,
    }
    stowax.save(directory / "stowax", state)
    ocp.save(directory / "orbax", state)
    return {"stowax": directory / "stowax", "orbax": directory / "orbax"}


def load(library, path, context=None, **asked):
    """Asks for some leaves, with placeholders for the others."""
    every = dict.fromkeys(
        ("w", "v", "keys", "host", "step", "rate", "name", "nothing"), ...
    )
    context = library.Context() if context is None else context
    with context:
        return library.load(path, {**every, **asked})


def pads(library):
    """A Context that pads and cuts."""
    context = library.Context()
    context.array.loading.enable_padding_and_truncation = True
    return context


def like(shape, dtype=np.float32, sharding=None):
    """An abstract array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@BOTH
@pytest.mark.parametrize(
    "asked",
    [
        {"w": like((16, 16), sharding=shardings()["both"])},
        {"w": like((4, 32), jnp.bfloat16, shardings()["swapped"])},
        {"w": like((8, 8), sharding=shardings()["rows"])},
        {"v": like((9,), jnp.int32)},
        {"v": like((2,), jnp.bfloat16)},
        {"v": like((0,))},
    ],
)
def test_padding_and_cutting(paths, library, asked):
    """Arrays of another shape are what Orbax makes of them, read by either library."""
    path = paths["stowax" if library is ocp else "orbax"]
    with warnings.catch_warnings(action="ignore"):
        ours = load(stowax, path, pads(stowax), **asked)
    theirs = load(ocp, path, pads(ocp), **asked)

    (name,) = asked
    assert differences(theirs[name], ours[name]) == []
    if asked[name].sharding is not None:
        assert ours[name].sharding == theirs[name].sharding


def test_padded_keys(paths):
    """PRNG keys are padded with keys of zeros, as Orbax pads them."""
    asked = {"keys": like((5,), jax.random.key(0).dtype)}
    ours = load(stowax, paths["orbax"], pads(stowax), **asked)["keys"]
    theirs = load(ocp, paths["orbax"], pads(ocp), **asked)["keys"]

    data = jax.random.key_data
    assert differences(data(theirs), data(ours)) == []


def test_numpy_is_padded_too(paths):
    """Orbax passes over the shape of a NumPy leaf; we follow it, or refuse."""
    asked = {"host": np.zeros(6, np.int64)}

    assert load(ocp, paths["orbax"], pads(ocp), **asked)["host"].tolist() == [
        1,
        2,
        3,
        4,
    ]
    ours = load(stowax, paths["orbax"], pads(stowax), **asked)["host"]
    assert ours.tolist() == [1, 2, 3, 4, 0, 0]
    with pytest.raises(TreeMismatchError, match=r"host: asked int64\[6\]"):
        load(stowax, paths["orbax"], **asked)


@BOTH
def test_another_number_of_axes(paths, library):
    """Padding never changes the number of axes, in neither library."""
    with pytest.raises((ValueError, IndexError)):
        load(library, paths["orbax"], pads(library), w=like((8,)))


@BOTH
@pytest.mark.parametrize("name", ["w", "host", "step", "name", "nothing"])
def test_none(paths, library, name):
    """None in place of a leaf comes back as None."""
    assert load(library, paths["orbax"], **{name: None})[name] is None


@BOTH
def test_types(paths, library):
    """`jax.Array` and `numpy.ndarray` ask for an array as it is stored."""
    loaded = load(library, paths["orbax"], w=jax.Array, v=np.ndarray)

    assert isinstance(loaded["w"], jax.Array)
    assert type(loaded["v"]) is np.ndarray
    assert differences(HOST, np.asarray(loaded["w"])) == []


@BOTH
@pytest.mark.parametrize(
    ("asked", "value"),
    [
        ({"step": float}, 3.0),
        ({"rate": complex}, 1.5 + 0j),
        ({"step": 0}, 3),
        ({"name": str}, "text"),
        ({"step": bool}, True),
        ({"rate": int}, 1),
    ],
)
def test_numbers(paths, library, asked, value):
    """A type, or a value of it, converts a number."""
    (name,) = asked
    if asked == {"rate": complex} and library is ocp:
        pytest.skip("Orbax has no complex numbers")
    with warnings.catch_warnings(action="ignore"):
        loaded = load(library, paths["orbax"], **asked)[name]

    assert (type(loaded), loaded) == (type(value), value)


@BOTH
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)])
def test_abstract_mesh(paths, library, shape):
    """A sharding over an abstract mesh is put on the mesh in scope, by its axes."""
    auto = (AxisType.Auto,) * 2
    abstract = NamedSharding(AbstractMesh((4, 2), ("x", "y"), axis_types=auto), P("y"))
    real = jax.make_mesh(shape, ("x", "y"), axis_types=auto)

    with jax.set_mesh(real):
        loaded = load(library, paths["orbax"], w=like((8, 16), sharding=abstract))["w"]

    assert loaded.sharding == NamedSharding(real, P("y"))
    assert differences(HOST, np.asarray(loaded)) == []


@BOTH
def test_no_mesh(paths, library):
    """Without a mesh in scope that is a ValueError."""
    mesh = AbstractMesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    asked = like((8, 16), sharding=NamedSharding(mesh, P("y")))

    with pytest.raises(ValueError, match="mesh"):
        load(library, paths["orbax"], w=asked)


@BOTH
def test_partial_load(paths, library):
    """With `partial_load`, what is not asked for is left where it is."""
    context = library.Context()
    context.pytree.loading.partial_load = True

    with context:
        loaded = library.load(paths["orbax"], {"step": int, "name": str})

    assert loaded == {"step": 3, "name": "text"}


def test_partial_load_of_what_is_not_stored(paths):
    """Orbax gives back the abstract leaf; we say that there is none."""
    asked = {"step": int, "new": like((3,))}
    ours, theirs = stowax.Context(), ocp.Context()
    ours.pytree.loading.partial_load = theirs.pytree.loading.partial_load = True

    with theirs:
        loaded = ocp.load(paths["orbax"], asked)
    with ours, pytest.raises(TreeMismatchError, match="new: asked"):
        stowax.load(paths["orbax"], asked)

    assert isinstance(loaded["new"], jax.ShapeDtypeStruct)


def test_metadata_of_the_other(paths):
    """Metadata leaves of Orbax are abstract leaves for us; changed ones, too."""
    described = ocp.metadata(paths["orbax"]).metadata
    changed = dataclasses.replace(described["w"], dtype=np.dtype("bfloat16"))

    # Orbax describes PRNG keys by their data, which is not what they are.
    asked = {**described, "w": changed, "keys": ...}
    loaded = stowax.load(paths["orbax"], asked)

    assert loaded["w"].sharding == shardings()["both"]
    assert loaded["w"].dtype == jnp.bfloat16
    assert loaded["v"].sharding == described["v"].sharding_metadata.to_jax_sharding()


@pytest.mark.parametrize("use_zarr3", [True, False])
@pytest.mark.parametrize("raises", [True, False])
def test_missing_chunks(tmp_path, use_zarr3, raises):
    """A chunk that Orbax's checkpoint lacks is an error, or zeros, as in Orbax."""
    saving = ocp.Context()
    saving.array.saving.use_ocdbt = False
    saving.array.saving.use_zarr3 = use_zarr3
    saving.array.saving.storage_options.chunk_byte_size = 16
    with saving:
        ocp.save(tmp_path / "c", {"a": jnp.arange(1.0, 9.0), "n": np.arange(3)})
    (tmp_path / "c/state/a" / ("c/1" if use_zarr3 else "1")).unlink()

    for library in (ocp, stowax):
        loading = library.Context()
        loading.array.loading.raise_array_data_missing_error = raises
        with loading:
            if raises and not (library is ocp and use_zarr3):
                with pytest.raises(Exception, match=r".") as caught:
                    library.load(tmp_path / "c")
                assert library is ocp or "'a'" in str(caught.value)
            elif not raises:
                loaded = library.load(tmp_path / "c")
                assert loaded["a"].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]


def test_a_chunk_of_ours_is_never_missed(tmp_path):
    """In a checkpoint of ours a missing chunk is damage, whatever the option says."""
    stowax.save(tmp_path / "c", {"a": np.arange(9.0)})
    for file in (tmp_path / "c/state/d").glob("data-*"):
        file.unlink()
    context = stowax.Context()
    context.array.loading.raise_array_data_missing_error = False

    with context, pytest.raises(stowax.errors.CorruptCheckpointError, match="'a'"):
        stowax.load(tmp_path / "c")


@BOTH
def test_renaming_and_slices(paths, library):
    """What Orbax wrote is renamed, selected and taken apart as what we wrote."""
    path = paths["orbax" if library is ocp else "stowax"]
    context = stowax.Context()
    context.pytree.loading.rename = {"params.weight": "w"}

    with context:
        preview = stowax.preview_load(path)
        loaded = stowax.load(path)
    part = stowax.load_leaf(path, "w", index=np.s_[1, 2:4])

    assert not preview.problems
    assert loaded.keys() == {"params"}
    assert differences(HOST, np.asarray(loaded["params"]["weight"])) == []
    assert differences(HOST[1, 2:4], np.asarray(part)) == []


def test_rich_types_are_made(tmp_path):
    """NamedTuples that Orbax recorded are made of the types that are allowed."""
    saving = ocp.Context()
    saving.pytree.saving.pytree_metadata_options.support_rich_types = True
    with saving:
        ocp.save(tmp_path / "c", {"p": Point(x=1, y=2)})
    loading = stowax.Context()
    loading.pytree.saving.pytree_metadata_options.support_rich_types = True
    loading.pytree.loading.container_types = (Point,)

    with loading:
        types = stowax.metadata(tmp_path / "c").container_types
        loaded = stowax.load(tmp_path / "c")

    assert types == {"p": "sample_trees:Point"}
    assert loaded == {"p": Point(1, 2)}
