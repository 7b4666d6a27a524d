"""Restores beside those of Orbax: the same checkpoint, the same arguments."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import Point, shardings

import stowax
from stowax._runtime import drive
from stowax.errors import TreeMismatchError
from stowax.handlers import PyTreeHandler
from stowax.v0 import (
    _arguments,
    _flat,
    _restore_args,
    _targets,
    _transformed,
    transform_utils,
)

ocp = pytest.importorskip("orbax.checkpoint")

HOST = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)

ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[3])

STATE = {
    "w": jax.device_put(HOST, shardings()["both"]),
    "v": jnp.arange(1.0, 7.0),
    "half": jnp.arange(4, dtype=jnp.bfloat16),
    "zero": jnp.float32(2.5),
    "host": np.arange(1, 5),
    "step": 3,
    "rate": 1.5,
    "name": "text",
    "nothing": None,
    "pair": Point(np.ones(2), [np.zeros(3), 7]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The state, as Orbax v0 writes it."""
    path = tmp_path_factory.mktemp("restore") / "checkpoint"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, STATE)
    return path


class Ours:
    """The words of the older API, and a restore by them, here."""

    arguments = _arguments
    transforms = transform_utils
    construct_restore_args = staticmethod(_restore_args.construct_restore_args)

    @staticmethod
    def restore(path, item=None, restore_args=None, is_partial=False, **transformed):
        handler = PyTreeHandler()

        async def work():
            stored = await handler.metadata(path)
            if transformed:
                plan = _transformed.plan_transformed(
                    item, restore_args, stored=stored, **transformed
                )
            else:
                plan = _targets.plan_restore(
                    item, restore_args, stored, is_partial=is_partial
                )
            context = stowax.Context()
            context.array.loading.enable_padding_and_truncation = plan.pads
            context.pytree.loading.partial_load = plan.is_partial
            loading = await PyTreeHandler(context=context).load(path, plan.abstract)
            return plan.finish(await loading)

        return drive(work())


class Theirs:
    """The same there."""

    arguments = ocp.type_handlers
    transforms = ocp
    construct_restore_args = staticmethod(ocp.checkpoint_utils.construct_restore_args)

    @staticmethod
    def restore(path, item=None, restore_args=None, is_partial=False, **transformed):
        names = {"default_to_original": "transforms_default_to_original"}
        given = {names.get(name, name): value for name, value in transformed.items()}
        args = ocp.args.PyTreeRestore(
            item=item, restore_args=restore_args, partial_restore=is_partial, **given
        )
        return ocp.PyTreeCheckpointHandler().restore(path, args=args)


def both(ask, path):
    """What both libraries answer."""
    with warnings.catch_warnings():
        # What a conversion loses is told here, and not there.
        warnings.simplefilter("ignore")
        return [told(ask(library, path)) for library in (Ours, Theirs)]


def told(tree):
    """A tree bit for bit, with the kind and the place of every leaf."""

    def tell(leaf):
        place = None
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            place = leaf.sharding
        if isinstance(leaf, np.ndarray | jax.Array):
            kind = "jax" if isinstance(leaf, jax.Array) else "numpy"
            data = np.asarray(leaf)
            return kind, data.dtype.name, data.shape, data.tobytes(), place
        return type(leaf), repr(leaf)

    return jax.tree.map(tell, tree, is_leaf=lambda leaf: leaf is ...)


def args_tree(library, **given):
    """A `RestoreArgs` for every leaf, in the containers that documents can say."""
    plain = {**STATE, "pair": STATE["pair"]._asdict()}
    made = library.arguments.RestoreArgs()
    return {**jax.tree.map(lambda _: made, plain), **given}


ONE_LEAF = {
    "numpy": ("RestoreArgs", {"restore_type": np.ndarray}),
    "numpy, cast": ("RestoreArgs", {"restore_type": np.ndarray, "dtype": np.float64}),
    "cast": ("RestoreArgs", {"dtype": np.float16}),
    "as stored": ("RestoreArgs", {}),
    "jax": ("ArrayRestoreArgs", {"sharding": ONE_DEVICE}),
    "jax, cast": (
        "ArrayRestoreArgs",
        {"sharding": ONE_DEVICE, "dtype": jnp.bfloat16},
    ),
    "mesh": (
        "ArrayRestoreArgs",
        {"mesh": shardings()["both"].mesh, "mesh_axes": P()},
    ),
    "int": ("RestoreArgs", {"restore_type": int}),
    "float": ("RestoreArgs", {"restore_type": float}),
    "float, cast": ("RestoreArgs", {"restore_type": float, "dtype": np.float16}),
    "int, cast": ("RestoreArgs", {"restore_type": int, "dtype": np.int8}),
    "float of int": ("RestoreArgs", {"restore_type": float, "dtype": np.int8}),
    "number": ("RestoreArgs", {"restore_type": np.float32}),
    "string": ("RestoreArgs", {"restore_type": str}),
    "left out": ("RestoreArgs", {"restore_type": type(...)}),
}


