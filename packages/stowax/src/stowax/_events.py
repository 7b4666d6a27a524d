"""What there is to hear of operations; see `stowax.events`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Verb = Literal["save", "load", "verify"]
"""What listeners hear of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    kind: Literal[
        "started",
        "staged",
        "progress",
        "leaf",
        "published",
        "loaded",
        "verified",
        "failed",
    ]
    operation: Verb
    id: int
    """Tells the operations of a process apart, also two on the same path."""
    path: str
    """Of the checkpoint, absolute."""
    in_background: bool
    """Whether the caller went on meanwhile: `save_async`, `load_async`."""
    process_index: int
    """Which process of the run tells it; each tells what it does itself."""
    time_nsecs: int
    """When it happened, in nanoseconds since the epoch."""
    elapsed_secs: float
    """Since the operation started, by a clock that nobody sets."""
    done_bytes: int = 0
    """Of arrays, before compression, written or read so far by this process.

    Of a verification: of files, compared so far.
    """
    total_bytes: int = 0
    """What there will be, as far as known: of a save when it is staged."""
    file_bytes: int = 0
    """Of files, documents included, that were written or read so far.

    Neither what is mapped into memory, nor what TensorStore reads of checkpoints that
    are not known here.
    """
    memory_bytes: int = 0
    """What all saves, or loads, of this process now take of their memory budget."""
    peak_memory_bytes: int = 0
    """The most that they took at one time since the operation started."""
    memory_limit_bytes: int | None = None
    """What they may take; None: it is not known before a save is staged."""
    leaf: str | None = None
    """Of a `leaf` event the name, as errors name it; `done_bytes` are its own."""
    error: BaseException | None = None
    """Why it failed."""


ENDS: Final = frozenset({"published", "loaded", "verified", "failed"})
"""What the last event of an operation is."""
