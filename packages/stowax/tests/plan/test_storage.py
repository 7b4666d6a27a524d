"""What cannot be stored as asked is found before anything is written."""

import numpy as np
import pytest

from stowax._plan._storage import LeafStorage, check_chunks
from stowax.errors import UnsupportedOptionError


def test_chunks_that_a_codec_cannot_take():
    """A chunk that is too large for its codec is refused by name, with what to do."""
    names = ["a", "b", "c", "d", "e", "f"]
    shape = ((1 << 31) - 1,)
    storages = [
        *(
            LeafStorage(dtype=np.dtype("u1"), codec=codec)
            for codec in ("blosc", "zstd", "auto", None)
        ),
        None,
        LeafStorage(dtype=np.dtype("u1"), codec="blosc"),
    ]
    shapes = {0: shape, 1: shape, 2: shape, 3: shape, 5: (1 << 20,)}

    with pytest.raises(UnsupportedOptionError, match="1 of 6 leaves") as caught:
        check_chunks(names, storages, shapes)

    assert "  a: blosc takes chunks of at most 2147483631 bytes" in str(caught.value)
    assert "chunk_byte_size" in str(caught.value)
    check_chunks(names[1:2], storages[1:2], {0: shape})
