"""Ways in which a checkpoint gets damaged, as pure functions over the bytes of files.

A `Damage` says what some files have become; what it does not name is as it was.  Drawn
with a seeded generator, so that every failure can be had again.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Files = Mapping[str, bytes]
"""Content by path below the checkpoint."""

Damage = Mapping[str, bytes | None]
"""What files have become; None: they are gone."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Bytes of an array in a data file, and the checksum for zarr behind them."""

    file: str
    begin: int
    end: int
    """Where the checksum begins; it ends four bytes later."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is damaged: a checkpoint, and the one that was saved before it."""

    files: Files
    earlier: Files
    """Of the same structure, with other values."""
    chunks: tuple[Chunk, ...]
    """Of the later one."""


Draw = Callable[[np.random.Generator, Subject], Damage]


def read_files(path: Any) -> dict[str, bytes]:
    """The content of every file below a directory."""
    path = pathlib.Path(path)
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def put_files(path: Any, files: Damage) -> None:
    """Gives files below a directory a new content, or takes them away."""
    for name, content in files.items():
        file = pathlib.Path(path, name)
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content)


def flipped_bit(random: np.random.Generator, subject: Subject) -> Damage:
    """One bit of one file."""
    name = _some_file(random, subject)
    return {name: _flip(random, subject.files[name], 1)}


def flipped_bits(random: np.random.Generator, subject: Subject) -> Damage:
    """Several bits, in up to three files."""
    names = {_some_file(random, subject) for _ in range(random.integers(1, 4))}
    count = int(random.integers(2, 9))
    return {name: _flip(random, subject.files[name], count) for name in names}


def garbage(random: np.random.Generator, subject: Subject) -> Damage:
    """A run of other bytes, up to a sector long."""
    name = _some_file(random, subject)
    content = bytearray(subject.files[name])
    begin = int(random.integers(len(content)))
    length = min(int(random.integers(1, 513)), len(content) - begin)
    content[begin : begin + length] = random.bytes(length)
    return {name: bytes(content)}


def zeroed_page(random: np.random.Generator, subject: Subject) -> Damage:
    """A page, or a smaller file, that was never written to the disk."""
    name = _some_file(random, subject)
    content = bytearray(subject.files[name])
    page = int(random.choice([512, 4096]))
    begin = int(random.integers(len(content))) // page * page
    length = min(page, len(content) - begin)
    content[begin : begin + length] = bytes(length)
    return {name: bytes(content)}


def truncated(random: np.random.Generator, subject: Subject) -> Damage:
    """A file that is cut off somewhere."""
    name = _some_file(random, subject)
    content = subject.files[name]
    return {name: content[: int(random.integers(len(content)))]}


def extended(random: np.random.Generator, subject: Subject) -> Damage:
    """A file with something behind it."""
    name = _some_file(random, subject, or_empty=True)
    count = int(random.integers(1, 65))
    more = bytes(count) if random.integers(2) else random.bytes(count)
    return {name: subject.files[name] + more}


def shifted(random: np.random.Generator, subject: Subject) -> Damage:
    """A file in which bytes were lost or added, so that all behind them moved."""
    name = _some_file(random, subject)
    content = subject.files[name]
    at, count = int(random.integers(len(content))), int(random.integers(1, 17))
    if random.integers(2):
        return {name: content[:at] + random.bytes(count) + content[at:]}
    return {name: content[:at] + content[at + count :]}


def swapped_chunks(random: np.random.Generator, subject: Subject) -> Damage:
    """Two chunks of one size that changed places, each with its checksum for zarr."""
    first = subject.chunks[int(random.integers(len(subject.chunks)))]
    size = first.end - first.begin
    alike = [c for c in subject.chunks if c.end - c.begin == size and c != first]
    second = alike[int(random.integers(len(alike)))] if alike else first
    damaged = {name: bytearray(subject.files[name]) for name in _names(first, second)}
    damaged[first.file][first.begin : first.end + 4] = _bytes(subject.files, second)
    damaged[second.file][second.begin : second.end + 4] = _bytes(subject.files, first)
    return {name: bytes(content) for name, content in damaged.items()}


def stale_chunk(random: np.random.Generator, subject: Subject) -> Damage:
    """A chunk that is still that of an earlier checkpoint."""
    chunk = subject.chunks[int(random.integers(len(subject.chunks)))]
    stale = _bytes(subject.earlier, chunk)
    content = bytearray(subject.files[chunk.file])
    content[chunk.begin : chunk.begin + len(stale)] = stale
    return {chunk.file: bytes(content)}


def stale_files(random: np.random.Generator, subject: Subject) -> Damage:
    """Whole files, from one to almost all, of an earlier checkpoint."""
    names = [n for n in subject.files if subject.files[n] != subject.earlier.get(n)]
    count = 1 if random.integers(2) else int(random.integers(1, len(names)))
    chosen = random.choice(len(names), count, replace=False)
    return {names[i]: subject.earlier.get(names[i]) for i in chosen}


def removed_files(random: np.random.Generator, subject: Subject) -> Damage:
    """Files that are gone, mostly one."""
    names = [*subject.files]
    count = 1 if random.integers(4) else int(random.integers(2, len(names) + 1))
    chosen = random.choice(len(names), count, replace=False)
    return {names[i]: None for i in chosen}


def renamed_file(random: np.random.Generator, subject: Subject) -> Damage:
    """A file that has another name."""
    name = _some_file(random, subject, or_empty=True)
    return {name: None, f"{name}~": subject.files[name]}


def swapped_files(random: np.random.Generator, subject: Subject) -> Damage:
    """Two files that changed places."""
    first = _some_file(random, subject, or_empty=True)
    second = _some_file(random, subject, or_empty=True)
    return {first: subject.files[second], second: subject.files[first]}


KINDS: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        *(flipped_bit, flipped_bits, garbage, zeroed_page),
        *(truncated, extended, shifted),
        *(swapped_chunks, stale_chunk, stale_files),
        *(removed_files, renamed_file, swapped_files),
    )
}


def _some_file(
    random: np.random.Generator, subject: Subject, *, or_empty: bool = False
) -> str:
    """Any file, those with arrays in them as often as all others together."""
    names = [name for name, content in subject.files.items() if content or or_empty]
    data = sorted({chunk.file for chunk in subject.chunks})
    chosen = data if random.integers(2) else names
    return chosen[int(random.integers(len(chosen)))]


def _flip(random: np.random.Generator, content: bytes, count: int) -> bytes:
    flipped = bytearray(content)
    for bit in random.choice(8 * len(content), min(count, 8 * len(content)), False):
        flipped[bit // 8] ^= 1 << int(bit % 8)
    return bytes(flipped)


def _names(*chunks: Chunk) -> set[str]:
    return {chunk.file for chunk in chunks}


def _bytes(files: Files, chunk: Chunk) -> bytes:
    return files[chunk.file][chunk.begin : chunk.end + 4]
