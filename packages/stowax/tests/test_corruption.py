"""Never silently wrong: damage of any kind, anywhere, in checkpoints of every sort.

Each trial damages a checkpoint, in a way that `sample_damage` draws, and asks all who
read it.  What they have to answer is worked out here, from the records of the
checkpoint as it was saved, and without the code that reads:

* whoever needs a byte that is damaged raises an error of ours, which names the file,
  and the leaf if the byte is an array's;
* whoever does not need any gets exactly what was saved;
* `verify` names every file that is damaged, and of arrays the leaf and the place.
"""

import dataclasses
import functools
import os
import pathlib
import warnings

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_damage import KINDS, Chunk, Subject, put_files, read_files
from sample_guests import Notes
from sample_trees import (
    Layer,
    Pair,
    Point,
    abstract,
    bits,
    differences,
    mesh,
    shardings,
)

import stowax
from stowax._codecs._item_manifest import decode_part, decode_root
from stowax._formats._stowax import decode_seal
from stowax._runtime import default_runtime
from stowax._stores._base import read_bytes, walk
from stowax.errors import DamageError, StowaxError
from stowax.handlers import JsonHandler
from stowax.options import (
    ArrayOptions,
    CheckpointablesOptions,
    FileOptions,
    PyTreeOptions,
)
from stowax.testing import MemoryStore, SimulatedCluster
from stowax.training import Checkpointer

SEAL = "stowax.json"
MANIFEST = "state/stowax.manifest"
SOAK = [pytest.param(part, marks=pytest.mark.soak) for part in range(1, 11)]
TRIALS = {True: 150, False: 600}
"""Of each checkpoint on disk, and of each in memory; in a soak 100,000 of all."""
if os.environ.get("STOWAX_SOAK"):
    TRIALS = {True: 1000, False: 4000}


def state(seed):
    """A leaf of every kind, in containers of every kind, over up to eight devices."""
    return {
        "rows": jax.device_put(bits("float32", (8, 16), seed), shardings()["rows"]),
        "both": jax.device_put(bits("bfloat16", (8, 16), seed), shardings()["both"]),
        "one": jax.device_put(bits("int8", (5,), seed)),
        "wide": bits("float32", (40, 50), seed),
        "host": bits("int64", (3, 2), seed),
        "key": jax.random.key(seed),
        "step": seed,
        "rate": 0.25 + seed,
        "flag": bool(seed % 2),
        "huge": 2**70 + seed,
        "name": f"größe {seed}",
        "raw": bits("uint8", (20,), seed).tobytes(),
        "nested": Point(x=None, y=[{}, (seed,)]),
        "custom": Pair(bits("float16", (4,), seed), Layer(kernel=seed, bias=0.5)),
    }


def checkpointables(seed, *, guest=True):
    """A tree, a JSON value and an object that saves itself."""
    found = {"state": state(seed), "config": {"depth": seed}}
    return found | ({"notes": Notes(f"note {seed}")} if guest else {})


@dataclasses.dataclass(frozen=True)
class Where:
    """A checkpoint on disk, or in a store that is faster to try things in."""

    path: str
    store: MemoryStore | None = None

    def context(self, *, compressed=False, **options):
        """A Context where "config" is JSON, and a tree has many chunks and files."""
        config = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
        storage = ArrayOptions.Saving.StorageOptions(chunk_byte_size=2000)
        saving = ArrayOptions.Saving(
            use_compression=compressed,
            ocdbt_target_data_file_size=4000,
            storage_options=storage,
        )
        options.setdefault("array", ArrayOptions(saving=saving))
        file = FileOptions(store=self.store)
        return stowax.Context(checkpointables=config, file=file, **options)

    def files(self):
        """What is there, by path below the checkpoint."""
        if self.store is None:
            return read_files(self.path)

        async def read():
            return {
                path.removeprefix(f"{self.path}/"): await read_bytes(self.store, path)
                for path, entry in await walk(self.store, self.path)
                if not entry.is_directory
            }

        return default_runtime().run(read())

    def put(self, files):
        """Gives files another content, or takes them away."""
        if self.store is None:
            put_files(self.path, files)
            return

        async def write():
            for name, content in files.items():
                await self.store.delete(f"{self.path}/{name}")
                if content is not None:
                    await self.store.write(f"{self.path}/{name}", [content])

        default_runtime().run(write())


def save_plain(where, seed):
    """As the disk has it."""
    with where.context():
        stowax.save_checkpointables(
            where.path, checkpointables(seed), custom_metadata={"seed": seed}
        )


def save_step(where, seed):
    """As a step of a training run, with metrics."""
    run = pathlib.Path(f"{where.path}.run")
    with where.context(), Checkpointer(run) as checkpointer:
        checkpointer.save_checkpointables(
            0, checkpointables(seed), metrics={"loss": seed}
        )
    (run / "0").rename(where.path)


