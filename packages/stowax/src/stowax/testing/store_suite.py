"""The promises of the `Store` port, one test each.

Whoever writes a store inherits from `StoreSuite` in a test module:

    class TestMyStore(StoreSuite):
        def make_store(self):
            return MyStore()

This module needs pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stowax._stores._base import Store, read_bytes, walk
from stowax.errors import CheckpointExistsError, CorruptCheckpointError, SaveError


class StoreSuite:
    """Contract tests for any store."""

    def make_store(self) -> Store:
        """The store under test; called once per test."""
        raise NotImplementedError

    @pytest.fixture
    def store(self) -> Store:
        """A store of this test's own."""
        return self.make_store()

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """An absolute path below which the test may do what it likes."""
        return tmp_path.as_posix()

    def test_write_then_read_back(self, store: Store, root: str) -> None:
        """What was written is read back, byte for byte, parents made on the way."""
        path = f"{root}/a/b/file"
        assert _written_and_read(store, path, [b"one", bytearray(b"two")]) == b"onetwo"

    def test_empty_file(self, store: Store, root: str) -> None:
        """A file of no bytes exists and has size 0."""
        assert _written_and_read(store, f"{root}/empty", []) == b""
        entry = asyncio.run(store.stat(f"{root}/empty"))
        assert entry is not None
        assert (entry.is_directory, entry.size_bytes) == (False, 0)

    def test_many_pieces(self, store: Store, root: str) -> None:
        """Thousands of small pieces, empty ones among them, keep their order."""
        pieces = [b"%d," % number if number % 7 else b"" for number in range(5000)]
        assert _written_and_read(store, f"{root}/many", pieces) == b"".join(pieces)

    def test_large_pieces(self, store: Store, root: str) -> None:
        """Pieces of several MiB, of announced total size, are read back whole."""
        pieces = [bytes([number]) * (3 << 20) for number in range(3)]
        content = _written_and_read(store, f"{root}/big", pieces, size_bytes=9 << 20)
        assert content == b"".join(pieces)

    def test_pieces_of_wider_items(self, store: Store, root: str) -> None:
        """A buffer of wider items, of any shape, is written as its bytes."""
        words = memoryview(b"abcdefgh").cast("H", (2, 2))
        assert _written_and_read(store, f"{root}/words", [words]) == b"abcdefgh"

    def test_pieces_are_consumed_in_a_worker_thread(
        self, store: Store, root: str
    ) -> None:
        """Making the pieces may block without blocking the loop."""
        threads: list[threading.Thread] = []

        def pieces() -> Iterator[bytes]:
            threads.append(threading.current_thread())
            yield b"piece"

        asyncio.run(store.write(f"{root}/file", pieces()))
        assert threads != [threading.current_thread()]

    def test_write_refuses_an_existing_file(self, store: Store, root: str) -> None:
        """A file that exists is neither replaced nor touched."""
        path = f"{root}/file"
        assert _written_and_read(store, path, [b"old"]) == b"old"
        with pytest.raises(FileExistsError):
            asyncio.run(store.write(path, [b"new"]))
        assert _tree(store, root) == {path: b"old"}

    @pytest.mark.parametrize("size_bytes", [2, 4, 3 << 20])
    def test_size_mismatch_leaves_nothing(
        self, store: Store, root: str, size_bytes: int
    ) -> None:
        """Pieces that do not add up to the announced size are an error."""
        with pytest.raises(SaveError, match=str(size_bytes)):
            asyncio.run(store.write(f"{root}/file", [b"abc"], size_bytes=size_bytes))
        assert asyncio.run(store.stat(f"{root}/file")) is None

    def test_failing_pieces_leave_nothing(self, store: Store, root: str) -> None:
        """An error while the pieces are made comes out, and no file stays."""

        def pieces() -> Iterator[bytes]:
            yield bytes(2 << 20)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(store.write(f"{root}/file", pieces()))
        assert asyncio.run(store.stat(f"{root}/file")) is None

    def test_cancelled_write_is_over(self, store: Store, root: str) -> None:
        """When a cancelled write has raised, nobody works on its file any more."""
        begun, cancelled, ended = (threading.Event() for _ in range(3))

        def pieces() -> Iterator[bytes]:
            yield b"abc"
            begun.set()
            cancelled.wait()
            ended.set()

        async def scenario() -> None:
            write = asyncio.create_task(store.write(f"{root}/file", pieces()))
            await asyncio.to_thread(begun.wait)
            write.cancel()
            await asyncio.sleep(0)  # Lets the write see it before its pieces end.
            cancelled.set()
            with pytest.raises(asyncio.CancelledError):
                await write
            assert ended.is_set()
            entry = await store.stat(f"{root}/file")
            assert entry is None or entry.size_bytes == 3

        asyncio.run(scenario())

    def test_awaited_pieces(self, store: Store, root: str) -> None:
        """Pieces that have to be awaited are written in order, empty ones too."""
        contents = [b"one", b"", bytes(3 << 20), b"two"]
        total_bytes = sum(map(len, contents))
        writing = store.write(
            f"{root}/a/file", _awaited(contents), size_bytes=total_bytes
        )
        asyncio.run(writing)
        assert _tree(store, root) == {f"{root}/a/file": b"".join(contents)}

    def test_awaited_pieces_of_another_size(self, store: Store, root: str) -> None:
        """That they do not add up is an error here, too; nothing stays."""
        for size_bytes in (2, 4):
            writing = store.write(
                f"{root}/file", _awaited([b"abc"]), size_bytes=size_bytes
            )
            with pytest.raises(SaveError, match=str(size_bytes)):
                asyncio.run(writing)
        assert asyncio.run(store.stat(f"{root}/file")) is None

    def test_awaited_pieces_do_not_replace(self, store: Store, root: str) -> None:
        """A file that exists is not touched by them."""
        path = f"{root}/file"
        asyncio.run(store.write(path, [b"old"]))
        with pytest.raises(FileExistsError):
            asyncio.run(store.write(path, _awaited([b"new"])))
        assert _tree(store, root) == {path: b"old"}

    @pytest.mark.parametrize("ending", ["failed", "cancelled"])
    def test_awaited_pieces_that_never_come(
        self, store: Store, root: str, ending: str
    ) -> None:
        """Who gives up between two pieces leaves nothing."""

        async def scenario() -> None:
            waiting = asyncio.Event()

            async def pieces() -> AsyncIterator[bytes]:
                yield bytes(2 << 20)
                waiting.set()
                if ending == "failed":
                    raise ZeroDivisionError
                await asyncio.Event().wait()

            writing = asyncio.create_task(store.write(f"{root}/file", pieces()))
            await waiting.wait()
            if ending == "cancelled":
                writing.cancel()
            with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
                await writing
            assert await store.stat(f"{root}/file") is None

        asyncio.run(scenario())

    def test_concurrent_writers(self, store: Store, root: str) -> None:
        """Writers that share new parent directories do not disturb each other."""
        paths = [f"{root}/{name % 3}/{name % 5}/{name}" for name in range(40)]

        async def scenario() -> None:
            await asyncio.gather(
                *(store.write(path, [path.encode()]) for path in paths)
            )
            await store.sync(paths)

        asyncio.run(scenario())
        assert _tree(store, root) == {path: path.encode() for path in paths}

    def test_one_of_two_writers_of_a_path_wins(self, store: Store, root: str) -> None:
        """Of several writers of one path one succeeds, and its bytes are there."""

        async def scenario() -> list[object]:
            return await asyncio.gather(
                *(store.write(f"{root}/file", [b"%d" % index]) for index in range(4)),
                return_exceptions=True,
            )

        results = asyncio.run(scenario())
        (winner,) = [index for index, result in enumerate(results) if result is None]
        assert sum(isinstance(result, FileExistsError) for result in results) == 3
        assert _tree(store, root) == {f"{root}/file": b"%d" % winner}

    @pytest.mark.parametrize(
        "name",
        ["with space", "größe-重み-🎈", "n" * 200, "-", "a=b&c", "new\nline", "'"],
    )
    def test_odd_names(self, store: Store, root: str, name: str) -> None:
        """Any name without a slash or a NUL is as good as another."""
        path = f"{root}/{name}/{name}"
        assert _written_and_read(store, path, [b"bytes"]) == b"bytes"
        (entry,) = asyncio.run(store.list(f"{root}/{name}"))
        assert entry.name == name

    def test_link(self, store: Store, root: str) -> None:
        """A second name has the same bytes, and outlives the first."""
        source, target = f"{root}/a/file", f"{root}/b/c/other"

        async def scenario() -> None:
            await store.write(source, [b"content"])
            await store.link(source, target)
            both = await _tree_of(store, root)
            assert both == {source: b"content", target: b"content"}
            with pytest.raises(FileExistsError):
                await store.link(source, target)
            await store.delete(source)
            assert await _tree_of(store, root) == {target: b"content"}
            with pytest.raises(FileNotFoundError):
                await store.link(source, f"{root}/third")

        asyncio.run(scenario())

    def test_reads_ranges(self, store: Store, root: str) -> None:
        """Any range of a file fills a buffer of that length, none other."""
        content = bytes(range(200))
        asyncio.run(store.write(f"{root}/file", [content]))
        for begin, end in [(0, 200), (0, 1), (199, 200), (17, 90), (200, 200)]:
            buffer = bytearray(end - begin)
            asyncio.run(store.read_into(f"{root}/file", begin, buffer))
            assert bytes(buffer) == content[begin:end]

    @pytest.mark.parametrize(("offset", "length"), [(0, 4), (1, 3), (3, 1), (90, 1)])
    def test_short_read_is_an_error(
        self, store: Store, root: str, offset: int, length: int
    ) -> None:
        """A range that reaches past the end names the file and its size."""
        path = f"{root}/file"
        asyncio.run(store.write(path, [b"abc"]))
        with pytest.raises(CorruptCheckpointError, match="3 bytes") as caught:
            asyncio.run(store.read_into(path, offset, bytearray(length)))
        assert path in str(caught.value)

    def test_missing_file_cannot_be_read(self, store: Store, root: str) -> None:
        """Reading what is not there says so."""
        with pytest.raises(FileNotFoundError):
            asyncio.run(store.read_into(f"{root}/file", 0, bytearray(1)))

    def test_stat(self, store: Store, root: str) -> None:
        """A path is a file with a size, a directory, or nothing."""

        async def scenario() -> None:
            await store.write(f"{root}/directory/file", [b"abc"])
            file = await store.stat(f"{root}/directory/file")
            assert file is not None
            assert (file.name, file.is_directory, file.size_bytes) == ("file", False, 3)
            directory = await store.stat(f"{root}/directory")
            assert directory is not None
            assert (directory.is_directory, directory.size_bytes) == (True, 0)
            assert await store.stat(f"{root}/nothing") is None
            assert await store.stat(f"{root}/directory/file/below") is None

        asyncio.run(scenario())

    def test_list_is_sorted_and_direct(self, store: Store, root: str) -> None:
        """A directory lists its own children only, by name."""

        async def scenario() -> None:
            for name in ("b", "a/deep/file", "c", "B", "10", "9"):
                await store.write(f"{root}/top/{name}", [])
            names = [entry.name for entry in await store.list(f"{root}/top")]
            assert names == sorted(["b", "a", "c", "B", "10", "9"])

        asyncio.run(scenario())

    def test_missing_directory_cannot_be_listed(self, store: Store, root: str) -> None:
        """Listing what is not there says so."""
        with pytest.raises(FileNotFoundError):
            asyncio.run(store.list(f"{root}/nothing"))

    def test_make_directory(self, store: Store, root: str) -> None:
        """A directory is made with its parents, and may exist already."""

        async def scenario() -> None:
            await store.make_directory(f"{root}/a/b")
            await store.make_directory(f"{root}/a/b")
            assert await store.list(f"{root}/a/b") == ()
            await store.write(f"{root}/a/file", [])
            with pytest.raises(FileExistsError):
                await store.make_directory(f"{root}/a/file")

        asyncio.run(scenario())

    def test_sync_takes_files_and_directories(self, store: Store, root: str) -> None:
        """Both may be made durable in one call; a missing path is an error."""

        async def scenario() -> None:
            await store.write(f"{root}/a/file", [b"abc"])
            await store.sync([f"{root}/a/file", f"{root}/a", root])
            await store.sync([])
            with pytest.raises(FileNotFoundError):
                await store.sync([f"{root}/a/file", f"{root}/missing"])

        asyncio.run(scenario())

    def test_publish_shows_the_whole_draft(self, store: Store, root: str) -> None:
        """The draft's tree appears under the final name and no longer under its own."""
        draft, final = _draft(root), f"{root}/step"

        async def scenario() -> None:
            await _write_checkpoint(store, draft, b"new")
            await store.publish(draft, final, replace=False)

        asyncio.run(scenario())
        assert _tree(store, root) == _checkpoint(final, b"new")

    @pytest.mark.parametrize("occupant", ["tree", "empty directory", "file"])
    def test_publish_refuses_what_exists(
        self, store: Store, root: str, occupant: str
    ) -> None:
        """Without `replace` whatever has the name keeps it, and the draft stays."""
        draft, final = _draft(root), f"{root}/step"

        async def scenario() -> None:
            await _write_checkpoint(store, draft, b"new")
            if occupant == "tree":
                await _write_checkpoint(store, final, b"old")
            elif occupant == "file":
                await store.write(final, [b"old"])
            else:
                await store.make_directory(final)

        asyncio.run(scenario())
        before = _tree(store, root)
        with pytest.raises(CheckpointExistsError, match="overwrite=True"):
            asyncio.run(store.publish(draft, final, replace=False))
        assert _tree(store, root) == before

    @pytest.mark.parametrize("has_old", [True, False])
    def test_publish_replaces(self, store: Store, root: str, has_old: bool) -> None:
        """With `replace` the new tree is there, and nothing else is left."""
        draft, final = _draft(root), f"{root}/step"

        async def scenario() -> None:
            if has_old:
                await store.write(f"{final}/only in the old one", [b"old"])
            await _write_checkpoint(store, draft, b"new")
            await store.publish(draft, final, replace=True)

        asyncio.run(scenario())
        assert _tree(store, root) == _checkpoint(final, b"new")
        assert [entry.name for entry in asyncio.run(store.list(root))] == ["step"]

    @pytest.mark.parametrize("old", ["nothing", "a file", "a directory"])
    def test_publish_of_a_file(self, store: Store, root: str, old: str) -> None:
        """A file is published as a directory is, in place of either with `replace`."""
        draft, final = _draft(root), f"{root}/model"

        async def scenario() -> None:
            await store.write(draft, [b"new"])
            if old == "a file":
                await store.write(final, [b"old"])
            elif old == "a directory":
                await _write_checkpoint(store, final, b"old")
            if old != "nothing":
                before = await _tree_of(store, root)
                with pytest.raises(CheckpointExistsError):
                    await store.publish(draft, final, replace=False)
                assert await _tree_of(store, root) == before
            await store.publish(draft, final, replace=old != "nothing")

        asyncio.run(scenario())
        assert _tree(store, root) == {final: b"new"}
        assert [entry.name for entry in asyncio.run(store.list(root))] == ["model"]

    @pytest.mark.parametrize("replace", [True, False])
    def test_failed_publish_leaves_the_old_one(
        self, store: Store, root: str, replace: bool
    ) -> None:
        """Publishing a draft that is not there changes nothing."""
        final = f"{root}/step"
        asyncio.run(_write_checkpoint(store, final, b"old"))
        with pytest.raises((FileNotFoundError, CheckpointExistsError)):
            asyncio.run(store.publish(_draft(root), final, replace=replace))
        assert _tree(store, root) == _checkpoint(final, b"old")

    def test_publish_stays_in_one_directory(self, store: Store, root: str) -> None:
        """Draft and final name are siblings; anything else is refused."""
        draft = f"{root}/elsewhere/draft"
        asyncio.run(_write_checkpoint(store, draft, b"new"))
        with pytest.raises(ValueError, match="one directory"):
            asyncio.run(store.publish(draft, f"{root}/step", replace=False))

    @pytest.mark.parametrize("replace", [True, False])
    def test_publishers_of_one_name_take_turns(
        self, store: Store, root: str, replace: bool
    ) -> None:
        """Of several publishers at least one wins, and its tree is whole."""
        final = f"{root}/step"
        drafts = [f"{_draft(root)}{index}" for index in range(4)]

        async def scenario() -> list[object]:
            for draft in drafts:
                await _write_checkpoint(store, draft, draft.encode())
            return await asyncio.gather(
                *(store.publish(draft, final, replace=replace) for draft in drafts),
                return_exceptions=True,
            )

        results = asyncio.run(scenario())
        winners = [
            draft
            for draft, result in zip(drafts, results, strict=True)
            if result is None
        ]
        assert len(winners) == 1 or (replace and winners)
        found = {
            path: content
            for path, content in _tree(store, root).items()
            if path.startswith(final + "/")
        }
        assert found in [_checkpoint(final, draft.encode()) for draft in winners]

    def test_complete_replacement_without_one(self, store: Store, root: str) -> None:
        """Where nothing was interrupted there is nothing to do."""
        final = f"{root}/step"
        asyncio.run(store.complete_replacement(final))
        asyncio.run(_write_checkpoint(store, final, b"old"))
        asyncio.run(store.complete_replacement(final))
        assert _tree(store, root) == _checkpoint(final, b"old")

    def test_delete_takes_files_and_trees(self, store: Store, root: str) -> None:
        """A file or a whole tree goes, its neighbours stay."""

        async def scenario() -> None:
            await _write_checkpoint(store, f"{root}/step", b"old")
            await store.write(f"{root}/file", [b"abc"])
            await store.write(f"{root}/neighbour", [b"abc"])
            await store.delete(f"{root}/step")
            await store.delete(f"{root}/file")

        asyncio.run(scenario())
        assert _tree(store, root) == {f"{root}/neighbour": b"abc"}

    def test_delete_is_idempotent(self, store: Store, root: str) -> None:
        """Deleting what is not there is fine, also for several at once."""

        async def scenario() -> None:
            await _write_checkpoint(store, f"{root}/step", b"old")
            await asyncio.gather(*(store.delete(f"{root}/step") for _ in range(4)))
            await store.delete(f"{root}/step")
            await store.delete(f"{root}/never/there")

        asyncio.run(scenario())
        assert asyncio.run(store.stat(f"{root}/step")) is None

    def test_local_path_is_the_same_place(self, store: Store, root: str) -> None:
        """A store that has directories shows them to plain file calls."""
        path = f"{root}/a/file"
        asyncio.run(store.write(path, [b"abc"]))
        local = store.local_path(path)
        assert (local is not None) == store.has_directories
        assert local is None or local.read_bytes() == b"abc"

    def test_says_what_it_is(self, store: Store) -> None:
        """What callers decide by does not change from call to call."""
        facts = [
            (s.is_remote, s.has_directories, s.description) for s in (store, store)
        ]
        assert facts[0] == facts[1]
        assert isinstance(store.is_remote, bool)

    @pytest.mark.parametrize("mode", [0o700, 0o755, 0o770])
    def test_mode_of_a_directory(self, store: Store, root: str, mode: int) -> None:
        """A directory gets the bits that are asked for, its parents and files do not.

        In a store without such bits it is a directory like any other.
        """
        path = f"{root}/parent/directory"
        asyncio.run(store.make_directory(path, mode=mode))
        asyncio.run(store.write(f"{path}/file", [b"abc"]))
        assert _tree(store, root) == {f"{path}/file": b"abc"}
        local = store.local_path(path)
        if local is not None:
            usual = local.parent.parent / "usual"
            usual.mkdir()
            assert stat.S_IMODE(local.stat().st_mode) == mode
            assert local.parent.stat().st_mode == usual.stat().st_mode
            # One that exists is changed, too; None leaves it alone.
            asyncio.run(store.make_directory(path, mode=0o711))
            asyncio.run(store.make_directory(path))
            assert stat.S_IMODE(local.stat().st_mode) == 0o711


def _draft(root: str) -> str:
    return f"{root}/step.orbax-checkpoint-tmp-1"


def _checkpoint(path: str, content: bytes) -> dict[str, bytes]:
    return {f"{path}/document": content, f"{path}/state/d/0": content * 1000}


async def _write_checkpoint(store: Store, path: str, content: bytes) -> None:
    for file, written in _checkpoint(path, content).items():
        await store.write(file, [written])
        await store.sync([file, posixpath.dirname(file)])


def _written_and_read(
    store: Store, path: str, pieces: Sequence[Any], *, size_bytes: int | None = None
) -> bytes:
    asyncio.run(store.write(path, iter(pieces), size_bytes=size_bytes))
    return asyncio.run(read_bytes(store, path, limit_bytes=1 << 30))


async def _awaited(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def _tree(store: Store, root: str) -> Mapping[str, bytes]:
    """Every file below the root with its content."""
    return asyncio.run(_tree_of(store, root))


async def _tree_of(store: Store, root: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with contextlib.suppress(FileNotFoundError):
        for path, entry in await walk(store, root):
            if not entry.is_directory:
                found[path] = await read_bytes(store, path, limit_bytes=1 << 30)
    return found
