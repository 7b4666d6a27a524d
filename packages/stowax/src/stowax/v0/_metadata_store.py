"""Who reads and writes what stands at the root of a checkpoint."""

from __future__ import annotations

import json
import threading
from typing import Any, Protocol

from etils import epath

from stowax._formats._orbax_json import ROOT_DOCUMENT, RootDocument, decode_root


class MetadataStore(Protocol):
    """Reads and writes JSON documents about checkpoints.

    One given to a checkpointer writes that of the draft, in the primary process, before
    it is summed and published.
    """

    def is_blocking_writer(self) -> bool:
        """Whether what is written is there when the call returns."""
        ...

    def write(self, file_path: Any, metadata: dict[str, Any]) -> None:
        """Writes a document."""
        ...

    def read(self, file_path: Any) -> dict[str, Any] | None:
        """Reads a document; None if there is none."""
        ...

    def update(self, file_path: Any, **kwargs: Any) -> None:
        """Writes a document with other values of some keys."""
        ...

    def wait_until_finished(self) -> None:
        """Waits until all is written."""
        ...

    def close(self) -> None:
        """Lets go what it holds."""
        ...


class _FileStore(MetadataStore):
    """Plain files.

    Args:
        enable_write: Whether it writes; else the calls do nothing.
        is_blocking: What it says of itself. It never writes later.
    """

    def __init__(self, *, enable_write: bool, is_blocking: bool) -> None:
        self._enable_write = enable_write
        self._is_blocking = is_blocking
        # An update is a read and a write.
        self._lock = threading.RLock()

    def is_blocking_writer(self) -> bool:
        return self._is_blocking

    def write(self, file_path: Any, metadata: dict[str, Any]) -> None:
        if self._enable_write:
            with self._lock:
                epath.Path(file_path).write_text(json.dumps(metadata))

    def read(self, file_path: Any) -> dict[str, Any] | None:
        try:
            return json.loads(epath.Path(file_path).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def update(self, file_path: Any, **kwargs: Any) -> None:
        with self._lock:
            self.write(file_path, {**(self.read(file_path) or {}), **kwargs})

    def wait_until_finished(self) -> None:
        pass

    def close(self) -> None:
        pass


def metadata_store(
    *, enable_write: bool, blocking_write: bool = False
) -> MetadataStore:
    """A store of plain files.

    Args:
        enable_write: Whether it writes, or only reads.
        blocking_write: Whether it says that what is written is there when a call
            returns, as a `Checkpointer` needs it.

    Example:
        >>> from stowax import v0 as ocp
        >>> store = ocp.metadata.metadata_store(enable_write=True, blocking_write=True)
        >>> store.write(getfixture("tmp_path") / "document", {"by": "me"})
        >>> store.read(getfixture("tmp_path") / "document")
        {'by': 'me'}
    """
    return _FileStore(enable_write=enable_write, is_blocking=blocking_write)


class RootWriter:
    """Has a store of the user write what stands at the root of a draft.

    Args:
        store: The store.
    """

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    async def __call__(self, directory: epath.Path, document: dict[str, Any]) -> None:
        """Writes it; a guest's work."""
        self._store.write(directory / ROOT_DOCUMENT, document)
        if (wait := getattr(self._store, "wait_until_finished", None)) is not None:
            wait()


def read_root_by(store: MetadataStore, path: str) -> RootDocument:
    """What a store of the user says of a checkpoint."""
    found = store.read(epath.Path(path) / ROOT_DOCUMENT)
    return decode_root(json.dumps(found or {}).encode(), path=path)
