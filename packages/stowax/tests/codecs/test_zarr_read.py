"""The documents of arrays that others wrote; TensorStore writes them, and is asked."""

import json

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from stowax._codecs._zarr import DOCUMENT_NAMES
from stowax._codecs._zarr_read import decode_array_document
from stowax.errors import CorruptCheckpointError, InvalidLayoutError, StowaxError

DTYPES = [
    *("bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bfloat16", "float8_e4m3fn", "int4"),
]
ZARR3 = {
    "shape": [6, 4],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 4]}},
    "codecs": [{"name": "bytes"}],
    "zarr_format": 3,
}
ZARR2 = {"shape": [6], "chunks": [3], "dtype": "<f4", "zarr_format": 2}


def written(version, **metadata):
    """The document that TensorStore writes, and the array that it then opens."""
    driver = {2: "zarr", 3: "zarr3"}[version]
    store = ts.KvStore.open({"driver": "memory", "path": "w/"}).result()
    spec = {"driver": driver, "kvstore": store.spec().to_json(), **metadata}
    context = ts.Context()
    array = ts.open(spec, create=True, context=context).result()
    store = ts.KvStore.open(store.spec().to_json(), context=context).result()
    return bytes(store[DOCUMENT_NAMES[version]]), array


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("shape", "chunk"), [((6, 4), (3, 3)), ((), ()), ((0,), (1,))])
def test_facts_are_those_of_the_opened_array(version, name, shape, chunk):
    """Dtype, shape and chunks are what TensorStore finds when it opens the array."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    document, array = written(
        version,
        dtype=name,
        schema={
            "domain": {"shape": list(shape)},
            "chunk_layout": {"chunk": {"shape": list(chunk)}},
        },
    )

    facts = decode_array_document(document, version)

    assert facts.dtype == array.dtype.name
    assert np.dtype(getattr(ml_dtypes, facts.dtype, facts.dtype)) == dtype
    assert facts.shape == tuple(array.shape)
    # TensorStore says nothing of the chunk of an array without axes: it is the array.
    assert facts.chunk_shape == tuple(array.chunk_layout.read_chunk.shape or ())


def test_chunks_of_shards():
    """In a shard of several chunks, the chunk is what can be read alone."""
    inner = {"chunk_shape": [2, 2], "codecs": [{"name": "bytes"}]}
    document, array = written(
        3,
        metadata={
            "shape": [8, 8],
            "data_type": "int32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    )

    facts = decode_array_document(document, 3)

    assert facts.chunk_shape == tuple(array.chunk_layout.read_chunk.shape) == (2, 2)


@pytest.mark.parametrize("dtype", [">f4", "<f4"])
def test_byte_order_is_no_dtype(dtype):
    """Arrays of the other byte order hold the same numbers."""
    document = json.dumps({**ZARR2, "dtype": dtype}).encode()

    assert decode_array_document(document, 2).dtype == "float32"


@pytest.mark.parametrize("dtype", ["<M8[s]", "|S4", "|V3", "|O", [["a", "<f4"]], "x"])
def test_dtypes_that_cannot_be_loaded(dtype):
    """They are refused by their name, and not called damage."""
    document = json.dumps({**ZARR2, "dtype": dtype}).encode()

    with pytest.raises(InvalidLayoutError, match="cannot be loaded"):
        decode_array_document(document, 2)


@pytest.mark.parametrize(
    ("version", "change"),
    [
        (3, {"shape": [6]}),
        (3, {"shape": [-1, 4]}),
        (3, {"shape": [6.0, 4]}),
        (3, {"shape": [2**62, 4]}),
        (3, {"shape": [0, 2**63]}),
        (3, {"shape": 6}),
        (3, {"chunk_grid": {}}),
        (3, {"chunk_grid": None}),
        (3, {"codecs": 3}),
        (3, {"codecs": [{"name": "sharding_indexed"}]}),
        (3, {"zarr_format": 2}),
        (2, {"chunks": None}),
        (2, {"zarr_format": 3}),
    ],
)
def test_documents_that_make_no_sense(version, change):
    """They are damage, by the name of the document."""
    document = json.dumps({3: ZARR3, 2: ZARR2}[version] | change).encode()

    with pytest.raises(CorruptCheckpointError, match=DOCUMENT_NAMES[version]):
        decode_array_document(document, version)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["", "int8", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ZARR3, *ZARR2, "name"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)  # machines may be busy
@given(st.sampled_from([2, 3]), JSON | st.binary(max_size=20))
def test_no_document_makes_trouble(version, content):
    """Whatever the bytes are, they are facts or one of our errors."""
    if not isinstance(content, bytes):
        base = {3: ZARR3, 2: ZARR2}[version]
        merged = base | content if isinstance(content, dict) else content
        content = json.dumps(merged).encode()

    try:
        facts = decode_array_document(content, version)
    except StowaxError:
        return
    assert len(facts.shape) == len(facts.chunk_shape)
