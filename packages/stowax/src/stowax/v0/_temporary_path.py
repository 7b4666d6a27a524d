"""Names for the ways in which a checkpoint becomes visible."""

from __future__ import annotations


class TemporaryPath:
    """A way to make a checkpoint that nobody sees until it is whole.

    What a save does is chosen with the class, in `temporary_path_class`; it is not for
    users to make one.

    Example:
        >>> from stowax import v0 as ocp
        >>> kinds = ocp.path.atomicity
        >>> issubclass(kinds.AtomicRenameTemporaryPath, kinds.TemporaryPath)
        True
    """


class AtomicRenameTemporaryPath(TemporaryPath):
    """A draft beside the final path, which is renamed: what is done in any case.

    Example:
        >>> from stowax import v0 as ocp
        >>> checkpointer = ocp.Checkpointer(
        ...     ocp.PyTreeCheckpointHandler(),
        ...     temporary_path_class=ocp.path.atomicity.AtomicRenameTemporaryPath,
        ... )
    """


class CommitFileTemporaryPath(TemporaryPath):
    """A directory at the final path, which is whole when a file in it says so.

    Refused: a rename is safer wherever there is one. The file is written all the same,
    so that readers that look for it find it.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7})
        >>> (path / "commit_success.txt").exists()
        True
    """