ARRAYS, NUMBERS = ("w", "v", "half", "host"), ("zero", "step", "rate")
LEAVES = (*ARRAYS, *NUMBERS, "name")
OF_NUMBERS = ("int", "float", "float, cast", "int, cast", "float of int", "number")


def is_possible(name, asked):
    """Whether one leaf can become what is asked for; the same in both libraries."""
    if asked in ("cast", "as stored", "left out"):
        return True
    if asked == "string" or name == "name":
        return asked == "string" and name == "name"
    return name in NUMBERS or asked not in OF_NUMBERS


PAIRS = [(name, asked) for name in LEAVES for asked in ONE_LEAF]


def restore_one(library, path, name, asked):
    """Restores one leaf in a certain way, and all others as they are stored."""
    cls, arguments = ONE_LEAF[asked]
    made = getattr(library.arguments, cls)(**arguments)
    return library.restore(path, None, args_tree(library, **{name: made}))[name]


@pytest.mark.parametrize(
    ("name", "asked"), [pair for pair in PAIRS if is_possible(*pair)]
)
def test_one_leaf(path, name, asked):
    """Every kind of leaf, restored as every other kind that it can become."""
    ours, theirs = both(
        lambda library, path: restore_one(library, path, name, asked), path
    )

    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "asked"), [pair for pair in PAIRS if not is_possible(*pair)]
)
def test_what_a_leaf_cannot_become(path, name, asked):
    """The message names the leaf, where Orbax names a file or nothing."""
    with pytest.raises(TreeMismatchError, match=rf"(?m)^  {name}: asked"):
        restore_one(Ours, path, name, asked)


def test_all_as_it_is_stored(path):
    """Without an item and arguments."""
    ours, theirs = both(lambda library, path: library.restore(path), path)

    assert ours == theirs


ITEMS = {
    "same": STATE,
    "numbers": jax.tree.map(lambda _: 0, STATE),
    "other arrays": jax.tree.map(lambda _: np.zeros((3, 3), np.int8), STATE),
    "abstract": jax.tree.map(lambda _: jax.ShapeDtypeStruct((9,), np.int8), STATE),
    "placeholders": {**STATE, "w": ..., "pair": Point(..., [np.zeros(3), ...])},
}


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_is_a_structure(path, item):
    """What stands in it does not count, if no argument is given."""
    ours, theirs = both(lambda library, path: library.restore(path, ITEMS[item]), path)

    assert ours == theirs


def test_an_item_without_its_place(path):
    """The leaves of an item and those that are stored have to be the same."""
    item = {key: value for key, value in STATE.items() if key != "rate"}

    with pytest.raises(TreeMismatchError, match="rate"):
        Ours.restore(path, item)


def test_part_of_it(path):
    """With `partial_restore` an item may leave out leaves, or have more of them."""
    item = {"w": 0, "pair": Point(0, [0, 0]), "new": np.zeros(2)}

    ours, theirs = both(
        lambda library, path: library.restore(path, item, is_partial=True), path
    )

    assert ours == theirs


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"w": {"x": {"y": np.zeros(2)}}}, "w.x.y"),
        ({"pair": np.zeros(2)}, "pair"),
        ({"pair": {"x": np.zeros(2)}, "w": 0}, None),
        ({"pair": [np.zeros(2)], "w": 0}, "pair.0"),
    ],
    ids=str,
)
def test_something_else_in_its_place(path, item, name):
    """What a partial restore does not find is new only if nothing else is there."""
    if name is None:
        assert Ours.restore(path, item, is_partial=True).keys() == item.keys()
        return
    with pytest.raises(TreeMismatchError, match=name):
        Ours.restore(path, item, is_partial=True)
    with pytest.raises((TypeError, ValueError)):
        Theirs.restore(path, item, is_partial=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"global_shape": (8, 16)},
        {"shape": (8, 16)},
        {"strict": False},
        {"global_shape": (10, 12), "strict": False},
        {"global_shape": (4, 20), "strict": False, "dtype": jnp.bfloat16},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_item", [False, True])
