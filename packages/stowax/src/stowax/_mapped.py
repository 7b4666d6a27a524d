"""Memory that shows files instead of copies of them.

It is taken like any other memory, and filled or mapped later: a mapping takes the place
of whole pages of it.  What a program writes there stays its own; what others do to the
file meanwhile shows, and beyond its new end the process is killed, which no check can
prevent.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
from typing import Any

import numpy as np

from stowax._stores._base import file_too_short
from stowax._stores._local import open_to_read
from stowax.errors import HostMemoryError

CAN_MAP = sys.platform in ("linux", "darwin")
"""Whether this system has what is needed."""

_MAP_FIXED = 0x10


def allocate_pages(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory in whole pages, of which nobody else has a part.

    Raises:
        MemoryError: There is not enough of it.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        pages = mmap.mmap(-1, _whole_pages(size_bytes), flags=flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # What is read and not mapped fills faster.
    return np.frombuffer(pages, np.uint8, size_bytes).view(dtype).reshape(shape)


def map_file(
    path: os.PathLike[str],
    offset_bytes: int,
    memory: np.ndarray,
    *,
    is_end: bool,
    reads_ahead: bool,
) -> bool:
    """Has memory show a part of a file; answers whether its pages allow that.

    Args:
        path: The file.
        offset_bytes: Where the part begins.
        memory: Bytes of an array of `allocate_pages`.
        is_end: Whether they are the last ones of that array, so that the rest of their
            last page may show anything.
        reads_ahead: Whether the file is read now, and not page by page when needed.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptCheckpointError: The file ends before.
        HostMemoryError: The system refuses; the memory cannot be used any more.
    """
    page_bytes = mmap.PAGESIZE
    address, size_bytes = memory.ctypes.data, memory.nbytes
    is_whole = size_bytes % page_bytes == 0 or is_end
    if offset_bytes % page_bytes or address % page_bytes or not is_whole:
        return False
    with open(path, "rb", buffering=0, opener=open_to_read) as file:
        end_bytes = os.fstat(file.fileno()).st_size
        if offset_bytes + size_bytes > end_bytes:
            raise file_too_short(os.fspath(path), offset_bytes, size_bytes, end_bytes)
        libc, length_bytes = _libc(), _whole_pages(size_bytes)
        # Read-only at first: to read ahead what may be written would copy it all.
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        if reads_ahead:
            flags |= getattr(mmap, "MAP_POPULATE", 0)
        place = address, length_bytes
        found = libc.mmap(*place, mmap.PROT_READ, flags, file.fileno(), offset_bytes)
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        if found != address or libc.mprotect(*place, writable):
            reason = os.strerror(ctypes.get_errno())
            raise HostMemoryError(
                f"{os.fspath(path)}: {size_bytes} bytes cannot be mapped into memory: "
                f"{reason}; load without `ArrayOptions.Loading.memory_map`"
            )
    return True


def _whole_pages(size_bytes: int) -> int:
    return max(1, -(-size_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return libc
