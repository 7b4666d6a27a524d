"""How much memory this process may still take, as the system tells it.

A container has a limit of its own, below that of the machine; of both the smaller rest
counts. Memory that the kernel gives back on demand (cached files) counts as free.
"""

from __future__ import annotations

import pathlib

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_UNKNOWN_BYTES = 4 << 30
"""What is assumed where the system tells nothing, as on macOS and Windows."""


def spare_memory_bytes(
    *,
    cgroups: pathlib.Path = _CGROUPS,
    proc: pathlib.Path = pathlib.Path("/proc"),
) -> int:
    """Bytes that this process may still take before the system runs short.

    Args:
        cgroups: Where control groups are mounted.
        proc: Where the process file system is.
    """
    found = [_of_machine(proc), *_of_groups(cgroups, proc)]
    known = [size_bytes for size_bytes in found if size_bytes is not None]
    return max(0, min(known, default=_UNKNOWN_BYTES))


def _of_machine(proc: pathlib.Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _of_groups(cgroups: pathlib.Path, proc: pathlib.Path) -> list[int | None]:
    """What is left of the limit of every group that the process is in."""
    found: list[int | None] = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # Version 2: one tree, limits on every level.
            group = cgroups / path.lstrip("/")
            for level in (group, *group.parents):
                found.append(_rest(level, "memory.max", "memory.current"))
                if level == cgroups:
                    break
        elif "memory" in controllers.split(","):
            group = cgroups / "memory" / path.lstrip("/")
            # In a container the path is often that of the host; the mount is ours.
            for level in (group, cgroups / "memory"):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                found.append(_rest(level, *names))
    return found


def _rest(group: pathlib.Path, limit_name: str, usage_name: str) -> int | None:
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if limit is None or usage is None:
        return None
    cached_bytes = 0
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            cached_bytes = int(value)
    return limit - usage + cached_bytes


def _number(path: pathlib.Path) -> int | None:
    """The number that a file holds; None if it has none ("max"), or is not there."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []  # Another system, or no right to look: it tells nothing.
