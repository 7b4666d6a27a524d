"""OCDBT, TensorStore's database of key and value, as far as a checkpoint needs it.

A database is a file `manifest.ocdbt` and any number of data files.  The manifest points
at the root of a B-tree, whose leaf nodes hold, for each key, the value itself or where
in which data file it lies.  Nodes are stored in data files too; a data file has no form
of its own::

    manifest.ocdbt ──> interior node ──> leaf node ──> a/c/0      file, offset, length
                            │                          a/zarr.json        inline value
                            └──────────> leaf node ──> b/c/0/0    file, offset, length
                                                       b/zarr.json        inline value

Manifest and nodes share an *envelope*: magic, length, format version, compression,
body, CRC-32C.  Inside, integers are unsigned LEB128 ("varint"), and the fields of n
records are stored by column: every record's first field, then every record's second.
Each node has a table of the files it refers to.  A path in it is written as a *base*
(such as `ocdbt.process_0/`) and the rest, and the paths in a node that lies under a
base are relative to that base.

What we write is the smallest valid form: one version (generation 1), uncompressed
nodes, no shared prefixes.  What we read is the newest version of any database with a
single manifest, among them those that TensorStore wrote, with zstd-compressed nodes,
shared prefixes and any number of levels.

The format's documentation: https://google.github.io/tensorstore/kvstore/ocdbt/
"""

from __future__ import annotations

from typing import NamedTuple

MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")
NODE_MAGIC = bytes.fromhex("0cdb20de")

MAX_NAME_BYTES = 65_535
"""Length of the longest key and of the longest path."""

MAX_INLINE_BYTES = 1 << 20
"""Length of the longest value that may stand in a node."""

NOWHERE = 2**64 - 1
"""Offset and length of the root of an empty database."""


class Reference(NamedTuple):
    """A range of bytes in a data file."""

    path: str
    """Relative to the root of the database, `d/0a` or `ocdbt.process_0/d/0a`.

    A decoded path is what was stored; whoever opens it refuses one that would leave
    the root.
    """

    offset_bytes: int
    length_bytes: int
