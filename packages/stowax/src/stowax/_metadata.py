"""What is known of a checkpoint without loading it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from etils import epath

MetadataT = TypeVar("MetadataT")


class CheckpointMetadata(Generic[MetadataT]):
    """Facts about a checkpoint; may be given to `load` in place of its `metadata`.

    Args:
        path: The checkpoint.
        metadata: Of one tree: the tree of abstract leaves. Of several
            checkpointables: a dict of such by name.
        init_timestamp_nsecs: When the save began, in ns since the epoch.
        commit_timestamp_nsecs: When it was complete, in ns since the epoch.
        custom_metadata: What the user gave to `save`.
        container_types: Of one tree: the recorded type of every container that is no
            plain dict, list or tuple, by the name of its path.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 7}, custom_metadata={"run": "a"})
        >>> found = stowax.metadata(path)
        >>> found.metadata, found.custom_metadata
        ({'step': 0}, {'run': 'a'})
        >>> stowax.load(path, found)
        {'step': 7}
    """

    def __init__(
        self,
        path: Any,
        *,
        metadata: MetadataT,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        container_types: Mapping[str, str] | None = None,
    ) -> None:
        self._path = epath.Path(path)
        self._metadata = metadata
        self._init_timestamp_nsecs = init_timestamp_nsecs
        self._commit_timestamp_nsecs = commit_timestamp_nsecs
        self._custom_metadata = custom_metadata
        self._container_types = dict(container_types or {})

    @property
    def path(self) -> epath.Path:
        """The checkpoint."""
        return self._path

    @property
    def metadata(self) -> MetadataT:
        """What it holds, without values."""
        return self._metadata

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When the save began, in ns since the epoch; None if nobody recorded it."""
        return self._init_timestamp_nsecs

    @property
    def init_timestamp(self) -> dt.datetime | None:
        """When the save began, in UTC."""
        return _utc(self._init_timestamp_nsecs)

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When the save was complete, in ns since the epoch."""
        return self._commit_timestamp_nsecs

    @property
    def commit_timestamp(self) -> dt.datetime | None:
        """When the save was complete, in UTC."""
        return _utc(self._commit_timestamp_nsecs)

    @property
    def custom_metadata(self) -> Any:
        """What the user gave to `save`."""
        return self._custom_metadata

    @property
    def container_types(self) -> Mapping[str, str]:
        """What the containers of the tree were, `module:qualified name` by path.

        Of those alone that are no plain dict, list or tuple; ``""`` is the root. Empty
        where nobody recorded it. See `PyTreeOptions.Loading.container_types`.
        """
        return self._container_types

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(path={str(self._path)!r}, "
            f"metadata={self._metadata!r}, custom_metadata={self._custom_metadata!r})"
        )


def _utc(nsecs: int | None) -> dt.datetime | None:
    if nsecs is None:
        return None
    return dt.datetime.fromtimestamp(nsecs / 1e9, tz=dt.UTC)
