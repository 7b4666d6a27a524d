"""Files of a mounted file system.

This is the only module that opens files of a checkpoint for writing, syncs, renames or
removes them. Every blocking call runs on the workers of the running loop.

Publishing is one rename; of a file, on systems whose rename would bury another, a link.
Replacing a file by a file is one rename everywhere. Replacing a directory exchanges the
two where the kernel and the file system can. Elsewhere it takes four steps, each
durable before the next:

    1. a record beside ``final`` names the draft       reader: final   (old)
    2. final is renamed to ``<draft>.old``             reader: draft   (new)
    3. draft is renamed to ``final``                   reader: final   (new)
    4. ``<draft>.old`` and the record are deleted      reader: final   (new)

`stowax._stores._base.resolve` is that reader. `LocalStore.complete_replacement` leads
from any of these states back to one without a record.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import pathlib
import posixpath
import shutil
import stat
import sys
import threading
from collections.abc import (
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from typing import TYPE_CHECKING

from stowax._loop import on_worker, until_ended
from stowax._stores._base import (
    REPLACEMENT_SUFFIX,
    Entry,
    Pieces,
    already_published,
    byte_view,
    check_siblings,
    file_too_short,
    format_replacement,
    no_file,
    parse_replacement,
    size_mismatch,
)
from stowax._tasks import run_all
from stowax.errors import SaveError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LOGGER = logging.getLogger("stowax")

# Linux takes at most 1024 buffers at once (IOV_MAX).
_GROUP_PIECES = 1024
# Small pieces share a system call; large ones are written while still in the cache.
_GROUP_BYTES = 1 << 20
# Below this, allocating first costs more than it saves.
_ALLOCATE_FROM_BYTES = 1 << 20
# So much is sent to the disk at once while a file is being written. What is smaller
# waits for its sync: small files are quicker together.
_WRITE_BACK_BYTES = 8 << 20
# Devices gain little from more fsyncs at once, and the pool is for others too.
_SYNC_LANES = 4

# Without it, opening a named pipe waits for somebody at its other end.
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)

# Too many names, another file system, or one without links.
_NO_LINK = (
    *(errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP),
    *(errno.ENOSYS, errno.EINVAL),
)

_OLD_SUFFIX = ".old"

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2


class LocalStore:
    """Checkpoints as directories of the local machine, or of a network mount.

    Args:
        can_exchange: Whether the system has ``renameat2``. ``None`` tries it and does
            without where it is missing, ``False`` does without, ``True`` makes its
            absence an error.
    """

    def __init__(self, *, can_exchange: bool | None = None) -> None:
        self._can_exchange = can_exchange
        # Guards the set: directories that hold an unsynced name of a new directory.
        self._lock = threading.Lock()
        self._new_names_in: set[str] = set()

    @property
    def description(self) -> str:
        return "local disk"

    @property
    def has_directories(self) -> bool:
        return True

    @property
    def is_remote(self) -> bool:
        return False

    def local_path(self, path: str) -> pathlib.Path:
        return pathlib.Path(path)

    async def make_directory(
        self, path: str, *, mode: int | None = None, like: str | None = None
    ) -> None:
        def make() -> None:
            bits = mode if like is None else stat.S_IMODE(os.stat(like).st_mode)
            self._make_directory(path, bits)

        await on_worker(make)

    async def write(
        self, path: str, pieces: Pieces, *, size_bytes: int | None = None
    ) -> None:
        if isinstance(pieces, AsyncIterable):
            await on_worker(self._make_directory, posixpath.dirname(path))
            await _write_awaited(path, pieces, size_bytes)
            return

        def write() -> None:
            self._make_directory(posixpath.dirname(path))
            _write_file(path, pieces, size_bytes)

        await on_worker(write)

    async def link(self, source: str, target: str) -> None:
        def link() -> None:
            self._make_directory(posixpath.dirname(target))
            _link(source, target)

        await on_worker(link)

    async def read_into(self, path: str, offset_bytes: int, buffer: Buffer) -> None:
        await on_worker(_read_range, path, offset_bytes, byte_view(buffer))

    async def stat(self, path: str) -> Entry | None:
        return await on_worker(_stat, path)

    async def list(self, path: str) -> tuple[Entry, ...]:
        return await on_worker(_list, path)

    async def sync(self, paths: Sequence[str]) -> None:
        above = self._take_new_names_above(paths)
        wanted = list(dict.fromkeys((*paths, *above)))
        lanes = [wanted[lane::_SYNC_LANES] for lane in range(_SYNC_LANES)]
        try:
            await run_all(on_worker(_sync, lane) for lane in lanes if lane)
        except BaseException:  # Cancelled or failed: the names still wait for a sync.
            with self._lock:
                self._new_names_in |= above
            raise

    async def publish(self, draft: str, final: str, *, replace: bool) -> None:
        check_siblings(draft, final)
        await on_worker(_publish, draft, final, replace, self._can_exchange)

    async def complete_replacement(self, final: str) -> None:
        await on_worker(_complete_replacement, final)

    async def delete(self, path: str) -> None:
        # Before, so that what others make there meanwhile is not forgotten.
        self._forget_new_names_in(path)
        await on_worker(_delete, path)

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        try:
            self._add_directory(path, mode)
        except FileNotFoundError:
            parent = posixpath.dirname(path)
            if parent in ("", path):
                raise
            self._make_directory(parent)
            # Once more, not for ever: in /proc no name is ever found.
            self._add_directory(path, mode)
        if mode is not None:
            os.chmod(path, mode)  # The umask has taken its bits from the above.

    def _add_directory(self, path: str, mode: int | None) -> None:
        try:
            os.mkdir(path, 0o777 if mode is None else mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        else:
            with self._lock:
                self._new_names_in.add(posixpath.dirname(path))

    def _forget_new_names_in(self, path: str) -> None:
        with self._lock:
            self._new_names_in = {
                directory
                for directory in self._new_names_in
                if directory != path and not directory.startswith(f"{path}/")
            }

    def _take_new_names_above(self, paths: Sequence[str]) -> set[str]:
        with self._lock:
            if not self._new_names_in:
                return set()
            found = {
                directory
                for path in paths
                for directory in (path, *_ancestors(path))
                if directory in self._new_names_in
            }
            self._new_names_in -= found
            return found


def _ancestors(path: str) -> Iterator[str]:
    parent = posixpath.dirname(path)
    while parent != path:
        yield parent
        path, parent = parent, posixpath.dirname(parent)


# Writing and reading files.


class _NewFile:
    """A file that is being written, and appears whole or not at all.

    Args:
        path: Where; nothing may be there.
        size_bytes: How long it will be, if that is known.
    """

    def __init__(self, path: str, size_bytes: int | None = None) -> None:
        # O_BINARY exists, and is needed, on Windows only.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._path = path
        self._size_bytes = size_bytes
        self._written_bytes = 0
        self._sent_bytes = 0
        """What the disk was asked to begin with."""
        self._file: int | None = os.open(path, flags, 0o666)
        if size_bytes is not None and size_bytes >= _ALLOCATE_FROM_BYTES:
            try:
                with _naming(path):
                    _allocate(self._file, size_bytes)
            except BaseException:  # An interrupt too; raised again.
                self.discard()
                raise

    def append(self, pieces: Iterable[Buffer]) -> None:
        """Writes pieces at its end.

        Raises:
            SaveError: They are more than was announced.
        """
        assert self._file is not None
        group_bytes = 0
        group: list[memoryview] = []
        with _naming(self._path):
            for piece in pieces:
                view = byte_view(piece)
                if not view.nbytes:
                    continue
                group.append(view)
                group_bytes += view.nbytes
                self._check_room(group_bytes)
                if group_bytes >= _GROUP_BYTES or len(group) == _GROUP_PIECES:
                    self._write(group, group_bytes)
                    group_bytes = 0
            self._write(group, group_bytes)

    def close(self) -> None:
        """Says that this was all.

        Raises:
            SaveError: It is less than was announced.
        """
        assert self._file is not None
        if self._size_bytes not in (None, self._written_bytes):
            found = f"only {self._written_bytes}"
            raise size_mismatch(self._path, self._size_bytes, found)
        file, self._file = self._file, None
        with _naming(self._path):
            os.close(file)  # Network file systems report some failed writes only here.

    def discard(self) -> None:
        """Leaves nothing at its path."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _check_room(self, size_bytes: int) -> None:
        total_bytes = self._size_bytes
        if total_bytes is not None and self._written_bytes + size_bytes > total_bytes:
            raise size_mismatch(self._path, total_bytes, "more")

    def _write(self, group: list[memoryview], group_bytes: int) -> None:
        assert self._file is not None
        _write_group(self._file, group)
        self._written_bytes += group_bytes
        if self._written_bytes - self._sent_bytes >= _WRITE_BACK_BYTES:
            _send_to_disk(self._file, self._sent_bytes, self._written_bytes)
            self._sent_bytes = self._written_bytes


