"""What tests save: every kind of leaf and container; and how they see it come back.

All comparisons are bit for bit, so that -0.0, NaN payloads and dtypes count.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

JAX_DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "complex64"),
    *("float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    *("int2", "int4"),
]
"""dtypes of `jax.Array` without the 64-bit mode, which TensorStore knows too."""

NUMPY_DTYPES = [*JAX_DTYPES, "int64", "uint64", "float64", "complex128"]

OWN_DTYPES = ["float8_e4m3", "int1", "uint1", "uint2", "uint4"]
"""dtypes that JAX has and TensorStore, and so Orbax, has not: uint8 to both."""

HOST_DTYPES = ["float6_e2m3fn", "float6_e3m2fn"]
"""dtypes that JAX has a name for, but no arrays; NumPy has some; uint8 to Orbax."""


_WIDTHS = {
    **dict.fromkeys(("int1", "uint1"), 1),
    **dict.fromkeys(("int2", "uint2"), 2),
    **dict.fromkeys(("int4", "uint4", "float4_e2m1fn"), 4),
    **dict.fromkeys(HOST_DTYPES, 6),
}


class Point(NamedTuple):
    x: Any
    y: Any


class Nothing(NamedTuple):
    """A container without children, as `optax.EmptyState`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Variables(dict):
    """A mapping that is a container of its own kind, as Flax has them."""

    def tree_flatten_with_keys(self):
        keys = sorted(self)
        named = [(jax.tree_util.DictKey(key), self[key]) for key in keys]
        return named, tuple(keys)

    @classmethod
    def tree_unflatten(cls, keys, children):
        return cls(zip(keys, children, strict=True))


