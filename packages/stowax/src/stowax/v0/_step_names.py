"""Steps by the names of their directories: digits, alone or behind a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator

from etils import epath

from stowax._formats._orbax_json import UNFINISHED_MARK
from stowax.errors import InvalidNameError

_STEP = re.compile(r"(?:.+_)?(\d+)", re.DOTALL)
_DRAFT = re.compile(rf".*?(\d+){re.escape(UNFINISHED_MARK)}")


def step_from_checkpoint_name(name: str) -> int:
    """The step of a directory of that name, or of the draft of one.

    Args:
        name: Such as `7`, `checkpoint_7`, or one of these with what a draft adds.

    Raises:
        InvalidNameError: It is none of a step.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.utils.step_from_checkpoint_name("checkpoint_0012")
        12
    """
    found = _STEP.fullmatch(name) or _DRAFT.match(name)
    if found is None:
        raise InvalidNameError(
            f"{name!r} is no name of a step; steps are digits, alone or after a prefix "
            "and an underscore"
        )
    return int(found[1])


def checkpoint_steps_paths(checkpoint_dir: epath.PathLike) -> list[epath.Path]:
    """The directories of steps that are whole, in no particular order.

    Args:
        checkpoint_dir: The directory above them; there need be none.

    Example:
        >>> from stowax import v0 as ocp
        >>> directory = getfixture("tmp_path")
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(directory / "checkpoint_12", {"x": 1})
        >>> [path.name for path in ocp.utils.checkpoint_steps_paths(directory)]
        ['checkpoint_12']
    """
    directory = epath.Path(checkpoint_dir)
    return list(_whole(directory)) if directory.exists() else []


def checkpoint_steps(checkpoint_dir: epath.PathLike) -> list[int]:
    """The steps that are whole, in no particular order.

    Args:
        checkpoint_dir: The directory above them; there need be none.

    Example:
        >>> from stowax import v0 as ocp
        >>> directory = getfixture("tmp_path")
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     for step in (2, 1):
        ...         checkpointer.save(directory / f"checkpoint_{step}", {"x": 1})
        >>> sorted(ocp.utils.checkpoint_steps(directory))
        [1, 2]
    """
    return [
        step_from_checkpoint_name(path.name)
        for path in checkpoint_steps_paths(checkpoint_dir)
    ]


def any_checkpoint_step(checkpoint_dir: epath.PathLike) -> int | None:
    """A step that is whole, whichever is found first; None if there is none.

    Args:
        checkpoint_dir: The directory above it.

    Raises:
        FileNotFoundError: There is no such directory.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.utils.any_checkpoint_step(getfixture("tmp_path")) is None
        True
    """
    found = next(_whole(epath.Path(checkpoint_dir)), None)
    return None if found is None else step_from_checkpoint_name(found.name)


def _whole(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        is_draft = UNFINISHED_MARK in path.name
        if _STEP.fullmatch(path.name) and not is_draft and path.is_dir():
            yield path
