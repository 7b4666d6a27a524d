"""What a caller asks for, made ready to be held against a stored leaf.

Here the settings of a load have their say about the abstract state: shardings over an
abstract mesh are put on a real one, and where everything is to come back as NumPy, what
asks for no device asks for NumPy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format

from stowax._leaves._abstract import (
    ArrayMetadata,
    CustomLeafMetadata,
    NumpyMetadata,
    asked_placement,
    is_array_like,
)
from stowax._leaves._jax_array import (
    JaxArrayLeaf,
    is_key,
    is_registered,
    key_dtype,
    key_impl_name,
)
from stowax._leaves._registry import default_target, metadata
from stowax._manifest import LeafForm
from stowax._settings import LoadSettings

_PYTHON_NAMES = {"bool": "bool", "int": "int", "uint": "int", "complex": "complex"}


class NoMeshError(ValueError):
    """A sharding over an abstract mesh, and nothing to put it on."""


def ready(target: Any, form: LeafForm, loading: LoadSettings) -> tuple[Any, LeafForm]:
    """The target as the settings have it, and the stored leaf as it is to be seen.

    Raises:
        NoMeshError: There is no mesh for its sharding.
        ValueError: Its sharding cannot be had in this run.
    """
    if is_unknown_key(form) and is_array_like(target) and _is_key_data(target.dtype):
        # What `metadata()` shows of it. Nobody gets numbers for keys unasked.
        form = dataclasses.replace(form, prng_impl=None)
    if not JaxArrayLeaf().accepts_target(target):
        if loading.as_numpy:
            return target, _as_numpy(form)
        if form.prng_impl and is_array_like(target) and target.dtype is None:
            # As stored, and NumPy has no such dtype.
            return ArrayMetadata(shape=target.shape, dtype=None), form
        return target, form
    sharding, layout = asked_placement(target)
    if sharding is None:
        return _on_host(target, form) if loading.as_numpy else (target, form)
    if not _is_over_abstract_mesh(sharding):
        return target, form
    if loading.mesh is None:
        raise NoMeshError("its mesh is abstract, and no mesh is in scope")
    sharding = jax.sharding.NamedSharding(
        loading.mesh, sharding.spec, memory_kind=sharding.memory_kind
    )
    placed = sharding if layout is None else Format(layout, sharding)
    return (
        ArrayMetadata(shape=target.shape, dtype=target.dtype, sharding=placed),
        form,
    )


def ready_default(form: LeafForm, loading: LoadSettings) -> tuple[Any, LeafForm]:
    """The same, where the caller asks for nothing in particular."""
    if loading.as_numpy:
        form = _as_numpy(form)
    return default_target(form), form


def metadata_leaf(form: LeafForm, loading: LoadSettings) -> Any:
    """What `metadata()` shows of a stored leaf."""
    return metadata(_as_numpy(form) if loading.as_numpy else form)


def is_unknown_key(form: LeafForm) -> bool:
    """Whether it is typed PRNG keys of an implementation that JAX does not ship."""
    return form.prng_impl is not None and not is_registered(form.prng_impl)


def unknown_key_note(form: LeafForm) -> str:
    """Why such keys cannot be made, and what to do."""
    return (
        f"JAX has no PRNG implementation {form.prng_impl!r}; ask for it with a key of "
        "that implementation, `jax.random.key(0, impl=...)`, or for the key data, "
        f"{_in_words(form.dtype, form.shape)}, as `stowax.metadata(path)` shows them"
    )


def asked_form(target: Any, form: LeafForm | None = None) -> str:
    """What a target asks for, for people: `float32[4, 5]`, `int`, `string`."""
    if isinstance(target, CustomLeafMetadata):
        return repr(target.typestr)
    if target is str or isinstance(target, str):
        return "string"
    if target is jax.Array or target is np.ndarray:
        if form is None or form.dtype is None:
            return "an array"
        return stored_form(form)
    if isinstance(target, type):
        return target.__name__
    if not hasattr(target, "shape") or not hasattr(target, "dtype"):
        return type(target).__name__
    shape, dtype = target.shape, target.dtype
    if form is not None:
        # None in it means as stored.
        shape = form.shape if shape is None else shape
        dtype = form.dtype if dtype is None else dtype
    return _in_words(dtype, shape)


def stored_form(form: LeafForm) -> str:
    """What is stored, in the same words."""
    if form.custom is not None:
        stored = stored_form(dataclasses.replace(form, custom=None))
        return f"{form.custom.typestr!r} as {stored}"
    if form.kind == "integer":
        return "int of more than 64 bits"
    if form.kind == "bytes":
        return "bytes"
    if form.kind == "scalar":
        family = (form.dtype or "").rstrip("0123456789")
        return _PYTHON_NAMES.get(family, "float")
    if form.prng_impl is not None:
        dtype: Any = f"key<{form.prng_impl}>"
        if is_registered(form.prng_impl):
            dtype = key_dtype(form.prng_impl)
        return _in_words(dtype, form.shape[:-1])
    return form.kind if form.dtype is None else _in_words(form.dtype, form.shape)


def _is_key_data(dtype: Any) -> bool:
    try:
        return dtype is not None and np.dtype(dtype) == np.uint32
    except TypeError:  # It is no dtype of NumPy.
        return False


def _in_words(dtype: Any, shape: Any) -> str:
    extents = list(shape) if isinstance(shape, tuple | list) else [shape]
    try:
        if not jnp.issubdtype(dtype, jax.dtypes.extended):
            dtype = "?" if dtype is None else np.dtype(dtype).name
    except TypeError:
        pass  # A value of a type that was taught may have a dtype of its own.
    return f"{dtype}{'' if shape is None else extents}"


def _on_host(target: Any, form: LeafForm) -> tuple[Any, LeafForm]:
    if target is jax.Array:
        return np.ndarray, _as_numpy(form)
    shape, dtype = target.shape, target.dtype
    if is_key(dtype):
        if form.prng_impl != key_impl_name(dtype):
            return target, form
        shape = None if shape is None else (*shape, *form.shape[-1:])
        dtype = None
    asked_shape = form.shape if shape is None else shape
    return NumpyMetadata(shape=asked_shape, dtype=dtype), _as_numpy(form)


def _as_numpy(form: LeafForm) -> LeafForm:
    """A stored array as it would be, had it been saved as NumPy."""
    if form.kind != "jax.Array":
        return form
    return dataclasses.replace(
        form, kind="np.ndarray", prng_impl=None, sharding=None, write_shape=None
    )


def _is_over_abstract_mesh(
    sharding: jax.sharding.Sharding,
) -> TypeGuard[jax.sharding.NamedSharding]:
    return isinstance(sharding, jax.sharding.NamedSharding) and isinstance(
        sharding.mesh, jax.sharding.AbstractMesh
    )
