"""Names that people still use, with a word about the ones that took their place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from stowax._inspect import metadata
from stowax._load import load, load_async
from stowax._save import save, save_async

P = ParamSpec("P")
T = TypeVar("T")


def _renamed(alias: str, function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        message = f"stowax.{alias} is now called stowax.{function.__name__}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = alias
    call.__doc__ = f"Deprecated name of `{function.__name__}`."
    return call


save_pytree: Callable[..., Any] = _renamed("save_pytree", save)
save_pytree_async: Callable[..., Any] = _renamed("save_pytree_async", save_async)
load_pytree: Callable[..., Any] = _renamed("load_pytree", load)
load_pytree_async: Callable[..., Any] = _renamed("load_pytree_async", load_async)
pytree_metadata: Callable[..., Any] = _renamed("pytree_metadata", metadata)
