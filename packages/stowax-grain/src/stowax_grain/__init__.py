"""Grain iterators in Stowax checkpoints.

`Iterator` wraps a Grain iterator so that its position is saved with the model and
comes back exactly, or not at all: another pipeline, another number of processes or a
damaged document is refused before the iterator is touched.
"""

from stowax_grain._iterator import Iterator

__all__ = ["Iterator"]

Iterator.__module__ = __name__
