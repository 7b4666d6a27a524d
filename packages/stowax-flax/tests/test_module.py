"""What `stowax_flax.Module` saves, what it gives back, and what it refuses."""

import asyncio
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stowax
import stowax_flax
from stowax.errors import (
    CorruptCheckpointError,
    HandlerError,
    InvalidLayoutError,
    KeyPathCollisionError,
    TreeMismatchError,
    UnsupportedLeafError,
)
from stowax.handlers import PyTreeHandler


class Average(nnx.Variable):
    """A Variable type of the user."""


class Holder(nnx.Module):
    """Holds whatever a test wants to see saved."""

    def __init__(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, nnx.data(value) if isinstance(value, list) else value)


class Network(nnx.Module):
    """A little of everything that has state."""

    def __init__(self, seed):
        rngs = nnx.Rngs(params=seed, dropout=seed + 1)
        self.embed = nnx.Embed(8, 4, rngs=rngs)
        self.tied = self.embed.embedding
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.average = Average(jnp.full(3, float(seed)), decay=0.9)
        self.bare = nnx.data(jnp.full(2, float(seed)))

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(x)) @ self.tied[...].T


def save(path, module, **options):
    """Saves a module as the one checkpointable `model`."""
    wrapped = stowax_flax.Module(module, **options)
    stowax.save_checkpointables(path, {"model": wrapped})


def load(path, module, **options):
    """Loads into the module and returns it."""
    wrapped = stowax_flax.Module(module, **options)
    stowax.load_checkpointables(path, {"model": wrapped})
    return module


def load_plain(path):
    """The tree, without the adapter."""
    return stowax.load(path, checkpointable_name="model")


def read_document(path):
    """The content of `nnx.json`."""
    return json.loads((path / "model" / "nnx.json").read_text())


def values(module):
    """Every value by path, keys as their data, in a form that compares."""
    found = {}
    for path, node in nnx.to_flat_state(nnx.state(module)):
        value = node.get_value() if isinstance(node, nnx.Variable) else node
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        found[path] = np.asarray(value)
    return found


def assert_same(one, other):
    """Fails at the first value that differs."""
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=str(path))


@pytest.fixture
def path(tmp_path):
    """Where the checkpoint goes."""
    return tmp_path / "checkpoint"


def test_every_variable_returns(path):
    """Parameters, statistics, PRNG state, own types and bare arrays come back."""
    model = Network(0)
    model(jnp.arange(4))
    save(path, model)

    loaded = load(path, Network(7))

    assert_same(values(loaded), values(model))


def test_dropout_continues_where_it_was(path):
    """The masks after a load are those of the run that went on undisturbed."""
    model = Network(0)
    model(jnp.arange(4))
    save(path, model)
    expected = model(jnp.arange(4))

    loaded = load(path, Network(7))

    np.testing.assert_array_equal(loaded(jnp.arange(4)), expected)


def test_variables_stay_the_same_objects(path):
    """Whoever holds a reference to a Variable sees the loaded value."""
    save(path, Network(0))
    model = Network(7)
    kernel, embedding = model.layers[1].kernel, model.embed.embedding

    load(path, model)

    assert model.layers[1].kernel is kernel
    assert model.tied is model.embed.embedding is embedding


def test_order_of_a_long_list(path):
    """Twelve layers load in their order, in a module and as a plain tree."""

    def build(offset):
        layers = [nnx.Param(jnp.full(2, float(i + offset))) for i in range(12)]
        return Holder(layers=nnx.List(layers))

    save(path, build(0))

    plain = load_plain(path)["layers"]
    loaded = load(path, build(100))

    assert [float(layer[0]) for layer in plain] == list(range(12))
    assert [float(layer[0]) for layer in loaded.layers] == list(range(12))


def test_gaps_in_a_list_stay_gaps(path):
    """Positions without Variables, as of an activation, are not closed up."""
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs), nnx.relu, nnx.Linear(3, 1, rngs=rngs)
    )

    save(path, net)

    assert set(load_plain(path)["layers"]) == {0, 2}


def test_text_and_positions_as_keys(path):
    """A dict with the key "0" beside a list keeps both apart."""

    def build(offset):
        return Holder(
            named=nnx.Dict({"0": nnx.Param(jnp.full(1, 1.0 + offset))}),
            listed=nnx.List([nnx.Param(jnp.full(1, 2.0 + offset))]),
        )

    save(path, build(0))

    plain = load_plain(path)
    loaded = load(path, build(100))

    assert isinstance(plain["named"], dict)
    assert isinstance(plain["listed"], list)
    assert (float(loaded.named["0"][0]), float(loaded.listed[0][0])) == (1.0, 2.0)