def test_shapes(path, arguments, has_item):
    """An array of JAX is cut or padded only if its arguments say so."""
    item = None
    if has_item:
        item = {**STATE, "w": jax.ShapeDtypeStruct((8, 16), jnp.float16)}

    def ask(library, path):
        args = args_tree(library) if item is None else of(library, STATE)
        args["w"] = library.arguments.ArrayRestoreArgs(
            sharding=shardings()["replicated"], **arguments
        )
        return library.restore(path, item, args)

    ours, theirs = both(ask, path)

    assert ours == theirs


def of(library, tree):
    """A `RestoreArgs` for every leaf of a tree."""
    return jax.tree.map(lambda _: library.arguments.RestoreArgs(), tree)


@pytest.mark.parametrize("is_other_cut", [False, True])
def test_a_strict_leaf_keeps_its_shape(path, is_other_cut):
    """That another array may be cut is no permission; the message names the leaf."""
    cut = Ours.arguments.ArrayRestoreArgs(shape=(2,), strict=not is_other_cut)
    args = args_tree(Ours, v=cut, half=Ours.arguments.ArrayRestoreArgs(shape=(3,)))

    with pytest.raises(TreeMismatchError, match=r"(?m)^  half: asked"):
        Ours.restore(path, None, args)


def test_a_strict_item_gives_shapes(path):
    """Under strict arguments the shape of the item counts."""
    item = {**STATE, "v": jax.ShapeDtypeStruct((5,), jnp.float32)}
    args = {**of(Ours, STATE), "v": Ours.arguments.ArrayRestoreArgs()}

    with pytest.raises(TreeMismatchError, match=r"(?m)^  v: asked float32\[5\]"):
        Ours.restore(path, item, args)


def test_an_item_without_axes(path):
    """An array without axes gives no dtype, as one with axes does."""
    item = {
        **STATE,
        "zero": jax.ShapeDtypeStruct((), jnp.float16),
        "v": jax.ShapeDtypeStruct((6,), jnp.float16),
    }

    def ask(library, path):
        made = library.arguments.ArrayRestoreArgs(sharding=ONE_DEVICE)
        args = {**of(library, STATE), "zero": made, "v": made}
        return library.restore(path, item, args)

    ours, theirs = both(ask, path)

    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"set_global_shape": False},
        {"strict": False},
        {"sharding_tree": jax.tree.map(lambda _: shardings()["replicated"], STATE)},
    ],
    ids=lambda options: ",".join(options) or "usual",
)
@pytest.mark.parametrize(
    "target",
    [
        STATE,
        jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                if hasattr(leaf, "shape")
                else leaf
            ),
            STATE,
        ),
        {**STATE, "w": jax.ShapeDtypeStruct((8, 16), jnp.int8, sharding=ONE_DEVICE)},
        {**STATE, "v": ...},
    ],
    ids=["arrays", "abstract", "sharded", "placeholder"],
)
def test_constructed_arguments(path, target, options):
    """The arguments that a target makes, and what they restore."""

    def ask(library, path):
        args = library.construct_restore_args(target, **options)
        return library.restore(path, target, args)

    def told_args(library):
        args = library.construct_restore_args(target, **options)
        return jax.tree.map(lambda each: (type(each).__name__, vars(each)), args)

    assert told_args(Ours) == told_args(Theirs)
    ours, theirs = both(ask, path)
    assert ours == theirs


TRANSFORMS = {
    "none": lambda library: {},
    "renamed": lambda library: {
        "new": library.transforms.Transform(original_key="v"),
        r"layers/(x|y)": library.transforms.Transform(original_key=r"pair/\1"),
    },
    "functions": lambda library: {
        "new": library.transforms.Transform(
            original_key="host", value_fn=lambda host: host * 2
        ),
        "step": library.transforms.RestoreTransform(value_fn=lambda step: step + 1),
    },
    "fallback": lambda library: {
        "step": library.transforms.Transform(use_fallback=True),
        "w": library.transforms.Transform(use_fallback=True),
    },
    "several": lambda library: {
        "new": library.transforms.RestoreTransform(
            multi_value_fn=lambda key, tree, args: (
                tree["v"].sum() + tree["pair"]["y"][1] + len(key + str(args.dtype))
            ),
            multi_value_fn_input_args={
                "v": library.arguments.RestoreArgs(restore_type=np.ndarray),
                "pair/y/.": library.arguments.RestoreArgs(),
            },
        )
    },
}


@pytest.mark.parametrize("default_to_original", [True, False])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformations(path, name, default_to_original):
    """Only what the result is made of is restored, in the way that it asks for."""
    item = {"w": 1, "step": 2, "new": 3, "kept": np.ones(2), "none": None}
    if name == "renamed":
        item["layers"] = {"x": 4}

    def ask(library, path):
        args = of(library, item)
        args["new"] = library.arguments.RestoreArgs(dtype=np.float64)
        return library.restore(
            path,
            item,
            args,
            transforms=TRANSFORMS[name](library),
            default_to_original=default_to_original,
        )

    ours, theirs = both(ask, path)

    assert ours == theirs


