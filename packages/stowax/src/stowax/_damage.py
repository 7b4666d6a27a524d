"""What a verification found: every damaged place, and how much was compared."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 20
"""Lines in the message of an error; its report has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One place of a checkpoint where the bytes are not those that were saved.

    Example:
        >>> import pathlib, numpy as np, stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": np.ones((2, 3))})
        >>> data = pathlib.Path(path / "state/d/data-0")
        >>> _ = data.write_bytes(bytes(data.stat().st_size))
        >>> try:
        ...     stowax.verify(path)
        ... except stowax.errors.DamageError as error:
        ...     damage = error.report.damages[0]
        >>> damage.leaf, damage.index, damage.file
        ('w', (slice(0, 2, None), slice(0, 3, None)), 'state/d/data-0')
        >>> damage.begin_bytes, damage.end_bytes
        (0, 48)
    """

    file: str
    """Below the path of the checkpoint, ``state/d/data-0``."""

    begin_bytes: int | None = None
    """Where it begins in the file, to 128 KiB; None: somewhere in the file."""

    end_bytes: int | None = None
    """Where it ends."""

    leaf: str | None = None
    """The leaf that the bytes belong to; None: to no array."""

    # Slices have no hash before Python 3.12.
    index: tuple[slice, ...] | None = field(default=None, hash=False)
    """The chunk of the leaf that the bytes belong to, as an index of the array."""

    what: str
    """What is wrong, ``does not match its checksum``."""

    def __str__(self) -> str:
        place = self.file
        if self.begin_bytes is not None:
            place += f", bytes {self.begin_bytes} to {self.end_bytes}"
        if self.leaf is None:
            return f"{place}: {self.what}"
        ranges = ", ".join(f"{s.start}:{s.stop}" for s in self.index or ())
        return f"{place}: [{ranges}] of leaf {self.leaf!r} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `stowax.verify` compared, and what it found; printed, it is a summary.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 7, "name": "run"})
        >>> report = stowax.verify(path)
        >>> report.checkpointables, report.leaf_count, report.damages
        (('state',), 2, ())
    """

    path: str
    """The checkpoint."""

    checkpointables: tuple[str, ...]
    """Those that were checked; ``""`` is a tree whose own directory is the path."""

    leaf_count: int
    """How many leaves of trees were checked."""

    file_count: int
    """How many files were compared, wholly or in part."""

    checked_bytes: int
    """How many bytes of them were compared with what was saved."""

    damages: tuple[Damage, ...] = ()
    """Every damaged place, by file and place."""

    unvouched: tuple[str, ...] = ()
    """Files below the path that no record names: nobody can say whether they are as
    they were, and no load reads them. Looked for where everything is checked."""

    def __str__(self) -> str:
        return self._told(self.damages)

    def brief(self) -> str:
        """The summary with the first damages only."""
        return self._told(self.damages[:_SHOWN])

    def _told(self, shown: tuple[Damage, ...]) -> str:
        count = len(self.damages)
        files, leaves = _some(self.file_count, "file"), _some(self.leaf_count, "leaf")
        found = _some(count, "damaged place") if count else "no damage"
        lines = [
            f"{self.path}: {found} in {files} ({self.checked_bytes} bytes, {leaves})"
        ]
        lines += [f"  {damage}" for damage in shown]
        if len(shown) < count:
            lines.append(f"  … and {count - len(shown)} more")
        if self.unvouched:
            names = ", ".join(self.unvouched[:_SHOWN])
            more = ", …" if len(self.unvouched) > _SHOWN else ""
            lines.append(f"  not vouched for by any record: {names}{more}")
        return "\n".join(lines)


def _some(count: int, noun: str) -> str:
    plural = {"leaf": "leaves"}.get(noun, f"{noun}s")
    return f"{count} {noun if count == 1 else plural}"