def test_names_that_collide_are_refused(path):
    """Two Variables that would share one name on disk are an error, not one array."""
    inner = nnx.Dict({"b": nnx.Param(jnp.ones(1))})
    model = nnx.Dict({"a.b": nnx.Param(jnp.zeros(1)), "a": inner})

    with pytest.raises(KeyPathCollisionError, match=r"a\.b"):
        save(path, model)
    assert not path.exists()


def test_plain_tree_has_no_flax_in_it(path):
    """Without the adapter the item is nested dicts and lists of arrays."""
    model = Network(0)
    save(path, model)

    plain = load_plain(path)

    np.testing.assert_array_equal(plain["layers"][1]["kernel"], model.layers[1].kernel)
    assert "tied" not in plain
    assert jax.tree.structure(plain["embed"]) == jax.tree.structure({"embedding": 0})


def test_orbax_reads_the_tree(path):
    """The item is a tree of Orbax's, which loads it without this package."""
    peer = pytest.importorskip("orbax.checkpoint").v1
    model = Network(0)
    save(path, model)

    plain = peer.load(path, checkpointable_name="model")

    np.testing.assert_array_equal(plain["layers"][1]["kernel"], model.layers[1].kernel)


def test_abstract_module_is_a_target(path):
    """A module that was built abstractly is filled with arrays."""
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    save(path, model)

    loaded = load(path, nnx.eval_shape(lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0))))

    assert_same(values(loaded), values(model))


def test_snapshot(path):
    """What happens to the module after `save_async` returned is not saved."""
    model = Holder(weight=nnx.Param(jnp.zeros(3)), host=Average(np.zeros(3)))

    response = stowax.save_checkpointables_async(
        path, {"model": stowax_flax.Module(model)}
    )
    model.weight[...] = jnp.ones(3)
    model.host.get_value()[:] = 1
    response.result()

    plain = load_plain(path)
    assert float(plain["weight"].sum()) == float(plain["host"].sum()) == 0


# What a Variable may hold.


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [
        (3, 0),
        (2.5, 0.0),
        (True, False),
        ("text", ""),
        (None, None),
        (np.arange(3.0), np.zeros(3)),
        (np.float32(2.5), np.float32(0)),
    ],
    ids=["int", "float", "bool", "str", "None", "ndarray", "numpy scalar"],
)
def test_value_that_is_no_jax_array(path, saved, fresh):
    """Scalars, text, None and NumPy values return as the type they were."""
    ones = jnp.ones(1)
    save(path, Holder(value=Average(saved), other=nnx.Param(ones)))

    target = Holder(value=Average(fresh), other=nnx.Param(ones))
    loaded = load(path, target).value.get_value()

    assert type(loaded) is type(saved)
    np.testing.assert_array_equal(loaded, saved)


def test_tree_inside_a_variable(path):
    """A Variable that holds a tree gets a tree of the same containers."""
    saved = {"moments": (jnp.ones(2), [jnp.zeros(1), 4]), "none": None}
    fresh = {"moments": (jnp.zeros(2), [jnp.ones(1), 0]), "none": None}
    save(path, Holder(value=Average(saved)))

    loaded = load(path, Holder(value=Average(fresh))).value.get_value()

    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    np.testing.assert_array_equal(loaded["moments"][0], saved["moments"][0])
    assert loaded["moments"][1][1] == 4


@pytest.mark.parametrize("kind", ["hijax", "ref"])
def test_mutable_variables(path, kind):
    """Variables that are mutable arrays are saved by value and stay mutable."""
    save(path, Holder(value=nnx.Param(jnp.arange(3.0), **{kind: True})))

    target = Holder(value=nnx.Param(jnp.zeros(3), **{kind: True}))
    loaded = load(path, target)

    np.testing.assert_array_equal(loaded.value.get_value(), jnp.arange(3.0))
    assert loaded.value.get_metadata()[kind]


def test_counter_that_became_an_array(path):
    """A Python number before the first jitted step takes the array after it."""
    save(path, Holder(step=Average(jnp.asarray(5))))
    assert load(path, Holder(step=Average(0))).step.get_value() == 5


