"""What a Grain pipeline is, as lines of text that two runs can compare.

One line per transformation, children indented below, the last transformation first.
What only changes speed (threads, buffer sizes) and what only changes with the source
text or the run (line numbers, memory addresses) is left out.  What Grain does not
print but the elements depend on (seeds, window and bin sizes, lengths) is added.

The text cannot see inside functions or data: two lambdas look alike, and so do two
lists of the same length.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

import grain

__all__ = ["fingerprint"]

# Grain has no public way from an iterator to the pipeline below it. A name that a
# later release drops makes the text shorter, which is then reported as a difference.
_CHILDREN = ("_iterator", "_parents", "_map_parent", "_iter_parent", "_datasets")

_SETTINGS = (
    "_seed",
    "_global_seed",
    "_seed_rng_seed",
    "_default_seed",
    "_batch_size",
    "_count",
    "_length_struct",
    "_num_packing_bins",
    "_packer_cls",
    "_selection_map",
    "_window_size",
)

_ACCIDENTS = (
    # <grain._src.module.Name object at 0x7f0a…>  and  <class 'grain._src.module.Name'>
    (re.compile(r"<\S*?(\w+) object at 0x[0-9a-f]+>"), r"\1"),
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    # <lambda> @ train.py:31
    (re.compile(r" @ [^,)\]]*:\d+"), ""),
    (re.compile(r"(?:read_options=)?ReadOptions\([^()]*\)(?:, )?"), ""),
    (re.compile(r"(?:prefetch_)?buffer_size=\d+(?:, )?"), ""),
)

# Passes elements and states through unchanged; only the timing differs.
_TRANSPARENT = ("ThreadPrefetchDatasetIterator", "ThreadPrefetchIterDataset")


def fingerprint(iterator: Any) -> tuple[str, ...]:
    """Describes the pipeline that `iterator` runs."""
    return tuple(_describe(iterator))


def _describe(node: Any) -> list[str]:
    below = _describe_all(_children(node))
    if type(node).__name__ in _TRANSPARENT:
        return below
    return [_line(node), *(f"  {line}" for line in below)]


def _describe_all(nodes: Iterable[Any]) -> list[str]:
    # Hundreds of equal shards are one entry with a count, not hundreds of lines.
    described = []
    for lines, equal in itertools.groupby(_describe(node) for node in nodes):
        count = len(list(equal))
        times = f"{count} x " if count > 1 else ""
        described += [times + lines[0], *lines[1:]] if lines else []
    return described


def _children(node: Any) -> list[Any]:
    if isinstance(node, (grain.MapDataset, grain.IterDataset)) and node.parents:
        return list(node.parents)
    attributes = [getattr(node, name, None) for name in _CHILDREN]
    children = []
    for attribute in attributes:
        # A lazy sequence may open files when it is indexed: only built ones are read.
        if isinstance(attribute, (list, tuple)):
            children += attribute
        elif attribute is not None:
            children.append(attribute)
    return children


def _line(node: Any) -> str:
    if isinstance(node, grain.DataLoaderIterator):
        # Its text is its position.
        text = "DataLoaderIterator"
    else:
        text = _without_accidents(str(node))
    for name in _SETTINGS:
        setting = getattr(node, name, None)
        label = f"{name.removeprefix('_')}="
        if setting is not None and label not in text:
            text += f" {label}{_without_accidents(str(setting))}"
    if isinstance(node, grain.MapDataset):
        text += f" len={len(node)}"
    return text


def _without_accidents(text: str) -> str:
    """Drops what differs between two runs of one pipeline."""
    for pattern, replacement in _ACCIDENTS:
        text = pattern.sub(replacement, text)
    return text
