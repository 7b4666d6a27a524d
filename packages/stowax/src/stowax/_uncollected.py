"""No garbage collection while many objects are made that stay.

A tree of 10,000 leaves is a hundred thousand small objects. Making them has Python look
through all objects of the process several times, for garbage that is not there; beside
JAX each time costs a tenth of a second, more than the making itself.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Generator

_LOCK = threading.Lock()
_depth = 0
_was_enabled = False


@contextlib.contextmanager
def uncollected() -> Generator[None]:
    """Puts collections off until the body has ended; for what takes a moment only.

    It counts for the whole process, whose other threads go on meanwhile, so nothing in
    the body may wait. Also a decorator.

    Example:
        >>> import gc
        >>> with uncollected():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    global _depth, _was_enabled
    with _LOCK:
        if _depth == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _depth += 1
    try:
        yield
    finally:
        with _LOCK:
            _depth -= 1
            if _depth == 0 and _was_enabled:
                gc.enable()