@pytest.mark.parametrize("weak", [True, False])
def test_weak_type_of_a_scalar_returns(path, weak):
    """Promotion after a load is that of the run: weak scalars stay weak."""
    scalar = jnp.asarray(1.5) if weak else jnp.asarray(1.5, jnp.float32)
    save(path, Holder(rate=Average(scalar)))

    loaded = load(path, Holder(rate=Average(jnp.zeros((), jnp.float32))))

    assert loaded.rate.get_value().weak_type == weak


def test_object_in_a_variable_is_refused(path):
    """A value that no checkpoint can hold is named, and nothing is written."""
    with pytest.raises(UnsupportedLeafError, match="value: object"):
        save(path, Holder(value=Average(object())))
    assert not path.exists()


# PRNG keys.


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys(path, impl):
    """Keys return with their implementation, whatever the default one is."""
    key = jax.random.key(3, impl=impl)
    save(path, Holder(key=nnx.RngKey(key, tag="noise")))

    fresh = nnx.RngKey(jax.random.key(0, impl=impl), tag="noise")
    loaded = load(path, Holder(key=fresh)).key.get_value()

    assert loaded.dtype == key.dtype
    assert not loaded.committed
    np.testing.assert_array_equal(jax.random.key_data(loaded), jax.random.key_data(key))


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="unsafe_rbg")),
        (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="threefry2x32")),
        (jax.random.key(0), jax.random.PRNGKey(0)),
        (jax.random.PRNGKey(0), jax.random.key(0)),
    ],
    ids=["rbg-unsafe_rbg", "rbg-threefry", "typed-legacy", "legacy-typed"],
)
def test_other_key_implementation_is_refused(path, saved, asked):
    """Keys are never reinterpreted."""
    save(path, Holder(key=Average(saved)))
    with pytest.raises(TreeMismatchError, match=r"key .*asked .*stored"):
        load(path, Holder(key=Average(asked)))


# Which Variables.


def caching(seed):
    """A parameter beside what a call leaves behind."""
    return Holder(
        weight=nnx.Param(jnp.full(1, float(seed))),
        cache=nnx.Cache(jnp.full(1, float(seed))),
        seen=nnx.Intermediate(jnp.full(1, float(seed))),
    )


def test_caches_and_intermediates_stay_out(path):
    """What the next call computes again is neither saved nor touched by a load."""
    save(path, caching(0))

    loaded = load(path, caching(7))

    assert set(load_plain(path)) == {"weight"}
    assert (float(loaded.weight[0]), float(loaded.cache[0])) == (0.0, 7.0)
    assert read_document(path)["excluded"] == [
        "flax.nnx:Cache",
        "flax.nnx:Intermediate",
    ]


def test_nothing_is_left_out_if_asked(path):
    """`exclude=None` saves caches too."""
    save(path, caching(0), exclude=None)
    assert set(load_plain(path)) == {"weight", "cache", "seen"}


def test_only_some_are_saved(path):
    """`only=` saves the Variables that pass the filter."""
    model = Holder(base=nnx.Param(jnp.ones(1)), lora=nnx.LoRAParam(jnp.ones(1)))
    save(path, model, only=nnx.LoRAParam)
    assert set(load_plain(path)) == {"lora"}


def test_only_some_are_loaded(path):
    """`only=` on load leaves the rest of the module and of the item alone."""

    def build(value):
        return Holder(
            base=nnx.Param(jnp.full(1, value)), lora=nnx.LoRAParam(jnp.full(1, value))
        )

    save(path, build(1.0))
    loaded = load(path, build(0.0), only=nnx.LoRAParam)

    assert (float(loaded.base[0]), float(loaded.lora[0])) == (0.0, 1.0)


def test_optimizer_is_sent_to_the_other_adapter():
    """An optimizer is refused, because its kind could not be checked."""
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    with pytest.raises(HandlerError, match="stowax_optax"):
        stowax_flax.Module(optimizer)


# Shared Variables.


class Tied(nnx.Module):
    """Two attributes, one Variable or two."""

    def __init__(self, first, second, values):
        variables = [nnx.Param(jnp.full(2, value)) for value in values]
        setattr(self, first, variables[0])
        setattr(self, second, variables[-1])