def _write_file(
    path: str, pieces: Iterable[Buffer], size_bytes: int | None = None
) -> None:
    """Creates a file whole, or leaves none."""
    file = _NewFile(path, size_bytes)
    try:
        file.append(pieces)
        file.close()
    except BaseException:  # An interrupt too; raised again.
        file.discard()
        raise


async def _write_awaited(
    path: str, pieces: AsyncIterable[Buffer], size_bytes: int | None
) -> None:
    """The same of pieces that have to be awaited."""
    opened: list[_NewFile] = []

    def begin() -> None:
        opened.append(_NewFile(path, size_bytes))

    try:
        await on_worker(begin)
        async for piece in pieces:
            await on_worker(opened[0].append, [piece])
        await on_worker(opened[0].close)
    except BaseException:  # A cancellation too; raised again.
        for file in opened:
            await until_ended(file.discard)
        raise


def _link(source: str, target: str) -> None:
    """Gives a file a second name; where there are no links, a durable copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        with open(source, "rb", buffering=0, opener=open_to_read) as file:
            _write_file(target, iter(lambda: file.read(_WRITE_BACK_BYTES), b""))
        shutil.copymode(source, target)
        _sync([target])


def _write_group(file: int, group: list[memoryview]) -> None:
    """Writes every byte of the group, however the system cuts it up; empties it."""
    while group:
        if hasattr(os, "writev"):
            count = os.writev(file, group)
        else:
            count = os.write(file, group[0])
        whole = 0
        while whole < len(group) and count >= len(group[whole]):
            count -= len(group[whole])
            whole += 1
        del group[:whole]
        if count:
            group[0] = group[0][count:]


def _send_to_disk(file: int, begin_bytes: int, end_bytes: int) -> None:
    """Has the disk begin with what was written, so that the sync has less to wait for.

    Only a hint: what goes wrong, and whether there is such a call, the sync will tell.
    """
    sync_file_range = _sync_file_range()
    if sync_file_range is not None:
        size_bytes = end_bytes - begin_bytes
        sync_file_range(file, begin_bytes, size_bytes, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    return function


def _allocate(file: int, size_bytes: int) -> None:
    """Asks for the space in one go; a full disk is then found before the first byte."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size_bytes)
    except OSError as error:
        # The file system cannot: then the space is found piece by piece.
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def _read_range(path: str, offset_bytes: int, view: memoryview) -> None:
    with _naming(path), open(path, "rb", buffering=0, opener=open_to_read) as file:
        file.seek(offset_bytes)
        filled_bytes = 0
        while filled_bytes < len(view):
            count = file.readinto(view[filled_bytes:])
            if not count:
                size_bytes = os.fstat(file.fileno()).st_size
                raise file_too_short(path, offset_bytes, len(view), size_bytes)
            filled_bytes += count


