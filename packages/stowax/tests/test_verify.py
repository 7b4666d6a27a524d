"""What `verify` compares, tells and refuses; `test_corruption` damages everything."""

import errno
import os
import pathlib
import shutil
import tracemalloc

import jax
import numpy as np
import orbax.checkpoint as orbax
import pytest
from sample_damage import read_files
from sample_trees import bits, sharded_arrays

import stowax
from stowax._codecs._checksum import BLOCK_BYTES, seal, unseal
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointableNotFoundError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DamageError,
    InvalidLayoutError,
    InvalidNameError,
    LeafNotFoundError,
    NoChecksumsError,
    NotADirectoryLayoutError,
)
from stowax.handlers import JsonHandler
from stowax.options import (
    ArrayOptions,
    CheckpointablesOptions,
    FileOptions,
    IntegrityOptions,
)
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster
from stowax.training import Checkpointer

MIB = 1 << 20


def damages(path, **options):
    """What `verify` finds damaged."""
    with pytest.raises(DamageError) as caught:
        stowax.verify(path, **options)
    return caught.value.report.damages


def flip(file, position, mask=1):
    """Flips bits of one byte in place."""
    content = bytearray(file.read_bytes())
    content[position] ^= mask
    file.write_bytes(content)


@pytest.fixture
def path(tmp_path):
    """A checkpoint with two trees and a JSON value.

    In the data file of "state", "n" is at 0, "v" at 64 to 134, and "w" at 192.
    """
    config = CheckpointablesOptions.create_with_handlers(config=JsonHandler)
    with stowax.Context(checkpointables=config):
        stowax.save_checkpointables(
            tmp_path / "c",
            {
                "state": {"n": 1, "v": bits("int8", (70,)), "w": bits("int8", (8, 4))},
                "ema": {"w": np.arange(6.0), "deep": [{"x": 2}]},
                "config": {"depth": 3},
            },
        )
    return pathlib.Path(tmp_path / "c")


