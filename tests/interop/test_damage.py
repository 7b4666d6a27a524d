"""The same damage to checkpoints of both libraries: the table of a page, held to it.

`python tests/interop/test_damage.py` prints the table with what happens now, and the
counts below it.
"""

import collections
import gc
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1
from page_tables import DURABILITY, table
from sample_damage import Chunk, Damage, Subject, put_files, read_files
from sample_trees import abstract, bits, differences, mesh

import stowax

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Orbax drops coroutines that it has begun when one of them fails.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HEADING = "The same damage, side by side"
OUTCOMES = ("error", "wrong", "unaffected")
NOT_THERE = "not there"
PLACES = 40 if os.environ.get("STOWAX_SOAK") else 3
"""How many places of a file are tried for damage that has a place."""


def state(seed):
    """Weights over eight devices, noise of which every chunk is told apart, a text."""
    rows = NamedSharding(mesh(8), P("x"))
    weights = np.random.default_rng(seed).standard_normal((64, 64), np.float32)
    return {
        "weights": jax.device_put(weights, rows),
        "first": jax.device_put(np.frombuffer(noise(seed), np.float32)),
        "second": jax.device_put(np.frombuffer(noise(seed + 10), np.float32)),
        "name": f"run {seed}",
        "step": seed,
    }


def noise(seed):
    """What no codec makes smaller, so that it is found in any file."""
    return bits("float32", (2048,), seed).tobytes()


def options(library, *, compressed=None):
    """A Context of a library in which "config" is JSON."""
    registry = library.handlers.local_registry()
    registry.add(library.handlers.JsonHandler, checkpointable_name="config")
    context = library.Context()
    context.checkpointables.registry = registry
    if compressed is not None:
        context.array.saving.use_compression = compressed
    return context


def save(library, path, seed, **chosen):
    """Saves with a library."""
    with options(library, **chosen):
        library.save_checkpointables(
            path,
            {"state": state(seed), "config": {"rate": seed}},
            custom_metadata={"note": f"note {seed}"},
        )


def outcome(library, path):
    """What becomes of somebody who loads everything; one of `OUTCOMES`."""
    saved = state(2)
    targets = {"state": abstract(saved), "config": None}
    try:
        with options(library):
            loaded = library.load_checkpointables(path, targets)
            note = library.metadata(path, "state").custom_metadata
    except Exception:  # noqa: BLE001 of any kind, for the caller will notice
        return "error"
    right = [] if loaded["config"] == {"rate": 2} else ["config"]
    right += [] if note == {"note": "note 2"} else ["note"]
    return "wrong" if right + differences(saved, loaded["state"]) else "unaffected"


COLUMNS = {
    "Stowax": (stowax, "stowax"),
    "Orbax": (v1, "orbax"),
    "Orbax, uncompressed": (v1, "orbax raw"),
    "Orbax, saved by Stowax": (v1, "stowax"),
}


def subjects(folder):
    """A checkpoint of each kind, by name, each with an earlier one."""
    found = {}
    for name, library, chosen in (
        ("stowax", stowax, {}),
        ("orbax", v1, {}),
        ("orbax raw", v1, {"compressed": False}),
    ):
        for seed, place in ((2, name), (1, f"{name} before")):
            save(library, folder / place, seed, **chosen)
        files = read_files(folder / name)
        chunks = tuple(
            chunk
            for payload in (noise(2), noise(12))
            for chunk in _find(files, payload)
        )
        assert len(chunks) == 2
        found[name] = Subject(files, read_files(folder / f"{name} before"), chunks)
    return found


def _find(files, payload):
    """Where an array lies; zstd leaves noise as it is."""
    for name, content in files.items():
        if (begin := content.find(payload)) >= 0:
            yield Chunk(name, begin, begin + len(payload))


def arrays(subject):
    """The file with the arrays."""
    return [subject.chunks[0].file]


def index(subject):
    """Files that say where the arrays are, and that are read."""
    known = ("state/manifest.ocdbt", "state/d/index")
    if "stowax.json" not in subject.files:
        known = ("state/manifest.ocdbt", "state/d/")
    return [name for name in subject.files if name.startswith(known)]