def test_shared_variables_are_stored_once(path):
    """Tied weights take the space of one, and the document names the alias."""
    save(path, Tied("embed", "head", [1.0]))
    assert set(load_plain(path)) == {"embed"}
    assert read_document(path)["aliases"] == [[["embed"], ["head"]]]


@pytest.mark.parametrize(
    ("before", "after"), [("head", "a_head"), ("a_head", "head")], ids=str
)
def test_alias_is_renamed(path, before, after):
    """Tied weights are found when the attribute that sorts first changes its name."""
    save(path, Tied("embed", before, [1.0]))

    loaded = load(path, Tied("embed", after, [0.0]))

    assert float(loaded.embed[0]) == 1.0
    assert getattr(loaded, after) is loaded.embed


def test_shared_module_is_renamed(path):
    """The weights of a shared submodule are found under its other name."""

    class Shared(nnx.Module):
        def __init__(self, other, seed):
            self.decoder = nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
            setattr(self, other, self.decoder)

    model = Shared("a_encoder", 0)
    save(path, model)
    assert set(load_plain(path)) == {"a_encoder"}

    loaded = load(path, Shared("encoder", 7))

    assert_same(
        {"kernel": np.asarray(loaded.encoder.kernel[...])},
        {"kernel": np.asarray(model.decoder.kernel[...])},
    )


def test_weights_that_were_tied(path):
    """A module that no longer ties gets two arrays of its own."""
    save(path, Tied("embed", "head", [1.0]))

    loaded = load(path, Tied("embed", "head", [0.0, 0.0]))

    assert float(loaded.embed[0]) == float(loaded.head[0]) == 1.0
    loaded.embed.get_value().delete()
    assert float(loaded.head[0]) == 1.0


def test_weights_that_were_tied_on_a_mesh(path, mesh):
    """Arrays that are loaded once and needed twice become two, on any mesh."""
    spread = jax.NamedSharding(mesh, jax.P("model"))
    save(path, Tied("embed", "head", [1.0]))
    model = Tied("embed", "head", [0.0, 0.0])
    for variable in (model.embed, model.head):
        variable.set_value(jax.device_put(variable.get_value(), spread))

    load(path, model)

    model.embed.get_value().delete()
    assert model.head.get_value().sharding == spread
    assert float(model.head[0]) == 1.0


def test_weights_that_are_tied_now(path):
    """Weights that were apart but equal can be tied."""
    save(path, Tied("embed", "head", [1.0, 1.0]))
    assert float(load(path, Tied("embed", "head", [0.0])).head[0]) == 1.0


def test_different_weights_cannot_be_tied(path):
    """Of two different arrays none is dropped in silence."""
    save(path, Tied("embed", "head", [1.0, 2.0]))
    model = Tied("embed", "head", [0.0])

    with pytest.raises(TreeMismatchError, match="embed and head"):
        load(path, model)
    assert float(model.embed[0]) == 0.0


# What does not fit.


def test_every_problem_is_named_and_nothing_changes(path):
    """Missing, extra, shape, dtype and type problems come in one error."""
    save(
        path,
        Holder(
            fits=nnx.Param(jnp.ones(1)),
            shape=nnx.Param(jnp.ones(3)),
            dtype=nnx.Param(jnp.ones(1)),
            kind=Average(jnp.ones(1)),
            extra=nnx.Param(jnp.ones(2)),
        ),
    )
    model = Holder(
        fits=nnx.Param(jnp.zeros(1)),
        shape=nnx.Param(jnp.zeros(5)),
        dtype=nnx.Param(jnp.zeros(1, jnp.bfloat16)),
        kind=nnx.BatchStat(jnp.zeros(1)),
        missing=nnx.Param(jnp.zeros(4)),
    )
    before = values(model)

    with pytest.raises(TreeMismatchError) as caught:
        load(path, model)

    assert [line.split()[0] for line in caught.value.problems] == [
        "dtype",
        "extra",
        "kind",
        "missing",
        "shape",
    ]
    message = str(caught.value)
    assert "asked float32[5]   stored float32[3]" in message
    assert "asked bfloat16[1]   stored float32[1]" in message
    assert "asked flax.nnx:BatchStat" in message
    assert_same(values(model), before)


def test_type_that_moved_between_modules(path):
    """A Variable type of the user's is known by its name, wherever it is defined."""
    save(path, Holder(value=Average(jnp.ones(1))))
    elsewhere = type("Average", (nnx.Variable,), {"__module__": "elsewhere"})
    assert load(path, Holder(value=elsewhere(jnp.zeros(1)))).value[0] == 1


