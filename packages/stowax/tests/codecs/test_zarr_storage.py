"""Which arrays of others are understood, and how their chunks are decoded.

TensorStore writes them, and is asked what is in them.
"""

import itertools
import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_trees import NUMPY_DTYPES, bits, differences

from stowax._box import chunks_in, whole
from stowax._codecs._checksum import crc32c
from stowax._codecs._zarr import DOCUMENT_NAMES
from stowax._codecs._zarr_read import decode_array_document
from stowax._codecs._zarr_storage import ChunkCodec, Shard, ShardCodec, array_storage

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3}}
CRC = {"name": "crc32c"}
ZARR3 = {
    "shape": [6, 4],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 4]}},
    "chunk_key_encoding": {"name": "default"},
    "codecs": [LITTLE],
    "fill_value": 0.0,
    "node_type": "array",
    "zarr_format": 3,
}
ZARR2 = {
    "shape": [6],
    "chunks": [3],
    "dtype": "<f4",
    "compressor": None,
    "fill_value": None,
    "filters": None,
    "order": "C",
    "zarr_format": 2,
}


def written(version, array, metadata):
    """The keys and values of an array that TensorStore writes, in memory."""
    context = ts.Context()
    kvstore = {"driver": "memory", "path": "w/"}
    spec = {
        "driver": {2: "zarr", 3: "zarr3"}[version],
        "kvstore": kvstore,
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
        "create": True,
    }
    ts.open(spec, context=context).result().write(array).result()
    store = ts.KvStore.open(kvstore, context=context).result()
    return {key.decode(): bytes(store[key]) for key in store.list().result()}


def decoded(version, values):
    """What is in such an array by its storage."""
    document = values[DOCUMENT_NAMES[version]]
    facts = decode_array_document(document, version)
    storage = array_storage(document, version, fills_missing=False)
    dtype = np.dtype(getattr(ml_dtypes, facts.dtype, facts.dtype))
    out = np.empty(facts.shape, dtype)
    for index, box in chunks_in(whole(facts.shape), facts.shape, facts.chunk_shape):
        outer, position = storage.split(index)
        value = memoryview(values[storage.key(outer)])
        if storage.shard is not None:
            start = storage.shard.index_offset(len(value))
            places = storage.shard.open_index(
                value[start:][: storage.shard.index_bytes]
            )
            begin, length = storage.shard.place(places, position, len(value))
            value = value[begin : begin + length]
        chunk = np.empty(math.prod(facts.chunk_shape) * dtype.itemsize, np.uint8)
        storage.codec.check_length(len(value), chunk.nbytes)
        storage.codec.decode_into(value, chunk.data)
        chunk = chunk.view(dtype).reshape(facts.chunk_shape)
        out[box.within(whole(facts.shape))] = chunk[tuple(slice(n) for n in box.shape)]
    return out


@st.composite
def grids(draw):
    """A shape, that of a shard, and that of a chunk in it."""
    chunk = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    shard = tuple(n * draw(st.integers(1, 3)) for n in chunk)
    shape = tuple(draw(st.integers(1, 2 * n)) for n in shard)
    return shape, shard, chunk


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(NUMPY_DTYPES),
    grid=grids(),
    codecs=st.sampled_from([[], [ZSTD], [CRC], [ZSTD, CRC]]),
    location=st.sampled_from([None, "end", "start"]),
    is_sharded=st.booleans(),
)
def test_arrays_of_zarr_3(name, grid, codecs, location, is_sharded):
    """Any dtype, in chunks or shards of any shape, with the codecs that are known."""
    shape, shard_shape, chunk_shape = grid
    array = bits(name, shape)
    first = LITTLE if array.dtype.itemsize > 1 else {"name": "bytes"}
    codecs = [first, *codecs]
    if is_sharded:
        sharding = {
            "chunk_shape": chunk_shape,
            "codecs": codecs,
            "index_codecs": [LITTLE, CRC],
        }
        if location is not None:
            sharding["index_location"] = location
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    values = written(
        3,
        array,
        {
            "shape": shape,
            "data_type": name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": shard_shape},
            },
            "codecs": codecs,
        },
    )

    assert differences(array, decoded(3, values)) == []


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NUMPY_DTYPES),
    grid=grids(),
    compressor=st.sampled_from([None, {"id": "zstd", "level": 1}]),
)
def test_arrays_of_zarr_2(name, grid, compressor):
    """Any dtype, in chunks of any shape, compressed with zstd or not."""
    shape, _, chunk_shape = grid
    array = bits(name, shape)
    names = {"bool": "|b1", "int8": "|i1", "uint8": "|u1"}
    kind = array.dtype.newbyteorder("<").str
    plain = array.dtype.isbuiltin == 1
    values = written(
        2,
        array,
        {
            "shape": shape,
            "chunks": chunk_shape,
            "dtype": names.get(name, kind) if plain else name,
            "compressor": compressor,
        },
    )

    assert differences(array, decoded(2, values)) == []


