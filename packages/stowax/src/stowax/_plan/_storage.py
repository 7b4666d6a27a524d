"""How each leaf is stored: what the options ask, as far as it can be done.

Arrays and numbers can be stored in another dtype and in smaller chunks than usual;
chunks of any kind can be compressed.
Strings cannot, and typed PRNG keys keep their dtype: a key of another dtype is none.
Whatever cannot be done is found here, for all leaves at once, before anything is
written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stowax._codecs._compression import CODECS
from stowax._codecs._zarr import dtype_name
from stowax._context import storage_settings
from stowax._keypath import FlatTree, at_leaf, jax_key_path
from stowax._leaves._base import Description
from stowax._plan._cast import loss
from stowax._plan._write import AUTO
from stowax._settings import SaveSettings, StorageSettings
from stowax.errors import UnsupportedLeafError, UnsupportedOptionError
from stowax.options import ArrayOptions

_NUMERIC = ("jax.Array", "np.ndarray", "scalar")
"""Kinds of leaves whose values mean the same in another dtype."""

_NONE = "none"

_CREATOR = "Context.array.saving.scoped_storage_options_creator"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafStorage:
    """How the array of one leaf is stored."""

    dtype: np.dtype
    """In which it is converted on its way."""
    chunk_limit_bytes: int | None = None
    """A chunk, uncompressed, is not larger; None: nothing is asked."""
    shard_axes: tuple[int, ...] = ()
    """Axes along which a chunk holds one element."""
    codec: str | None = None
    """How chunks are to be compressed, perhaps `AUTO`; None: not at all."""
    loss: str | None = None
    """What the conversion loses beyond precision."""


def plan_storage(
    flat: FlatTree,
    described: Sequence[Description],
    saving: SaveSettings,
    codec: str | None = None,
) -> list[LeafStorage | None]:
    """Decides how every leaf is stored; None for one without an array.

    Args:
        flat: The tree.
        described: What there is to store of its leaves.
        saving: What the caller asks for.
        codec: How chunks are compressed of which the caller says nothing.

    Raises:
        UnsupportedOptionError: Names every leaf that cannot be stored as asked.
        Exception: Whatever `scoped_storage_options_creator` raises.
    """
    file_limit_bytes = saving.data_file_size_bytes
    if file_limit_bytes < 0:
        raise UnsupportedOptionError(
            "Context.array.saving.ocdbt_target_data_file_size is "
            f"{file_limit_bytes}; give a size in bytes, or 0 for no limit"
        )
    found: list[LeafStorage | None] = []
    problems: list[str] = []
    known: dict[int, LeafStorage] = {}
    for position, (name, description) in enumerate(
        zip(flat.names, described, strict=True)
    ):
        asked = saving.storage
        if saving.storage_of_leaf is not None:
            with at_leaf(name):
                asked = _asked_of(flat, position, saving)
        storage = None
        if saving.storage_of_leaf is None:
            storage = known.get(id(description))
        if storage is None and description.dtype is not None:
            try:
                storage = _resolve(description, asked, file_limit_bytes, codec)
                known[id(description)] = storage
            except (TypeError, ValueError) as error:
                problems.append(f"  {name or '<root>'}: {error}")
        found.append(storage)
    _check_none(problems, len(found))
    return found


def check_chunks(
    names: Sequence[str],
    storages: Sequence[LeafStorage | None],
    chunk_shapes: Mapping[int, tuple[int, ...]],
) -> None:
    """Refuses chunks that are too large for the codec that is asked for.

    Raises:
        UnsupportedOptionError: Names every leaf that has such chunks.
    """
    problems: list[str] = []
    for position, (name, storage) in enumerate(zip(names, storages, strict=True)):
        codec = None if storage is None else storage.codec
        if storage is None or codec is None or codec == AUTO:
            continue
        size_bytes = math.prod(chunk_shapes[position]) * storage.dtype.itemsize
        most_bytes = CODECS[codec].limit_bytes
        if size_bytes > most_bytes:
            problems.append(
                f"  {name or '<root>'}: {codec} takes chunks of at most "
                f"{most_bytes} bytes, and its chunks have {size_bytes}; a smaller "
                "chunk_byte_size splits them"
            )
    _check_none(problems, len(names))


def _check_none(problems: Sequence[str], leaf_count: int) -> None:
    if problems:
        raise UnsupportedOptionError(
            f"{len(problems)} of {leaf_count} leaves cannot be stored as "
            "Context.array.saving asks:\n"
            + "\n".join(problems)
            + "\nChange the options, or give other ones to these leaves with "
            f"{_CREATOR}. Nothing was written."
        )


def choose_codec(use_compression: bool | None, *, is_remote: bool) -> str | None:
    """The codec of chunks of which nothing else is said; None stores them as they are.

    Left to us, what goes over a network is compressed: there bytes cost more time than
    compressing them. On a local disk it is the other way round.

    Example:
        >>> choose_codec(None, is_remote=True), choose_codec(None, is_remote=False)
        ('zstd', None)
    """
    is_wanted = is_remote if use_compression is None else use_compression
    return "zstd" if is_wanted else None


def narrowed(
    names: Sequence[str], storages: Sequence[LeafStorage | None]
) -> tuple[str, ...]:
    """A line for every leaf that loses range or kind in the dtype it is stored in."""
    return tuple(
        f"{name or '<root>'}: {storage.loss}"
        for name, storage in zip(names, storages, strict=True)
        if storage is not None and storage.loss is not None
    )


def _asked_of(flat: FlatTree, position: int, saving: SaveSettings) -> StorageSettings:
    """What is asked of one leaf: by its own options, then by those of all."""
    assert saving.storage_of_leaf is not None
    key_path = jax_key_path(flat.paths[position])
    own: Any = saving.storage_of_leaf(key_path, flat.leaves[position])
    if own is None:
        return saving.storage
    if not isinstance(own, ArrayOptions.Saving.StorageOptions):
        raise UnsupportedOptionError(
            f"{_CREATOR} answered with {own!r}; it must be an "
            "ArrayOptions.Saving.StorageOptions, or None"
        )
    special, general = storage_settings(own), saving.storage
    return StorageSettings(
        dtype=general.dtype if special.dtype is None else special.dtype,
        chunk_byte_size=(
            general.chunk_byte_size
            if special.chunk_byte_size is None
            else special.chunk_byte_size
        ),
        shard_axes=(
            general.shard_axes if special.shard_axes is None else special.shard_axes
        ),
        compression=(
            general.compression if special.compression is None else special.compression
        ),
    )


def _resolve(
    description: Description,
    asked: StorageSettings,
    file_limit_bytes: int,
    codec: str | None,
) -> LeafStorage:
    """Raises ValueError or TypeError, which say what cannot be done."""
    assert description.dtype is not None
    dtype = description.dtype
    is_numeric = description.kind in _NUMERIC and description.prng_impl is None
    if asked.dtype is not None and is_numeric:
        dtype = _storable(asked.dtype)
    limit_bytes = asked.chunk_byte_size
    if file_limit_bytes:
        limit_bytes = min(limit_bytes or file_limit_bytes, file_limit_bytes)
    if limit_bytes is not None and limit_bytes < dtype.itemsize:
        raise ValueError(
            f"a chunk of at most {limit_bytes} bytes cannot hold one {dtype}"
        )
    axes = tuple(map(_axis, () if asked.shard_axes is None else asked.shard_axes))
    rank = len(description.shape)
    if any(not 0 <= axis < rank for axis in axes):
        raise ValueError(
            f"shard_axes {axes} of an array of {rank} axes; they count from 0"
        )
    if asked.compression is not None:
        codec = _codec(asked.compression)
    return LeafStorage(
        dtype=dtype,
        chunk_limit_bytes=limit_bytes,
        shard_axes=axes,
        codec=codec,
        loss=loss(description.dtype, dtype),
    )


def _axis(axis: Any) -> int:
    if isinstance(axis, bool):
        raise TypeError(f"shard_axes has {axis}; it takes numbers of axes")
    return operator.index(axis)


def _codec(compression: Any) -> str | None:
    known = (_NONE, *CODECS, AUTO)
    if not isinstance(compression, str) or compression not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"compression is {compression!r}; it takes {names}")
    return None if compression == _NONE else compression


def _storable(dtype: Any) -> np.dtype:
    try:
        wanted = np.dtype(dtype)
        dtype_name(wanted)
    except (TypeError, UnsupportedLeafError) as error:
        raise ValueError(f"dtype {dtype!r} cannot be stored: {error}") from error
    return wanted.newbyteorder("<")
