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
    unused = dict(stored)
    problems: list[str] = []
    for path, skip in zip(target.paths, skipped, strict=True):
        texts = _texts(path)
        if skip:
            found.append(-1)
            for other in [t for t in unused if t[: len(texts)] == texts]:
                del unused[other]
            continue
        position = stored.get(texts, -1)
        found.append(position)
        unused.pop(texts, None)
        if position < 0:
            near = _nearest(leaf_name(path), entries)
            hint = f"; stored is {near!r}" if near else ""
            problems.append(f"{leaf_name(path) or '<root>'}: asked, not stored{hint}")
    if not partial:
        problems += [
            f"{entries[i].name or '<root>'}: stored, not asked for"
            for i in unused.values()
        ]
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
    return tuple(key.text for key in path)


def _nearest(name: str, entries: Sequence[LeafEntry]) -> str | None:
    names = [entry.name for entry in entries]
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)
