"""What several processes save together: every way in which they can hold a value."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

AXES = ("process", "local")

SPECS = {
    "both_axes": P("process", "local"),
    "other_order": P("local", "process"),
    "one_axis": P(("process", "local")),
    "by_process": P("process"),
    "by_device": P(None, "local"),
    "replicated": P(),
    "replicated_scalar": P(),
    "empty": P(),
    "keys": P(("process", "local")),
}
"""How the arrays that span all processes are spread."""


def global_mesh(*, is_turned=False):
    """All devices, a row per process; turned, the last device comes first."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
    return Mesh(devices[::-1, ::-1] if is_turned else devices, AXES)


def host_values():
    """Values of the arrays that span all processes; PRNG keys by their data."""
    random = np.random.default_rng(0)
    return {
        "both_axes": random.normal(size=(8, 6)).astype(np.float32),
        "other_order": random.integers(0, 99, (6, 8)).astype(np.int32),
        "one_axis": random.normal(size=(16, 3)).astype(ml_dtypes.bfloat16),
        "by_process": random.normal(size=(8, 5)).astype(np.float16),
        "by_device": random.integers(0, 2, (3, 4)).astype(np.bool_),
        "replicated": random.normal(size=(7, 3)).astype(np.complex64),
        "replicated_scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "keys": random.integers(0, 2**32, (8, 2), np.uint32),
    }


def plain_values():
    """Values of which every process has a copy of its own."""
    return {
        "numpy": np.arange(6.0).reshape(2, 3),
        "numpy_0d": np.array(-3, np.int16),
        "uncommitted": np.arange(5, dtype=np.int32),
        "key": jax.random.key_data(jax.random.key(3, impl="rbg")),
        "int": 7,
        "float": 0.1,
        "bool": True,
        "complex": 1 - 2j,
        "string": "Grüße",
        "none": None,
        "nothing": [],
        "pair": (1, "two"),
    }


def on_devices(host, sharding):
    """A global array, of which every process makes its own part."""
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index], dtype=host.dtype
    )


def state():
    """The tree that all processes save."""
    mesh = global_mesh()
    arrays = {
        name: on_devices(host, NamedSharding(mesh, SPECS[name]))
        for name, host in host_values().items()
    }
    held_by_last = SingleDeviceSharding(jax.devices()[-1])
    return {
        "global": arrays | {"keys": jax.random.wrap_key_data(arrays["keys"])},
        "held_by_last": on_devices(np.arange(9, dtype=np.uint8), held_by_last),
        "plain": plain_values()
        | {"uncommitted": jnp.arange(5), "key": jax.random.key(3, impl="rbg")},
    }


def expected():
    """What the tree holds, in host memory; PRNG keys by their data."""
    return {
        "global": host_values(),
        "held_by_last": np.arange(9, dtype=np.uint8),
        "plain": plain_values(),
    }


def abstract_arrays(mesh):
    """An abstract state for the arrays that span all processes."""
    arrays = {
        name: jax.ShapeDtypeStruct(
            host.shape, host.dtype, sharding=NamedSharding(mesh, SPECS[name])
        )
        for name, host in host_values().items()
    }
    keys = jax.ShapeDtypeStruct(
        (8,), jax.random.key(0).dtype, sharding=arrays["keys"].sharding
    )
    return arrays | {"keys": keys}


def only_global(arrays):
    """A whole tree of which just the arrays that span all processes count."""
    return {"global": arrays, "held_by_last": ..., "plain": ...}


def differences(value, expectation, path="state"):
    """Where a tree is not bit for bit what was expected, as far as it is held here."""
    if isinstance(expectation, dict | list | tuple):
        if type(value) is not type(expectation) or len(value) != len(expectation):
            return [f"{path}: {value!r}"]
        if isinstance(expectation, dict):
            if value.keys() != expectation.keys():
                return [f"{path}: keys {list(value)}"]
            pairs = [(f"{path}.{k}", value[k], e) for k, e in expectation.items()]
        else:
            both = enumerate(zip(value, expectation, strict=True))
            pairs = [(f"{path}.{i}", v, e) for i, (v, e) in both]
        return [line for name, v, e in pairs for line in differences(v, e, name)]
    if isinstance(value, jax.Array):
        return [f"{path}: {value}"] if not _holds(value, expectation) else []
    same = type(value) is type(expectation) and _bits(value) == _bits(expectation)
    return [] if same else [f"{path}: {value!r}"]


def misplaced(arrays, targets):
    """Names of the arrays that are not spread as asked for."""
    return [name for name in targets if arrays[name].sharding != targets[name].sharding]


def _holds(array, host):
    host = np.asarray(host)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return (array.dtype, array.shape) == (host.dtype, host.shape) and all(
        np.asarray(shard.data).tobytes() == host[shard.index].tobytes()
        for shard in array.addressable_shards
    )


def _bits(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype, value.shape, value.tobytes()
    return value
