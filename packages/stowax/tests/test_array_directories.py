"""What is written for readers that know no OCDBT, or no zarr 3."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st
from sample_trees import (
    abstract,
    bits,
    differences,
    jax_arrays,
    numpy_arrays,
    plain,
    scalars,
    sharded_arrays,
)

import stowax
from stowax._array_directories import check_array_names
from stowax._codecs._item_manifest import decode_part
from stowax._plan._spans import plan_checks
from stowax._runtime import Runtime
from stowax.errors import CorruptCheckpointError, DamageError, InvalidNameError
from stowax.testing import MemoryStore

ARRANGEMENTS = [(True, False), (False, True), (False, False)]
"""(use_ocdbt, use_zarr3) but for the usual one"""

arranged = pytest.mark.parametrize(("use_ocdbt", "use_zarr3"), ARRANGEMENTS)
compressed = pytest.mark.parametrize("compression", [None, "zstd", "blosc", "auto"])


def context(use_ocdbt, use_zarr3, **options):
    """Options to write arrays in one of the arrangements."""
    found = stowax.Context(**options)
    found.array.saving.use_ocdbt = use_ocdbt
    found.array.saving.use_zarr3 = use_zarr3
    return found


def files_of(path):
    """Every file below a directory, relative to it."""
    files = [file for file in pathlib.Path(path).rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def read_with_tensorstore(item, name, *, use_ocdbt, use_zarr3):
    """An array, as a program reads it that knows zarr and nothing of ours."""
    kvstore = {"driver": "file", "path": f"{item}/"}
    if use_ocdbt:
        kvstore = {"driver": "ocdbt", "base": kvstore}
    driver = "zarr3" if use_zarr3 else "zarr"
    spec = {"driver": driver, "kvstore": kvstore, "path": name}
    return ts.open(spec, read=True).result().read().result()


@arranged
@compressed
def test_every_leaf_there_and_back(tmp_path, use_ocdbt, use_zarr3, compression):
    """Everything is loaded as it was, and every byte is verified."""
    saved = {
        "jax": jax_arrays(),
        "numpy": numpy_arrays(),
        "scalars": scalars(),
        "sharded": sharded_arrays(),
        "empty": [{}, None, ()],
        "text": "some",
    }
    options = context(use_ocdbt, use_zarr3)
    options.array.saving.storage_options.compression = compression
    with options:
        stowax.save(tmp_path / "c", saved)

    assert differences(saved, stowax.load(tmp_path / "c", abstract(saved))) == []
    assert differences(plain(saved), stowax.load(tmp_path / "c")) == []
    assert not stowax.verify(tmp_path / "c").damages
    # Without our records, what Orbax reads is the second source.
    (tmp_path / "c/state/stowax.manifest").unlink()
    (tmp_path / "c/stowax.json").unlink()
    unverified = stowax.Context(integrity=stowax.options.IntegrityOptions(verify=False))
    with unverified:
        found = stowax.load(tmp_path / "c")
    assert differences(plain(saved["sharded"]), found["sharded"]) == []


@arranged
@compressed
def test_tensorstore_reads_it(tmp_path, use_ocdbt, use_zarr3, compression):
    """Shards, padded edges, no axes and no elements: as any zarr."""
    arrays = {
        "both": sharded_arrays()["both"],
        "edges": bits("float32", (7, 9)),
        "scalar": bits("int16", ()),
        "none": np.zeros((0, 3), np.float32),
        "half": bits("bfloat16", (33,)),
        "large": np.tile(np.arange(256, dtype=np.float32), 2000),
    }
    options = context(use_ocdbt, use_zarr3)
    options.array.saving.storage_options.compression = compression
    options.array.saving.storage_options.chunk_byte_size = 100_000
    with options:
        stowax.save(tmp_path / "c", {"in": arrays})

    for name, array in arrays.items():
        found = read_with_tensorstore(
            tmp_path / "c/state",
            f"in.{name}",
            use_ocdbt=use_ocdbt,
            use_zarr3=use_zarr3,
        )
        assert differences(np.asarray(array), found) == []


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_one_file_per_chunk(tmp_path, use_zarr3):
    """Chunks lie where zarr looks for them, and nothing lies beside them."""
    array = jax.device_put(bits("float32", (8, 6)), sharded_arrays()["both"].sharding)
    with context(False, use_zarr3):
        stowax.save(tmp_path / "c", {"a": {"w": array}, "n": 7})

    files = files_of(tmp_path / "c/state")
    keys = {name.removeprefix("a.w/") for name in files if name.startswith("a.w/")}
    grid = [(i, j) for i in range(4) for j in range(2)]
    if use_zarr3:
        assert keys == {"zarr.json", *(f"c/{i}/{j}" for i, j in grid)}
    else:
        assert keys == {".zarray", *(f"{i}.{j}" for i, j in grid)}
        sizes = {len(files[f"a.w/{i}.{j}"]) for i, j in grid}
        assert sizes == {array.nbytes // 8}
    said = json.loads(files["_METADATA"])
    assert (said["use_ocdbt"], said["use_zarr3"]) == (False, use_zarr3)
    assert not any("ocdbt" in name or name.startswith("d/") for name in files)


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_a_flipped_bit_anywhere(tmp_path, use_zarr3):
    """In whichever file: an error that says where, and never another value."""
    saved = {"w": bits("float32", (40,)), "b": bits("int8", (3, 3)), "s": "text"}
    with context(False, use_zarr3):
        stowax.save(tmp_path / "c", saved)

    for name, data in files_of(tmp_path / "c").items():
        for at in {0, len(data) // 2, len(data) - 1} if data else ():
            damaged = bytearray(data)
            damaged[at] ^= 16
            (tmp_path / "c" / name).write_bytes(damaged)
            with pytest.raises(DamageError):
                stowax.verify(tmp_path / "c")
            try:
                loaded = stowax.load(tmp_path / "c")
            except CorruptCheckpointError:
                continue
            finally:
                (tmp_path / "c" / name).write_bytes(data)
            assert differences(saved, loaded) == []


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_what_a_verification_compares(tmp_path, use_zarr3):
    """The count that it announces is that of the bytes it looks at."""
    with context(False, use_zarr3):
        stowax.save(tmp_path / "c", {"a": bits("int8", (10,)), "b": bits("int8", (3,))})
    table = decode_part((tmp_path / "c/state/stowax.chunks.0").read_bytes())

    (check,) = plan_checks(table, {0})
    compared_bytes = sum(span.end_bytes - span.begin_bytes for span in check.spans())

    assert check.compared_bytes == compared_bytes == (14 if use_zarr3 else 10)


def test_leaf_by_leaf(tmp_path):
    """A slice costs the chunks that have it."""
    array = np.arange(4000, dtype=np.float32).reshape(40, 100)
    options = context(False, False)
    options.array.saving.storage_options.chunk_byte_size = 4000
    with options:
        stowax.save(tmp_path / "c", {"w": array})

    found = stowax.load_leaf(tmp_path / "c", "w", index=np.s_[17, 3:5])
    assert found.tolist() == array[17, 3:5].tolist()


def test_within_the_memory_budget():
    """Files of single chunks are staged as data files are."""
    runtime = Runtime(worker_count=4)
    limit_bytes = 64 << 10
    options = context(
        False,
        True,
        runtime=runtime,
        file=stowax.options.FileOptions(store=MemoryStore()),
        memory=stowax.options.MemoryOptions(write_concurrent_bytes=limit_bytes),
    )
    options.array.saving.storage_options.chunk_byte_size = 4 << 10
    saved = {f"{n}": np.full(16 << 10, n, np.uint8) for n in range(12)}
    with options:
        stowax.save_async("/c", saved).result()
        loaded = stowax.load("/c")
    runtime.close()

    assert differences(saved, loaded) == []
    assert 0 < runtime.staging_budget.peak_bytes <= limit_bytes


class TestNames:
    """An array's name is a path, and not every name can be one."""

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("/etc/passwd", "no plain path"),
            ("..", "no plain path"),
            ("a/../../b", "no plain path"),
            ("a//b", "no plain path"),
            ("./a", "no plain path"),
            ("a\\b", "character"),
            ("a\0b", "character"),
            ("n" * 256, "longer than 255"),
            ("é" * 128, "longer than 255"),
            ("_METADATA", "document"),
            ("_sharding/x", "document"),
            ("array_metadatas", "document"),
            ("checkpoint", "document"),
            ("commit_success.txt", "document"),
            ("d", "document"),
            ("manifest.ocdbt", "document"),
            ("stowax.manifest", "document"),
            ("stowax.chunks.0", "document"),
            ("ocdbt.process_0", "document"),
        ],
    )
    def test_refused(self, tmp_path, name, match):
        """By name, before anything is written."""
        with (
            context(False, True),
            pytest.raises(InvalidNameError, match=match) as caught,
        ):
            stowax.save(tmp_path / "c", {name: np.ones(2), "fine": np.ones(2)})

        assert repr(name) in str(caught.value)
        assert "'fine'" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_one_within_another(self, tmp_path):
        """`a/0` is where a chunk of `a` lies."""
        state = {"a": np.ones(2), "a/0": np.ones(2), "a/b/c": np.ones(2)}
        with (
            context(False, False),
            pytest.raises(InvalidNameError, match="'a/0' lies within that of 'a'"),
        ):
            stowax.save(tmp_path / "c", state)

    def test_only_arrays_have_directories(self, tmp_path):
        """Strings and empty containers may have any name."""
        state = {"_METADATA": "text", "..": None, "/x": {}, "w": np.ones(2)}
        with context(False, True):
            stowax.save(tmp_path / "c", state)
        assert differences(state, stowax.load(tmp_path / "c")) == []

    def test_a_bare_array(self, tmp_path):
        """It lies in the directory of the item."""
        with context(False, True):
            stowax.save(tmp_path / "c", np.arange(3))
        assert stowax.load(tmp_path / "c").tolist() == [0, 1, 2]
        assert (tmp_path / "c/state/zarr.json").exists()

    @given(st.sets(st.text("ab./\\_d", max_size=6), max_size=4))
    def test_what_passes_stays_inside(self, names):
        """Paths of arrays that are not refused are plain, and none is in another."""
        # Names that differ by a "/" at the end alone are refused before.
        names = {name.rstrip("/") for name in names}
        try:
            check_array_names(names)
        except InvalidNameError:
            return
        paths = [pathlib.PurePosixPath("item", name) for name in names]
        for name, path in zip(names, paths, strict=True):
            assert path.as_posix() == f"item/{name}".rstrip("/")
            assert ".." not in path.parts
            assert not any(other in path.parents for other in paths)
