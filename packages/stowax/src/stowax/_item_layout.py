"""What an item will look like on disk, and the values that go there.

The layout follows from the structure of a tree and the forms of its leaves, not from
their values. A training loop saves one structure again and again, so the layouts of the
last few saves are kept, and a later save only brings its values.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stowax._budget import Budget
from stowax._codecs._zarr import dtype_name
from stowax._formats._orbax_strings import check_string_names
from stowax._formats._stowax import PROCESS_PREFIX
from stowax._keypath import (
    FlatTree,
    Node,
    at_leaf,
    check_names,
    flatten,
    jax_key_path,
)
from stowax._leaves._base import Description
from stowax._leaves._jax_array import is_key
from stowax._leaves._refusal import check_all
from stowax._leaves._registry import EncodedLeaf, Leaves
from stowax._manifest import CustomType, LeafEntry, LeafForm
from stowax._plan._storage import LeafStorage, check_chunks, narrowed, plan_storage
from stowax._plan._write import (
    AUTO,
    AUTO_CODEC,
    AUTO_EACH,
    ArrayLayout,
    PartWrite,
    Sharing,
    WritePlan,
    plan_write,
)
from stowax._processes import Processes
from stowax._recent import Recent
from stowax._settings import SaveSettings
from stowax._staging import Staging
from stowax._transfer import to_host
from stowax._uncollected import uncollected
from stowax.errors import TreeError, UnsupportedLeafError

_AS_USUAL = SaveSettings()

_DOCUMENTED: dict[str | None, str | None] = {AUTO: None, AUTO_EACH: AUTO_CODEC}
"""What stands for chunks that a sample decides about; see `Choices.settled`."""

_BATCHES_PER_BUDGET = 4
"""While one is written, others are staged, and the last one waits for its sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemLayout:
    """All that is decided about an item before a value is looked at."""

    root: Node
    entries: tuple[LeafEntry, ...]
    plan: WritePlan
    narrowed: tuple[str, ...] = ()
    """Leaves that lose range or kind in the dtype that they are stored in."""
    tells_orbax_of_arrays: bool = True
    """Whether `array_metadatas` is written."""
    documents: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    """What follows from it and has been encoded, for the next save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedItem:
    """A tree of which all that is left is to stage and to write it."""

    layout: ItemLayout
    staging: Staging


@uncollected()
def stage_item(
    tree: Any,
    processes: Processes,
    *,
    borrow: bool,
    leaves: Leaves,
    saving: SaveSettings = _AS_USUAL,
    codec: str | None = None,
    budget: Budget,
    limit_bytes: int,
    known: Recent[ItemLayout],
) -> StagedItem:
    """Checks, names and plans what this process writes of a tree.

    Args:
        tree: Any tree; nothing is written if it cannot be saved as a whole.
        processes: Says what this process holds.
        borrow: Whether the caller leaves host arrays alone until all is written.
        leaves: The kinds of leaves that it may have.
        saving: How arrays are to be stored.
        codec: How chunks are compressed of which `saving` says nothing; None: not.
        budget: Counts the memory that staging takes.
        limit_bytes: What all saves together may take of it.
        known: Layouts of earlier saves; gets this one.

    Raises:
        TreeError: Names every leaf that stands in the way.
        UnsupportedOptionError: Names every leaf that cannot be stored as asked.
    """
    if tree is None:
        raise TreeError("None is no state; to save nothing, save an empty dict, {}")
    flat = flatten(tree, leaves.takes_value)
    encoded, outlines = _encode(flat, leaves, processes)
    first = _first(flat, saving)

    def lay_out(part_limit_bytes: int) -> ItemLayout:
        key = None
        if not leaves.are_taught and saving.storage_of_leaf is None:
            identity = processes.index, processes.count, part_limit_bytes, first
            # To NumPy, None is equal to float64.
            is_converted = saving.storage.dtype is not None
            kinds = [kind for kind, _, _ in encoded]
            structure = flat.names, flat.key_types, kinds, outlines, flat.root
            key = identity, is_converted, saving, codec, structure
            if (found := known.find(key)) is not None:
                return found
        layout = _lay_out(
            flat,
            encoded,
            outlines,
            processes,
            saving=saving,
            codec=codec,
            first=first,
            part_limit_bytes=part_limit_bytes,
        )
        if key is not None:
            known.add(key, layout)
        return layout

    layout = lay_out(0)
    sizes_bytes = _sizes_bytes(layout, encoded, borrow=borrow)
    if sum(sizes_bytes) > limit_bytes:
        layout = lay_out(_part_limit_bytes(limit_bytes))
        sizes_bytes = _sizes_bytes(layout, encoded, borrow=borrow)
    fetch = functools.partial(
        _fetch,
        layout.plan,
        flat.names,
        encoded,
        processes,
        borrow,
        saving.pins_transfers,
    )
    staging = Staging(layout.plan, fetch, sizes_bytes, budget, limit_bytes)
    return StagedItem(layout=layout, staging=staging)


def _encode(
    flat: FlatTree, leaves: Leaves, processes: Processes
) -> tuple[list[EncodedLeaf], list[Hashable]]:
    """Kind, value and outline of every leaf; refuses all unsupported ones at once."""
    encoded: list[EncodedLeaf] = []
    outlines: list[Hashable] = []
    errors: list[UnsupportedLeafError] = []
    for value, name in zip(flat.leaves, flat.names, strict=True):
        try:
            try:
                leaf = leaves.encode(value)
                outlines.append(leaf.kind.outline(leaf.value))
                encoded.append(leaf)
                if errors:  # The list is to be complete.
                    leaf.kind.describe(leaf.value, processes)
            except Exception:  # Any failure deserves its place; raised again as it is.
                with at_leaf(name):
                    raise
        except UnsupportedLeafError as error:
            if not errors:
                errors += _earlier_errors(encoded, flat.names, processes)
            errors.append(error)
    check_all(errors, "written")
    return encoded, outlines


def _first(flat: FlatTree, saving: SaveSettings) -> tuple[int, ...]:
    """The leaves that the caller wants to be staged and written before the others."""
    if saving.is_first is None:
        return ()
    found: list[int] = []
    for leaf, (path, name) in enumerate(zip(flat.paths, flat.names, strict=True)):
        with at_leaf(name):
            if saving.is_first(jax_key_path(path)):
                found.append(leaf)
    return tuple(found)


def _earlier_errors(
    encoded: Sequence[EncodedLeaf], names: Sequence[str], processes: Processes
) -> list[UnsupportedLeafError]:
    """Why leaves before the first that is no leaf at all cannot be written either."""
    errors: list[UnsupportedLeafError] = []
    for leaf, name in zip(encoded, names, strict=False):
        try:
            with at_leaf(name):
                leaf.kind.describe(leaf.value, processes)
        except UnsupportedLeafError as error:
            errors.append(error)
    return errors


def _lay_out(
    flat: FlatTree,
    encoded: Sequence[EncodedLeaf],
    outlines: Sequence[Hashable],
    processes: Processes,
    *,
    saving: SaveSettings,
    codec: str | None,
    first: Sequence[int],
    part_limit_bytes: int,
) -> ItemLayout:
    check_names(flat.root)
    described = _describe(flat.names, encoded, outlines, processes)
    check_string_names(
        [n for n, d in zip(flat.names, described, strict=True) if d.text is not None]
    )
    alone = processes.count == 1
    storages = plan_storage(flat, described, saving, codec)
    # By form: leaves that are alike share everything that is made of them.
    shared: dict[Hashable, ArrayLayout] = {}
    layouts: dict[int, ArrayLayout] = {}
    for leaf, (description, storage) in enumerate(
        zip(described, storages, strict=True)
    ):
        if storage is None:
            continue
        key = id(description), storage
        if key not in shared:
            shared[key] = _layout(description, storage, alone=alone)
        layouts[leaf] = shared[key]
    early = {leaf: layouts[leaf] for leaf in first if leaf in layouts}
    plan = plan_write(
        early | layouts,  # Of a leaf in both, the place in the first.
        process_index=processes.index,
        data_directory="d/" if alone else f"{PROCESS_PREFIX}{processes.index}/d/",
        sharing=Sharing(
            is_on=saving.share_among_replicas,
            from_bytes=saving.share_from_bytes,
            most=saving.share_among_most,
        ),
        file_limit_bytes=saving.data_file_size_bytes,
        part_limit_bytes=part_limit_bytes,
    )
    check_chunks(flat.names, storages, plan.chunk_shapes)
    forms: dict[Hashable, LeafForm] = {}
    entries: list[LeafEntry] = []
    for leaf, (path, name, description) in enumerate(
        zip(flat.paths, flat.names, described, strict=True)
    ):
        layout, custom = layouts.get(leaf), encoded[leaf].custom
        key = id(description), id(layout), id(custom)
        if key not in forms:
            forms[key] = _form(
                description,
                layout,
                plan.chunk_shapes.get(leaf),
                plan.codecs.get(leaf),
                custom,
                saving,
            )
        entries.append(LeafEntry(path, name, forms[key]))
    return ItemLayout(
        root=flat.root,
        entries=tuple(entries),
        plan=plan,
        narrowed=narrowed(flat.names, storages),
        tells_orbax_of_arrays=saving.record_array_metadata,
    )


def _describe(
    names: Sequence[str],
    encoded: Sequence[EncodedLeaf],
    outlines: Sequence[Hashable],
    processes: Processes,
) -> list[Description]:
    """What there is to store of every leaf; refuses all unsupported ones at once."""
    known: dict[Hashable, Description] = {}
    described: list[Description] = []
    errors: list[UnsupportedLeafError] = []
    for leaf, outline, name in zip(encoded, outlines, names, strict=True):
        key = leaf.kind, outline
        description = known.get(key)
        if description is None:
            try:
                with at_leaf(name):
                    description = leaf.kind.describe(leaf.value, processes)
            except UnsupportedLeafError as error:
                errors.append(error)
                continue
            known[key] = description
        described.append(description)
    check_all(errors, "written")
    return described


def _layout(
    description: Description, storage: LeafStorage, *, alone: bool
) -> ArrayLayout:
    codec = storage.codec
    if codec == AUTO and not alone:  # Nobody has all of a leaf.
        codec = AUTO_EACH
    return ArrayLayout(
        shape=description.shape,
        dtype=storage.dtype,
        parts=tuple((h.box, h.processes) for h in description.holdings),
        host_itemsize=0 if description.dtype is None else description.dtype.itemsize,
        codec=codec,
        chunk_limit_bytes=storage.chunk_limit_bytes,
        shard_axes=storage.shard_axes,
    )


def _form(
    description: Description,
    layout: ArrayLayout | None,
    chunk_shape: tuple[int, ...] | None,
    codec: str | None,
    custom: CustomType | None,
    saving: SaveSettings,
) -> LeafForm:
    shards = [holding.box.shape for holding in description.holdings]
    is_sharded = description.kind == "jax.Array"
    write_shape = tuple(map(max, zip(*shards, strict=True))) if shards else None
    if is_sharded and write_shape is None:
        write_shape = tuple(max(1, n) for n in description.shape)
    return LeafForm(
        kind=description.kind,
        dtype=None if layout is None else dtype_name(layout.dtype),
        shape=description.shape,
        chunk_shape=chunk_shape or (),
        codec=_DOCUMENTED.get(codec, codec),
        write_shape=write_shape if is_sharded else None,
        text=description.text,
        prng_impl=description.prng_impl,
        sharding=description.sharding if saving.record_shardings else None,
        custom=custom,
    )


def _sizes_bytes(
    layout: ItemLayout, encoded: Sequence[EncodedLeaf], *, borrow: bool
) -> list[int]:
    """What every part takes of the staging budget."""
    sizes: list[int] = []
    for leaf, box in layout.plan.parts:
        kind, value, _ = encoded[leaf]
        size_bytes = 0
        if kind.takes_memory(value, borrow=borrow):
            size_bytes = box.size * _itemsize(value)
        sizes.append(size_bytes)
    return sizes


def _itemsize(value: Any) -> int:
    # The last axis of what is stored of PRNG keys is their data.
    return np.dtype(np.uint32).itemsize if is_key(value.dtype) else value.dtype.itemsize


def _part_limit_bytes(limit_bytes: int) -> int:
    """After how much a data file ends, so that several batches fit the budget.

    A power of two: what a budget is made of changes from save to save, and the layout
    should not.
    """
    return 1 << max(0, (limit_bytes // _BATCHES_PER_BUDGET).bit_length() - 1)


def _fetch(
    plan: WritePlan,
    names: Sequence[str],
    encoded: Sequence[EncodedLeaf],
    processes: Processes,
    borrow: bool,
    pin: bool | None,
    positions: range,
) -> list[np.ndarray]:
    """The host memory of some parts that this process writes."""
    staged: list[Any] = []
    parts = plan.parts[positions.start : positions.stop]
    for leaf, same in itertools.groupby(parts, _leaf_of):
        kind, value, _ = encoded[leaf]
        boxes = [part.box for part in same]
        try:
            staged += kind.stage(value, boxes, processes, borrow=borrow)
        except Exception:  # Any failure deserves its place; raised again as it is.
            with at_leaf(names[leaf]):
                raise
    return to_host(staged, pin=pin)


def _leaf_of(part: PartWrite) -> int:
    return part.leaf
