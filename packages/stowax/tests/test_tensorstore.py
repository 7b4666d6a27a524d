import asyncio
import itertools
import shutil

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_databases import write_database

from stowax._box import Box, whole
from stowax._budget import Budget, Scratch
from stowax._formats._base import ReadRequest
from stowax._keypath import Key
from stowax._manifest import LeafEntry, LeafForm
from stowax._tensorstore import TensorStoreSource
from stowax.errors import CorruptCheckpointError, InvalidLayoutError

UNLIMITED = Scratch(Budget(), 1 << 40)

ARRANGEMENTS = list(itertools.product([True, False], [True, False]))
"""(use_ocdbt, use_zarr3)"""

VALUES = {
    "matrix": np.arange(7 * 5, dtype=np.float32).reshape(7, 5),
    "number": np.array(42),
    "flags": np.array([True, False, True]),
    "half": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(1, 6),
    "some.name/of it": np.arange(4, dtype=np.uint8),
}


def _write(directory, values, *, use_ocdbt, use_zarr3, chunk=3):
    """Writes arrays with TensorStore itself, in small chunks."""
    for name, value in values.items():
        kvstore = {"driver": "file", "path": f"{directory}/{name}"}
        if use_ocdbt:
            base = {"driver": "file", "path": f"{directory}/"}
            kvstore = {"driver": "ocdbt", "base": base, "path": name}
        layout = ts.ChunkLayout(chunk_shape=[min(chunk, n) for n in value.shape])
        ts.open(
            {"driver": "zarr3" if use_zarr3 else "zarr", "kvstore": kvstore},
            create=True,
            dtype=value.dtype,
            shape=value.shape,
            chunk_layout=layout,
        ).result().write(value).result()


def _leaf(name, kind="np.ndarray", **facts):
    return LeafEntry((Key("key", name),), name, LeafForm(kind=kind, **facts))


def _source(directory, leaves, *, use_ocdbt=True, use_zarr3=True, fills_missing=False):
    return TensorStoreSource(
        directory,
        leaves,
        use_ocdbt=use_ocdbt,
        use_zarr3=use_zarr3,
        fills_missing=fills_missing,
    )


def _facts(*args, **kwargs):
    async def facts():
        return await _source(*args, **kwargs).array_facts()

    return asyncio.run(facts())


def _read(directory, boxes, **kwargs):
    """Reads boxes by name of the leaf."""

    async def read():
        source = _source(directory, [_leaf(name) for name, _ in boxes], **kwargs)
        requests = []
        for position, leaf in enumerate(await source.array_facts()):
            box = boxes[position][1] or whole(leaf.form.shape)
            out = np.empty(
                box.shape,
                np.dtype(getattr(ml_dtypes, leaf.form.dtype, leaf.form.dtype)),
            )
            requests.append(ReadRequest(leaf=position, box=box, out=out))
        await source.read(requests, UNLIMITED)
        return [request.out for request in requests]

    return asyncio.run(read())


@pytest.mark.parametrize(("use_ocdbt", "use_zarr3"), ARRANGEMENTS)
def test_every_arrangement_is_read(tmp_path, use_ocdbt, use_zarr3):
    """In a database or as files, zarr2 or zarr3: the values come back."""
    how = {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3}
    _write(tmp_path, VALUES, **how)

    read = _read(tmp_path, [(name, None) for name in VALUES], **how)

    for found, value in zip(read, VALUES.values(), strict=True):
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_box_is_read(tmp_path, data):
    """A part of an array is that part of its values, wherever the chunks end."""
    if not (tmp_path / "manifest.ocdbt").exists():
        _write(tmp_path, VALUES, use_ocdbt=True, use_zarr3=True)
    value = VALUES["matrix"]
    ranges = [
        sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        for n in value.shape
    ]
    box = Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))

    (part,) = _read(tmp_path, [("matrix", box)])

    np.testing.assert_array_equal(part, value[box.within(whole(value.shape))])


@pytest.mark.parametrize(("use_ocdbt", "use_zarr3"), ARRANGEMENTS)
def test_facts_are_those_of_the_arrays(tmp_path, use_ocdbt, use_zarr3):
    """Dtype, shape and chunk shape come from the arrays; strings have none."""
    how = {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3}
    _write(tmp_path, VALUES, **how)
    string = _leaf("note", "string", text="text")

    found = _facts(tmp_path, [string, _leaf("half"), _leaf("number")], **how)

    assert found[0] == string
    assert [leaf.form.dtype for leaf in found[1:]] == ["bfloat16", "int64"]
    assert [leaf.form.shape for leaf in found[1:]] == [(1, 6), ()]
    assert [leaf.form.chunk_shape for leaf in found[1:]] == [(1, 3), ()]


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.float8_e4m3fn])
def test_small_dtypes_are_read(tmp_path, dtype):
    """Dtypes of a byte or less are read as what they are."""
    value = np.arange(-2, 3).astype(dtype)
    _write(tmp_path, {"w": value}, use_ocdbt=True, use_zarr3=True)

    (read,) = _read(tmp_path, [("w", None)])

    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read.astype(float), value.astype(float))


@pytest.mark.parametrize("name", ["/etc/passwd", "../w", "a/../../w", "a/./b", ".."])
def test_names_do_not_lead_out(tmp_path, name):
    """A leaf whose files would lie elsewhere is refused before anything is opened."""
    _write(tmp_path, {"w": np.arange(3)}, use_ocdbt=False, use_zarr3=True)
    (tmp_path / "item").mkdir()

    with pytest.raises(CorruptCheckpointError, match="outside"):
        _facts(tmp_path / "item", [_leaf(name)], use_ocdbt=False)


