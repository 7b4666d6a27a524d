"""Saves of one structure are planned once; others are never taken for it."""

import asyncio
import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_trees import differences, mesh

import stowax
from stowax import _item_layout, _item_write
from stowax._codecs._checksum import unseal
from stowax._runtime import Runtime
from stowax._stores._base import read_bytes
from stowax.testing import MemoryStore


@pytest.fixture
def runtime():
    """A runtime that has seen no structure yet."""
    made = Runtime()
    yield made
    made.close()


def forms(path):
    """What is stored of every leaf."""
    return stowax.metadata(path).metadata


class Letter(enum.StrEnum):
    A = "a"


MESH = mesh(8)


def spread(*axes):
    """An array over eight devices."""
    sharding = jax.NamedSharding(MESH, jax.P(*axes))
    return jax.device_put(jnp.zeros((8, 8)), sharding)


SIBLINGS = {
    "keys": [{1: 1}, {True: 1}, {"1": 1}, {1.0: 1}, {np.int64(1): 1}, [0, 1]],
    "enum keys": [{"a": 1}, {Letter.A: 1}],
    "containers": [{"a": (1, 2)}, {"a": [1, 2]}, {"a": {"0": 1, "1": 2}}],
    "numbers": [{"a": 1}, {"a": True}, {"a": 1.0}, {"a": 2**63}, {"a": 2**64}],
    "texts": [{"a": "int64"}, {"a": 1}, {"a": "l"}, {"a": "x"}, {"a": b"x"}],
    "integers beyond 64 bits": [{"a": 2**64}, {"a": 2**64 + 1}, {"a": hex(2**64)}],
    "dtypes": [{"a": np.zeros(3, dtype)} for dtype in ("f8", "f4", "i8", ">f4", "?")],
    "shapes": [{"a": np.zeros(shape)} for shape in ((6,), (2, 3), (3, 2), (6, 1), ())],
    "classes": [{"a": np.zeros(3)}, {"a": jnp.zeros(3)}, {"a": np.float64(0)}],
    "shardings": [{"a": a} for a in (spread("x"), spread(None, "x"), spread())],
    "keys of PRNGs": [
        {"a": jax.random.key(0)},
        {"a": jax.random.key(0, impl="rbg")},
        {"a": jax.random.PRNGKey(0)},
    ],
    "nothing": [{"a": None, "b": 1}, {"b": 1}, {"a": {}, "b": 1}],
}
"""Trees that are easily taken for each other."""


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("turn", [1, -1])
def test_siblings_are_told_apart(tmp_path, runtime, name, turn):
    """A tree is saved as what it is, whatever was saved before it."""
    trees = SIBLINGS[name][::turn]
    for number, tree in enumerate(trees):
        with stowax.Context(runtime=Runtime()) as alone:
            stowax.save(tmp_path / f"alone{number}", tree)
        alone.runtime.close()
        with stowax.Context(runtime=runtime):
            stowax.save(tmp_path / f"{number}", tree)

    for number in range(len(trees)):
        path, alone = tmp_path / f"{number}", tmp_path / f"alone{number}"
        assert repr(forms(path)) == repr(forms(alone))
        assert differences(stowax.load(alone), stowax.load(path)) == []
        assert repr(stowax.load(path)) == repr(stowax.load(alone))  # Types of keys.


@pytest.mark.parametrize(
    "dtypes", [(None, "f8"), ("f8", None), ("f4", "f8"), ("f8", "f4")]
)
def test_the_dtype_that_is_asked_for_counts(tmp_path, runtime, dtypes):
    """Each save is converted as its own options say."""
    state = {"w": np.ones(3, np.float32)}
    for number, dtype in enumerate(dtypes):
        context = stowax.Context(runtime=runtime)
        if dtype is not None:
            context.array.saving.storage_options.dtype = np.dtype(dtype)
        with context:
            stowax.save(tmp_path / f"{number}", state)

    found = [forms(tmp_path / f"{number}")["w"].dtype for number in range(2)]
    assert found == [np.dtype(dtype or "f4") for dtype in dtypes]


COMPRESSIONS = {
    None: None,
    "none": None,
    "zstd": "zstd",
    "blosc": "blosc",
    "auto": "blosc",
}


@pytest.mark.parametrize("turn", [1, -1])
def test_the_compression_that_is_asked_for_counts(tmp_path, runtime, turn):
    """Each save is compressed as its own options and its own store say."""
    state = {"w": np.zeros((512, 512), np.float32)}
    ways = [
        (compression, use, is_remote)
        for compression in COMPRESSIONS
        for use in (None, True)
        for is_remote in (False, True)
    ][::turn]
    for compression, use, is_remote in ways:
        context = stowax.Context(runtime=runtime)
        context.file.store = MemoryStore(is_remote=is_remote)
        context.array.saving.use_compression = use
        context.array.saving.storage_options.compression = compression
        with context:
            stowax.save("/c", state)
            assert differences(state, stowax.load("/c")) == []

        store = context.file.store
        manifest = asyncio.run(read_bytes(store, "/c/state/stowax.manifest"))
        (form,) = unseal(manifest)["forms"]
        expected = COMPRESSIONS[compression]
        if compression is None and (use or is_remote):
            expected = "zstd"
        assert form.get("codec") == expected


def counted(monkeypatch, module, name):
    """Counts the calls of a function, which goes on to do its work."""
    calls = []
    function = getattr(module, name)

    def count(*args, **options):
        calls.append(name)
        return function(*args, **options)

    monkeypatch.setattr(module, name, count)
    return calls


def test_a_structure_is_planned_once(tmp_path, runtime, monkeypatch):
    """A later save plans nothing and encodes no document of Orbax; values are new."""
    planned = counted(monkeypatch, _item_layout, "plan_write")
    encoded = counted(monkeypatch, _item_write, "encode_documents")
    states = [
        {"w": jnp.full(3, number), "b": [np.ones(2) * number, number]}
        for number in range(3)
    ]

    with stowax.Context(runtime=runtime):
        for number, state in enumerate(states):
            stowax.save(tmp_path / f"{number}", state)

    assert (len(planned), len(encoded)) == (1, 1)
    for number, state in enumerate(states):
        assert differences(state, stowax.load(tmp_path / f"{number}")) == []


def test_a_sample_that_says_the_same_encodes_nothing(tmp_path, runtime, monkeypatch):
    """What samples decide does not make a later save plan or encode anew."""
    planned = counted(monkeypatch, _item_layout, "plan_write")
    encoded = counted(monkeypatch, _item_write, "encode_documents")
    zeros = {"w": np.zeros((512, 512), np.float32), "b": np.zeros((512, 512))}
    noise = np.random.default_rng(0).bytes(1 << 20)
    other = zeros | {"w": np.frombuffer(noise, np.float32).reshape(512, 512)}

    context = stowax.Context(runtime=runtime)
    context.array.saving.storage_options.compression = "auto"
    with context:
        for number, state in enumerate([zeros, zeros, other, other]):
            stowax.save(tmp_path / f"{number}", state)
            assert differences(state, stowax.load(tmp_path / f"{number}")) == []

    assert (len(planned), len(encoded)) == (1, 2)