def named(*names):
    """Documents of these names."""
    return lambda subject: [name for name in names if name in subject.files]


def records(subject):
    """Files that only Stowax writes."""
    return [name for name in subject.files if "stowax." in name]


FILES: dict[str, Callable[[Subject], list[str]]] = {
    "arrays": arrays,
    "index of the arrays": index,
    "`_METADATA`": named("state/_METADATA"),
    "`_strings.json`": named("state/_strings.json"),
    "`_CHECKPOINT_METADATA`": named("_CHECKPOINT_METADATA"),
    "a JSON value": named("config/data.json"),
    "records of Stowax": records,
}


def places(size, first=0):
    """Positions spread evenly over a file."""
    return [first + (2 * i + 1) * (size - first) // (2 * PLACES) for i in range(PLACES)]


def flipped(subject, names) -> Iterable[Damage]:
    """One bit, in places all over a file."""
    for name in names:
        for number, position in enumerate(places(len(subject.files[name]))):
            content = bytearray(subject.files[name])
            content[position] ^= 1 << number % 7
            yield {name: bytes(content)}


def zeroed(subject, names) -> Iterable[Damage]:
    """A sector that was never written."""
    for name in names:
        for position in places(len(subject.files[name])):
            content = bytearray(subject.files[name])
            begin = position // 512 * 512
            end = min(begin + 512, len(content))
            content[begin:end] = bytes(end - begin)
            yield {name: bytes(content)}


def cut(subject, names) -> Iterable[Damage]:
    """A file that ends too early."""
    for name in names:
        for position in places(len(subject.files[name])):
            yield {name: subject.files[name][:position]}


def removed(subject, names) -> Iterable[Damage]:
    """A file that is not there."""
    for name in names:
        yield {name: None}


def swapped(subject, names) -> Iterable[Damage]:
    """Two chunks of one size, each in the place of the other."""
    first, second = subject.chunks
    yield _with(subject, subject.files, {first: second, second: first})


def stale_chunk(subject, names) -> Iterable[Damage]:
    """The chunk that an earlier save left there."""
    (there,) = _find(subject.earlier, noise(1))
    yield _with(subject, subject.earlier, {subject.chunks[0]: there})


def _with(subject, source, moved) -> Damage:
    """Chunks with the bytes of others; the checksum of ours for zarr goes with them."""
    tail = 4 if "stowax.json" in subject.files else 0
    damaged = {c.file: bytearray(subject.files[c.file]) for c in moved}
    for to, came in moved.items():
        there = slice(came.begin, came.end + tail)
        damaged[to.file][to.begin : to.end + tail] = source[came.file][there]
    return {name: bytes(content) for name, content in damaged.items()}


def stale(subject, names) -> Iterable[Damage]:
    """A whole file of an earlier save; Orbax names some of its files at random."""
    for name in names:
        if name in subject.earlier:
            yield {name: subject.earlier[name]}
        elif name == subject.chunks[0].file:
            (there,) = _find(subject.earlier, noise(1))
            yield {name: subject.earlier[there.file]}


KINDS: dict[str, Callable[[Subject, list[str]], Iterable[Damage]]] = {
    "a flipped bit": flipped,
    "a zeroed sector": zeroed,
    "cut off": cut,
    "gone": removed,
    "two chunks swapped": swapped,
    "a chunk of an earlier save": stale_chunk,
    "the file of an earlier save": stale,
}


class Bench:
    """Checkpoints of both libraries, to be damaged and loaded."""

    def __init__(self, folder):
        self.folder = folder
        self.subjects = subjects(folder)

    def outcomes(self, column, file, kind):
        """How often each outcome comes of a kind of damage."""
        library, place = COLUMNS[column]
        subject = self.subjects[place]
        found = collections.Counter()
        for damage in KINDS[kind](subject, FILES[file](subject)):
            put_files(self.folder / place, damage)
            found[outcome(library, self.folder / place)] += 1
            put_files(self.folder / place, {n: subject.files[n] for n in damage})
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Checkpoints for all tests of this file."""
    yield Bench(tmp_path_factory.mktemp("bench"))
    gc.collect()  # What Orbax dropped is to be found here, not by the tests of others.


def cells():
    """Every cell of the table of the page, with what it says."""
    for file, kinds, *row in table(DURABILITY, HEADING):
        for column, cell in zip(COLUMNS, row, strict=True):
            name = f"{file}: {kinds}: {column}".replace("`", "")
            yield pytest.param(column, file, kinds.split(", "), cell, id=name)


@pytest.mark.parametrize("column", COLUMNS)
def test_without_damage(bench, column):
    """What is not damaged is loaded as it was saved."""
    library, place = COLUMNS[column]

    assert outcome(library, bench.folder / place) == "unaffected"


@pytest.mark.parametrize(("column", "file", "kinds", "cell"), [*cells()])
def test_table(bench, column, file, kinds, cell):
    """What the page says is what happens; in a soak, all that it says happens."""
    said = {*cell.split(" or ")} - {NOT_THERE}

    for kind in kinds:
        found = {*bench.outcomes(column, file, kind)}
        assert found <= said
        assert bool(found) == bool(said)
        assert found == said or PLACES < 10


def test_table_is_complete():
    """Nothing that is tried is missing from the page, and we are never wrong."""
    rows = table(DURABILITY, HEADING)
    told = [(row[0], kind) for row in rows for kind in row[1].split(", ")]

    assert sorted(told) == sorted(tried())
    assert not any("wrong" in row[2] for row in rows)


def test_verify_finds_it_all(bench):
    """Each damage of the table is one to `verify`, also where a load needs nothing."""
    subject, path = bench.subjects["stowax"], bench.folder / "stowax"

    for file, kind in tried():
        for damage in KINDS[kind](subject, FILES[file](subject)):
            if damage.items() <= subject.files.items():
                continue  # The earlier save wrote the same.
            put_files(path, damage)
            with pytest.raises(stowax.errors.DamageError) as caught:
                stowax.verify(path)
            put_files(path, {name: subject.files[name] for name in damage})
            found = {d.file for d in caught.value.report.damages}
            # An earlier seal vouches for earlier files, and for none that are there.
            assert found == {*damage} or "stowax.json" in damage


def counts(bench, flips):
    """What comes of many flipped bits in arrays, by column."""
    global PLACES
    before, PLACES = PLACES, flips
    try:
        return {c: bench.outcomes(c, "arrays", "a flipped bit") for c in COLUMNS}
    finally:
        PLACES = before


@pytest.mark.soak
def test_counts(bench):
    """Of flipped bits in arrays, Orbax loads most as they are, and Stowax none."""
    found = counts(bench, 200)

    assert found["Stowax"]["wrong"] == 0
    assert found["Orbax, saved by Stowax"]["wrong"] == 0
    assert found["Orbax"]["wrong"] > 50
    assert found["Orbax, uncompressed"]["wrong"] > 100


def tried():
    """Files, and the kinds of damage that they have."""
    for file in FILES:
        for kind in KINDS:
            if file == "arrays" or "chunk" not in kind:
                yield file, kind


def measured(bench):
    """The table as it should stand on the page."""
    rows = collections.defaultdict(list)
    for file, kind in tried():
        found = [bench.outcomes(column, file, kind) for column in COLUMNS]
        row = [" or ".join(o for o in OUTCOMES if one[o]) or NOT_THERE for one in found]
        rows[file, *row].append(kind)
    for (file, *row), kinds in rows.items():
        yield f"| {' | '.join([file, ', '.join(kinds), *row])} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    PLACES = 40
    with tempfile.TemporaryDirectory() as folder:
        bench_ = Bench(pathlib.Path(folder))
        for line in measured(bench_):
            print(line, flush=True)
        for column, found in counts(bench_, 500).items():
            print(column, dict(found))
