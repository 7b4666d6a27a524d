"""Who called: the line that a warning points at, and what JAX keeps by thread.

Both are known only on the thread of the call.  Work that goes on elsewhere is started
inside `on_behalf`, and then finds them as they were.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jax


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caller:
    filename: str
    line: int
    module: str
    registry: dict[Any, Any] = field(repr=False)
    """Where the caller's module remembers which warnings it has shown."""
    mesh: jax.sharding.Mesh | None
    has_64_bits: bool
    """Whether JAX makes arrays of 64 bits."""
    default_device: Any


_CALLER: Final[contextvars.ContextVar[_Caller | None]] = contextvars.ContextVar(
    "stowax_caller", default=None
)

_PASSED_OVER = ("stowax", "asyncio", "contextlib", "concurrent", "threading")
"""Modules between the caller and us: ourselves, and what drives coroutines."""


@contextlib.contextmanager
def on_behalf() -> Generator[None]:
    """What is started inside, on whichever thread, is the work of the caller."""
    token = _CALLER.set(_CALLER.get() or _on_this_thread())
    try:
        yield
    finally:
        _CALLER.reset(token)


def is_on_behalf() -> bool:
    """Whether this is the work of a caller who is on another thread, and goes on."""
    return _CALLER.get() is not None


def warn(message: str) -> None:
    """Warns at the line of the caller, in whatever thread this is."""
    caller = _CALLER.get() or _on_this_thread()
    warnings.warn_explicit(
        message,
        UserWarning,
        caller.filename,
        caller.line,
        module=caller.module,
        registry=caller.registry,
    )


def warn_narrowed(where: str, lines: Sequence[str]) -> None:
    """Gives one warning of all leaves that lose range or kind in a conversion."""
    if lines:
        shown = "\n".join(f"  {line}" for line in lines)
        warn(
            f"{where}: the dtypes asked for lose values of {len(lines)} leaves:\n"
            f"{shown}"
        )


def mesh_in_scope() -> jax.sharding.Mesh | None:
    """The mesh of `jax.set_mesh`, on the thread of the caller; None without one."""
    caller = _CALLER.get()
    return _mesh_of_this_thread() if caller is None else caller.mesh


@contextlib.contextmanager
def as_caller() -> Generator[None]:
    """Has JAX, on this thread, make arrays as it does on that of the caller."""
    caller = _CALLER.get()
    if caller is None:
        yield
        return
    with (
        jax.enable_x64(caller.has_64_bits),
        jax.default_device(caller.default_device),
    ):
        yield


@contextlib.contextmanager
def in_mesh(mesh: jax.sharding.Mesh | None) -> Generator[None]:
    """Has JAX, on this thread, find the mesh that shardings are resolved against."""
    if mesh is None or mesh == _mesh_of_this_thread():
        yield
        return
    with jax.set_mesh(mesh):
        yield


def _mesh_of_this_thread() -> jax.sharding.Mesh | None:
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # Inside `jit`, where there is nothing to place.
        return None
    return None if mesh.empty else mesh


def _on_this_thread() -> _Caller:
    frame = inspect.currentframe()
    assert frame is not None  # Only Pythons other than CPython have none.
    while frame.f_back is not None and _is_passed_over(frame.f_globals):
        frame = frame.f_back
    return _Caller(
        filename=frame.f_code.co_filename,
        line=frame.f_lineno,
        module=frame.f_globals.get("__name__") or "<unknown>",
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
        mesh=_mesh_of_this_thread(),
        has_64_bits=jax.config.jax_enable_x64,  # pyright: ignore[reportAttributeAccessIssue] - set by JAX at import
        default_device=jax.config.jax_default_device,  # pyright: ignore[reportAttributeAccessIssue] - the same
    )


def _is_passed_over(names: dict[str, Any]) -> bool:
    top = str(names.get("__name__")).partition(".")[0]
    return top in _PASSED_OVER or top.startswith("stowax_")
