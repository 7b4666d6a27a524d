"""What a load would do, leaf by leaf, in words: shown by a dry run, or in an error.

One line per leaf is a row; rows that stand against the load are problems.  Both the
table of a dry run and the error of a load are made of the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stowax._plan._rename import near_rule, show_rule
from stowax.errors import TreeMismatchError

Outcome = Literal["as is", "cast", "padded", "cast, padded", "not loaded", "mismatch"]

Cause = Literal["", "name", "extra", "shape", "cast", "x64", "mesh", "kind"]
"""Why a row is a mismatch: not stored under the name, stored and not asked for, …"""

AskedBy = Literal["state", "rules", "nobody"]
"""What a load is held to: an abstract state, rules alone, or what was saved."""

_SHOWN = 20
"""Problems in the message of an error; its attribute has them all."""

_WIDTH = 48
"""Names up to here are aligned in messages."""

_RULES_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPreview:
    """What would happen to one leaf.

    Example:
        >>> import jax, jax.numpy as jnp, stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"w": jnp.ones((4, 5))})
        >>> narrower = jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)
        >>> row = stowax.preview_load(path, {"w": narrower}).rows[0]
        >>> row.target, row.stored_form, row.asked_form, row.outcome
        ('w', 'float32[4, 5]', 'bfloat16[4, 5]', 'cast')
    """

    target: str | None
    """Its name in the result; None for a stored leaf that the result has no place
    for. Of a tree that is one leaf it is empty; ``''`` is the leaf below an empty
    key."""

    stored: str | None
    """The name of the stored leaf that it is made of; None if there is none."""

    asked_form: str = ""
    """What is asked for, ``float32[4, 5]``; empty where nothing is."""

    stored_form: str = ""
    """What is stored."""

    outcome: Outcome
    """Loaded as it is; cast to another dtype; padded or cut to another shape; not
    loaded, because nobody asked for it; or a mismatch, which a load would raise."""

    note: str = ""
    """What is lost, or why it does not fit."""

    cause: Cause = ""
    """Kind of a mismatch."""

    near: str | None = None
    """A stored name that was probably meant."""

    def __str__(self) -> str:
        name, what = self._said()
        return f"{name}: {what}"

    def _said(self) -> tuple[str, str]:
        name = self.target if self.target is not None else self.stored
        if self.target is not None and self.stored not in (None, self.target):
            name = f"{self.target or '<root>'} (stored as {self.stored or '<root>'!r})"
        if self.target is None:
            what = f"stored {self.stored_form}, not asked for"
        elif self.cause == "name":
            what = f"asked {self.asked_form}, not stored"
        elif not self.asked_form:
            what = f"stored {self.stored_form}"
        else:
            what = f"asked {self.asked_form}, stored {self.stored_form}"
        if self.note:
            what += f"; {self.note}"
        return name or "<root>", what


class LoadPreview:
    """What a load would do; made by `stowax.preview_load`.

    Printed, it is a table. Two previews are equal if all their rows are.

    Example:
        >>> import stowax
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> stowax.save(path, {"step": 7, "lr": 0.1})
        >>> preview = stowax.preview_load(path, {"step": int})
        >>> preview.problems
        ('lr: stored float, not asked for',)
        >>> preview.check()
        Traceback (most recent call last):
        ...
        stowax.errors.TreeMismatchError: the abstract state, of 1 leaves, ...
    """

    def __init__(
        self,
        path: str,
        rows: Sequence[LeafPreview],
        other_problems: Sequence[str] = (),
        *,
        asked_by: AskedBy = "state",
    ) -> None:
        self._path = path
        self._asked_by: AskedBy = asked_by
        self._rows = tuple(rows)
        self._other_problems = tuple(other_problems)

    @property
    def path(self) -> str:
        """The directory of the tree."""
        return self._path

    @property
    def rows(self) -> tuple[LeafPreview, ...]:
        """All leaves: those of the result in its order, then the others."""
        return self._rows

    @property
    def problems(self) -> tuple[str, ...]:
        """Why a load would raise `TreeMismatchError`, a line each; empty: it loads."""
        rows = [str(row) for row in self._rows if row.outcome == "mismatch"]
        return (*self._other_problems, *rows)

    def check(self) -> None:
        """Raises what a load would raise.

        Raises:
            TreeMismatchError: Lists every problem, and what would help.
        """
        if not self.problems:
            return
        bad = [row for row in self._rows if row.outcome == "mismatch"]
        lines = [*self._other_problems, *_aligned(bad)]
        shown = [f"  {line}" for line in lines[:_SHOWN]]
        if len(lines) > _SHOWN:
            shown.append(f"  … and {len(lines) - _SHOWN} more (see `problems`)")
        raise TreeMismatchError(
            f"{self._head()}:\n"
            + "\n".join(shown)
            + "\nNothing was loaded. What may help:\n"
            + "\n".join(f"  {line}" for line in _advice(bad, self._asked_by)),
            self.problems,
        )

    def _head(self) -> str:
        if self._asked_by == "nobody":
            return f"the tree at {self._path} cannot be loaded as it was saved"
        if self._asked_by == "rules":
            return (
                "the rules of `PyTreeOptions.Loading.rename` do not fit the checkpoint "
                f"at {self._path}"
            )
        asked = sum(row.target is not None for row in self._rows)
        return (
            f"the abstract state, of {asked} leaves, does not fit the checkpoint at "
            f"{self._path}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LoadPreview):
            return NotImplemented
        return (self._path, self._rows, self._other_problems) == (
            other._path,
            other._rows,
            other._other_problems,
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as of any such value

    def __str__(self) -> str:
        head = ("result", "stored as", "stored", "asked", "what happens")
        cells = [head, *map(_cells, self._rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
        lines = [
            "  ".join(
                [*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]
            )
            for row in cells
        ]
        counts = _counted(self._rows)
        return "\n".join([self._path, *lines, *self._other_problems, counts])

    __repr__ = __str__


def _cells(row: LeafPreview) -> tuple[str, ...]:
    target, stored = row.target, row.stored
    happens = f"{row.outcome}: {row.note}" if row.note else row.outcome
    return (
        "-" if target is None else target or "<root>",
        "-" if stored is None else stored or "<root>",
        row.stored_form or "-",
        row.asked_form or "-",
        happens,
    )


def _counted(rows: Iterable[LeafPreview]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "no leaves"


def _aligned(rows: Sequence[LeafPreview]) -> list[str]:
    said = [row._said() for row in rows]  # pyright: ignore[reportPrivateUsage] - ours
    fitting = [len(name) for name, _ in said[:_SHOWN] if len(name) <= _WIDTH]
    width = max(fitting, default=0)
    return [f"{name}:".ljust(width + 2) + what for name, what in said]


def _advice(rows: Sequence[LeafPreview], asked_by: AskedBy) -> list[str]:
    """The calls that would make the load go on, for what is actually wrong."""
    causes = {row.cause for row in rows}
    lines: list[str] = []
    rules = _near_rules(rows)
    if rules:
        shown = ", ".join(show_rule(*rule) for rule in rules[:_RULES_SHOWN])
        more = ", …" if len(rules) > _RULES_SHOWN else ""
        lines.append(
            f"if that is its name: PyTreeOptions.Loading(rename={{{shown}{more}}})"
        )
    if "name" in causes:
        lines.append(
            "to go without what is not stored: stowax.PLACEHOLDER in its place"
        )
    if "extra" in causes:
        lines.append(
            "to leave out what is not asked for: "
            "PyTreeOptions.Loading(partial_load=True), or stowax.PLACEHOLDER"
        )
    if "shape" in causes:
        lines.append(
            "to pad with zeros and to cut: "
            "ArrayOptions.Loading(enable_padding_and_truncation=True)"
        )
    if causes & {"cast", "x64"}:
        other = "; or ask for the stored dtype" if "cast" in causes else ""
        lines.append(
            f"to convert nevertheless: ArrayOptions.Loading(casting='unsafe'){other}"
        )
    if "x64" in causes:
        lines.append(
            "to keep 64 bits: jax.config.update('jax_enable_x64', True); or "
            "numpy.ndarray in its place, or ArrayOptions.Loading(as_numpy=True)"
        )
    if "mesh" in causes:
        lines.append(
            "to place what is sharded over an abstract mesh: `with jax.set_mesh(mesh)`,"
            " or ArrayOptions.Loading(mesh=mesh)"
        )
    shown = "path, abstract_state" if asked_by == "state" else "path"
    lines.append(f"to see it all: stowax.preview_load({shown}), stowax.metadata(path)")
    return lines


def _near_rules(rows: Sequence[LeafPreview]) -> list[tuple[str, str]]:
    rules = [
        near_rule(row.target, row.near)
        for row in rows
        if row.near is not None and row.target is not None
    ]
    return list(dict.fromkeys(rules))
