"""What every format offers to the operations: a checkpoint, its items, their arrays.

A format recognises a directory by what is on disk, translates its documents into a
`Manifest`, and gives an `ArraySource` that brings parts of the stored arrays into
memory.  Everything after that is the same for all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from stowax._box import Box
from stowax._budget import Scratch
from stowax._manifest import Digest, Manifest
from stowax._stores._base import Store

Layout = Literal["composite", "direct"]
"""Items in sub-directories, or the files of the only item at the top."""

ItemKind = Literal["tree", "json", "proto", "opaque"]
"""What the files of an item are, judged by their presence alone."""

RESERVED_NAMES = frozenset({"metrics", "AUTO", "_CHECKPOINT_DELETION"})
"""Names that no checkpointable may have; those of the peer."""

ITEM_DOCUMENT = "_METADATA"
"""Its presence makes a directory a tree item, in every format of this family."""


class ReadRequest(NamedTuple):
    """One part of one stored array, and the memory it goes to."""

    leaf: int
    """Position in `Manifest.leaves`."""
    box: Box
    out: np.ndarray
    """C-contiguous, of the box's shape and the stored dtype."""
    may_map: bool = False
    """Whether `out` is memory of `allocate_pages`, and may show a file."""


Arrived = Callable[[Sequence[tuple[int, int]]], None]
"""Hears of leaves, by position, and how many more bytes of each have come, verified.

On any thread. Of what is zeros without being read nobody tells."""


class ArraySource(Protocol):
    """Brings stored arrays into memory."""

    async def read(
        self,
        requests: Sequence[ReadRequest],
        scratch: Scratch,
        arrived: Arrived | None = None,
    ) -> None:
        """Fills every request, verified as far as the format allows.

        Args:
            requests: What is wanted.
            scratch: For memory that is needed beside theirs.
            arrived: Hears of what has come, piece by piece; None: nobody does.

        Raises:
            CorruptCheckpointError: Names the leaf, its chunk and the file.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeItem:
    """A tree item, open for reading."""

    path: str
    manifest: Manifest
    source: ArraySource
    custom_metadata: Any = None
    """User's metadata of the item itself (older API of the peer only); of an item of
    ours it stands in its document alone."""
    documents: Mapping[str, Digest] = field(default_factory=dict)
    """Digests of the documents beside a manifest of ours, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCheckpoint:
    """What a checkpoint says about itself before any item is opened."""

    path: str
    items: Mapping[str, str]
    """Name of every checkpointable → its directory; of a direct layout `{"": path}`."""
    kinds: Mapping[str, ItemKind] = field(default_factory=dict)
    """What items are, where it is not for the names of their files to say."""
    typestrs: Mapping[str, str] = field(default_factory=dict)
    """Recorded handler type strings by name, as far as recorded."""
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Any = None
    deleting: str | None = None
    """An item that Orbax has begun to delete; it is not among the others."""
    guest_files: Mapping[str, Digest] = field(default_factory=dict)
    """Digests of files that no item manifest covers, by path below the checkpoint."""


class Format(Protocol):
    """One way to arrange a checkpoint on disk."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def is_sealed(self) -> bool:
        """Whether checksums vouch for what stands at the root.

        If so, damage there is an error, and no other format is tried, unless the
        caller wants no verification.
        """
        ...

    async def recognises(self, store: Store, path: str) -> bool:
        """Whether the directory, which exists, is a checkpoint of this format."""
        ...

    async def open(self, store: Store, path: str, *, verify: bool) -> OpenCheckpoint:
        """Reads what stands at the root.

        Raises:
            InvalidLayoutError: It is incomplete; says what was found.
            CorruptCheckpointError: A document at the root is damaged.
        """
        ...