def changed(base, path, value):
    """A document with another value at a path; None: with nothing there."""
    document = json.loads(json.dumps(base))
    *above, last = path
    inside = document
    for key in above:
        inside = inside[key]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(document).encode()


def shards_of(**changes):
    """The configuration of a shard of two chunks."""
    sharding = {
        "chunk_shape": [3, 2],
        "codecs": [LITTLE],
        "index_codecs": [LITTLE, CRC],
    }
    return [{"name": "sharding_indexed", "configuration": sharding | changes}]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["unheard_of"], True),
        (["storage_transformers"], [{"name": "x"}]),
        (["node_type"], "group"),
        (["data_type"], "r16"),
        (["chunk_grid", "name"], "rectilinear"),
        (["chunk_grid", "configuration", "order"], "F"),
        (["chunk_grid", "configuration", "chunk_shape"], [0, 4]),
        (["chunk_key_encoding", "name"], "v2"),
        (["chunk_key_encoding", "configuration"], {"separator": "."}),
        (["codecs"], []),
        (["codecs"], [ZSTD]),
        (["codecs"], [{"name": "bytes"}]),
        (["codecs"], [{"name": "bytes", "configuration": {"endian": "big"}}]),
        (["codecs"], [{"name": "transpose", "configuration": {}}, LITTLE]),
        (["codecs"], [LITTLE, {"name": "gzip", "configuration": {"level": 1}}]),
        (["codecs"], [LITTLE, {"name": "blosc"}]),
        (["codecs"], [LITTLE, CRC, ZSTD]),
        (["codecs"], [LITTLE, CRC, CRC]),
        (["codecs"], [LITTLE, {**CRC, "x": 1}]),
        (["codecs"], [LITTLE, {**ZSTD, "configuration": {"dictionary": "x"}}]),
        (["codecs"], [*shards_of(), CRC]),
        (["codecs"], shards_of(chunk_shape=[2, 2])),
        (["codecs"], shards_of(chunk_shape=[3])),
        (["codecs"], shards_of(index_codecs=[LITTLE])),
        (["codecs"], shards_of(index_location="middle")),
        (["codecs"], shards_of(unheard_of=1)),
        (["codecs"], shards_of(codecs=shards_of())),
    ],
)
def test_forms_of_zarr_3_that_are_left_to_others(path, value):
    """A document with anything that is not known here is not understood in part."""
    assert array_storage(json.dumps(ZARR3).encode(), 3, fills_missing=True) is not None
    sharded = ZARR3 | {"codecs": shards_of()}
    assert (
        array_storage(json.dumps(sharded).encode(), 3, fills_missing=True) is not None
    )

    assert array_storage(changed(ZARR3, path, value), 3, fills_missing=False) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["unheard_of"], True),
        (["order"], "F"),
        (["dtype"], ">f4"),
        (["dtype"], [["a", "<f4"]]),
        (["filters"], [{"id": "delta"}]),
        (["compressor"], {"id": "blosc", "cname": "lz4"}),
        (["compressor"], {"id": "zstd", "checksum": True}),
        (["dimension_separator"], "/"),
        (["chunks"], [0]),
        (["filters"], None),
    ],
)
def test_forms_of_zarr_2_that_are_left_to_others(path, value):
    """The same of documents of the older version."""
    assert array_storage(json.dumps(ZARR2).encode(), 2, fills_missing=True) is not None

    assert array_storage(changed(ZARR2, path, value), 2, fills_missing=False) is None


@pytest.mark.parametrize("fill_value", [1, "NaN", -0.0, [0.0, 1.0], "0x00000000", True])
def test_other_fill_values_are_left_to_others(fill_value):
    """Where missing chunks count, only those of zeros are known here."""
    document = json.dumps(ZARR3 | {"fill_value": fill_value}).encode()

    assert array_storage(document, 3, fills_missing=True) is None
    assert array_storage(document, 3, fills_missing=False) is not None


