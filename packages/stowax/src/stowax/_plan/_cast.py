"""Conversions between dtypes, and what they lose.

Losing precision is what the caller asked for; losing *range* (values become infinite
or wrap around) or *kind* (a fraction, a sign or an imaginary part is dropped) is worth
a word.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

_PIECE_BYTES = 1 << 20

_SPECIAL = {"negative values": -1.0, "zero": 0.0, "infinity": np.inf, "NaN": np.nan}


def convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another dtype; the array itself if it has that one.

    Says nothing of values that the dtype does not hold: see `loss`.

    Example:
        >>> convert(np.array([1.5, -2.5]), np.dtype("int8"))
        array([ 1, -2], dtype=int8)
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "c" and dtype.kind not in "cb":
        array = np.real(array)  # NumPy would warn of it once more.
    with np.errstate(all="ignore"):
        if not np.can_cast(array.dtype, dtype, "unsafe"):
            # ml_dtypes knows no way between some of its smallest types.
            both_whole = _kind(array.dtype) == _kind(dtype) == "int"
            array = array.astype(np.int8 if both_whole else np.float32)
        return array.astype(dtype)


def convert_into(out: np.ndarray, array: np.ndarray) -> None:
    """Fills an array of the same shape with the values in its dtype; see `convert`.

    Piece by piece, so that little memory is needed beside it.

    Example:
        >>> out = np.zeros(2, np.int8)
        >>> convert_into(out, np.array([1.5, -2.5]))
        >>> out
        array([ 1, -2], dtype=int8)
    """
    if array.dtype == out.dtype or out.nbytes <= _PIECE_BYTES:
        out[...] = convert(array, out.dtype)
        return
    row_bytes = out.nbytes // len(out)
    if row_bytes > _PIECE_BYTES:
        for row, values in zip(out, array, strict=True):
            convert_into(row, values)
        return
    step = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        out[rows] = convert(array[rows], out.dtype)


def loss(stored: np.dtype, wanted: np.dtype) -> str | None:
    """What a conversion loses beyond precision; None when nothing.

    Example:
        >>> loss(np.dtype("float32"), np.dtype("int16"))
        'float32 to int16 drops fractions'
        >>> loss(np.dtype("float32"), np.dtype("bfloat16")) is None
        True
    """
    if stored == wanted:
        return None
    reason = _reason(stored, wanted)
    return None if reason is None else f"{stored} to {wanted} {reason}"


def _reason(stored: np.dtype, wanted: np.dtype) -> str | None:
    kinds = _kind(stored), _kind(wanted)
    match kinds:
        case (_, "bool"):
            return "keeps only whether a value is zero"
        case ("complex", "float" | "int"):
            return "drops imaginary parts"
        case ("float", "int"):
            return "drops fractions"
        case ("float" | "complex", "float" | "complex"):
            # By exponent: where the largest float32 is rounded to infinity in bfloat16,
            # precision is at fault and not range.
            if jnp.finfo(stored).maxexp <= jnp.finfo(wanted).maxexp:
                return _without(_held(stored) - _held(wanted))
    low, high = _range(stored)
    wanted_low, wanted_high = _range(wanted)
    if low < wanted_low or high > wanted_high:
        return f"cannot hold values beyond {wanted_low:g} to {wanted_high:g}"
    return None


def _without(names: frozenset[str]) -> str | None:
    return f"cannot hold {' or '.join(sorted(names))}" if names else None


@functools.cache
def _held(dtype: np.dtype) -> frozenset[str]:
    """The special values that a dtype has: the smallest floats lack some."""
    values = np.array(list(_SPECIAL.values()), np.float32)
    found = convert(convert(values, dtype), values.dtype)
    same = (found == values) | (np.isnan(found) & np.isnan(values))
    return frozenset(np.array(list(_SPECIAL))[same].tolist())


def _kind(dtype: np.dtype) -> str:
    if dtype == np.bool_:
        return "bool"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex"
    return "float" if jnp.issubdtype(dtype, jnp.floating) else "int"


def _range(dtype: np.dtype) -> tuple[float, float]:
    if dtype == np.bool_:
        return 0.0, 1.0
    if _kind(dtype) == "int":
        info = jnp.iinfo(dtype)
        return float(info.min), float(info.max)
    info = jnp.finfo(dtype)
    return float(info.min), float(info.max)
