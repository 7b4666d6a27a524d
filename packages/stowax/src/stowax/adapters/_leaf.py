"""What one leaf is, and how a stored leaf becomes one of the same kind.

The live leaf decides placement (sharding, committed or not, device or host) and Python
type; the stored leaf decides the value and whether a scalar is weakly typed, because
that changes the dtype of later arithmetic.  Shape, dtype and PRNG implementation must
agree: nothing is converted unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stowax._transfer import to_sharding
from stowax.errors import UnsupportedLeafError

_PYTHON_TYPES = (bool, int, float, complex, str)
_NUMERIC_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Everything that must agree between a live leaf and a stored one.

    Its text is for messages: `float32[2, 3]`, `key<rbg>[]`, `int`.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> counter = stowax.adapters.form_of(0)
        >>> counter.fits(stowax.adapters.form_of(np.int32(7)))
        True
        >>> counter.fits(stowax.adapters.form_of(np.float32(7)))
        False
    """

    kind: Literal["array", "key", "python", "none"]
    """`key` is an array of typed PRNG keys, `python` a plain scalar or string."""
    name: str = "None"
    """Name of the dtype, of the PRNG implementation or of the Python type."""
    shape: tuple[int, ...] = ()
    """Of the array of numbers or keys; empty for everything else."""

    def __str__(self) -> str:
        if self.kind == "array":
            return f"{self.name}{list(self.shape)}"
        if self.kind == "key":
            return f"key<{self.name}>{list(self.shape)}"
        return self.name

    def fits(self, stored: Form) -> bool:
        """Whether a stored leaf can become this one without loss or guess.

        The forms are equal, or one is a Python number and the other a scalar array of
        such numbers.
        """
        if self == stored:
            return True
        # A counter is a Python number before the first jitted step and a scalar array
        # after it, or the other way round: the number is the same.
        kinds = {self.kind, stored.kind}
        return kinds == {"array", "python"} and self._number() == stored._number()

    def _number(self) -> str | None:
        if self.kind == "python":
            return self.name
        kind = _NUMERIC_KINDS.get(jnp.dtype(self.name).kind)
        if kind is None and jnp.issubdtype(jnp.dtype(self.name), jnp.floating):
            kind = "float"
        return kind if self.shape == () else None


def form_of(leaf: Any) -> Form:
    """The form of a live leaf.

    Args:
        leaf: An array or a typed PRNG key, concrete or abstract; a number, text or
            None.

    Raises:
        UnsupportedLeafError: A checkpoint cannot hold this kind of object.

    Example:
        >>> import jax
        >>> import stowax
        >>> str(stowax.adapters.form_of(jax.ShapeDtypeStruct((2, 3), "float32")))
        'float32[2, 3]'
        >>> str(stowax.adapters.form_of(jax.random.key(0)))
        'key<threefry2x32>[]'
    """
    if leaf is None:
        return Form(kind="none")
    if type(leaf) in _PYTHON_TYPES:
        return Form(kind="python", name=type(leaf).__name__)
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise UnsupportedLeafError(f"{type(leaf).__name__} is no array, number or text")
    shape = tuple(leaf.shape)
    if _is_key(leaf):
        return Form(kind="key", name=_implementation(leaf), shape=shape)
    return Form(kind="array", name=np.dtype(leaf.dtype).name, shape=shape)


def stored_form(metadata: Any, note: Mapping[str, Any]) -> Form:
    """The form that a stored leaf had when it was live.

    Args:
        metadata: Its metadata, from `StoredItem.leaves`.
        note: What `note_of` said of it; empty where there is no document, and then the
            form is what the metadata alone say.

    Raises:
        UnsupportedLeafError: The metadata are not of a leaf.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> metadata = np.zeros((), bool)
        >>> str(stowax.adapters.stored_form(metadata, {"python": "bool"}))
        'bool'
        >>> str(stowax.adapters.stored_form(metadata, {}))
        'bool[]'
    """
    if (python := note.get("python")) is not None:
        is_none = python == "None"
        return Form(kind="none") if is_none else Form(kind="python", name=python)
    if metadata is None or type(metadata) in _PYTHON_TYPES:
        return form_of(metadata)
    if (implementation := note.get("prng_impl")) is not None:
        shape = tuple(metadata.shape)
        # Metadata may describe the keys, or the words of 32 bits that they are made of.
        shape = shape if _is_key(metadata) else shape[:-1]
        return Form(kind="key", name=implementation, shape=shape)
    return form_of(metadata)


def note_of(leaf: Any) -> dict[str, Any]:
    """What a document must say of a leaf because the tree cannot.

    Args:
        leaf: The live leaf.

    Returns:
        JSON values: `python`, the type of a plain scalar; `prng_impl`, the
        implementation of PRNG keys; `weak`, if an array is weakly typed.  Empty for an
        ordinary array.

    Raises:
        UnsupportedLeafError: A checkpoint cannot hold this kind of object.

    Example:
        >>> import jax
        >>> import stowax
        >>> stowax.adapters.note_of(True)
        {'python': 'bool'}
        >>> stowax.adapters.note_of(jax.random.key(0, impl="rbg"))
        {'prng_impl': 'rbg'}
    """
    form = form_of(leaf)
    if form.kind == "none" or form.kind == "python":
        return {"python": form.name}
    if form.kind == "key":
        return {"prng_impl": form.name}
    return {"weak": True} if getattr(leaf, "weak_type", False) else {}