@pytest.mark.parametrize(
    ("default_to_original", "needed"), [(True, {"a", "c/0"}), (False, {"b", "c/0"})]
)
def test_what_is_not_needed_is_not_loaded(default_to_original, needed):
    """Leaves that no key of the result is made of are placeholders in the load."""
    plan = _transformed.plan_transformed(
        {"a": 0, "b": 0, "new": 0},
        None,
        {
            "b": transform_utils.Transform(use_fallback=True),
            "new": transform_utils.Transform(original_key="c/0"),
        },
        {"a": 0, "b": 0, "c": [0, 0], "unused": 0},
        default_to_original=default_to_original,
    )

    loaded = _flat.to_flat_dict(plan.abstract, sep="/")
    assert {key for key, target in loaded.items() if target is not ...} == needed


def test_what_a_function_looks_at_is_said():
    """A restore does not guess which leaves a function of several needs."""
    transform = transform_utils.Transform(multi_value_fn=lambda key, tree: 0)

    with pytest.raises(ValueError, match="multi_value_fn_input_args"):
        _transformed.plan_transformed({"a": 0}, None, {"a": transform}, {"a": 0})


def test_transformations_are_of_an_item():
    """Without one, nobody knows the keys of the result."""
    with pytest.raises(ValueError, match="item"):
        _transformed.plan_transformed(None, None, {}, {"a": 0})


def test_arguments_for_every_leaf():
    """One that is forgotten is named, and so is one that is none."""
    with pytest.raises(TreeMismatchError, match=r"1 of 2 leaves:\n  b\.0"):
        _targets.plan_restore(None, {"a": None}, {"a": 0, "b": [0]})
    with pytest.raises(TypeError, match=r"'a'.*RestoreArgs"):
        _targets.plan_restore(None, {"a": np.ndarray}, {"a": 0})


@pytest.fixture(scope="module")
def keys_path(tmp_path_factory):
    """Typed PRNG keys, as Orbax v0 writes them."""
    path = tmp_path_factory.mktemp("keys") / "checkpoint"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, KEYS)
    return path


KEYS = {
    "one": jax.random.key(7),
    "many": jax.device_put(
        jax.random.split(jax.random.key(1), 8),
        NamedSharding(shardings()["rows"].mesh, P("x")),
    ),
}


def test_typed_keys(keys_path):
    """Arguments made of keys, which describe their key data, restore keys."""

    def ask(library, path):
        args = library.construct_restore_args(KEYS)
        loaded = library.restore(path, KEYS, args)
        return [tell_keys(loaded), jax.tree.map(vars, args)]

    ours, theirs = both(ask, keys_path)

    assert ours == theirs


def tell_keys(tree):
    """What typed PRNG keys are, of which NumPy has no arrays."""
    return jax.tree.map(
        lambda key: (jax.random.key_data(key), key.shape, str(key.dtype)), tree
    )


def test_typed_keys_that_are_abstract(keys_path):
    """Arguments made of abstract keys say where they go, and no shape."""
    target = jax.tree.map(
        lambda key: jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=ONE_DEVICE),
        KEYS,
    )

    def ask(library, path):
        args = library.construct_restore_args(target)
        shapes = {name: each.global_shape for name, each in args.items()}
        return [tell_keys(library.restore(path, target, args)), shapes]

    ours, theirs = both(ask, keys_path)

    assert ours == theirs


def test_typed_keys_by_the_sharding_of_their_data(keys_path):
    """It may say something of the axis that keys do not have."""
    sharding = shardings()["both"]
    args = {
        "one": Ours.arguments.RestoreArgs(),
        "many": Ours.arguments.ArrayRestoreArgs(sharding=sharding),
    }

    loaded = Ours.restore(keys_path, None, args)

    assert loaded["many"].sharding.spec == P("x")
    for name, keys in KEYS.items():
        data = [np.asarray(jax.random.key_data(each)) for each in (keys, loaded[name])]
        np.testing.assert_array_equal(*data)


def test_typed_keys_as_numbers(keys_path):
    """As NumPy they are their key data."""

    def ask(library, path):
        args = library.arguments.RestoreArgs(restore_type=np.ndarray)
        return library.restore(path, None, dict.fromkeys(KEYS, args))

    ours, theirs = both(ask, keys_path)

    assert ours == theirs
