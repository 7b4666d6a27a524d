"""What the checkpoints of tests/golden/ hold, and whether a reader found it.

`tests/golden/README.md` describes the documents that are read here.  A comparison
collects every difference, so that a failing test shows all of them at once.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One directory of tests/golden/ with what it says about itself."""

    name: str

    expected: dict[str, Any]
    """The case's `expected.json`."""

    @property
    def directory(self) -> Path:
        """Where the paths of `expected` begin."""
        return GOLDEN / self.name

    @property
    def status(self) -> str:
        """``ok``, ``incomplete`` (refused by readers) or ``corrupt`` (on purpose)."""
        return self.expected["status"]

    @property
    def checkpoints(self) -> dict[Path, dict[str, Any]]:
        """Each checkpoint's path with the description of its content."""
        described = self.expected.get("checkpoints", {})
        return {self.directory / path: content for path, content in described.items()}


def load_case(name: str) -> Case:
    """Reads the description of one case."""
    text = (GOLDEN / name / "expected.json").read_text()
    return Case(name=name, expected=json.loads(text))


def all_cases() -> list[Case]:
    """Every case, sorted by name."""
    return [load_case(path.parent.name) for path in sorted(GOLDEN.glob("*/*.json"))]


def compare(node: dict[str, Any], value: Any) -> list[str]:
    """Lists how `value`, loaded without a target, differs from a described tree.

    A jax array of a 64-bit dtype counts as found when JAX, not being in its 64-bit
    mode, has narrowed it.
    """
    return list(_differences("", node, value))


def _differences(path: str, node: dict[str, Any], value: Any) -> Iterator[str]:
    match node:
        case {"dict": children}:
            if type(value) is not dict:
                yield f"{path}: expected a dict, found {_describe(value)}"
            elif value.keys() != children.keys():
                yield f"{path}: expected keys {list(children)}, found {list(value)}"
            else:
                for key, child in children.items():
                    yield from _differences(f"{path}[{key!r}]", child, value[key])
        case {"list": children}:
            if type(value) is not list:
                yield f"{path}: expected a list, found {_describe(value)}"
            elif len(value) != len(children):
                yield f"{path}: expected {len(children)} elements, found {len(value)}"
            else:
                for index, child in enumerate(children):
                    yield from _differences(f"{path}[{index}]", child, value[index])
        case {"tuple": []}:
            if type(value) is not tuple or value:
                yield f"{path}: expected an empty tuple, found {_describe(value)}"
        case {"none": True}:
            if value is not None:
                yield f"{path}: expected None, found {_describe(value)}"
        case {"leaf": leaf}:
            found = _LEAVES[leaf["kind"]](leaf, value)
            if found is not None:
                yield f"{path}: expected {found}, found {_describe(value)}"
        case _:
            raise ValueError(f"{path}: no such node: {sorted(node)}")


def _jax(leaf: dict[str, Any], value: Any) -> str | None:
    """What was expected of a jax array, or None when `value` is it."""
    dtype = _dtype(leaf["dtype"])
    narrowed = jax.dtypes.canonicalize_dtype(dtype)
    if not isinstance(value, jax.Array) or value.dtype not in (dtype, narrowed):
        return f"a jax array of {leaf['dtype']}"
    return _array(leaf, np.asarray(value).astype(dtype))


def _numpy(leaf: dict[str, Any], value: Any) -> str | None:
    if not isinstance(value, np.ndarray) or value.dtype != _dtype(leaf["dtype"]):
        return f"a numpy array of {leaf['dtype']}"
    return _array(leaf, value)


def _array(leaf: dict[str, Any], array: np.ndarray) -> str | None:
    if list(array.shape) != leaf["shape"]:
        return f"shape {leaf['shape']}"
    dtype = _dtype(leaf.get("sha256_dtype", leaf["dtype"])).newbyteorder("<")
    stored = np.ascontiguousarray(array.astype(dtype))
    if hashlib.sha256(stored.tobytes()).hexdigest() != leaf["sha256"]:
        return "other values"
    return None


def _prng_key(leaf: dict[str, Any], value: Any) -> str | None:
    if not isinstance(value, jax.Array) or not jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        return "a typed PRNG key"
    if str(jax.random.key_impl(value)) != leaf["impl"]:
        return f"implementation {leaf['impl']}"
    if list(value.shape) != leaf["logical_shape"]:
        return f"shape {leaf['logical_shape']}"
    return _array(leaf, np.asarray(jax.random.key_data(value)))


def _scalar(leaf: dict[str, Any], value: Any) -> str | None:
    if type(value).__name__ != leaf["python_type"]:
        return f"a Python {leaf['python_type']}"
    expected = _scalar_value(leaf["value"])
    both_nan = value != value and expected != expected
    if both_nan or (value == expected and _sign(value) == _sign(expected)):
        return None
    return repr(expected)


def _string(leaf: dict[str, Any], value: Any) -> str | None:
    same = type(value) is str and value == leaf["value"]
    return None if same else repr(leaf["value"])


_LEAVES = {
    "jax": _jax,
    "numpy": _numpy,
    "prng_key": _prng_key,
    "scalar": _scalar,
    "string": _string,
}


def _scalar_value(described: Any) -> Any:
    """A number, also where JSON has no spelling for it."""
    match described:
        case {"nonfinite": text}:
            return float(text)
        case {"complex": [real, imaginary]}:
            return complex(_scalar_value(real), _scalar_value(imaginary))
    return described


def _sign(number: Any) -> float:
    """Tells -0.0 from 0.0."""
    return math.copysign(1.0, number) if isinstance(number, float) else 1.0


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def _describe(value: Any) -> str:
    if isinstance(value, (jax.Array, np.ndarray)):
        kind = "jax" if isinstance(value, jax.Array) else "numpy"
        return f"{kind} {value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