@pytest.mark.parametrize(("use_ocdbt", "use_zarr3"), ARRANGEMENTS)
def test_missing_array_is_named(tmp_path, use_ocdbt, use_zarr3):
    """The error names the leaf and the item."""
    how = {"use_ocdbt": use_ocdbt, "use_zarr3": use_zarr3}
    _write(tmp_path, {"w": np.arange(3)}, **how)

    with pytest.raises(CorruptCheckpointError, match=r"leaf 'gone' of .* is missing"):
        _facts(tmp_path, [_leaf("w"), _leaf("gone")], **how)


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_missing_chunk_is_an_error(tmp_path, use_zarr3):
    """No zeros are made up for a chunk that was written and is gone."""
    how = {"use_ocdbt": False, "use_zarr3": use_zarr3}
    _write(tmp_path, {"w": np.arange(1, 7)}, **how)
    (tmp_path / ("w/c/1" if use_zarr3 else "w/1")).unlink()

    with pytest.raises(CorruptCheckpointError, match="leaf 'w'"):
        _read(tmp_path, [("w", None)], **how)


def test_missing_chunk_is_zeros_where_none_were_written(tmp_path):
    """Where writers left chunks of zeros out, the others still must be whole."""
    how = {"use_ocdbt": False, "use_zarr3": True}
    _write(tmp_path, {"w": np.array([1, 2, 3, 0, 0, 0])}, **how)
    assert not (tmp_path / "w/c/1").exists()

    (read,) = _read(tmp_path, [("w", None)], **how, fills_missing=True)

    assert read.tolist() == [1, 2, 3, 0, 0, 0]


def test_damaged_database_is_an_error(tmp_path):
    """A flipped bit in the table of contents is found."""
    _write(tmp_path, {"w": np.arange(3)}, use_ocdbt=True, use_zarr3=True)
    manifest = bytearray((tmp_path / "manifest.ocdbt").read_bytes())
    manifest[len(manifest) // 2] ^= 16
    (tmp_path / "manifest.ocdbt").write_bytes(manifest)

    with pytest.raises(CorruptCheckpointError, match="manifest"):
        _facts(tmp_path, [_leaf("w")])


def test_array_must_fit_its_leaf(tmp_path):
    """A scalar has no axes, and the data of PRNG keys is uint32."""
    _write(tmp_path, {"w": np.arange(3)}, use_ocdbt=True, use_zarr3=True)

    with pytest.raises(CorruptCheckpointError, match="scalar is stored with shape"):
        _facts(tmp_path, [_leaf("w", "scalar")])
    with pytest.raises(CorruptCheckpointError, match="PRNG keys is stored as int64"):
        _facts(tmp_path, [_leaf("w", "jax.Array", prng_impl="rbg")])


def test_facts_open_no_array(tmp_path):
    """What an array is stands in its document; a bad codec shows when it is read."""
    _write(tmp_path, VALUES, use_ocdbt=False, use_zarr3=True)
    for document in tmp_path.rglob("zarr.json"):
        document.write_text(document.read_text().replace('"bytes"', '"sevenzip"'))

    found = _facts(tmp_path, [_leaf(name) for name in VALUES], use_ocdbt=False)

    assert [leaf.form.shape for leaf in found] == [v.shape for v in VALUES.values()]


def test_array_that_changes_is_noticed(tmp_path):
    """An array that is another one when it is opened is not read as the first."""
    how = {"use_ocdbt": False, "use_zarr3": True}
    _write(tmp_path, {"w": np.arange(3)}, **how)

    async def read():
        source = _source(tmp_path, [_leaf("w")], use_ocdbt=False)
        await source.array_facts()
        shutil.rmtree(tmp_path / "w")
        _write(tmp_path, {"w": np.arange(4)}, **how)
        out = np.empty(3, np.int64)
        await source.read([ReadRequest(leaf=0, box=whole((3,)), out=out)], UNLIMITED)

    with pytest.raises(CorruptCheckpointError, match=r"int64\[4\] now"):
        asyncio.run(read())


def test_codec_that_is_unknown_is_no_damage(tmp_path):
    """What TensorStore cannot decode is refused, with its reason."""
    _write(tmp_path, {"w": np.arange(3)}, use_ocdbt=False, use_zarr3=True)
    document = tmp_path / "w/zarr.json"
    document.write_text(document.read_text().replace('"bytes"', '"sevenzip"'))

    with pytest.raises((CorruptCheckpointError, InvalidLayoutError), match="sevenzip"):
        _read(tmp_path, [("w", None)], use_ocdbt=False)


def test_more_arrays_than_are_opened_at_once(tmp_path):
    """A thousand leaves take turns."""
    values = {f"w{i}": np.array([i]) for i in range(1, 1001)}
    write_database(tmp_path, values)

    read = _read(tmp_path, [(name, None) for name in values])

    assert [int(value[0]) for value in read] == list(range(1, 1001))


def test_cancelled_read_ends_before_it_returns(tmp_path):
    """After a cancellation nobody writes into the caller's memory any more."""
    value = np.arange(1, 2_000_001)
    _write(tmp_path, {"w": value}, use_ocdbt=True, use_zarr3=True, chunk=1000)
    out = np.zeros_like(value)

    async def cancel():
        source = _source(tmp_path, [_leaf("w")])
        await source.array_facts()
        first = ReadRequest(leaf=0, box=Box((0,), (1,)), out=np.empty(1, value.dtype))
        await source.read([first], UNLIMITED)  # opens the array
        request = ReadRequest(leaf=0, box=whole(value.shape), out=out)
        reading = asyncio.create_task(source.read([request], UNLIMITED))
        await asyncio.sleep(0)  # started
        await asyncio.sleep(0)  # handed to TensorStore
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return out.copy()

    seen = asyncio.run(cancel())

    np.testing.assert_array_equal(seen, value)
