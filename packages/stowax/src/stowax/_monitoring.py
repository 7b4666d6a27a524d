"""Events for `jax.monitoring`, under the names that dashboards know.

Names, units and labels are those of Orbax where it tells something that means the same.
Of failures it tells nothing, so their name is ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

import jax

from stowax._events import Event, Verb

_GIB: Final = 1 << 30
_NSECS_PER_MSEC: Final = 1e6

_FAMILIES: Final[Mapping[Verb, str]] = {
    "save": "/jax/orbax/write",
    "load": "/jax/orbax/read",
}

_ALERTS: Final = "/jax/checkpoint/write"
"""Names that Orbax had before; it still tells some durations under both."""


def tell_jax(event: Event, *, is_primary: bool) -> None:
    """Records what dashboards show of an event; of most, nothing.

    Args:
        event: Of any operation.
        is_primary: Whether this process tells of what all do together.
    """
    family = _FAMILIES.get(event.operation)
    if family is None:
        return
    if event.kind == "failed":
        jax.monitoring.record_event(f"{family}/failure")
    elif is_primary and event.operation == "save":
        _tell_of_save(event, family)
    elif is_primary:
        _tell_of_load(event, family)


def _tell_of_save(event: Event, family: str) -> None:
    timed, labels = _timed(event, family), _labels(event)
    if event.kind == "started":
        jax.monitoring.record_event(f"{timed}/start")
        jax.monitoring.record_scalar(f"{timed}/start_time", _msecs(event), **labels)
        jax.monitoring.record_event(f"{family}/storage_type", **labels)
    elif event.kind == "staged":
        secs = event.elapsed_secs
        _record_secs(f"{timed}/blocking_duration_secs", secs, **labels)
        if event.in_background:
            _record_secs(f"{_ALERTS}/async/blocking_duration_secs", secs)
        name = f"{timed}/blocking_end_time"
        jax.monitoring.record_scalar(name, _msecs(event), **labels)
        _record_speed(f"{family}/blocking_gbytes_per_sec", event)
    elif event.kind == "published":
        _record_success(event, family)
        if event.in_background:
            name = f"{_ALERTS}/async/total_duration_secs"
            _record_secs(name, event.elapsed_secs, **labels)
        jax.monitoring.record_scalar(f"{family}/gbytes", event.total_bytes / _GIB)
        _record_speed(f"{family}/gbytes_per_sec", event)
        _record_secs(
            f"{_ALERTS}/duration_since_last_checkpoint_secs", _last.secs_since(event)
        )


def _tell_of_load(event: Event, family: str) -> None:
    if event.kind == "started":
        jax.monitoring.record_event(f"{_timed(event, family)}/start")
        jax.monitoring.record_event(f"{family}/storage_type", **_labels(event))
    elif event.kind == "loaded":
        _record_success(event, family)
        gbytes = event.total_bytes / _GIB
        jax.monitoring.record_scalar("/jax/checkpoint/read/gbytes", gbytes)
        _record_speed("/jax/checkpoint/read/gbytes_per_sec", event)


def _record_success(event: Event, family: str) -> None:
    jax.monitoring.record_event(f"{family}/success")
    name = f"{_timed(event, family)}/total_duration_secs"
    _record_secs(name, event.elapsed_secs, **_labels(event))


def _record_speed(name: str, event: Event) -> None:
    """Of all bytes of arrays, by the time since the operation started."""
    gbytes = event.total_bytes / _GIB
    jax.monitoring.record_scalar(name, gbytes / max(event.elapsed_secs, 1e-9))


def _record_secs(name: str, secs: float, **labels: str) -> None:
    jax.monitoring.record_event_duration_secs(name, secs, **labels)


def _timed(event: Event, family: str) -> str:
    return f"{family}/async" if event.in_background else family


def _labels(event: Event) -> dict[str, str]:
    return {"storage_type": "gcs" if event.path.startswith("gs://") else "other"}


def _msecs(event: Event) -> float:
    """When it happened, since the epoch."""
    return event.time_nsecs / _NSECS_PER_MSEC


class _LastSave:
    """When the last save of this process started that was published."""

    def __init__(self) -> None:
        # Guards the time: saves end on several threads.
        self._lock = threading.Lock()
        self._started_secs = time.monotonic()  # At first: when the program began.

    def secs_since(self, event: Event) -> float:
        """How long after it the save of an event started, which now is the last."""
        started_secs = time.monotonic() - event.elapsed_secs
        with self._lock:
            secs = started_secs - self._started_secs
            self._started_secs = started_secs
        return secs


_last = _LastSave()
