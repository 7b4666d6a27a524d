"""What the local store promises beyond the port: crashes, links, limits, durability."""

import asyncio
import ctypes
import functools
import os
import pathlib
import resource
import shutil
import sys
import threading
import warnings

import pytest

from stowax._stores._base import (
    REPLACEMENT_SUFFIX,
    format_replacement,
    read_bytes,
    resolve,
)
from stowax._stores._local import LocalStore, _write_group
from stowax.errors import CheckpointExistsError, SaveError

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

STOPPED = 77
CACHESTAT = 451

# Stopping before any other call leaves the same disk as stopping before one of these.
CHANGING = ("open", "writev", "fsync", "rename", "unlink", "rmdir")


@pytest.fixture
def root(tmp_path):
    """A directory of this test's own."""
    return tmp_path.as_posix()


def _write_tree(path, content):
    for name in ("document", "state/d/0"):
        file = pathlib.Path(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _tree(path):
    """Every file below a path with its content."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in pathlib.Path(path).rglob("*")
        if file.is_file()
    }


OLD = {"document": b"old", "state/d/0": b"old"}
NEW = {"document": b"new", "state/d/0": b"new"}


def _resolved(final):
    return _tree(asyncio.run(resolve(LocalStore(), final)))


def _profiled(operation, at_call):
    """Runs an operation; `at_call` sees the name of each system call before it."""

    def profile(frame, event, function):
        if event == "c_call" and function.__module__ in ("posix", "fcntl"):
            at_call(function.__name__)

    threading.setprofile(profile)  # For the workers, which start after this line.
    try:
        asyncio.run(operation())
    finally:
        threading.setprofile(None)


def _calls(operation):
    names = []
    _profiled(operation, names.append)
    return names


def _stops_before(number, operation):
    """Runs an operation in a process that dies before its n-th change of the disk.

    Answers whether it came that far.
    """
    with warnings.catch_warnings():
        # The child calls nothing but the store: threads of others do not matter.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            calls = iter(range(1, number))

            def stop(name):
                if name in CHANGING and next(calls, None) is None:
                    os._exit(STOPPED)

            _profiled(operation, stop)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, STOPPED)
    return status == STOPPED


def _interrupted_replacements(directory, can_exchange):
    """Every state of the disk that a dead publisher can leave, one after another."""
    number = 0
    while True:
        number += 1
        final, draft = f"{directory}/{number}/step", f"{directory}/{number}/step.draft"
        _write_tree(final, b"old")
        _write_tree(draft, b"new")

        def publish(draft=draft, final=final):
            store = LocalStore(can_exchange=can_exchange)
            return store.publish(draft, final, replace=True)

        stopped = _stops_before(number, publish)
        assert stopped or _tree(final) == NEW
        yield final
        if not stopped:
            return


@needs_linux
@pytest.mark.parametrize("can_exchange", [False, True])
def test_stopped_at_every_call_a_replacement_is_old_or_new(root, can_exchange):
    """Wherever the publisher dies, readers find one whole checkpoint, and writers too.

    The next writer brings back the name, sees what the readers saw, and can replace it.
    """
    seen = []
    for final in _interrupted_replacements(root, can_exchange):
        found = _resolved(final)
        assert found in (OLD, NEW)
        seen.append(found)
        store = LocalStore(can_exchange=can_exchange)
        asyncio.run(store.complete_replacement(final))
        assert _tree(final) == found
        assert not os.path.exists(final + REPLACEMENT_SUFFIX)
        _write_tree(final + ".next", b"next")
        asyncio.run(store.publish(final + ".next", final, replace=True))
        assert set(_tree(final).values()) == {b"next"}
        left = set(os.listdir(os.path.dirname(final)))
        assert left <= {"step", "step.draft", "step.draft.old"}
    assert seen == sorted(seen, key=lambda found: found == NEW)
    assert can_exchange or OLD in seen  # The exchange itself is the first change.
    assert seen.count(NEW) > 1


def test_stopped_at_every_call_a_completion_changes_nothing_for_readers(root):
    """Whoever completes a replacement may die as well, at any call."""
    states = {}
    for final in _interrupted_replacements(root, False):
        parent = os.path.dirname(final)
        states.setdefault(
            (
                *sorted(os.listdir(parent)),
                os.path.exists(f"{final}.draft.old/document"),
            ),
            parent,
        )
    assert len(states) >= 6
    for state in states.values():
        number, stopped = 0, True
        while stopped:
            number += 1
            copy = f"{state}-{number}"
            shutil.copytree(state, copy)
            found = _resolved(f"{copy}/step")
            stopped = _stops_before(
                number,
                lambda copy=copy: LocalStore().complete_replacement(f"{copy}/step"),
            )
            assert _resolved(f"{copy}/step") == found
        assert not os.path.exists(f"{copy}/step{REPLACEMENT_SUFFIX}")
        assert _tree(f"{copy}/step") == found


@needs_linux
@pytest.mark.parametrize("can_exchange", [False, True])
def test_failing_at_every_call_a_replacement_is_old_or_new(root, can_exchange):
    """Whichever call fails, the name is whole; if it is old, so is the draft."""
    number, failed, outcomes = 0, True, []
    while failed:
        number += 1
        directory = f"{root}/{number}"
        final, draft = f"{directory}/step", f"{directory}/step.draft"
        _write_tree(final, b"old")
        _write_tree(draft, b"new")
        store = LocalStore(can_exchange=can_exchange)
        calls = iter(range(1, number))
        publish = functools.partial(store.publish, draft, final, replace=True)
        failed = False

        def fail(name, calls=calls):
            nonlocal failed
            if not failed and next(calls, None) is None:
                failed = True
                raise OSError(5, "Input/output error")

        try:
            _profiled(publish, fail)
            raised = False
        except (OSError, SaveError):
            raised = True
        found = _resolved(final)
        outcomes.append((raised, found == NEW))
        if can_exchange:
            assert raised == (found == OLD)
        if found == OLD:
            assert raised
            assert _tree(draft) == NEW
        else:
            assert found == NEW
        asyncio.run(store.complete_replacement(final))
        assert _tree(final) == found
    assert outcomes[-1] == (False, True)
    assert (True, False) in outcomes


def test_every_step_of_a_replacement_is_durable_before_the_next(root):
    """Without exchange nothing is deleted before the second rename is durable."""
    _write_tree(f"{root}/step", b"old")
    _write_tree(f"{root}/step.draft", b"new")
    store = LocalStore(can_exchange=False)
    names = _calls(
        lambda: store.publish(f"{root}/step.draft", f"{root}/step", replace=True)
    )
    changes = [name for name in names if name in CHANGING and name != "open"]
    assert changes[:7] == [
        "writev",
        "fsync",
        "fsync",
        "rename",
        "fsync",
        "rename",
        "fsync",
    ]
    assert set(changes[7:-1]) == {"unlink", "rmdir"}
    assert changes[-1] == "unlink"


@needs_linux
def test_the_parent_is_synced_between_exchange_and_delete(root):
    """A power cut cannot bring back the old name of a tree that is half deleted."""
    _write_tree(f"{root}/step", b"old")
    _write_tree(f"{root}/step.draft", b"new")
    store = LocalStore(can_exchange=True)
    names = _calls(
        lambda: store.publish(f"{root}/step.draft", f"{root}/step", replace=True)
    )
    assert names.index("fsync") < names.index("unlink")


@needs_linux
def test_an_exchanged_name_is_never_missing(root):
    """Whoever looks while it is replaced finds the name."""
    final = f"{root}/step"
    _write_tree(final, b"old")
    misses = []
    done = threading.Event()

    def look():
        while not done.is_set():
            if not os.path.exists(final):
                misses.append(final)

    looking = threading.Thread(target=look)
    looking.start()
    store = LocalStore(can_exchange=True)
    for _ in range(30):
        _write_tree(f"{root}/step.draft", b"new")
        asyncio.run(store.publish(f"{root}/step.draft", final, replace=True))
    done.set()
    looking.join()
    assert misses == []


def _record(root, *, draft):
    with open(f"{root}/step{REPLACEMENT_SUFFIX}", "wb") as file:
        file.write(format_replacement(draft))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("action", ["publish", "complete", "delete"])
def test_a_live_writer_is_not_taken_for_dead(root, action):
    """While a writer holds its record, others say so and change nothing."""
    import fcntl

    _write_tree(f"{root}/step.draft", b"new")
    _write_tree(f"{root}/step.other", b"other")
    _record(root, draft="step.draft")
    store = LocalStore(can_exchange=False)
    attempt = {
        "publish": lambda: store.publish(
            f"{root}/step.other", f"{root}/step", replace=True
        ),
        "complete": lambda: store.complete_replacement(f"{root}/step"),
        "delete": lambda: store.delete(f"{root}/step"),
    }[action]
    before = _tree(root)
    with open(f"{root}/step{REPLACEMENT_SUFFIX}", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SaveError, match="another writer"):
            asyncio.run(attempt())
    assert _tree(root) == before


def test_a_deleted_checkpoint_does_not_come_back(root):
    """The draft of a replacement that died early does not take the place."""
    _write_tree(f"{root}/step", b"old")
    _write_tree(f"{root}/step.draft", b"new")
    _record(root, draft="step.draft")
    asyncio.run(LocalStore().delete(f"{root}/step"))
    assert asyncio.run(resolve(LocalStore(), f"{root}/step")) == f"{root}/step"
    assert not os.path.exists(f"{root}/step")


def test_the_last_copy_is_not_deleted(root):
    """When both names are gone, what the old one held is left to a person."""
    _write_tree(f"{root}/step.draft.old", b"old")
    _record(root, draft="step.draft")
    asyncio.run(LocalStore().complete_replacement(f"{root}/step"))
    assert _tree(f"{root}/step.draft.old") == OLD
    assert os.listdir(root) == ["step.draft.old"]


def test_delete_does_not_follow_links(root):
    """What a link in a deleted tree points to stays, and so for a link itself."""
    _write_tree(f"{root}/elsewhere", b"old")
    _write_tree(f"{root}/step", b"new")
    os.symlink(f"{root}/elsewhere", f"{root}/step/link")
    os.symlink(f"{root}/elsewhere", f"{root}/link")
    asyncio.run(LocalStore().delete(f"{root}/step"))
    asyncio.run(LocalStore().delete(f"{root}/link"))
    assert os.listdir(root) == ["elsewhere"]
    assert _tree(f"{root}/elsewhere") == OLD


def test_links_are_followed_by_readers(root):
    """A link is what it points to; a link to nothing is nothing."""
    _write_tree(f"{root}/elsewhere", b"old")
    os.symlink(f"{root}/elsewhere", f"{root}/link")
    os.symlink(f"{root}/nowhere", f"{root}/dangling")
    assert _tree(f"{root}/link") == OLD
    entries = asyncio.run(LocalStore().list(root))
    assert [(entry.name, entry.is_directory) for entry in entries] == [
        ("elsewhere", True),
        ("link", True),
    ]
    assert asyncio.run(LocalStore().stat(f"{root}/dangling")) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_have_the_mode_of_the_umask(root):
    """Files are readable by whom the user's umask says."""
    before = os.umask(0o027)
    try:
        asyncio.run(LocalStore().write(f"{root}/file", [b"abc"]))
    finally:
        os.umask(before)
    assert os.stat(f"{root}/file").st_mode & 0o777 == 0o640


@pytest.mark.parametrize("size_bytes", [None, 3 << 20])
def test_a_full_disk_names_the_path_and_leaves_nothing(root, size_bytes):
    """When the system refuses more bytes, the error says where; no file stays."""
    path = f"{root}/file"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            asyncio.run(
                LocalStore().write(path, [bytes(3 << 20)], size_bytes=size_bytes)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == path
    assert os.listdir(root) == []


class _Range(ctypes.Structure):
    _fields_ = (("begin_bytes", ctypes.c_uint64), ("size_bytes", ctypes.c_uint64))


class _Cached(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def _dirty_pages(path):
    """How many pages of a file the system has not begun to write to the disk."""
    found = _Cached()
    with open(path, "rb") as file:
        arguments = file.fileno(), ctypes.byref(_Range()), ctypes.byref(found), 0
        if ctypes.CDLL(None).syscall(CACHESTAT, *arguments):
            pytest.skip("needs cachestat, which Linux has since 6.5")
    return found.dirty


@needs_linux
def test_a_large_file_is_on_its_way_to_the_disk_while_it_is_written(root):
    """When the last piece comes, most others are written or being written."""
    pathlib.Path(root, "probe").write_bytes(bytes(1 << 20))
    asyncio.run(LocalStore().sync([f"{root}/probe"]))
    if _dirty_pages(f"{root}/probe"):
        pytest.skip("needs a file system on a disk")
    path, dirty_bytes = f"{root}/file", []

    def pieces():
        for _ in range(16):
            yield bytes(4 << 20)
        dirty_bytes.append(_dirty_pages(path) * resource.getpagesize())
        yield b"end"

    asyncio.run(LocalStore().write(path, pieces(), size_bytes=(64 << 20) + 3))
    assert dirty_bytes[0] <= 16 << 20
    assert os.path.getsize(path) == (64 << 20) + 3


def test_short_writes_lose_nothing():
    """However the system cuts up a group, every byte arrives once, in order."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    pieces = [os.urandom(length) for length in (1, 70_001, 3, 0, 99_999, 65_536, 7)]
    group = [memoryview(piece) for piece in pieces]
    arrived = b""
    while group:
        try:
            _write_group(writer, group)
        except BlockingIOError:
            arrived += os.read(reader, 10_007)
    os.close(writer)
    while rest := os.read(reader, 1 << 20):
        arrived += rest
    os.close(reader)
    assert arrived == b"".join(pieces)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a file without sync")
def test_a_failed_sync_is_a_failed_save():
    """What the system could not make durable is an error that names the path."""
    with pytest.raises(
        SaveError, match="/dev/null could not be made durable"
    ) as caught:
        asyncio.run(LocalStore().sync(["/dev/null"]))
    assert isinstance(caught.value.__cause__, OSError)


def test_sync_includes_directories_made_above(root):
    """Parents that the store had to make are synced with their child, once."""
    store = LocalStore()
    asyncio.run(store.write(f"{root}/a/b/c/file", [b"abc"]))
    paths = [f"{root}/a/b/c/file", f"{root}/a/b/c"]
    assert _calls(lambda: store.sync(paths)).count("fsync") == 5
    assert _calls(lambda: store.sync(paths)).count("fsync") == 2


def test_directories_wait_for_a_sync_that_succeeds(root):
    """After a sync that failed, the directories made above are still to be synced."""
    store = LocalStore()
    asyncio.run(store.write(f"{root}/a/b/file", [b"abc"]))
    with pytest.raises(FileNotFoundError):
        asyncio.run(store.sync([f"{root}/a/b/missing"]))
    assert _calls(lambda: store.sync([f"{root}/a/b/file"])).count("fsync") == 3


def test_deleted_directories_wait_for_no_sync(root):
    """What was made and deleted is forgotten; its neighbours are not."""
    store = LocalStore()

    async def scenario():
        await store.make_directory(f"{root}/draft/item")
        await store.make_directory(f"{root}/draft-2/item")
        await store.delete(f"{root}/draft")

    asyncio.run(scenario())
    os.makedirs(f"{root}/draft/item")

    assert _calls(lambda: store.sync([f"{root}/draft/item"])).count("fsync") == 2
    assert _calls(lambda: store.sync([f"{root}/draft-2/item"])).count("fsync") == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
def test_where_no_directory_can_be_made():
    """A file system that finds no name at all ends the search for a parent."""
    with pytest.raises(FileNotFoundError, match="/proc/nope"):
        asyncio.run(LocalStore().make_directory("/proc/nope/x"))


def test_a_file_that_somebody_else_has_just_published(tmp_path, monkeypatch):
    """Without `renameat2`, too, a file that was not there before is not buried."""
    store = LocalStore(can_exchange=False)
    draft, final = f"{tmp_path}/m.tmp", f"{tmp_path}/m"
    asyncio.run(store.write(draft, [b"new"]))
    asyncio.run(store.write(final, [b"old"]))
    exists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda p: p != final and exists(p))

    with pytest.raises(CheckpointExistsError):
        asyncio.run(store.publish(draft, final, replace=False))

    assert asyncio.run(read_bytes(store, final)) == b"old"
    assert asyncio.run(read_bytes(store, draft)) == b"new"


def test_more_than_was_announced_is_not_written(tmp_path):
    """What does not fit the announcement ends the write, and not only its end."""
    made = []

    def pieces():
        for number in range(9):
            made.append(number)
            yield bytes(2 << 20)

    with pytest.raises(SaveError, match="more"):
        asyncio.run(
            LocalStore().write(f"{tmp_path}/file", pieces(), size_bytes=3 << 20)
        )
    assert made == [0, 1]
