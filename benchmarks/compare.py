"""Saves and loads, side by side with Orbax, safetensors and the raw disk.

    python benchmarks/compare.py [--quick] [--rounds N] [--directory DIR] [--table FILE]

Every measurement is a process of its own (`measure.py`), and the libraries take turns
within a round, so that a slow moment of the machine does not hit one of them alone.
Figures are medians of the rounds; times of saves and loads are ratios to the raw disk
in the same run: 1.0 is the disk, more is slower.
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
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
from cases import CASES, QUICK_CASES
from libraries import LIBRARIES

RATIOS = ("save", "save again", "load", "load NumPy", "load cold")
MILLISECONDS = ("blocking", "metadata", "import")
MEBIBYTES = ("save, extra memory", "load, extra memory", "size")
COLUMNS = (
    "save",
    "save again",
    "blocking",
    "load",
    "load NumPy",
    "load cold",
    "metadata",
    "save, extra memory",
    "load, extra memory",
    "files",
    "size",
    "import",
)
ACROSS = "stowax from orbax"
"""What Orbax wrote, loaded here."""

Figures = dict[str, float]


def measure(action: str, library: str, case: str, folder: str) -> Figures:
    """One measurement in a fresh process."""
    script = str(Path(__file__).with_name("measure.py"))
    command = [sys.executable, script, action, library, case, folder]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def measure_round(case: str, directory: str) -> dict[str, Figures]:
    """Every library once: it saves, and in another process loads."""
    figures: dict[str, Figures] = {}
    for library in LIBRARIES:
        folder = tempfile.mkdtemp(dir=directory, prefix="stowax-bench-")
        try:
            saved = measure("save", library, case, folder)
            figures[library] = saved | measure("load", library, case, folder)
            if library == "orbax":
                figures[ACROSS] = measure("load", "stowax", case, folder)
                del figures[ACROSS]["import"]
        finally:
            shutil.rmtree(folder)
    return figures


def medians(rounds: Iterable[Mapping[str, Figures]]) -> dict[str, Figures]:
    """The median of every figure of every library."""
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for figures in rounds:
        for library, values in figures.items():
            for what, value in values.items():
                seen[library][what].append(value)
    return {
        library: {what: statistics.median(all_) for what, all_ in values.items()}
        for library, values in seen.items()
    }


def table(case: str, figures: Mapping[str, Figures]) -> list[str]:
    """One case as a table of Markdown, a line for each library."""
    raw = figures["raw"]
    lines = [
        f"## {case}",
        "",
        (
            f"Raw: save {raw['save']:.3f} s, load {raw['load']:.3f} s warm and "
            f"{raw['load cold']:.3f} s cold, {raw['size'] / 1e9:.3f} GB."
        ),
        *_transfers(raw),
        "",
        f"| library | {' | '.join(_heading(column) for column in COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for library, values in figures.items():
        cells = [_cell(column, values, raw) for column in COLUMNS]
        lines.append(f"| {library} | {' | '.join(cells)} |")
    return [*lines, ""]


def _transfers(raw: Figures) -> list[str]:
    """What JAX needs to move the state, if it is not in host memory."""
    if "to host" not in raw:
        return []
    to_host, to_device = raw["to host"], raw["to device"]
    return [f"By JAX alone: {to_host:.3f} s to the host, {to_device:.3f} s back."]


def _heading(column: str) -> str:
    unit = "ms" if column in MILLISECONDS else "MiB" if column in MEBIBYTES else ""
    return f"{column}, {unit}" if unit else column


def _cell(column: str, values: Figures, raw: Figures) -> str:
    if column not in values:
        return ""
    value = values[column]
    if column in RATIOS:
        # A second save is as much for the disk as the first, and NumPy as a load.
        base = {"save again": "save", "load NumPy": "load"}.get(column, column)
        return f"{value / raw[base]:.2f}"
    if column in MILLISECONDS:
        return f"{value * 1e3:.1f}"
    return f"{value / (1 << 20):.0f}" if column in MEBIBYTES else f"{value:.0f}"


def compare(cases: Sequence[str], rounds: int, directory: str) -> list[str]:
    """Runs everything; returns the tables as lines of Markdown."""
    lines: list[str] = []
    for case in cases:
        measured = [measure_round(case, directory) for _ in range(rounds)]
        lines += table(case, medians(measured))
        print("\n".join(lines[-len(LIBRARIES) - 8 :]), flush=True)
    return lines


def machine() -> str:
    """What the figures were measured on."""
    devices = {device.device_kind for device in jax.devices()} - {"cpu"}
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{os.cpu_count()} cores, {memory_bytes / (1 << 30):.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
        f"{''.join(f', {device}' for device in sorted(devices))}"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases, one round")
    parser.add_argument("--case", action="append", help="only this one")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--table", type=Path, help="write the tables to this file")
    options = parser.parse_args()
    cases = options.case or [*(QUICK_CASES if options.quick else CASES)]
    rounds = options.rounds or (1 if options.quick else 3)
    lines = compare(cases, rounds, options.directory)
    if options.table is not None:
        note = f"Medians of {rounds} rounds on a machine with {machine()}."
        text = [f"# Benchmarks\n\n{_INTRODUCTION}\n\n{note}\n", *lines]
        options.table.write_text("\n".join(text).rstrip() + "\n")


_INTRODUCTION = (
    "`nox -s bench` writes this page; `nox -s bench -- --quick` takes some minutes.\n"
    "Times of saves and loads are ratios to the raw disk in the same run (one file: "
    "written and synced by one thread; read into fresh memory, warm by one thread, "
    "cold by the best of one to four): 1.0 is the disk, more is slower.\n"
    "Leaves are JAX arrays of noise, on CPU devices unless there is a GPU. "
    "Libraries have their defaults, and what they saved is durable when the clock "
    "stops.\n"
    "`save again` is the second save of the same structure, `load NumPy` the second "
    "load of the process, into host arrays, both as ratios to the first of raw; "
    "`blocking` is what `save_async` keeps its caller waiting, `metadata` the time to "
    "describe the checkpoint, `import` what the library takes beyond JAX. "
    "`raw, 4 files` writes and reads four files with a thread each, `tensorstore` is "
    "TensorStore alone with one OCDBT transaction, and `stowax from orbax` loads what "
    "Orbax saved with its defaults.\n"
    "Extra memory is the peak beyond the state and the result. It is not given where "
    "several devices hold the same. Figures of virtual machines vary by a factor of "
    "two from run to run, ratios by less."
)

if __name__ == "__main__":
    main()
