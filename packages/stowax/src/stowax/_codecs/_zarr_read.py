"""What the document of a stored array says: `zarr.json` of version 3, `.zarray` of 2.

For arrays that others wrote.  Only what describes the array is looked at; codecs and
everything else that it takes to decode a chunk is the business of whoever reads it.
Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stowax._codecs._zarr import (
    DOCUMENT_NAMES,
    ZarrVersion,
    check_extents,
    dtype_from_name,
    dtype_name,
)
from stowax._manifest import LeafEntry, LeafForm
from stowax.errors import (
    CorruptCheckpointError,
    InvalidLayoutError,
    UnsupportedLeafError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFacts:
    """What an array is, before any chunk of it is read."""

    dtype: str
    """Name as in zarr 3, `float32`."""
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    """Extent of the smallest unit that is read; at least 1 in every dimension."""


def decode_array_document(data: bytes, version: ZarrVersion) -> ArrayFacts:
    """Reads what describes an array.

    Raises:
        CorruptCheckpointError: It is no such document.
        InvalidLayoutError: Arrays of its dtype cannot be loaded.

    Example:
        >>> document = (
        ...     b'{"shape": [4], "chunks": [2], "dtype": "<i2", "zarr_format": 2}'
        ... )
        >>> decode_array_document(document, 2)
        ArrayFacts(dtype='int16', shape=(4,), chunk_shape=(2,))
    """
    try:
        document = json.loads(data)
        if document["zarr_format"] != version:
            raise ValueError(f"it is of version {document['zarr_format']!r}")
        recorded = document["data_type" if version == 3 else "dtype"]
        shape = _extents(document["shape"])
        chunk_shape = _extents(_chunks(document, version))
        for extents in (shape, chunk_shape):
            # Of the dtype, which is looked at later, an element takes a byte at least.
            check_extents(extents, 1)
        if len(chunk_shape) != len(shape):
            raise ValueError(f"chunks {list(chunk_shape)} of an array {list(shape)}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptCheckpointError(
            f"{DOCUMENT_NAMES[version]} describes no array: {reason}"
        ) from error
    return ArrayFacts(
        dtype=_dtype_name(recorded, version),
        shape=shape,
        chunk_shape=tuple(max(1, extent) for extent in chunk_shape),
    )


class Describer:
    """Says what leaves are, by the documents of their arrays.

    Leaves that are alike share one form before, and do so afterwards.

    Args:
        version: Of zarr.
    """

    def __init__(self, version: ZarrVersion) -> None:
        self._version: ZarrVersion = version
        self._known: dict[tuple[int, bytes], tuple[LeafForm, LeafForm]] = {}
        """What each form became with a document; both, so that its id stays its own."""

    def describe(self, leaf: LeafEntry, data: bytes | None, place: str) -> LeafEntry:
        """A leaf with what the document of its array says.

        Args:
            leaf: As the documents of the tree have it.
            data: The document; None if there is none.
            place: What messages call the leaf.

        Raises:
            CorruptCheckpointError: It is missing, no such document, or not of such a
                leaf.
            InvalidLayoutError: Arrays of its dtype cannot be loaded.
        """
        if data is None:
            raise CorruptCheckpointError(f"{place}: its array is missing")
        key = id(leaf.form), data
        if key not in self._known:
            self._known[key] = leaf.form, self._completed(leaf.form, data, place)
        return leaf._replace(form=self._known[key][1])

    def _completed(self, form: LeafForm, data: bytes, place: str) -> LeafForm:
        try:
            facts = decode_array_document(data, self._version)
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(f"{place}: {error}") from error
        except InvalidLayoutError as error:
            raise InvalidLayoutError(f"{place}: {error}") from error
        if form.kind == "scalar" and facts.shape:
            raise CorruptCheckpointError(
                f"{place}: a scalar is stored with shape {facts.shape}."
            )
        if form.prng_impl is not None and (facts.dtype != "uint32" or not facts.shape):
            raise CorruptCheckpointError(
                f"{place}: the data of PRNG keys is stored as {facts.dtype}"
                f"{list(facts.shape)}, expected uint32[…, n]."
            )
        return replace(
            form, dtype=facts.dtype, shape=facts.shape, chunk_shape=facts.chunk_shape
        )


def _chunks(document: Mapping[str, Any], version: ZarrVersion) -> Any:
    if version == 2:
        return document["chunks"]
    chunks = document["chunk_grid"]["configuration"]["chunk_shape"]
    # A shard is a file of chunks; each can be read alone.
    codecs = document.get("codecs", [])
    while sharding := _sharding_codec(codecs):
        chunks, codecs = sharding["chunk_shape"], sharding.get("codecs", [])
    return chunks


def _sharding_codec(codecs: Any) -> Mapping[str, Any] | None:
    for codec in codecs:
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed":
            return codec["configuration"]
    return None


def _extents(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"{value!r:.80} are no extents")
    return tuple(value)


def _dtype_name(recorded: Any, version: ZarrVersion) -> str:
    try:
        if version == 2 and recorded[:1] in ("<", ">", "|"):
            return dtype_name(np.dtype(recorded))
        dtype_from_name(recorded)
    except (UnsupportedLeafError, TypeError):
        raise InvalidLayoutError(
            f"arrays of {recorded!r:.80} cannot be loaded"
        ) from None
    return recorded
