"""The port through which every byte of a checkpoint goes.

Paths are absolute, normalised, POSIX-style strings (``/runs/a/checkpoint/state/0``).
A store has no opinion about what the bytes mean. The free functions below are written
over the port alone, so they hold for every store.

Two states matter to a store's promises: *visible*, when the other methods see a file,
and *durable*, when a power cut cannot take it away. Everything is visible when the call
returns, and durable after `Store.sync`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import posixpath
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from stowax.errors import CheckpointExistsError, CorruptCheckpointError, SaveError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pieces: TypeAlias = "Iterable[Buffer] | AsyncIterable[Buffer]"
"""The content of a file, one buffer after another."""

REPLACEMENT_SUFFIX = ".stowax-replace"
"""``<final>.stowax-replace`` is the record of a replacement that is under way."""

DOCUMENT_LIMIT_BYTES = 1 << 30
"""No document of a checkpoint is larger; a million leaves take a quarter of this."""

_RECORD_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a store knows about one path."""

    name: str
    """Last component of the path."""

    is_directory: bool

    size_bytes: int
    """Length of the file; 0 for a directory."""


class Store(Protocol):
    """Keeps bytes by path.

    Methods may be called from several loops and threads at once. A method that is
    cancelled raises only after its work has ended, so nothing is written behind the
    caller's back.
    """

    @property
    def description(self) -> str:
        """What a message calls this store: ``local disk``."""
        ...

    @property
    def has_directories(self) -> bool:
        """Whether `local_path` answers, so that plain file calls reach the bytes."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether bytes travel over a network, so that fewer of them are faster."""
        ...

    async def make_directory(
        self, path: str, *, mode: int | None = None, like: str | None = None
    ) -> None:
        """Makes a directory and its parents; fine when it exists.

        Args:
            path: Where.
            mode: Permission bits of the directory itself, whatever the umask says; None
                leaves them as usual. Without meaning where `has_directories` is false.
            like: Another directory, whose permission bits it gets instead.
        """
        ...

    async def write(
        self, path: str, pieces: Pieces, *, size_bytes: int | None = None
    ) -> None:
        """Writes a new file, and the directories above it.

        Args:
            path: Where; an existing file is refused.
            pieces: C-contiguous buffers, consumed once, in order. Each must keep its
                content until the call returns. Plain ones are made in a worker
                thread, where they may block; those that have to be awaited, on the
                running loop, and no thread waits for them.
            size_bytes: The total, when it is known: it allows the store to allocate
                the space beforehand.

        Raises:
            FileExistsError: Something is at the path; it is untouched.
            SaveError: The pieces do not add up to `size_bytes`.
            OSError: The store failed; ``filename`` is the path.

        After a failure nothing is left at the path; after a cancellation nothing, or
        the whole file.
        """
        ...

    async def link(self, source: str, target: str) -> None:
        """Makes a file appear at a second path as well, and directories above it.

        It is the same file, or a copy of it, as durable as the first: only the names in
        the directories still have to be synced. Neither goes when the other is deleted.

        Raises:
            FileExistsError: Something is at `target`; it is untouched.
            FileNotFoundError: No file is at `source`.
        """
        ...

    async def read_into(self, path: str, offset_bytes: int, buffer: Buffer) -> None:
        """Fills the whole buffer with the bytes that start at an offset.

        Raises:
            FileNotFoundError: No file is at the path.
            CorruptCheckpointError: It is a directory, or ends too early.
        """
        ...

    async def stat(self, path: str) -> Entry | None:
        """Says what is at the path; ``None`` when nothing is."""
        ...

    async def list(self, path: str) -> tuple[Entry, ...]:
        """Direct children of a directory, sorted by name.

        Raises:
            FileNotFoundError: There is no such directory.
        """
        ...

    async def sync(self, paths: Sequence[str]) -> None:
        """Makes files and directories durable, all of them when it returns.

        A file's content and a directory's list of names are separate things: give both.
        Directories that this store had to make above a path are included.

        Raises:
            FileNotFoundError: A path is missing.
            SaveError: A path could not be made durable. There is no second try: after
                a failed sync the system may report success for bytes it has dropped.
        """
        ...

    async def publish(self, draft: str, final: str, *, replace: bool) -> None:
        """Makes `draft`, a directory or a file, appear as its sibling `final` at once.

        The caller has synced the draft, and syncs the parent afterwards. What `final`
        named before is deleted after the new name has become durable.

        Raises:
            CheckpointExistsError: `final` exists and `replace` is false; both are
                untouched.
            FileNotFoundError: There is no such draft.
            SaveError: It could not be done; both are as before.
        """
        ...

    async def complete_replacement(self, final: str) -> None:
        """Finishes, or takes back, what a writer that died in `publish` left.

        Afterwards `final` itself names the checkpoint that `resolve` found before.
        Writers call it before they remove the leftovers of dead writers; `publish`
        and `delete` call it themselves.

        Raises:
            SaveError: The other writer is alive and at work.
        """
        ...

    async def delete(self, path: str) -> None:
        """Deletes a file or a tree, never what a symbolic link in it points to.

        Fine when nothing is there.
        """
        ...

    def local_path(self, path: str) -> pathlib.Path | None:
        """The same place for plain file calls; ``None`` where there is none."""
        ...


