"""What `metadata()` shows for a stored array: facts without values.

Such a value can be given to `load` as a leaf of the abstract state, changed with
`dataclasses.replace` before if need be.  `asked_placement` reads such leaves, and all
others that say where an array shall be.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout

from stowax._codecs._zarr import dtype_name
from stowax.errors import UnsupportedLeafError


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageMetadata:
    """How an array lies on disk."""

    chunk_shape: tuple[int, ...]
    """Extent of one chunk."""

    write_shape: tuple[int, ...] | None = None
    """Extent of one shard when it was written; None where nobody recorded it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumpyMetadata:
    """A stored NumPy array: `float32[4, 5]`, without its values."""

    shape: tuple[int, ...]
    dtype: Any
    storage_metadata: StorageMetadata | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomLeafMetadata:
    """A stored leaf of a type that `PyTreeOptions.leaf_handlers` teaches.

    Given to `load`, it asks for the value where the type is taught, else for the stored
    form.  `dataclasses.replace(metadata, stored=...)` asks for another placement.

    Example:
        >>> import stowax
        >>> leaf = stowax.handlers.CustomLeafMetadata(
        ...     typestr="decimal.Decimal", facts=None, stored="string"
        ... )
        >>> leaf.typestr
        'decimal.Decimal'
    """

    typestr: str
    """Name of the type, `LeafHandler.typestr`."""

    facts: Any
    """What `LeafHandler.describe` said of the value."""

    stored: Any
    """What the stored form looks like: what `metadata()` shows for such a leaf."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class ArrayMetadata:
    """A stored `jax.Array`, or typed PRNG keys, without values."""

    shape: tuple[int, ...]
    dtype: Any
    """A NumPy dtype, or that of typed PRNG keys (`key<fry>`)."""

    sharding: jax.sharding.Sharding | Format | None = None
    """As it was saved, if this run has the devices; else None."""

    storage_metadata: StorageMetadata | None = None

    def __init__(
        self,
        *,
        shape: tuple[int, ...] | None,
        dtype: Any,
        sharding: jax.sharding.Sharding | Format | None = None,
        storage_metadata: StorageMetadata | None = None,
        **alias: jax.sharding.Sharding | Format | None,
    ) -> None:
        """Takes the fields; `sharding_metadata`, if it is given, is the sharding.

        So that `dataclasses.replace` knows the sharding by both names.
        """
        values = {
            "shape": shape,
            "dtype": dtype,
            "sharding": alias.pop("sharding_metadata", sharding),
            "storage_metadata": storage_metadata,
        }
        if alias:
            raise TypeError(f"ArrayMetadata has no field {', '.join(alias)}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def sharding_metadata(self) -> jax.sharding.Sharding | Format | None:
        """The name that Orbax has for `sharding`."""
        return self.sharding


def is_array_like(target: Any) -> bool:
    """Whether something that is no class has a shape and a dtype."""
    has_both = hasattr(target, "shape") and hasattr(target, "dtype")
    return has_both and not isinstance(target, type)


def has_sharding(target: Any) -> bool:
    """Whether an array is one that says where it is, if only that it does not matter.

    As in Orbax, that is what sets a `jax.Array` apart from an array of NumPy.
    """
    return hasattr(target, "sharding") or hasattr(target, "sharding_metadata")


def asked_placement(
    target: Any,
) -> tuple[jax.sharding.Sharding | None, Layout | None]:
    """Where an abstract array says that it shall be, and in which memory layout.

    Metadata leaves of Orbax say it by `sharding_metadata`, in an object of their own.

    Raises:
        ValueError: What it says is no sharding.
    """
    if isinstance(target, type):
        return None, None
    sharding = getattr(target, "sharding", None)
    if sharding is None:
        sharding = getattr(target, "sharding_metadata", None)
    if (to_jax := getattr(sharding, "to_jax_sharding", None)) is not None:
        sharding = to_jax()
    layout = asked_layout(target)
    if isinstance(sharding, Format):
        sharding, layout = sharding.sharding, sharding.layout
    if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
        raise ValueError(
            f"its sharding is a {type(sharding).__name__}; give a "
            "`jax.sharding.Sharding`, such as `jax.NamedSharding(mesh, jax.P(...))`"
        )
    return sharding, layout if isinstance(layout, Layout) else None


def asked_shape(shape: Any) -> tuple[int, ...]:
    """The shape that an abstract array asks for.

    Raises:
        UnsupportedLeafError: It is none.
    """
    try:
        found = tuple(map(operator.index, shape))
    except TypeError:
        found = (-1,)
    if min(found, default=0) < 0:
        raise UnsupportedLeafError(
            f"{shape!r} is no shape; give a tuple of lengths, or None for that which "
            "is stored"
        )
    return found


def asked_dtype(dtype: Any) -> np.dtype:
    """The dtype that an abstract array asks for, if it is none of PRNG keys.

    Raises:
        UnsupportedLeafError: No array of a checkpoint has it.
    """
    try:
        found = np.dtype(dtype)
        dtype_name(found)
    except (TypeError, ValueError):
        raise UnsupportedLeafError(
            f"{dtype!r} is no dtype that an array of a checkpoint can have; give "
            "another, or None for that which is stored"
        ) from None
    return found


def asked_layout(target: Any) -> Any:
    """The layout that a leaf names beside its sharding.

    A live array always has one; only that which is not JAX's own choice is a wish.
    """
    if isinstance(target, jax.ShapeDtypeStruct):
        return target.format.layout
    if not isinstance(target, jax.Array) or target.is_deleted():
        return None
    found = getattr(target, "format", None)  # PRNG keys have none.
    if found is None or found.layout is None:
        return None
    layout = found.layout
    is_usual = layout.major_to_minor == tuple(range(target.ndim))
    return None if is_usual else layout
