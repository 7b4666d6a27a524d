"""A target tree held against a stored one: every mismatch at once.

Paths are compared by the texts of their keys, because that is all a checkpoint of
Orbax records; containers are the target's business.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from stowax._keypath import FlatTree, KeyPath, leaf_name
from stowax._manifest import LeafEntry
from stowax.errors import TreeMismatchError

_SHOWN = 20
"""Problems in the message, and problems with a hint: hints cost more than the rest."""

_COMPARED = 1000
"""Names that are looked at for a hint; the time it takes grows with every one."""


def match_paths(
    target: FlatTree,
    entries: Sequence[LeafEntry],
    *,
    where: str,
    skipped: Sequence[bool],
    partial: bool,
) -> tuple[int, ...]:
    """Finds the stored leaf for every leaf of the target.

    Args:
        target: The abstract state.
        entries: The stored leaves.
        where: The checkpoint, for messages.
        skipped: For every leaf of the target whether it is not to be loaded; such a
            leaf also covers all stored leaves below its path.
        partial: Whether stored leaves may be left out of the target.

    Returns:
        For every leaf of the target the position of its entry, -1 if skipped.

    Raises:
        TreeMismatchError: Names every leaf that is missing on either side.
    """
    stored = {_texts(entry.path): i for i, entry in enumerate(entries)}
    found: list[int] = []
    missing: list[str] = []
    covered: set[tuple[str, ...]] = set()
    for path, skip in zip(target.paths, skipped, strict=True):
        texts = _texts(path)
        position = -1 if skip else stored.get(texts, -1)
        found.append(position)
        if skip:
            covered.add(texts)
        elif position < 0:
            missing.append(leaf_name(path))
    asked = set(found)
    unused = [
        entries[i].name
        for texts, i in stored.items()
        if i not in asked
        and not (covered and any(texts[:n] in covered for n in range(len(texts) + 1)))
    ]
    problems = [
        f"{name or '<root>'}: asked, not stored"
        + (_hint(name, unused[:_COMPARED]) if shown < _SHOWN else "")
        for shown, name in enumerate(missing)
    ]
    if not partial:
        problems += [f"{name or '<root>'}: stored, not asked for" for name in unused]
    check(problems, where=where, count=len(target.paths))
    return tuple(found)


def check(problems: Sequence[str], *, where: str, count: int) -> None:
    """Raises all problems as one error, if there are any.

    Raises:
        TreeMismatchError: Lists them, and says how to go on.
    """
    if not problems:
        return
    shown = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"  … and {len(problems) - _SHOWN} more (see `problems`)")
    raise TreeMismatchError(
        f"the abstract state, of {count} leaves, does not fit the checkpoint at "
        f"{where}:\n" + "\n".join(shown) + "\nNothing was loaded. See what is stored "
        "with `stowax.metadata(path)`; leave leaves out with `stowax.PLACEHOLDER` or "
        "`PyTreeOptions.Loading(partial_load=True)`.",
        problems,
    )


def _texts(path: KeyPath) -> tuple[str, ...]:
    return tuple([key.text for key in path])


def _hint(name: str, unused: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, unused, n=1)
    return f"; stored is {near[0]!r}" if near else ""