@given(
    st.recursive(
        st.none() | st.integers(-1, 9) | st.sampled_from(["zstd", "bytes", "c"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*ZARR3, *ZARR2, "name", "configuration", "id"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from([*ZARR3, *ZARR2]),
)
def test_no_document_makes_trouble(content, key):
    """Whatever a part of a document is, it is understood or left to others."""
    for version, base in ((2, ZARR2), (3, ZARR3)):
        document = json.dumps(base | {key: content}).encode()

        array_storage(document, version, fills_missing=True)


# --- damage


CODECS = [
    ChunkCodec(is_compressed=z, has_checksum=c)
    for z, c in itertools.product([False, True], repeat=2)
]


def encoded(codec, payload):
    """What a codec makes of a payload."""
    if codec.is_compressed:
        payload = zstandard.ZstdCompressor().compress(payload)
    if codec.has_checksum:
        payload += crc32c(payload).to_bytes(4, "little")
    return payload


@pytest.mark.parametrize("codec", CODECS)
def test_cut_and_lengthened_payloads_are_refused(codec):
    """A payload has one length, and makes as many bytes as its chunk has."""
    payload = bytes(range(64))
    stored = encoded(codec, payload)
    out = bytearray(64)
    codec.decode_into(memoryview(stored), memoryview(out))
    assert out == payload

    for wrong in (b"", stored[:-1], stored[:5], stored + b"\0"):
        with pytest.raises(ValueError):
            codec.decode_into(memoryview(wrong), memoryview(out))
    for size in (63, 65):
        with pytest.raises(ValueError):
            codec.decode_into(memoryview(stored), memoryview(bytearray(size)))


@pytest.mark.parametrize("codec", [c for c in CODECS if c.has_checksum])
def test_checksums_are_compared(codec):
    """Every flipped bit of a payload with a checksum is found."""
    stored = encoded(codec, bytes(range(64)))

    for place in range(8 * len(stored)):
        wrong = bytearray(stored)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):
            codec.decode_into(memoryview(wrong), memoryview(bytearray(64)))


def test_checksums_of_zstd_are_compared():
    """A frame may have a checksum of its own."""
    payload = bytes(range(200))
    stored = zstandard.ZstdCompressor(write_checksum=True).compress(payload)

    for place in range(8 * len(stored)):
        wrong, out = bytearray(stored), bytearray(200)
        wrong[place // 8] ^= 1 << place % 8
        try:
            ChunkCodec(is_compressed=True).decode_into(
                memoryview(wrong), memoryview(out)
            )
        except ValueError:
            continue
        assert out == payload  # A bit of the header that nobody needs.


def test_frames_without_a_size_and_in_pieces():
    """Not every frame of zstd says what is in it, and several make one payload."""
    payload = bytes(range(200))
    silent = zstandard.ZstdCompressor(write_content_size=False)
    skipped = bytes.fromhex("512a4d18 02000000 0102")
    stored = silent.compress(payload[:50]) + skipped + silent.compress(payload[50:])
    out = bytearray(200)

    codec = ChunkCodec(is_compressed=True)
    codec.decode_into(memoryview(stored), memoryview(out))

    assert out == payload
    for wrong in (stored + b"\x28\xb5", stored + skipped[:-1], stored + stored[:9]):
        with pytest.raises(ValueError):
            codec.decode_into(memoryview(wrong), memoryview(out))


def test_bools_are_zero_or_one():
    """Other bytes are refused, as TensorStore does: NumPy makes nonsense of them."""
    codec = ChunkCodec(is_bool=True)
    out = bytearray(2)

    codec.decode_into(memoryview(b"\1\0"), memoryview(out))
    assert out == b"\1\0"
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        codec.decode_into(memoryview(b"\1\2"), memoryview(out))


SHARD = Shard(chunk_counts=(1,))


def shard_of(payload, offset=0, length=None):
    """A shard of one chunk."""
    length = len(payload) if length is None else length
    index = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
    return payload + index + crc32c(index).to_bytes(4, "little")


def test_shards_are_held_against_their_index():
    """A place outside of the shard, or another checksum, is refused."""
    codec = ShardCodec(shard=SHARD, chunk=ChunkCodec(), fills_missing=False)
    out = bytearray(8)
    codec.decode_into(memoryview(shard_of(b"abcdefgh")), memoryview(out))
    assert out == b"abcdefgh"

    flipped = bytearray(shard_of(b"abcdefgh"))
    flipped[-6] ^= 1
    for wrong, message in (
        (flipped, "does not match its checksum"),
        (shard_of(b"abcdefgh", offset=40), "points out"),
        (shard_of(b"abcdefgh", length=2**64 - 9), "points out"),
        (shard_of(b"abcdefgh", length=7), "7 bytes for 8"),
        (shard_of(b"abcdefgh", 2**64 - 1, 2**64 - 1), "not stored"),
        (b"abcdefgh" + bytes(11), "19 bytes for a shard of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.decode_into(memoryview(wrong), memoryview(out))


def test_chunk_that_a_shard_lacks():
    """It is zeros where missing chunks are."""
    codec = ShardCodec(shard=SHARD, chunk=ChunkCodec(), fills_missing=True)
    out = bytearray(b"abcdefgh")

    codec.decode_into(
        memoryview(shard_of(b"abcdefgh", 2**64 - 1, 2**64 - 1)), memoryview(out)
    )

    assert out == bytes(8)


@pytest.mark.parametrize("codec", CODECS)
def test_lengths_that_no_chunk_has(codec):
    """What could not be a chunk of its size is refused before memory is taken."""
    shard = ShardCodec(shard=SHARD, chunk=codec, fills_missing=False)

    for wrong in (0, 1 << 40):
        for each in (codec, shard):
            with pytest.raises(ValueError, match="bytes for"):
                each.check_length(wrong, 1 << 20)


def test_bombs_take_no_memory():
    """A frame that would grow without end is stopped at the size of its chunk."""
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    out = bytearray(1 << 16)

    tracemalloc.start()
    with pytest.raises(ValueError, match="goes on"):
        ChunkCodec(is_compressed=True).decode_into(memoryview(bomb), memoryview(out))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 1 << 20
