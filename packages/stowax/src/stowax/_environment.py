"""Which store, runtime and report an operation uses, by its settings."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator
from typing import Final, cast

from stowax._report import Report
from stowax._runtime import Runtime, default_runtime
from stowax._settings import Settings
from stowax._stores._base import Store
from stowax._stores._open import open_store

_LENT: Final[contextvars.ContextVar[tuple[str, ...]]] = contextvars.ContextVar(
    "stowax_lent_directories", default=()
)
"""The local directories that guests of this load read copies of their items from."""


@contextlib.contextmanager
def lending(directory: str) -> Generator[None]:
    """Lets a handler inside a guest read the guest's copy, whatever the store is."""
    token = _LENT.set((*_LENT.get(), directory))
    try:
        yield
    finally:
        _LENT.reset(token)


def store_of(settings: Settings, path: str) -> Store:
    """The store that the Context chose, else the path's own."""
    is_lent = any(path == d or path.startswith(f"{d}/") for d in _LENT.get())
    if settings.store is not None and not is_lent:
        store = cast("Store", settings.store)
    else:
        store = open_store(path)
    report = report_of(settings)
    return store if report is None else report.watch(store)


def report_of(settings: Settings) -> Report | None:
    """Who is told what the operation does; None: nobody."""
    return cast("Report | None", settings.report)


def runtime_of(settings: Settings) -> Runtime:
    """The runtime that the Context chose, else that of this process."""
    if settings.runtime is not None:
        return cast("Runtime", settings.runtime)
    return default_runtime()