async def resolve(store: Store, final: str) -> str:
    """Where the checkpoint named `final` is to be read; writes nothing.

    It is `final` itself, but for one case: a writer on a system that cannot exchange
    two directories died while neither the old nor the new checkpoint had that name.
    Then it is the draft of the new one, which was whole and durable before.
    """
    if await store.stat(final) is not None:
        return final
    try:
        record = await read_bytes(
            store, final + REPLACEMENT_SUFFIX, limit_bytes=_RECORD_LIMIT_BYTES
        )
    except (FileNotFoundError, CorruptCheckpointError):
        return final
    draft = parse_replacement(record)
    if draft is None:
        return final
    candidate = join(posixpath.dirname(final), draft)
    return candidate if await store.stat(candidate) is not None else final


async def read_bytes(
    store: Store, path: str, *, limit_bytes: int = DOCUMENT_LIMIT_BYTES
) -> bytes:
    """Reads a whole file of at most `limit_bytes`.

    Raises:
        FileNotFoundError: No file is at the path.
        CorruptCheckpointError: It is a directory, too long to be valid, or shrank.
    """
    entry = await store.stat(path)
    if entry is None:
        raise missing(path)
    if entry.is_directory:
        raise no_file(path)
    if entry.size_bytes > limit_bytes:
        raise CorruptCheckpointError(
            f"{path} has {entry.size_bytes} bytes; a valid file of this kind has at"
            f" most {limit_bytes}."
        )
    content = bytearray(entry.size_bytes)
    await store.read_into(path, 0, content)
    return bytes(content)


async def walk(store: Store, path: str) -> list[tuple[str, Entry]]:
    """Every file and directory below a directory, parents before their children."""
    found: list[tuple[str, Entry]] = []
    for entry in await store.list(path):
        below = f"{path.rstrip('/')}/{entry.name}"
        found.append((below, entry))
        if entry.is_directory:
            found.extend(await walk(store, below))
    return found


def no_file(path: str) -> CorruptCheckpointError:
    """The error for what stands where a file belongs, and cannot be read as one."""
    return CorruptCheckpointError(
        f"{path} is no file, but a directory, a pipe, a socket or a device. Nothing"
        " that was saved looks like this; do not load this checkpoint if you do not"
        " know who changed it"
    )


def join(directory: str, relative: str) -> str:
    """A path below `directory`, from a name that was read from a file.

    Raises:
        CorruptCheckpointError: The name could lead anywhere else.
    """
    unsafe = {"", ".", ".."}.intersection(relative.split("/"))
    if unsafe or "\\" in relative or "\0" in relative or not _is_encodable(relative):
        raise CorruptCheckpointError(
            f"{directory} names the file {relative!r}, which is not a plain path below"
            " it. Do not load this checkpoint if you do not know who changed it."
        )
    return f"{directory.rstrip('/')}/{relative}"


def _is_encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def format_replacement(draft: str) -> bytes:
    """The record that says: the directory named `draft` takes the final name.

    The digest makes a record that was cut short by a crash recognisable.
    """
    body = json.dumps({"draft": draft}, ensure_ascii=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"body": body, "sha256": digest}).encode()


def parse_replacement(record: bytes) -> str | None:
    """The draft that a record names; ``None`` for a record that is not whole."""
    try:
        sealed = json.loads(record)
        body = sealed["body"]
        if sealed["sha256"] != hashlib.sha256(body.encode()).hexdigest():
            return None
        draft = json.loads(body)["draft"]
        join("/", draft)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None if "/" in draft else draft


def byte_view(buffer: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer, as they lie in memory."""
    view = memoryview(buffer)
    # memoryview.cast refuses shapes that contain a zero.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def check_siblings(draft: str, final: str) -> None:
    """Refuses a publish from one directory into another: no rename is atomic there."""
    if posixpath.dirname(draft) != posixpath.dirname(final) or draft == final:
        raise ValueError(f"{draft} and {final} are not two names in one directory.")


def missing(path: str) -> FileNotFoundError:
    """The error for a path at which nothing is."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def already_published(final: str) -> CheckpointExistsError:
    """The error for a publish that would replace something unasked."""
    return CheckpointExistsError(
        f"{final} exists already. Choose another path, or replace it with"
        " `overwrite=True`."
    )


def file_too_short(
    path: str, offset_bytes: int, length_bytes: int, size_bytes: int
) -> CorruptCheckpointError:
    """The error for a range that reaches past the end of its file."""
    return CorruptCheckpointError(
        f"{path}: bytes {offset_bytes} to {offset_bytes + length_bytes} were asked for,"
        f" but the file has only {size_bytes} bytes. It was truncated after it was"
        " saved; load another checkpoint."
    )


def size_mismatch(path: str, expected_bytes: int, found: str) -> SaveError:
    """The error for pieces that do not add up to the size that was announced."""
    return SaveError(
        f"{path}: {expected_bytes} bytes were announced, but its pieces have {found}."
        " Nothing was written there."
    )