def test_tree_without_a_document(path):
    """An item that is a tree alone loads; shapes and names are checked, types not."""
    stowax.save_checkpointables(path, {"model": {"w": jnp.ones(2), "l": [jnp.ones(1)]}})

    def build(shape):
        return Holder(
            w=Average(jnp.zeros(shape)), l=nnx.List([nnx.Param(jnp.zeros(1))])
        )

    assert float(load(path, build(2)).w[1]) == 1.0
    with pytest.raises(TreeMismatchError, match=r"w   asked float32\[3\]"):
        load(path, build(3))


# Placement.


@pytest.fixture
def mesh():
    """Four by two devices."""
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(auto, auto))


def test_values_arrive_with_the_shardings_of_the_module(path, mesh):
    """A module on a mesh is filled on that mesh, whatever it was saved on."""
    save(path, Holder(weight=nnx.Param(jnp.arange(8.0))))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    target = Holder(weight=nnx.Param(jax.device_put(jnp.zeros(8), spread)))

    loaded = load(path, target).weight.get_value()

    assert loaded.sharding == spread
    np.testing.assert_array_equal(loaded, np.arange(8.0))


def test_fresh_counters_mix_with_sharded_parameters(path, mesh):
    """After a load, counters and keys meet arrays of any mesh in one jitted call."""
    spread = jax.NamedSharding(mesh, jax.P("data"))

    def build():
        return Holder(
            weight=nnx.Param(jax.device_put(jnp.ones(8), spread)),
            step=Average(jnp.zeros((), jnp.int32)),
            rngs=nnx.Rngs(0),
        )

    save(path, build())
    model = load(path, build())

    @nnx.jit
    def advance(model):
        model.step[...] += 1
        return (model.weight[...] + model.rngs.default.key[...].size).sum()

    assert float(advance(model)) == 16.0
    assert int(model.step[...]) == 1


def test_memory_is_not_shared_between_runs(path):
    """Donating a loaded array leaves every other one alone."""
    save(path, Network(0))
    model = load(path, Network(7))
    before = values(model)

    model.layers[0].kernel.get_value().delete()

    for name, value in values_except(model, ("layers", 0, "kernel")).items():
        np.testing.assert_array_equal(value, before[name])


def values_except(module, left_out):
    """The parameters, without the one that is gone."""
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {p: np.asarray(v.get_value()) for p, v in state if p != left_out}


# The document.


def test_document_describes_every_leaf(path):
    """`nnx.json` holds the types, the PRNG implementation and plain metadata."""
    save(path, Network(0))

    document = read_document(path)
    entries = {tuple(entry["path"]): entry for entry in document["leaves"]}

    assert document["format"] == 1
    assert document["kind"] == "flax.nnx"
    assert entries["layers", 0, "kernel"]["variable"] == "flax.nnx:Param"
    assert entries["dropout", "rngs", "key"]["prng_impl"] == "threefry2x32"
    assert entries["average",]["variable"].endswith(":Average")
    assert entries["average",]["meta"] == {"decay": 0.9}
    assert "variable" not in entries["bare",]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"format": 2, "kind": "flax.nnx"}', InvalidLayoutError),
        ('{"format": 1, "kind": "optax"}', InvalidLayoutError),
        ("{", CorruptCheckpointError),
        ('{"format": 1, "kind": "flax.nnx"}', CorruptCheckpointError),
        (
            '{"format": 1, "kind": "flax.nnx", "aliases": [], "leaves": [{}]}',
            CorruptCheckpointError,
        ),
        (
            '{"format": 1, "kind": "flax.nnx", "aliases": [], "leaves": [{"path": 1}]}',
            CorruptCheckpointError,
        ),
    ],
)
def test_document_is_read_strictly(tmp_path, text, error):
    """An unknown version, another kind or a damaged document is an error."""
    # Not in a checkpoint, where digests would find the other text first.
    module = stowax_flax.Module(Holder(weight=nnx.Param(jnp.ones(2))))

    async def write_and_load():
        await (await PyTreeHandler().save(tmp_path, {"weight": jnp.ones(2)}))
        (tmp_path / "nnx.json").write_text(text)
        await module.load(tmp_path)

    with pytest.raises(error, match=r"nnx\.json"):
        asyncio.run(write_and_load())