class TestWhole:
    def test_every_byte(self, path):
        """What is compared is all that is there."""
        files = read_files(path)

        report = stowax.verify(path)

        assert report.checked_bytes == sum(map(len, files.values()))
        assert report.file_count == len(files)
        assert report.checkpointables == ("config", "ema", "state")
        assert report.leaf_count == 5
        assert (report.damages, report.unvouched) == ((), ())
        assert str(report).startswith(f"{path}: no damage in {len(files)} files")

    def test_every_store(self, place):
        """Wherever it lies, and however it was stored."""
        compressed = ArrayOptions(saving=ArrayOptions.Saving(use_compression=True))
        with place.context(array=compressed):
            stowax.save(place / "c", sharded_arrays())

        assert stowax.verify(place / "c").leaf_count == len(sharded_arrays())

    @pytest.mark.parametrize("tree", [{}, {"e": np.zeros((0, 3))}, {"s": "text"}, 1.5])
    def test_little_is_there(self, place, tree):
        """Trees without leaves, or without bytes, have records to compare."""
        stowax.save(place / "c", tree)

        assert stowax.verify(place / "c").leaf_count == len(jax.tree.leaves(tree))

    def test_steps(self, tmp_path):
        """A step is a checkpoint, with metrics and commit files; the run is none."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(3, {"x": np.arange(3)}, metrics={"loss": 1.0})

        report = stowax.verify(tmp_path / "3")

        assert report.checkpointables == ("state",)
        assert report.file_count == len(read_files(tmp_path / "3"))
        with pytest.raises(InvalidLayoutError):
            stowax.verify(tmp_path)
        flip(tmp_path / "3/metrics/metrics", 2)
        assert [d.file for d in damages(tmp_path / "3")] == ["metrics/metrics"]

    def test_checkpointable_without_files(self, tmp_path):
        """It is told if even its directory is gone."""

        class Silent:
            async def save(self, directory):
                async def write():
                    await directory.await_creation()

                return write()

            async def load(self, directory): ...

        stowax.save_checkpointables(tmp_path / "c", {"s": Silent(), "state": {"x": 1}})
        assert stowax.verify(tmp_path / "c").checkpointables == ("s", "state")
        (tmp_path / "c/s").rmdir()

        assert [str(d) for d in damages(tmp_path / "c")] == ["s: is missing"]

    def test_tree_alone(self, path):
        """The directory of a tree is what its manifest vouches for."""
        report = stowax.verify(path / "state")

        assert report.checkpointables == ("",)
        assert report.leaf_count == 3
        flip(path / "state/d/data-0", 69)
        assert [d.leaf for d in damages(path / "state")] == ["v"]
        assert [d.leaf for d in damages(path / "state", leaves="v")] == ["v"]
        assert stowax.verify(path / "state", leaves="w").leaf_count == 1

    def test_tree_inside_an_object(self, tmp_path):
        """Trees that an object saves below its own directory are compared."""

        class Holder:
            async def save(self, directory):
                handler = stowax.handlers.PyTreeHandler()
                return await handler.save(directory / "inner", {"x": np.arange(3)})

            async def load(self, directory): ...

        stowax.save_checkpointables(tmp_path / "c", {"holder": Holder()})
        assert stowax.verify(tmp_path / "c").leaf_count == 1
        flip(tmp_path / "c/holder/inner/d/data-0", 0)

        assert damages(tmp_path / "c")[0].file == "holder/inner/d/data-0"
        assert damages(tmp_path / "c", checkpointables="holder")[0].leaf == "x"


class TestDamage:
    def test_all_at_once(self, path):
        """Every damaged place is told, in order, with what is lost."""
        for file in ("state/_METADATA", "state/d/index", "config/data.json"):
            flip(path / file, 3)
        flip(path / "state/d/data-0", 69)
        (path / "ema/d/data-0").unlink()

        found = damages(path)

        assert [(d.file, d.leaf) for d in found] == [
            ("config/data.json", None),
            ("ema/d/data-0", "deep.0.x"),
            ("ema/d/data-0", "w"),
            ("state/_METADATA", None),
            ("state/d/data-0", "v"),
            ("state/d/index", None),
        ]
        assert [d.begin_bytes for d in found] == [None, 0, 64, None, 64, None]
        assert found[2].index == (slice(0, 6),)

    def test_message(self, path):
        """The error says it all to who reads it, and what to do."""
        flip(path / "state/d/data-0", 69)

        with pytest.raises(CorruptCheckpointError) as caught:
            stowax.verify(path)

        unlike = "does not match its checksum"
        assert str(caught.value).splitlines()[:2] == [
            f"{path}: 1 damaged place in 17 files ({total(path)} bytes, 5 leaves)",
            f"  state/d/data-0, bytes 64 to 134: [0:70] of leaf 'v' {unlike}",
        ]
        assert "IntegrityOptions(verify=False)" in str(caught.value)

    def test_many(self, tmp_path):
        """A message stays short; the report has everything."""
        stowax.save(tmp_path / "c", {str(i): np.arange(i + 1) for i in range(50)})
        (tmp_path / "c/state/d/data-0").write_bytes(b"")

        with pytest.raises(DamageError, match="and 30 more") as caught:
            stowax.verify(tmp_path / "c")

        assert len(caught.value.report.damages) == 50
        assert len(str(caught.value).splitlines()) < 30
        assert len(str(caught.value.report).splitlines()) > 50

    @pytest.mark.parametrize("compressed", [False, True])
    def test_the_block(self, tmp_path, compressed):
        """Of a large chunk the block is told, and two of them are two places."""
        saving = ArrayOptions.Saving(use_compression=compressed)
        with stowax.Context(array=ArrayOptions(saving=saving)):
            stowax.save(tmp_path / "c", {"w": bits("uint8", (3 * MIB + 7,))})
        file = tmp_path / "c/state/d/data-0"
        step = BLOCK_BYTES
        for position in (step + 3, 2 * step - 1, 2 * step, 4 * step + 3):
            flip(file, position)

        found = damages(tmp_path / "c")

        places = [(step, 3 * step), (4 * step, 5 * step)]
        assert [(d.begin_bytes, d.end_bytes) for d in found] == places
        assert [d.index for d in found] == 2 * [(slice(0, 3 * MIB + 7),)]
        assert len({*found}) == 2
        if not compressed:
            whole = stowax.load_leaf(tmp_path / "c", "w", index=np.s_[:step])
            assert (whole == bits("uint8", (3 * MIB + 7,))[:step]).all()

    def test_trailer(self, path):
        """The checksum that only others read is compared: they would refuse the chunk.

        A load of ours reads the chunk as it was.
        """
        flip(path / "state/d/data-0", 135)

        (damage,) = damages(path)

        assert (damage.leaf, damage.begin_bytes, damage.end_bytes) == ("v", 134, 138)
        assert "other" in damage.what
        assert (stowax.load(path)["v"] == bits("int8", (70,))).all()
        with pytest.raises(ValueError, match=r"[Dd]igest mismatch"):
            orbax.v1.load(path)

    @pytest.mark.parametrize("position", [138, 191])
    def test_between_chunks(self, path, position):
        """Where there were zeros there must be zeros; that no array is lost is said."""
        flip(path / "state/d/data-0", position)

        (damage,) = damages(path)

        assert (damage.leaf, damage.begin_bytes, damage.end_bytes) == (None, 138, 192)
        assert "no array has lost anything" in damage.what
        stowax.load(path)

    def test_behind_the_end(self, path):
        """A data file that has grown is told, though nothing reads what is new."""
        file = path / "state/d/data-0"
        size = file.stat().st_size
        with file.open("ab") as data:
            data.write(b"more")

        (damage,) = damages(path)

        assert (damage.begin_bytes, damage.end_bytes) == (size, size + 4)
        assert "no array has lost anything" in damage.what

    def test_seal(self, path):
        """Without what vouches for the root, trees are still compared."""
        flip(path / "stowax.json", 9)
        flip(path / "ema/d/data-0", 65)
        flip(path / "config/data.json", 1)

        found = damages(path)

        assert [d.file for d in found] == ["ema/d/data-0", "stowax.json"]
        assert "were not compared" in found[1].what

    @pytest.mark.parametrize("name", ["stowax.manifest", "stowax.chunks.0"])
    def test_records_of_a_tree(self, path, name):
        """Without what vouches for a tree, the others are still compared."""
        flip(path / "state" / name, 9)
        flip(path / "state/d/data-0", 69)
        flip(path / "ema/d/data-0", 65)

        found = damages(path)

        assert [d.file for d in found] == ["ema/d/data-0", f"state/{name}"]
        assert "not compared" in found[1].what

    @pytest.mark.parametrize(
        ("removed", "expected"),
        [
            (["stowax.json"], ["stowax.json"]),
            (["state/stowax.manifest"], ["state/stowax.manifest"]),
            (
                ["stowax.json", "state/stowax.manifest"],
                ["state/stowax.manifest", "stowax.json"],
            ),
            (
                ["stowax.json", "state/stowax.manifest", "ema/stowax.manifest"],
                ["ema/stowax.manifest", "state/stowax.manifest", "stowax.json"],
            ),
        ],
    )
    def test_records_removed(self, path, removed, expected):
        """Without its records a checkpoint is not taken for one of Orbax."""
        for name in removed:
            (path / name).unlink()

        assert [d.file for d in damages(path)] == expected

    def test_tree_that_nobody_names(self, path):
        """A tree that was put there later is refused, as a load refuses it."""
        shutil.copytree(path / "state", path / "other")

        assert [d.file for d in damages(path)] == ["other/stowax.manifest"]

    def test_newer_release(self, path):
        """A record that only a newer release reads is told, with the cure."""
        document = unseal((path / "stowax.json").read_bytes())
        document["version"] += 1
        (path / "stowax.json").write_bytes(seal(document))

        with pytest.raises(DamageError, match="pip install --upgrade stowax"):
            stowax.verify(path)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a//b", ""])
    def test_names_never_lead_out(self, path, name):
        """Records that name files elsewhere are damage, and the files are not read."""
        store = RecordingStore(LocalStore())
        for file, entry in (
            ("stowax.json", "guests"),
            ("state/stowax.manifest", "documents"),
            ("state/stowax.manifest", "parts"),
        ):
            document = unseal((path / file).read_bytes())
            document[entry][name] = [6, "00000000"]
            before = (path / file).read_bytes()
            (path / file).write_bytes(seal(document))
            with stowax.Context(file=FileOptions(store=store)):
                assert damages((path / file).parent)
            (path / file).write_bytes(before)

        read = {p for call in store.calls for p in call.paths}
        assert all(p.startswith(str(path)) and ".." not in p for p in read)


def total(path):
    """Bytes of all files."""
    return sum(map(len, read_files(path).values()))


class TestUnvouched:
    def test_strangers(self, path):
        """Files that nobody saved are told, and are no damage."""
        (path / "README").write_text("mine")
        (path / "state/d/data-9").write_bytes(b"?")
        shutil.copy(path / "state/stowax.manifest", path / "config")

        report = stowax.verify(path)

        strangers = ("README", "config/stowax.manifest", "state/d/data-9")
        assert report.unvouched == strangers
        assert "not vouched for by any record: README" in str(report)

    def test_renamed(self, path):
        """A file under another name is missing, and a stranger."""
        (path / "state/d/data-0").rename(path / "state/d/data-1")

        with pytest.raises(DamageError) as caught:
            stowax.verify(path)

        assert {d.leaf for d in caught.value.report.damages} == {"n", "v", "w"}
        assert caught.value.report.unvouched == ("state/d/data-1",)


class TestPart:
    def test_one_checkpointable(self, path):
        """The others may be damaged; what stands at the root may not."""
        flip(path / "ema/d/data-0", 65)

        report = stowax.verify(path, checkpointables="state")

        assert report.checkpointables == ("state",)
        assert report.leaf_count == 3
        assert stowax.verify(path, checkpointables=["config", "state"]).leaf_count == 3
        assert {d.leaf for d in damages(path, checkpointables=("ema", "state"))} == {
            "w"
        }
        flip(path / "commit_success.txt", 0)
        assert len(damages(path, checkpointables="state")) == 1

    def test_some_leaves(self, path):
        """Only their bytes are read, and what says where they are."""
        flip(path / "state/d/data-0", 69)
        flip(path / "state/_METADATA", 5)
        store = RecordingStore(LocalStore())

        with stowax.Context(file=FileOptions(store=store)):
            report = stowax.verify(path, leaves=["w"])

        assert (report.checkpointables, report.leaf_count) == (("state",), 1)
        assert stowax.verify(path, leaves=("w", "n")).leaf_count == 2
        assert [d.leaf for d in damages(path, leaves="v")] == ["v"]
        (read,) = [
            call.size_bytes
            for call in store.calls
            if call.operation == "read_into"
            and call.paths[0].endswith("data-0")
            and call.size_bytes
        ]
        assert read < (path / "state/d/data-0").stat().st_size

    def test_leaves_of_a_named_tree(self, path):
        """Names are those of `load_leaf`."""
        flip(path / "ema/d/data-0", 64)

        assert stowax.verify(path, leaves="w").leaf_count == 1
        assert [d.leaf for d in damages(path, checkpointables="ema", leaves="w")] == [
            "w"
        ]
        report = stowax.verify(path, checkpointables="ema", leaves="deep.0.x")
        assert report.checkpointables == ("ema",)

    def test_records_are_damaged(self, path):
        """Where a leaf lies is said by records, which are compared first."""
        flip(path / "stowax.json", 9)
        assert [d.file for d in damages(path, leaves="w")] == ["stowax.json"]
        flip(path / "stowax.json", 9)
        flip(path / "state/stowax.manifest", 9)
        assert [d.file for d in damages(path, leaves="w")] == ["state/stowax.manifest"]

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"checkpointables": "stat"}, CheckpointableNotFoundError, "'stat'"),
            ({"checkpointables": ["state", "x"]}, CheckpointableNotFoundError, "'x'"),
            ({"leaves": "ww"}, LeafNotFoundError, "near it is 'w'"),
            ({"leaves": ["w", "deep.0.x"]}, LeafNotFoundError, r"deep\.0\.x"),
            (
                {"leaves": "w", "checkpointables": "config"},
                LeafNotFoundError,
                "no tree",
            ),
            ({"leaves": []}, InvalidNameError, "leaves"),
            ({"leaves": 3}, InvalidNameError, "leaves"),
            ({"leaves": ["w", 3]}, InvalidNameError, "leaves"),
            ({"checkpointables": ()}, InvalidNameError, "checkpointables"),
            (
                {"leaves": "w", "checkpointables": ["ema", "state"]},
                InvalidNameError,
                "one tree",
            ),
        ],
        ids=str,
    )
    def test_refused(self, path, options, error, match):
        """Names that mean nothing are refused, whatever is damaged."""
        with pytest.raises(error, match=match):
            stowax.verify(path, **options)


class TestOthers:
    """What this library did not save has nothing to be compared with."""

    def test_orbax(self, tmp_path):
        """It is never called whole, nor damaged."""
        orbax.v1.save(tmp_path / "c", {"x": np.arange(3)})

        with pytest.raises(NoChecksumsError, match="may be whole or damaged"):
            stowax.verify(tmp_path / "c")
        (tmp_path / "c/state/_METADATA").write_bytes(b"{")
        with pytest.raises(NoChecksumsError):
            stowax.verify(tmp_path / "c")

    def test_no_checkpoint(self, tmp_path):
        """The errors are those of a load."""
        (tmp_path / "file").touch()
        stowax.save(tmp_path / "c", {"x": 1})
        draft = (tmp_path / "c").rename(tmp_path / "c.orbax-checkpoint-tmp-1")

        with pytest.raises(CheckpointNotFoundError):
            stowax.verify(tmp_path / "none")
        with pytest.raises(NotADirectoryLayoutError):
            stowax.verify(tmp_path / "file")
        with pytest.raises(InvalidLayoutError):
            stowax.verify(tmp_path)
        with pytest.raises(InvalidLayoutError, match="unfinished"):
            stowax.verify(draft)


def test_options_that_turn_checksums_off(path):
    """Who calls `verify` wants them compared."""
    flip(path / "state/d/data-0", 69)

    with stowax.Context(integrity=IntegrityOptions(verify=False)):
        assert [d.leaf for d in damages(path)] == ["v"]
        assert [d.leaf for d in damages(path, leaves="v")] == ["v"]
        (path / "stowax.json").unlink()
        assert [d.leaf for d in damages(path)] == ["v", None]


def test_memory(tmp_path):
    """A few buffers are enough, however large the arrays and the files are."""
    stowax.save(tmp_path / "c", {"w": np.zeros(64 * MIB, np.uint8), "v": np.zeros(9)})
    store = RecordingStore(LocalStore())
    stowax.verify(tmp_path / "c")  # What is made only once has been made.
    tracemalloc.start()
    try:
        with stowax.Context(file=FileOptions(store=store)):
            stowax.verify(tmp_path / "c")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Four pieces are read at once, and a worker lets go of its last a little later.
    assert peak_bytes < 8 * 4 * MIB
    assert max(call.size_bytes for call in store.calls) <= 4 * MIB


class BadSector(LocalStore):
    """Cannot read some bytes of a file, as a disk that begins to fail."""

    def __init__(self, name, begin, end, number):
        super().__init__()
        self.name, self.begin, self.end, self.number = name, begin, end, number

    async def read_into(self, path, offset_bytes, buffer):
        end = offset_bytes + len(buffer)
        if path.endswith(self.name) and offset_bytes < self.end and end > self.begin:
            raise OSError(self.number, os.strerror(self.number), path)
        await super().read_into(path, offset_bytes, buffer)


@pytest.mark.parametrize(
    ("name", "leaf", "place"),
    [
        ("state/d/data-0", "v", (64, 134)),
        ("state/d/index", None, (None, None)),
        ("state/stowax.manifest", None, (None, None)),
    ],
)
def test_bad_sector(path, name, leaf, place):
    """What the disk cannot read any more is damage, and takes nothing with it."""
    with stowax.Context(file=FileOptions(store=BadSector(name, 80, 81, errno.EIO))):
        (damage,) = damages(path)

    assert (damage.file, damage.leaf) == (name, leaf)
    assert (damage.begin_bytes, damage.end_bytes) == place
    assert os.strerror(errno.EIO) in damage.what


def test_no_permission(path):
    """What the system forbids to read may be whole; its own error says so."""
    store = BadSector("state/d/data-0", 80, 81, errno.EACCES)

    with stowax.Context(file=FileOptions(store=store)), pytest.raises(PermissionError):
        stowax.verify(path)


def test_every_process_alone():
    """Each process may verify by itself; nobody is waited for."""
    store = MemoryStore()
    with SimulatedCluster(2) as cluster:

        def work(index):
            runtime, file = cluster.runtimes[index], FileOptions(store=store)
            with stowax.Context(runtime=runtime, file=file):
                stowax.save("/runs/c", sharded_arrays())
                return index == 0 or stowax.verify("/runs/c").leaf_count

        assert cluster.run(work) == [True, len(sharded_arrays())]
