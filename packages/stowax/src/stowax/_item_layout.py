"""What an item will look like on disk, and the values that go there.

The layout follows from the structure of a tree and the forms of its leaves, not from
their values. A training loop saves one structure again and again, so the layouts of the
last few saves are kept, and a later save only brings its values.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stowax._array_directories import check_array_names
from stowax._budget import Budget
from stowax._codecs._zarr import ZarrVersion, dtype_name
from stowax._formats._orbax_strings import check_string_names
from stowax._formats._stowax import PROCESS_PREFIX
from stowax._keypath import (
    FlatTree,
    Node,
    array_prefix,
    at_leaf,
    check_names,
    jax_key_path,
)
from stowax._leaves._base import Description
from stowax._leaves._registry import Leaves
from stowax._manifest import CustomType, LeafEntry, LeafForm
from stowax._plan._storage import LeafStorage, check_chunks, narrowed, plan_storage
from stowax._plan._write import (
    AUTO,
    AUTO_CODEC,
    AUTO_EACH,
    ArrayLayout,
    ChunkFiles,
    Sharing,
    WritePlan,
    plan_write,
)
from stowax._processes import Processes
from stowax._recent import Recent
from stowax._settings import SaveSettings
from stowax._staging import Staging, batch_limit_bytes
from stowax._tree_values import TreeValues, encode_tree
from stowax._uncollected import uncollected

_AS_USUAL = SaveSettings()

_DOCUMENTED: dict[str | None, str | None] = {AUTO: None, AUTO_EACH: AUTO_CODEC}
"""What stands for chunks that a sample decides about; see `Choices`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemLayout:
    """All that is decided about an item before a value is looked at."""

    root: Node
    entries: tuple[LeafEntry, ...]
    plan: WritePlan
    narrowed: tuple[str, ...] = ()
    """Leaves that lose range or kind in the dtype that they are stored in."""
    use_ocdbt: bool = True
    """Whether chunks share data files and are found by an index."""
    zarr_version: ZarrVersion = 3
    """Of the documents of arrays."""
    tells_orbax_of_arrays: bool = True
    """Whether `array_metadatas` is written."""
    is_update: bool = False
    """Whether it is a part of a session, so that every process has a database."""
    documents: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    """What follows from it and has been encoded, for the next save."""


class Beside(NamedTuple):
    """What stands in the documents of an item beside its tree."""

    rich_types: bool
    """Whether tuples and NamedTuples are told apart, for Orbax."""
    custom_metadata: str = "null"
    """What the user keeps with this item, in JSON; the older API alone has such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedItem:
    """A tree of which all that is left is to stage and to write it."""

    layout: ItemLayout
    staging: Staging
    beside: Beside | None = None
    """What stands in its documents beside the tree, if that is not for the settings to
    say."""


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
    is_update: bool = False,
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
        is_update: Whether it is a part of a session.

    Raises:
        TreeError: Names every leaf that stands in the way.
        UnsupportedOptionError: Names every leaf that cannot be stored as asked.
    """
    values = encode_tree(tree, leaves, processes)
    first = _first(values.flat, saving)

    def lay_out(part_limit_bytes: int) -> ItemLayout:
        key = None
        if not leaves.are_taught and saving.storage_of_leaf is None:
            process = processes.index, processes.count
            identity = process, part_limit_bytes, first, is_update
            # To NumPy, None is equal to float64.
            is_converted = saving.storage.dtype is not None
            flat = values.flat
            kinds, outlines = values.kinds, values.outlines
            structure = flat.names, flat.key_types, kinds, outlines, flat.root
            key = identity, is_converted, saving, codec, structure
            if (found := known.find(key)) is not None:
                return found
        layout = _lay_out(
            values,
            saving=saving,
            codec=codec,
            first=first,
            part_limit_bytes=part_limit_bytes,
            is_update=is_update,
        )
        if key is not None:
            known.add(key, layout)
        return layout

    layout = lay_out(0)
    sizes_bytes = values.sizes_bytes(layout.plan.parts, borrow=borrow)
    if sum(sizes_bytes) > limit_bytes:
        layout = lay_out(batch_limit_bytes(limit_bytes))
        sizes_bytes = values.sizes_bytes(layout.plan.parts, borrow=borrow)
    fetch = functools.partial(values.fetch, borrow=borrow, pin=saving.pins_transfers)
    staging = Staging(
        layout.plan.parts, layout.plan.needs, fetch, sizes_bytes, budget, limit_bytes
    )
    return StagedItem(layout=layout, staging=staging)


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


def _lay_out(
    values: TreeValues,
    *,
    saving: SaveSettings,
    codec: str | None,
    first: Sequence[int],
    part_limit_bytes: int,
    is_update: bool,
) -> ItemLayout:
    flat, processes = values.flat, values.processes
    check_names(flat.root)
    described = values.describe()
    check_string_names(
        [n for n, d in zip(flat.names, described, strict=True) if d.text is not None]
    )
    alone = processes.count == 1
    is_merged = alone and not is_update
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
    zarr_version: ZarrVersion = 3 if saving.use_zarr3 else 2
    chunk_files = None
    if not saving.use_ocdbt:
        names = {leaf: flat.names[leaf] for leaf in layouts}
        check_array_names(names.values())
        prefixes = {leaf: array_prefix(name) for leaf, name in names.items()}
        chunk_files = ChunkFiles(prefixes=prefixes, version=zarr_version)
    early = {leaf: layouts[leaf] for leaf in first if leaf in layouts}
    plan = plan_write(
        early | layouts,  # Of a leaf in both, the place in the first.
        process_index=processes.index,
        data_directory="d/" if is_merged else f"{PROCESS_PREFIX}{processes.index}/d/",
        sharing=Sharing(
            is_on=saving.share_among_replicas,
            from_bytes=saving.share_from_bytes,
            most=saving.share_among_most,
        ),
        file_limit_bytes=saving.data_file_size_bytes,
        part_limit_bytes=part_limit_bytes,
        chunk_files=chunk_files,
    )
    check_chunks(flat.names, storages, plan.chunk_shapes)
    forms: dict[Hashable, LeafForm] = {}
    entries: list[LeafEntry] = []
    for leaf, (path, name, description) in enumerate(
        zip(flat.paths, flat.names, described, strict=True)
    ):
        layout, custom = layouts.get(leaf), values.leaves[leaf].custom
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
        use_ocdbt=saving.use_ocdbt,
        zarr_version=zarr_version,
        tells_orbax_of_arrays=saving.record_array_metadata,
        is_update=is_update,
    )


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
