"""The leaves of a tree that is saved: what they are, and how they come to the host.

Every leaf is taken for what it is once.  What cannot be saved is found here, for all
leaves at once, before anything is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stowax._keypath import FlatTree, at_leaf, flatten
from stowax._leaves._base import Description
from stowax._leaves._jax_array import is_key
from stowax._leaves._refusal import check_all
from stowax._leaves._registry import EncodedLeaf, Leaves
from stowax._plan._write import PartWrite
from stowax._processes import Processes
from stowax._transfer import to_host
from stowax.errors import TreeError, UnsupportedLeafError


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeValues:
    """A tree taken apart, each leaf with its kind."""

    flat: FlatTree
    leaves: tuple[EncodedLeaf, ...]
    outlines: tuple[Hashable, ...]
    """Of each leaf all that its description goes by."""
    processes: Processes
    """Say what this process holds of them."""

    @property
    def kinds(self) -> list[Any]:
        """What knows each leaf."""
        return [kind for kind, _, _ in self.leaves]

    def describe(self) -> list[Description]:
        """What there is to store of every leaf.

        Raises:
            UnsupportedLeafError: Names every leaf that cannot be stored.
        """
        known: dict[Hashable, Description] = {}
        described: list[Description] = []
        errors: list[UnsupportedLeafError] = []
        for leaf, outline, name in zip(
            self.leaves, self.outlines, self.flat.names, strict=True
        ):
            key = leaf.kind, outline
            description = known.get(key)
            if description is None:
                try:
                    with at_leaf(name):
                        description = leaf.kind.describe(leaf.value, self.processes)
                except UnsupportedLeafError as error:
                    errors.append(error)
                    continue
                known[key] = description
            described.append(description)
        check_all(errors, "written")
        return described

    def sizes_bytes(self, parts: Sequence[PartWrite], *, borrow: bool) -> list[int]:
        """What every part takes on the host beside the values themselves."""
        sizes: list[int] = []
        for leaf, box in parts:
            kind, value, _ = self.leaves[leaf]
            size_bytes = 0
            if kind.takes_memory(value, borrow=borrow):
                size_bytes = box.size * _itemsize(value)
            sizes.append(size_bytes)
        return sizes

    def fetch(
        self, parts: Sequence[PartWrite], *, borrow: bool, pin: bool | None
    ) -> list[np.ndarray]:
        """The host memory of parts that this process holds.

        Args:
            parts: In order of their leaves.
            borrow: Whether the caller leaves host arrays alone until all is written.
            pin: Whether devices write to page-locked memory; None: GPUs do.
        """
        staged: list[Any] = []
        for leaf, same in itertools.groupby(parts, _leaf_of):
            kind, value, _ = self.leaves[leaf]
            boxes = [part.box for part in same]
            try:
                staged += kind.stage(value, boxes, self.processes, borrow=borrow)
            except Exception:  # Any failure deserves its place; raised again as it is.
                with at_leaf(self.flat.names[leaf]):
                    raise
        return to_host(staged, pin=pin)


def encode_tree(tree: Any, leaves: Leaves, processes: Processes) -> TreeValues:
    """Takes a tree apart, and finds the kind of every leaf.

    Args:
        tree: Any tree.
        leaves: The kinds of leaves that it may have.
        processes: Say what this process holds.

    Raises:
        TreeError: It is no tree to save.
        UnsupportedLeafError: Names every leaf that cannot be saved.
    """
    if tree is None:
        raise TreeError("None is no state; to save nothing, save an empty dict, {}")
    flat = flatten(tree, leaves.takes_value)
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
    return TreeValues(
        flat=flat,
        leaves=tuple(encoded),
        outlines=tuple(outlines),
        processes=processes,
    )


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


def _itemsize(value: Any) -> int:
    # The last axis of what is stored of PRNG keys is their data.
    return np.dtype(np.uint32).itemsize if is_key(value.dtype) else value.dtype.itemsize


def _leaf_of(part: PartWrite) -> int:
    return part.leaf
