"""What tests and tutorials of the older API begin with."""

from __future__ import annotations

from etils import epath

from stowax._public import claim as _claim

__all__ = ["erase_and_create_empty"]


def erase_and_create_empty(directory: epath.PathLike) -> epath.Path:
    """Makes an empty directory, in place of all that is there.

    Nothing is asked before it is deleted; a program that keeps checkpoints has no use
    for this.

    Args:
        directory: Its path; what is above it has to be there.

    Returns:
        The path.

    Example:
        >>> from stowax import v0 as ocp
        >>> directory = getfixture("tmp_path") / "checkpoints"
        >>> path = ocp.test_utils.erase_and_create_empty(directory)
        >>> list(path.iterdir())
        []
    """
    path = epath.Path(directory)
    if path.exists():
        path.rmtree()
    path.mkdir()
    return path


_claim(globals())
