"""One save and one load, side by side with Orbax, safetensors and the raw disk.

    python benchmarks/compare.py [--rounds N] [--directory DIR] [--table FILE]

Every measurement is a process of its own, and the libraries take turns within a round,
so that a slow moment of the machine does not hit one of them alone.  What is saved is
made durable by all: Stowax does so itself; after the others the script syncs every
file.  Loads are warm.  Figures are medians of the rounds, as ratios to the raw disk
(one file, write + fsync, read into fresh memory): 1.0 is the disk, more is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

CASES = {
    "8 x 32 MiB": (8, 32 << 20),
    "200 x 1 MiB": (200, 1 << 20),
    "2,000 x 4 KiB": (2_000, 4 << 10),
}
LIBRARIES = ("raw", "stowax", "orbax", "safetensors")


def make_state(case: str) -> dict[str, np.ndarray]:
    """Noise, because weights do not compress either."""
    count, size_bytes = CASES[case]
    noise = np.random.default_rng(0)
    return {
        f"leaf{i}": noise.standard_normal(size_bytes // 4, np.float32)
        for i in range(count)
    }


def sync(path: Path) -> None:
    """Makes what others left in the page cache durable."""
    for file in [path, *path.rglob("*")]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def raw(path: Path) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """The disk itself: one file."""

    def save(state: dict[str, np.ndarray]) -> None:
        path.mkdir()
        with (path / "data").open("wb", buffering=0) as file:
            for leaf in state.values():
                file.write(leaf.data)
            os.fsync(file.fileno())

    def load() -> np.ndarray:
        buffer = np.empty((path / "data").stat().st_size, np.uint8)
        with (path / "data").open("rb", buffering=0) as file:
            view = memoryview(buffer)
            while view.nbytes and (count := file.readinto(view)):
                view = view[count:]
        return buffer

    return save, load


def stowax(path: Path) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """This library, with its defaults: checksums on, synced."""
    import stowax

    return lambda state: stowax.save(path, state), lambda: stowax.load(path)


def orbax(path: Path) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """Orbax v1, with its defaults."""
    from orbax.checkpoint import v1

    def save(state: dict[str, np.ndarray]) -> None:
        v1.save(path, state)
        sync(path)

    return save, lambda: v1.load(path)


def safetensors(path: Path) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """The safetensors library, for NumPy."""
    from safetensors import numpy

    def save(state: dict[str, np.ndarray]) -> None:
        path.mkdir()
        numpy.save_file(state, path / "data")
        sync(path)

    return save, lambda: numpy.load_file(path / "data")


def measure(library: str, case: str, directory: Path) -> dict[str, float]:
    """Seconds of one save and one warm load, after a small one of each."""
    implementation = {
        "raw": raw,
        "stowax": stowax,
        "orbax": orbax,
        "safetensors": safetensors,
    }[library]
    save, load = implementation(directory / "small")
    save({"w": np.ones(8, np.float32)})
    load()
    save, load = implementation(directory / "checkpoint")
    state = make_state(case)
    began = time.perf_counter()
    save(state)
    saved = time.perf_counter()
    loaded = load()
    ended = time.perf_counter()
    del loaded
    return {"save": saved - began, "load": ended - saved}


def run_child(library: str, case: str, directory: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    folder = Path(tempfile.mkdtemp(dir=directory, prefix="stowax-bench-"))
    command = [sys.executable, __file__, "--measure", library, case, str(folder)]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    return json.loads(output.stdout.splitlines()[-1])


def compare(rounds: int, directory: str) -> list[str]:
    """Runs everything; returns the table as lines of Markdown."""
    lines = [
        "| case | what | raw, seconds | stowax | orbax | safetensors |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        seconds: dict[str, dict[str, list[float]]] = {
            library: {"save": [], "load": []} for library in LIBRARIES
        }
        for _ in range(rounds):
            for library in LIBRARIES:
                for what, value in run_child(library, case, directory).items():
                    seconds[library][what].append(value)
        for what in ("save", "load"):
            median = {
                library: statistics.median(seconds[library][what])
                for library in LIBRARIES
            }
            ratios = [f"{median[name] / median['raw']:.1f}" for name in LIBRARIES[1:]]
            cells = [case, what, f"{median['raw']:.3f}", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--table", type=Path, help="write the table to this file")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        library, case, folder = options.measure
        print(json.dumps(measure(library, case, Path(folder))))
        return
    lines = compare(options.rounds, options.directory)
    if options.table is not None:
        machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
        python = platform.python_version()
        note = f"Medians of {options.rounds} rounds on {machine}, Python {python}."
        text = f"# Benchmarks\n\n{_INTRODUCTION}\n\n{note}\n\n" + "\n".join(lines)
        options.table.write_text(text + "\n")


_INTRODUCTION = (
    "`nox -s bench` writes this page.\n"
    "Times as ratios to the raw disk in the same run (one file, write + fsync, warm "
    "read into fresh memory): 1.0 is the disk, more is slower.\n"
    "Everything is NumPy float32 noise, with the defaults of each library, and durable "
    "when the clock stops.\n"
    "Small leaves cost Stowax some 100 µs each; the disk hardly notices them. Figures "
    "of virtual machines vary by a factor of two from run to run, ratios by less."
)

if __name__ == "__main__":
    main()
