"""One measurement in a process of its own; prints its figures as a line of JSON.

    python benchmarks/measure.py save LIBRARY CASE FOLDER
    python benchmarks/measure.py load LIBRARY CASE FOLDER

Both begin with a small save and load, so that nothing is measured that happens once in
a process.  Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from cases import CASES, QUICK_CASES, fill, size_bytes
from libraries import LIBRARIES, Library, Raw, read_file


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, until the arrays that it returns are there."""
    began = time.perf_counter()
    result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - began


class PeakMemory:
    """The most memory that a block of code has beyond what it began with."""

    extra_bytes = 0

    def __enter__(self) -> Self:
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
        self._before_bytes = _status_bytes("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.extra_bytes = _status_bytes("VmHWM") - self._before_bytes


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise LookupError(field)


def drop_from_cache(path: Path) -> None:
    """Has the next read of what lies under a path come from the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_save(library: Library, tree: Any, folder: Path) -> dict[str, float]:
    """Saves three times; the first checkpoint stays."""
    state = fill(tree)
    checkpoint, again = folder / "checkpoint", folder / "again"
    figures: dict[str, float] = {}
    if type(library) is Raw and _is_elsewhere(tree):
        # JAX keeps what it has brought to the host: from here on, it is all disk.
        figures["to host"] = seconds(lambda: jax.device_get(state))
    with PeakMemory() as peak:
        figures["save"] = seconds(lambda: library.save(checkpoint, state))
    figures["save, extra memory"] = peak.extra_bytes
    figures["save again"] = seconds(lambda: library.save(again, state))
    shutil.rmtree(again)
    if library.save_async is not None:
        began = time.perf_counter()
        response = library.save_async(again, state)
        figures["blocking"] = time.perf_counter() - began
        response.result()
        shutil.rmtree(again)
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    figures["files"] = len(files)
    figures["size"] = sum(file.stat().st_size for file in files)
    return figures


def measure_load(library: Library, tree: Any, folder: Path) -> dict[str, float]:
    """Loads what was saved: warm, as NumPy, and from the disk."""
    checkpoint = folder / "checkpoint"
    figures: dict[str, float] = {}
    if library.metadata is not None:
        figures["metadata"] = seconds(lambda: library.metadata(checkpoint))
    with PeakMemory() as peak:
        figures["load"] = seconds(lambda: library.load(checkpoint, tree))
    copies = sum(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(tree))
    if copies == len(jax.tree.leaves(tree)):  # Else devices share what they hold.
        is_here = type(library) is Raw or not _is_elsewhere(tree)
        result_bytes = size_bytes(tree) if is_here else 0
        figures["load, extra memory"] = peak.extra_bytes - result_bytes
    if library.load_numpy is not None:
        figures["load NumPy"] = seconds(lambda: library.load_numpy(checkpoint, tree))
    drop_from_cache(checkpoint)
    figures["load cold"] = seconds(lambda: library.load(checkpoint, tree))
    if type(library) is Raw:
        # The best that the disk gives: nobody knows beforehand how many threads.
        for thread_count in (2, 4):
            drop_from_cache(checkpoint)
            cold = seconds(lambda n=thread_count: read_file(checkpoint / "data", n))
            figures["load cold"] = min(figures["load cold"], cold)
        if _is_elsewhere(tree):
            host = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), tree)
            places = jax.tree.map(lambda leaf: leaf.sharding, tree)
            figures["to device"] = seconds(lambda: jax.device_put(host, places))
    return figures


def _is_elsewhere(tree: Any) -> bool:
    """Whether the arrays of a tree lie on devices with memory of their own."""
    leaf = jax.tree.leaves(tree)[0]
    return any(device.platform != "cpu" for device in leaf.sharding.device_set)


def main() -> None:
    """Reads the command line."""
    action, name, case, folder_name = sys.argv[1:]
    folder = Path(folder_name)
    began = time.perf_counter()
    library = LIBRARIES[name]()
    imported = time.perf_counter() - began
    small = {"w": jax.ShapeDtypeStruct((8,), "float32", sharding=_first_device())}
    library.save(folder / "small", fill(small))
    library.load(folder / "small", small)
    shutil.rmtree(folder / "small")
    tree = (CASES | QUICK_CASES)[case]()
    measure = {"save": measure_save, "load": measure_load}[action]
    print(json.dumps({"import": imported, **measure(library, tree, folder)}))


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


if __name__ == "__main__":
    main()