@jax.tree_util.register_pytree_node_class
class Pair:
    """A container whose children have no names."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def tree_flatten(self):
        return (self.first, self.second), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def dtype(name: str) -> np.dtype:
    """The dtype, one of `ml_dtypes` included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def bits(dtype_name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Every pattern of bits counts, NaN and infinities included."""
    kind = dtype(dtype_name)
    random = np.random.default_rng([seed, *shape, len(dtype_name)])
    if dtype_name == "bool":
        return random.integers(0, 2, shape).astype(kind)
    if (width := _WIDTHS.get(dtype_name)) is not None:
        # Less than 8 bits: an element takes a byte, the upper bits of which are zero.
        return np.asarray(random.integers(0, 2**width, shape), np.uint8).view(kind)
    count = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(random.bytes(count), kind).reshape(shape).copy()


def mesh(*shape: int) -> jax.sharding.Mesh:
    """A mesh over the first devices, with axes "x", "y", "z"."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, ("x", "y", "z")[: len(shape)])


def shardings() -> dict[str, NamedSharding]:
    """Ways to lay an array of shape (8, 16) out over 8 devices."""
    square, line = mesh(4, 2), mesh(8)
    return {
        "rows": NamedSharding(line, P("x")),
        "columns": NamedSharding(line, P(None, "x")),
        "both": NamedSharding(square, P("x", "y")),
        "swapped": NamedSharding(square, P("y", "x")),
        "fused": NamedSharding(square, P(("x", "y"))),
        "half": NamedSharding(square, P("y")),
        "replicated": NamedSharding(square, P()),
        "two": NamedSharding(mesh(2), P("x")),
    }


def sharded_arrays() -> dict[str, jax.Array]:
    """One array per sharding; no transfer needs a compilation."""
    host = bits("float32", (8, 16))
    return {name: jax.device_put(host, s) for name, s in shardings().items()}


def keys() -> dict[str, jax.Array]:
    """Typed PRNG keys: two implementations, alone, in a batch, over devices."""
    line = NamedSharding(mesh(8), P("x"))
    data = bits("uint32", (8, 2))
    return {
        "threefry": jax.random.wrap_key_data(data[0], impl="threefry2x32"),
        "rbg": jax.random.wrap_key_data(bits("uint32", (4,)), impl="rbg"),
        "batch": jax.random.wrap_key_data(data, impl="threefry2x32"),
        "sharded": jax.device_put(
            jax.random.wrap_key_data(data, impl="threefry2x32"), line
        ),
    }


def numpy_arrays() -> dict[str, np.ndarray]:
    """Every dtype, and every way an array may lie in memory."""
    base = bits("float32", (6, 8))
    return {
        **{
            f"dtype_{name}": bits(name, (2, 3))
            for name in (*NUMPY_DTYPES, *OWN_DTYPES, *HOST_DTYPES)
        },
        "zero_d": np.array(3.5, np.float32),
        "empty": np.zeros((0, 3), np.int32),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(np.float32(2.0), (3, 4)),
        "scalar": np.float32(1.5),
    }


def scalars() -> dict[str, Any]:
    """Python numbers, those at the edges included."""
    return {
        "true": True,
        "false": False,
        "zero": 0,
        "large": 2**63 - 1,
        "small": -(2**63),
        "larger": 2**64 - 1,
        "beyond": 2**64,
        "below": -(2**63) - 1,
        "pi": 3.141592653589793,
        "minus_zero": -0.0,
        "nan": float("nan"),
        "inf": -float("inf"),
        "complex": complex(1.5, -0.0),
    }


def strings() -> dict[str, str]:
    """Strings of all sorts."""
    return {
        "empty": "",
        "word": "word",
        "unicode": "Größe 雪 🧊",
        "nul": "a\0b",
        "lines": "a\nb\r\n",
        "json": '{"a": [1]}',
        "long": "x" * 5000,
    }


def byte_strings() -> dict[str, bytes]:
    """Bytes of all sorts."""
    return {
        "empty": b"",
        "nul": b"a\0b\0",
        "all": bytes(range(256)),
        "long": b"x" * 5000,
    }


def jax_arrays() -> dict[str, jax.Array]:
    """Every dtype, and every shape that is special."""
    return {
        **{
            f"dtype_{name}": jax.device_put(bits(name, (2, 3)))
            for name in (*JAX_DTYPES, *OWN_DTYPES)
        },
        "zero_d": jax.device_put(np.float32(-0.0)),
        "empty": jax.device_put(np.zeros((3, 0, 2), np.int8)),
        "one": jax.device_put(np.ones((1, 1, 1), np.float32)),
        "other_device": jax.device_put(np.arange(4), jax.devices()[3]),
    }


def containers() -> dict[str, Any]:
    """Containers of all kinds, empty ones included."""
    array = jax.device_put(bits("float32", (2, 2)))
    return {
        "dict": {"b": 1, "a": {"c": array}},
        "int_keys": {0: 1, 10: 2, 9: 3},
        "list": [1, [array, "two"], 3],
        "tuple": (1, (array,), [2]),
        "namedtuple": Point(x=array, y=Point(1, 2)),
        "dataclass": Layer(kernel=array, bias=1.5),
        "custom": Variables(w=array, deep=Variables(b=2)),
        "unnamed": Pair(array, 2),
        "none": None,
        "empty": [{}, [], (), Nothing(), None],
    }


def all_kinds() -> dict[str, dict[str, Any]]:
    """Everything above, by family."""
    return {
        "jax": jax_arrays(),
        "sharded": sharded_arrays(),
        "keys": keys(),
        "numpy": numpy_arrays(),
        "scalars": scalars(),
        "strings": strings(),
        "bytes": byte_strings(),
        "containers": containers(),
    }


def plain(tree: Any) -> Any:
    """The containers that a load without an abstract state gives."""
    if isinstance(tree, Layer):
        return {"kernel": plain(tree.kernel), "bias": plain(tree.bias)}
    if isinstance(tree, Pair):
        return [plain(tree.first), plain(tree.second)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {k: plain(v) for k, v in tree._asdict().items()} or None
    if isinstance(tree, dict):
        return {key: plain(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(plain(child) for child in tree)
    return tree


def abstract(tree: Any) -> Any:
    """The abstract state that asks for exactly this tree."""

    def leaf(value: Any) -> Any:
        if isinstance(value, jax.Array):
            sharding = value.sharding if value.committed else None
            return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
        if isinstance(value, np.ndarray | np.generic):
            return np.empty(value.shape, value.dtype)
        return type(value)

    return jax.tree.map(leaf, tree)


def as_orbax_has_it(tree: Any, *, rich_types: bool = False) -> Any:
    """What Orbax has of a tree: dicts of strings, lists; in rich types, tuples too."""

    def visit(tree: Any) -> Any:
        match tree:
            case Nothing():
                return None
            case Layer():
                return visit({"kernel": tree.kernel, "bias": tree.bias})
            case Pair():
                return visit([tree.first, tree.second])
            case Point():
                return Point(*map(visit, tree)) if rich_types else visit(tree._asdict())
            case dict():
                return {str(key): visit(child) for key, child in tree.items()}
            case tuple() if rich_types or not tree:
                return tuple(map(visit, tree))
            case list() | tuple():
                return list(map(visit, tree))
        return tree

    return visit(tree)


def is_file_name(name: str) -> bool:
    """Whether Orbax can make a directory of that name; it does not escape any."""
    return name not in ("", ".", "..") and not set("/\\") & set(name)


def differences(expected: Any, found: Any, *, placement: bool = False) -> list[str]:
    """Where two trees differ: containers, types, dtypes, bits; none if they are equal.

    Args:
        expected: What was saved.
        found: What came back.
        placement: Whether shardings count, too.
    """
    return list(_differences("", expected, found, placement))


def _differences(
    where: str, expected: Any, found: Any, placement: bool
) -> Iterator[str]:
    kinds = f"{where}: expected {type(expected)}, found {type(found)}"
    if isinstance(expected, jax.Array):
        if not isinstance(found, jax.Array):
            yield kinds
        else:
            yield from _array_differences(where, expected, found, placement)
    elif isinstance(expected, np.ndarray | np.generic):
        if type(found) is not np.ndarray:
            yield kinds
        elif _facts(expected) != _facts(found):
            yield f"{where}: expected {expected!r}, found {found!r}"
    elif type(expected) is not type(found):
        yield kinds
    elif isinstance(expected, dict) and list(map(repr, expected)) != list(
        map(repr, found)
    ):
        # The order of a dict is not kept: keys come back sorted.
        if sorted(map(repr, expected)) != sorted(map(repr, found)):
            yield f"{where}: expected keys {list(expected)}, found {list(found)}"
        else:
            for key, child in expected.items():
                yield from _differences(f"{where}.{key}", child, found[key], placement)
    else:
        yield from _child_differences(where, expected, found, placement)


def _child_differences(
    where: str, expected: Any, found: Any, placement: bool
) -> Iterator[str]:
    children = _children(expected), _children(found)
    if not children[0] and not children[1]:
        if repr(expected) != repr(found):
            yield f"{where}: expected {expected!r}, found {found!r}"
    elif len(children[0]) != len(children[1]):
        yield f"{where}: {len(children[0])} children, found {len(children[1])}"
    else:
        for (name, first), (_, second) in zip(*children, strict=True):
            yield from _differences(f"{where}.{name}", first, second, placement)


def _children(value: Any) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if type(value) is dict:  # Also one whose keys JAX cannot sort.
        return [(str(key), child) for key, child in value.items()]
    found = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda child: child is not value
    )[0]
    return [(str(path[0]), child) for path, child in found if path]


def _array_differences(
    where: str, expected: jax.Array, found: jax.Array, placement: bool
) -> Iterator[str]:
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        yield f"{where}: expected {expected.aval}, found {found.aval}"
        return
    if placement and (
        expected.committed != found.committed
        or not expected.sharding.is_equivalent_to(found.sharding, expected.ndim)
    ):
        yield f"{where}: expected {expected.sharding}, found {found.sharding}"
    if jax.dtypes.issubdtype(expected.dtype, jax.dtypes.prng_key):
        expected, found = jax.random.key_data(expected), jax.random.key_data(found)
    if _facts(np.asarray(expected)) != _facts(np.asarray(found)):
        yield f"{where}: expected {expected}, found {found}"


def _facts(array: Any) -> tuple[Any, ...]:
    little = np.asarray(array).astype(np.asarray(array).dtype.newbyteorder("<"))
    return little.dtype, little.shape, little.tobytes()


def orbax_holds(leaf: Any) -> bool:
    """Whether Orbax v1 can save a leaf of those that we can."""
    if isinstance(leaf, jax.Array | np.ndarray):
        # Arrays without elements, and dtypes without a zarr name, are refused.
        name = leaf.dtype.name
        return leaf.size > 0 and name not in (*OWN_DTYPES, *HOST_DTYPES)
    if isinstance(leaf, complex | bytes):
        return False
    if isinstance(leaf, int):
        return -(2**63) <= leaf < 2**64
    return isinstance(leaf, float) or not isinstance(leaf, np.generic)


def orbax_leaves() -> st.SearchStrategy[Any]:
    """Those of `leaves()` that Orbax v1 can save, too."""
    return leaves().filter(orbax_holds)


def leaves() -> st.SearchStrategy[Any]:
    """Leaves of any kind."""
    host_dtypes = [*NUMPY_DTYPES, *OWN_DTYPES, *HOST_DTYPES]
    jax_dtypes = [*JAX_DTYPES, *OWN_DTYPES]
    # NumPy scalars come back as arrays; these two are Python numbers, too.
    scalar_dtypes = [n for n in host_dtypes if n not in ("float64", "complex128")]
    shape = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    seed = st.integers(0, 1 << 30)
    return st.one_of(
        st.builds(bits, st.sampled_from(host_dtypes), shape, seed),
        st.builds(bits, st.sampled_from(jax_dtypes), shape, seed).map(jax.device_put),
        st.builds(bits, st.sampled_from(scalar_dtypes), st.just(()), seed).map(
            lambda array: array[()]
        ),
        st.sampled_from([*shardings().values()]).map(
            lambda sharding: jax.device_put(bits("int16", (8, 16)), sharding)
        ),
        st.sampled_from([*keys().values()]),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.integers(),
        st.integers(-(2**200), 2**200),
        st.binary(),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.none(),
    )


def trees(leaf: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """Trees of any containers; no two leaves can get one name."""
    name = st.text("abXY_ é雪0%:\\", max_size=4)

    def containers(child: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(name, child, max_size=4),
            st.dictionaries(st.integers(0, 99), child, max_size=3),
            st.lists(child, max_size=3),
            st.lists(child, max_size=3).map(tuple),
            st.builds(Point, child, child),
            st.builds(Layer, child, child),
            st.builds(Pair, child, child),
            st.dictionaries(name, child, min_size=1, max_size=3).map(Variables),
            st.just(Nothing()),
        )

    return st.recursive(leaves() if leaf is None else leaf, containers, max_leaves=8)