def save_compressed(where, seed):
    """With zstd."""
    with where.context(compressed=True):
        stowax.save_checkpointables(where.path, checkpointables(seed, guest=False))


def save_by_processes(where, seed):
    """By four processes, each with two of the devices."""
    saved = checkpointables(seed, guest=False)
    with SimulatedCluster(4) as cluster:

        def save(index):
            with where.context(runtime=cluster.runtimes[index]):
                stowax.save_checkpointables(where.path, saved)

        cluster.run(save)


ON_DISK = {"plain": save_plain, "step": save_step}
IN_MEMORY = {"zstd": save_compressed, "processes": save_by_processes}
SAVES = ON_DISK | IN_MEMORY


@dataclasses.dataclass(frozen=True)
class Part:
    """A chunk, by what it holds."""

    leaf: str
    index: tuple[slice, ...]
    chunk: Chunk


class Facts:
    """What the records of a checkpoint, as it was saved, say about its bytes."""

    def __init__(self, files):
        self.files = files
        seal = decode_seal(files[SEAL])
        root = decode_root(files[MANIFEST])
        self.root_documents = {*seal.documents, *seal.guests} - {SEAL}
        self.at_root = {
            name
            for name in self.root_documents
            if "/" not in name or name.startswith("metrics/")
        }
        self.documents = {f"state/{name}" for name in root.documents}
        self.tables = {f"state/{name}" for name in root.parts}
        self.parts, self.table_of = [], {}
        for name in self.tables:
            table = decode_part(files[name])
            for row in range(len(table)):
                leaf = root.leaves[int(table.leaf[row])]
                begin = int(table.offset_bytes[row])
                chunk = Chunk(
                    f"state/{table.files[table.file[row]]}",
                    begin,
                    begin + int(table.length_bytes[row]),
                )
                form = leaf.form
                extents = [*zip(form.shape, form.chunk_shape, strict=True)]
                counts = [-(-n // extent) for n, extent in extents]
                position = np.unravel_index(int(table.chunk[row]), counts)
                index = tuple(
                    slice(int(i) * extent, min(int(i + 1) * extent, n))
                    for i, (n, extent) in zip(position, extents, strict=True)
                )
                self.parts.append(Part(leaf.name, index, chunk))
                self.table_of[chunk.file] = name
        self.leaves = sorted({part.leaf for part in self.parts})

    @property
    def chunks(self):
        return tuple(part.chunk for part in self.parts)

    def changed(self, now):
        """Files that are not as they were."""
        return {n for n in {*self.files, *now} if self.files.get(n) != now.get(n)}

    def lost(self, now, *, trailers=False):
        """Chunks whose bytes are not as they were."""
        more = 4 if trailers else 0
        return [
            part
            for part in self.parts
            if (now.get(part.chunk.file) or b"")[
                part.chunk.begin : part.chunk.end + more
            ]
            != self.files[part.chunk.file][part.chunk.begin : part.chunk.end + more]
        ]

    def visible(self, now):
        """Files whose damage can be told, as long as the records above them hold."""
        changed = self.changed(now)
        if SEAL in changed:
            return {SEAL} | self.visible_in_tree(now)
        return changed & self.root_documents | self.visible_in_tree(now)

    def visible_in_tree(self, now):
        changed = self.changed(now)
        if MANIFEST in changed:
            return {MANIFEST}
        data = {file for file, table in self.table_of.items() if table not in changed}
        return changed & (self.documents | self.tables | data)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Somebody who reads some of a checkpoint."""

    read: object
    """Called with the `Where`, in its Context."""
    needs: frozenset[str]
    """Files that have to be whole."""
    wants: object = lambda part: True
    """Whether it needs a chunk."""
    counts_trailers: bool = False
    is_alone: bool = False
    """Whether it reads a tree without the checkpoint that it is in."""


def read_everything(where):
    """All checkpointables, and what stands at the root."""
    told = stowax.checkpointables_metadata(where.path)
    notes = Notes()
    targets = {n: notes if n == "notes" else None for n in told.metadata}
    loaded = stowax.load_checkpointables(where.path, targets)
    return {**loaded, "notes": notes.text}, told.custom_metadata


def read_as_asked(where, target, **loading):
    """A tree by an abstract state, or as NumPy."""
    array = ArrayOptions(loading=ArrayOptions.Loading(**loading))
    pytree = PyTreeOptions(loading=PyTreeOptions.Loading(partial_load=True))
    with where.context(array=array, pytree=pytree):
        return stowax.load(where.path, target)


def read_leaf(where, name):
    """A leaf alone."""
    return stowax.load_leaf(where.path, name)


def verify_leaf(where, name):
    """A leaf alone, without loading it."""
    return stowax.verify(where.path, leaves=name).leaf_count


def is_hit(index, *ranges):
    """Whether a part of an array has elements in ranges of its axes."""
    return all(
        own.start < stop and start < own.stop
        for own, (start, stop) in zip(index, ranges, strict=True)
    )


def readers(facts):
    """Everybody who reads a checkpoint of `SAVES`, by name."""
    wanted = abstract(state(0))
    resharded = wanted | {
        "rows": jax.ShapeDtypeStruct(
            (8, 16), "float32", sharding=shardings()["swapped"]
        ),
        "both": jax.ShapeDtypeStruct(
            (8, 16), "bfloat16", sharding=NamedSharding(mesh(3), P(None))
        ),
        "one": np.ndarray,
    }
    tree = frozenset({MANIFEST, *facts.tables})
    root = {SEAL, "_CHECKPOINT_METADATA", "metrics/metrics"} & {*facts.files}
    others = {n for n in facts.files if n.startswith(("config/data.json", "notes/"))}
    found = {
        "everything": Reader(read_everything, tree | root | others),
        "state": Reader(lambda where: stowax.load(where.path), tree | root),
        "as it was": Reader(
            functools.partial(read_as_asked, target=wanted), tree | root
        ),
        "resharded": Reader(
            functools.partial(read_as_asked, target=resharded), tree | root
        ),
        "numpy": Reader(
            functools.partial(read_as_asked, target=None, as_numpy=True), tree | root
        ),
        "part": Reader(
            functools.partial(
                read_as_asked, target={"host": np.ndarray, "nested": wanted["nested"]}
            ),
            tree | root,
            lambda part: part.leaf == "host" or part.leaf.startswith("nested."),
        ),
        "tree alone": Reader(
            lambda where: stowax.load(f"{where.path}/state", checkpointable_name=None),
            tree,
            is_alone=True,
        ),
        "preview": Reader(
            lambda where: [str(r) for r in stowax.preview_load(where.path).rows],
            tree | root,
            lambda part: False,
        ),
        "slice": Reader(
            lambda where: stowax.load_leaf(where.path, "wide", index=np.s_[12:23, 3]),
            tree | root,
            lambda part: part.leaf == "wide" and is_hit(part.index, (12, 23), (3, 4)),
        ),
    }
    for name in facts.leaves:
        wants = functools.partial(lambda part, name: part.leaf == name, name=name)
        read = functools.partial(read_leaf, name=name)
        found[f"leaf {name}"] = Reader(read, tree | root, wants)
        found[f"verify {name}"] = Reader(
            functools.partial(verify_leaf, name=name),
            tree | root | facts.at_root,
            wants,
            counts_trailers=True,
        )
    return found


class Laboratory:
    """A checkpoint that is damaged again and again, and those who read it."""

    def __init__(self, where, earlier, save):
        self.where = where
        save(where, 2)
        save(earlier, 1)
        self.now, self.earlier = Facts(where.files()), Facts(earlier.files())
        self.subject = Subject(self.now.files, self.earlier.files, self.now.chunks)
        self.readers = readers(self.now)
        self.answers = {}
        for facts, place in ((self.now, where), (self.earlier, earlier)):
            with place.context():
                self.answers[id(facts)] = {
                    name: reader.read(place) for name, reader in self.readers.items()
                }

    def try_damage(self, damage, names):
        """Damages the checkpoint, asks, and mends it; answers what was not right."""
        now = {**self.subject.files, **damage}
        now = {name: content for name, content in now.items() if content is not None}
        self.where.put(damage)
        try:
            with self.where.context():
                faults = [f"verify: {fault}" for fault in self.check_verify(now)]
                for name in names:
                    faults += [f"{name}: {f}" for f in self.check_reader(name, now)]
        finally:
            self.where.put({name: self.subject.files.get(name) for name in damage})
        return faults

    def base(self, now, record):
        """What a record vouches for: that of an earlier checkpoint vouches for it."""
        return (
            self.earlier if now.get(record) == self.earlier.files[record] else self.now
        )

    def check_reader(self, name, now):
        reader = self.readers[name]
        facts = self.base(now, MANIFEST if reader.is_alone else SEAL)
        lost = facts.lost(now, trailers=reader.counts_trailers)
        lost = [part for part in lost if reader.wants(part)]
        missed = facts.changed(now) & reader.needs
        try:
            found = reader.read(self.where)
        except StowaxError as error:
            message = str(error)
            if not missed and not lost:
                yield f"refused, though it needs nothing that is damaged: {message}"
                return
            files = missed | {part.chunk.file for part in lost}
            if not any(self.is_named(file, message, error) for file in files):
                yield f"names none of {sorted(files)}: {message}"
            if not missed and not any(repr(p.leaf) in message for p in lost):
                yield f"names none of {[p.leaf for p in lost]}: {message}"
        except Exception as error:  # noqa: BLE001 any other is what this looks for
            yield f"untyped: {type(error).__name__}: {error}"
        else:
            expected = self.answers[id(facts)][name]
            if missed or lost:
                yield f"passed, though it needs {sorted(missed)} {lost}"
            yield from differences(expected, found, placement=True)

    def is_named(self, file, message, error):
        if isinstance(error, DamageError):
            return f"  {file}" in message
        # Without the records that name it, a tree is only known by its directory.
        return f"{self.where.path}/{file}" in message or file in (SEAL, MANIFEST)

    def check_verify(self, now):
        facts = self.base(now, SEAL)
        expected = facts.visible(now)
        if SEAL in expected:
            expected = {SEAL} | self.base(now, MANIFEST).visible_in_tree(now)
            facts = self.base(now, MANIFEST)
        # Nothing there says that it has ever been a checkpoint, or one of ours.
        is_unknown = SEAL not in now and (
            "_CHECKPOINT_METADATA" not in now
            or {MANIFEST, "state/_METADATA"}.isdisjoint(now)
        )
        try:
            report = stowax.verify(self.where.path)
        except DamageError as error:
            report = error.report
        except StowaxError as error:
            if not is_unknown:
                yield f"{type(error).__name__}: {error}"
            return
        except Exception as error:  # noqa: BLE001 any other is what this looks for
            yield f"untyped: {type(error).__name__}: {error}"
            return
        damages = report.damages
        if (found := {damage.file for damage in damages}) != expected:
            yield f"names {sorted(found)}, not {sorted(expected)}"
        seen = expected & {*facts.table_of}
        lost = [p for p in facts.lost(now, trailers=True) if p.chunk.file in seen]
        told = {damage.leaf for damage in damages} - {None}
        if told != {part.leaf for part in lost}:
            yield f"tells of the leaves {told}, not of {[p.leaf for p in lost]}"
        for part in lost:
            if not any(
                d.file == part.chunk.file
                and d.begin_bytes < part.chunk.end + 4
                and d.end_bytes > part.chunk.begin
                and d.leaf == part.leaf
                and d.index == part.index
                for d in damages
            ):
                yield f"does not tell where {part} is damaged"
        strangers = {*now} - {*facts.files}
        records = {SEAL, MANIFEST, *facts.tables}
        if records.isdisjoint(expected) and strangers != {*report.unvouched}:
            yield f"takes {report.unvouched} for strangers, not {strangers}"


@pytest.fixture(scope="module", params=sorted(SAVES))
def laboratory(request, tmp_path_factory):
    """A checkpoint of every sort."""
    folder, store = tmp_path_factory.mktemp("laboratory"), None
    if request.param in IN_MEMORY:
        folder, store = "/runs", MemoryStore()
    where, earlier = (Where(f"{folder}/{name}", store) for name in ("now", "earlier"))
    return Laboratory(where, earlier, SAVES[request.param])


def test_nothing_is_damaged(laboratory):
    """Without damage everybody is right, and every kind of file is there."""
    names = {*laboratory.subject.files}

    assert laboratory.try_damage({}, laboratory.readers) == []
    assert names >= {
        *(SEAL, MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"),
        *("state/stowax.chunks.0", "state/d/index", "state/manifest.ocdbt"),
        *("state/_METADATA", "state/_sharding", "state/_strings.json"),
        *("state/array_metadatas/process_0", "config/data.json"),
    }
    assert len(laboratory.now.table_of) > 3
    assert names.isdisjoint({"notes/notes.txt"}) == (laboratory.where.store is not None)


def test_every_reader_at_every_file(laboratory):
    """A flipped byte in each file: all who need it raise, all others are right."""
    rare = ("leaf", "verify")
    asked = [n for n in laboratory.readers if not n.startswith(rare)]
    asked += ["leaf raw", "leaf rows", "verify step"]
    faults = []
    for name, content in laboratory.subject.files.items():
        if content:
            damaged = bytes([content[0] ^ 0x10]) + content[1:]
            found = laboratory.try_damage({name: damaged}, asked)
            faults += [f"{name}: {fault}" for fault in found]

    assert faults == []


@pytest.mark.parametrize("part", [0, *SOAK])
def test_any_damage(laboratory, part):
    """Whatever is damaged: an error that says where, or exactly what was saved."""
    names, kinds = [*laboratory.readers], [*KINDS.items()]
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(TRIALS[laboratory.where.store is None]):
            random = np.random.default_rng([part, number])
            kind, draw = kinds[number % len(kinds)]
            damage = draw(random, laboratory.subject)
            asked = names[int(random.integers(len(names)))]
            found = laboratory.try_damage(damage, [asked])
            faults += [f"{kind} {number} of {sorted(damage)}: {f}" for f in found]

    assert faults == []
