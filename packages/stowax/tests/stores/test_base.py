"""What is written over the port alone."""

import asyncio
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax._stores._base import (
    REPLACEMENT_SUFFIX,
    byte_view,
    format_replacement,
    join,
    parse_replacement,
    read_bytes,
    resolve,
    walk,
)
from stowax.errors import CorruptCheckpointError
from stowax.testing._memory_store import MemoryStore

component = st.sampled_from(
    ["a", ".", "..", "", "...", "a b", "ö", "c\\d", "e\0f", "~"]
)
relative = st.lists(component, min_size=1, max_size=5).map("/".join) | st.text()


@given(relative)
def test_join_never_leaves_the_directory(name):
    """Whatever name a file holds, the path lies below the directory, or is refused."""
    try:
        path = join("/runs/step", name)
    except CorruptCheckpointError:
        return
    assert posixpath.normpath(path) == path
    assert path.startswith("/runs/step/")
    assert "\0" not in path


@pytest.mark.parametrize(
    "name",
    ["", "/etc", "a//b", "a/", ".", "..", "a/../b", "a/./b", "a\\b", "a\0b", "\ud800"],
)
def test_join_refuses(name):
    """Names that could lead elsewhere, or name nothing, are refused and shown."""
    with pytest.raises(CorruptCheckpointError) as caught:
        join("/runs/step", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b", "...", ".hidden", "a b", "größe", "..a"])
def test_join_accepts(name):
    """Ordinary names are taken as they are, also below the root directory."""
    assert join("/runs", name) == f"/runs/{name}"
    assert join("/", name) == f"/{name}"


def test_read_bytes_has_a_limit():
    """A file that is too long to be valid is refused before it is read."""
    store = MemoryStore()
    asyncio.run(store.write("/runs/file", [b"abc"]))
    assert asyncio.run(read_bytes(store, "/runs/file", limit_bytes=3)) == b"abc"
    with pytest.raises(CorruptCheckpointError, match="at most 2"):
        asyncio.run(read_bytes(store, "/runs/file", limit_bytes=2))


def test_read_bytes_wants_a_file():
    """A missing file and a directory are told apart."""
    store = MemoryStore()
    asyncio.run(store.make_directory("/runs"))
    with pytest.raises(FileNotFoundError):
        asyncio.run(read_bytes(store, "/runs/file", limit_bytes=3))
    with pytest.raises(CorruptCheckpointError, match="is no file, but a directory"):
        asyncio.run(read_bytes(store, "/runs", limit_bytes=3))


def test_walk_visits_parents_first():
    """Everything below is listed once, a directory before what it holds."""
    store = MemoryStore()
    for path in ("/top/b/deep/file", "/top/a", "/top/b/a"):
        asyncio.run(store.write(path, []))
    walked = asyncio.run(walk(store, "/top"))
    assert [path for path, _ in walked] == [
        "/top/a",
        "/top/b",
        "/top/b/a",
        "/top/b/deep",
        "/top/b/deep/file",
    ]
    assert [path for path, entry in walked if entry.is_directory] == [
        "/top/b",
        "/top/b/deep",
    ]


def test_byte_view_is_writable_and_empty_when_empty():
    """A buffer of no bytes, of any shape, is a view of no bytes."""
    buffer = bytearray(4)
    byte_view(memoryview(buffer).cast("H"))[:] = b"abcd"
    assert buffer == b"abcd"
    assert len(byte_view(b"")) == 0


@given(st.text().filter(lambda name: name and not set(name) & set("/\\\0")))
def test_replacement_record_round_trip(name):
    """A record names its draft again, unless it would lead elsewhere."""
    expected = None if name in (".", "..") else name
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    assert parse_replacement(format_replacement(name)) == expected


def test_replacement_record_is_whole_or_nothing():
    """A record that was cut short or changed anywhere names no draft."""
    record = format_replacement("step.orbax-checkpoint-tmp-1")
    for length in range(len(record)):
        assert parse_replacement(record[:length]) is None
    for place in range(len(record)):
        flipped = bytearray(record)
        flipped[place] ^= 1
        assert parse_replacement(bytes(flipped)) is None


@pytest.mark.parametrize("draft", ["../elsewhere", "/elsewhere", "a/b"])
def test_replacement_record_stays_beside_the_checkpoint(draft):
    """A record cannot send a reader anywhere but to a sibling."""
    assert parse_replacement(format_replacement(draft)) is None


@pytest.mark.parametrize(
    "record", [b"[]", b"null", b'{"body": 1}', b"\xff", b"[" * 9999]
)
def test_replacement_record_of_another_shape(record):
    """Other documents are no records."""
    assert parse_replacement(record) is None


def _store_with(record=None, *, final=False, draft=False):
    store = MemoryStore()
    if record is not None:
        asyncio.run(store.write("/runs/step" + REPLACEMENT_SUFFIX, [record]))
    if final:
        asyncio.run(store.make_directory("/runs/step"))
    if draft:
        asyncio.run(store.make_directory("/runs/draft"))
    return store


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, "/runs/step"),
        ({"final": True}, "/runs/step"),
        ({"draft": True}, "/runs/step"),
        ({"record": b"cut", "draft": True}, "/runs/step"),
        ({"record": bytes(1 << 17), "draft": True}, "/runs/step"),
        ({"record": format_replacement("draft")}, "/runs/step"),
        ({"record": format_replacement("draft"), "draft": True}, "/runs/draft"),
        (
            {"record": format_replacement("draft"), "draft": True, "final": True},
            "/runs/step",
        ),
    ],
)
def test_resolve(state, expected):
    """Only a whole record and a missing name lead a reader to the draft."""
    assert asyncio.run(resolve(_store_with(**state), "/runs/step")) == expected