def open_to_read(path: str, flags: int) -> int:
    """Opens a file, and nothing else: a named pipe would keep us waiting for ever."""
    try:
        file = os.open(path, flags | _NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:  # What a socket answers.
            raise
        raise no_file(path) from error
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise no_file(path)


@contextlib.contextmanager
def _naming(path: str) -> Generator[None, None, None]:
    """Adds the path to errors of calls that know only the number of an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


# Looking around.


def _stat(path: str) -> Entry | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:  # A link that leads nowhere, too.
            raise
        return None
    return _entry(posixpath.basename(path), found)


def _list(path: str) -> tuple[Entry, ...]:
    with os.scandir(path) as children:
        found = [_stat(posixpath.join(path, child.name)) for child in children]
    # Another process may have deleted one meanwhile, and links may lead nowhere.
    entries = [entry for entry in found if entry is not None]
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _entry(name: str, found: os.stat_result) -> Entry:
    is_directory = stat.S_ISDIR(found.st_mode)
    size_bytes = 0 if is_directory else found.st_size
    return Entry(name=name, is_directory=is_directory, size_bytes=size_bytes)


# Making durable.


def _sync(paths: Sequence[str]) -> None:
    for path in paths:
        if os.name == "nt" and os.path.isdir(path):
            continue  # Windows cannot open directories, and journals their names.
        flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY | _NONBLOCK
        file = os.open(path, flags)
        try:
            os.fsync(file)
        except OSError as error:
            raise SaveError(
                f"{path} could not be made durable: {error.strerror}. What was written"
                " there must be taken for lost; save again to another path."
            ) from error
        finally:
            os.close(file)


# Publishing.


def _publish(draft: str, final: str, replace: bool, can_exchange: bool | None) -> None:
    _complete_replacement(final)
    if _rename_new(draft, final, can_exchange):
        return
    if not replace:
        raise already_published(final)
    if not os.path.isdir(draft) and not os.path.isdir(final):
        os.replace(draft, final)  # Of files, one step that all systems have.
        return
    if not _rename2(draft, final, _RENAME_EXCHANGE, can_exchange):
        _replace_under_record(draft, final)
        return
    try:
        # Were the old tree deleted first, a power cut could bring back its bare name.
        _sync([posixpath.dirname(final)])
    except (OSError, SaveError):
        _rename2(draft, final, _RENAME_EXCHANGE, can_exchange)
        raise
    _delete_replaced(draft)


def _rename_new(draft: str, final: str, can_exchange: bool | None) -> bool:
    """Renames unless the name is taken; answers whether it did."""
    try:
        if _rename2(draft, final, _RENAME_NOREPLACE, can_exchange):
            return True
    except FileExistsError:
        return False
    if os.path.lexists(final):
        return False
    try:
        if not os.path.isdir(draft):
            return _link_new(draft, final)
        os.rename(draft, final)
    except OSError as error:
        # Somebody was faster: a rename refuses to bury anything but an empty directory.
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _link_new(draft: str, final: str) -> bool:
    """Renames a file unless the name is taken, which a plain rename would bury."""
    try:
        os.link(draft, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        os.rename(draft, final)
    else:
        try:
            os.unlink(draft)
        except OSError as error:
            # The file has its name; the other one is that of a draft.
            _LOGGER.warning("%s cannot be deleted: %s", draft, error)
    return True


def _rename2(source: str, target: str, flag: int, can_exchange: bool | None) -> bool:
    """Calls renameat2; answers false where the system has none."""
    if can_exchange is False:
        return False
    number = errno.ENOSYS
    renameat2 = _renameat2()
    if renameat2 is not None:
        names = os.fsencode(source), os.fsencode(target)
        if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flag) == 0:
            return True
        number = ctypes.get_errno()
    lacking = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
    if number in lacking and can_exchange is None:
        return False
    raise OSError(number, os.strerror(number), source, None, target)


@functools.cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        )
    return function


def _replace_under_record(draft: str, final: str) -> None:
    parent, old = posixpath.dirname(final), draft + _OLD_SUFFIX
    record = final + REPLACEMENT_SUFFIX
    os.stat(draft)  # A missing draft is found before anything is renamed.
    try:
        _write_file(record, [format_replacement(posixpath.basename(draft))])
    except FileExistsError as error:
        raise _another_writer(final) from error
    with _alone(record):
        try:
            _sync([record, parent])
            os.rename(final, old)
            _sync([parent])
            os.rename(draft, final)
            _sync([parent])
        except (OSError, SaveError):
            if os.path.lexists(old):
                if os.path.lexists(final):
                    os.rename(final, draft)
                os.rename(old, final)
                _sync([parent])
            os.unlink(record)
            raise
        _delete_replaced(old)
        os.unlink(record)


def _complete_replacement(final: str) -> None:
    parent, record = posixpath.dirname(final), final + REPLACEMENT_SUFFIX
    if not os.path.lexists(record):
        return
    with _alone(record):
        with open(record, "rb", opener=open_to_read) as file:
            name = parse_replacement(file.read())
        if name is not None:  # Otherwise it was cut short, before any rename.
            draft = posixpath.join(parent, name)
            if not os.path.lexists(final) and os.path.lexists(draft):
                os.rename(draft, final)
            _sync([parent])
            # With both names, nothing has happened yet. With neither, somebody deleted
            # them, and what the old name holds may be the last copy.
            if os.path.lexists(final) and not os.path.lexists(draft):
                _delete_replaced(draft + _OLD_SUFFIX)
        os.unlink(record)


@contextlib.contextmanager
def _alone(record: str) -> Generator[None, None, None]:
    """Holds the record, so that no other live writer takes its writer for dead."""
    if sys.platform == "win32":
        yield
        return
    final = record.removesuffix(REPLACEMENT_SUFFIX)
    try:
        file = os.open(record, os.O_RDWR)
    except FileNotFoundError as error:
        raise _another_writer(final) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _another_writer(final) from error
        except OSError:
            pass  # The file system has no locks; then two writers are not kept apart.
        # Between opening and locking, another writer may have finished with it.
        if not _is_same_file(file, record):
            raise _another_writer(final)
        yield
    finally:
        os.close(file)


def _is_same_file(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _another_writer(final: str) -> SaveError:
    return SaveError(
        f"{final}: another writer is replacing it at this moment. Nothing was changed;"
        " wait for the other save, then try again."
    )


# Deleting.


def _delete(path: str) -> None:
    # A record left behind would bring the draft it names to this path.
    _complete_replacement(path)
    _delete_tree(path)


def _delete_replaced(old: str) -> None:
    """Deletes what was replaced.

    The new checkpoint is published by now, so a failure here is not one of the save;
    what is left over bears the name of a draft.
    """
    try:
        _delete_tree(old)
    except OSError as error:
        _LOGGER.warning("%s was replaced, but cannot be deleted: %s", old, error)


def _delete_tree(path: str) -> None:
    while True:
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            # Gone, or somebody else deletes the same tree: then what is left is tried.
            if not os.path.lexists(path):
                return
        else:
            return