def storable_leaf(leaf: Any) -> Any:
    """The leaf as a tree item holds it, readable by Orbax too.

    Args:
        leaf: The live leaf.

    Returns:
        An array for truth values and NumPy scalars, the leaf itself for all others.

    Example:
        >>> import stowax
        >>> stowax.adapters.storable_leaf(True)
        array(True)
    """
    if isinstance(leaf, bool | np.generic):
        return np.asarray(leaf)
    return leaf


def abstract_leaf(live: Any, metadata: Any) -> Any:
    """The abstract leaf to ask for, so that `place_leaf` can take what comes.

    Args:
        live: The live leaf, concrete or abstract; its form fits the stored one.
        metadata: The metadata of the stored leaf, from `StoredItem.leaves`.

    Example:
        >>> import jax.numpy as jnp
        >>> import stowax
        >>> live = jnp.ones(3)  # JAX may still move it: arrives on the host
        >>> type(stowax.adapters.abstract_leaf(live, live)).__name__
        'ndarray'
    """
    if metadata is None or type(metadata) in _PYTHON_TYPES:
        return metadata
    if isinstance(live, jax.ShapeDtypeStruct):
        return live
    if isinstance(live, jax.Array) and (_is_key(live) or not _is_uncommitted(live)):
        return jax.ShapeDtypeStruct(live.shape, live.dtype, sharding=live.sharding)
    # On the host first: what arrives through a sharding stays committed to its device.
    dtype = metadata.dtype if type(live) in _PYTHON_TYPES else live.dtype
    return np.broadcast_to(np.zeros((), dtype), metadata.shape)


def place_leaf(live: Any, loaded: Any, note: Mapping[str, Any]) -> Any:
    """The loaded leaf as the kind that the live leaf is, placed where that one is.

    An array takes the sharding of the live one, and stays uncommitted if that one is,
    so that JAX moves it as before.  The value is never changed.

    Args:
        live: The live leaf, concrete or abstract; its form fits the stored one.
        loaded: What was loaded for `abstract_leaf(live, ...)`.
        note: What `note_of` said of the stored leaf; empty without a document.

    Returns:
        The new leaf.  Nothing is assigned.

    Example:
        >>> import numpy as np
        >>> import stowax
        >>> stowax.adapters.place_leaf(0, np.array(7, np.int32), {})
        7
    """
    if live is None:
        return None
    if type(live) in _PYTHON_TYPES:
        return type(live)(loaded.item() if hasattr(loaded, "item") else loaded)
    if isinstance(live, np.generic):
        return np.asarray(loaded, live.dtype)[()]
    if isinstance(live, np.ndarray):
        return np.array(loaded, live.dtype)
    if _is_key(live):
        return _placed_keys(live, loaded)
    if note.get("weak") and live.shape == ():
        loaded = _weakly_typed(loaded, live.dtype)
    return _placed(live, loaded)


def _placed(live: Any, loaded: Any) -> jax.Array:
    if isinstance(live, jax.Array) and _is_uncommitted(live):
        (device,) = live.devices()
        with jax.default_device(device):
            return jnp.asarray(loaded, None if _is_weak(loaded) else live.dtype)
    sharding = live.sharding
    if not isinstance(loaded, jax.Array):
        loaded = jnp.asarray(loaded, live.dtype)
    if sharding is None or loaded.sharding == sharding:
        return loaded
    return to_sharding(loaded, sharding)


def _placed_keys(live: Any, loaded: jax.Array) -> jax.Array:
    if not isinstance(live, jax.Array) or not _is_uncommitted(live):
        return loaded
    data = _placed(jax.random.key_data(live), np.asarray(jax.random.key_data(loaded)))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(live))


def _weakly_typed(loaded: Any, dtype: Any) -> Any:
    # Only Python numbers make weakly typed arrays; the detour is exact where the
    # default dtype of the number is the wanted one.
    weak = jnp.asarray(loaded.item() if hasattr(loaded, "item") else loaded)
    return weak if weak.dtype == dtype else loaded


def _is_weak(value: Any) -> bool:
    return getattr(value, "weak_type", False)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_uncommitted(array: jax.Array) -> bool:
    """Whether JAX may still move the array to where others are, as a fresh counter."""
    return not array.committed and len(array.devices()) == 1


def _implementation(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        return str(jax.random.key_impl(leaf))
    # An abstract key tells its implementation only to a function that is traced.
    names: list[str] = []
    abstract = jax.ShapeDtypeStruct((), leaf.dtype)
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), abstract)
    return names[0]
