"""What can go wrong, in the caller's words.

Every error of this library derives from `StowaxError` and from the built-in exception
that a caller would expect for the same situation, so that neither has to be known to
handle the other:

    StowaxError
    ├── CheckpointExistsError        (ValueError, FileExistsError)
    │   ├── StepAlreadyExistsError
    │   └── SaveInProgressError
    ├── InvalidLayoutError           (ValueError)
    │   ├── CheckpointNotFoundError      (FileNotFoundError)
    │   │   └── StepNotFoundError
    │   ├── CheckpointableNotFoundError  (KeyError)
    │   │   ├── DeletionInProgressError      (RuntimeError)
    │   │   └── NothingToDeleteError         (FileNotFoundError)
    │   ├── DeletionRecoveryError        (RuntimeError)
    │   └── NotADirectoryLayoutError     (NotADirectoryError)
    ├── InvalidNameError             (ValueError, TypeError)
    ├── InvalidMetadataError         (ValueError, TypeError)
    ├── TreeError                    (ValueError)
    │   ├── KeyPathCollisionError
    │   ├── UnsupportedLeafError     (TypeError)
    │   │   └── DeletedArrayError    (RuntimeError)
    │   ├── TreeMismatchError
    │   ├── RenameError
    │   ├── PartialSaveReplacementError
    │   ├── LeafNotFoundError        (KeyError)
    │   └── LeafIndexError           (IndexError)
    ├── CorruptCheckpointError       (ValueError)
    │   └── DamageError
    ├── NoChecksumsError             (ValueError)
    ├── HandlerError                 (ValueError)
    │   ├── HandlerNotFoundError     (KeyError)
    │   └── InvalidJsonError         (TypeError)
    ├── SaveError                    (RuntimeError)
    │   └── BackgroundSaveError
    ├── ProcessesError               (RuntimeError)
    │   ├── PeerFailedError
    │   └── DeadlineError            (TimeoutError)
    ├── HostMemoryError              (MemoryError)
    ├── ContextInUseError            (RuntimeError)
    ├── ContextNotActiveError        (RuntimeError)
    ├── RunningLoopError             (RuntimeError)
    └── UnsupportedOptionError       (ValueError)
        └── InvalidArgumentError         (TypeError)

Messages name the path, the leaf, what was expected and what was found, and propose a
fix that uses public names only. What the operating system says (`PermissionError`, a
full disk) and what a user's own code raises is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackgroundSaveError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CheckpointableNotFoundError",
    "ContextInUseError",
    "ContextNotActiveError",
    "CorruptCheckpointError",
    "DamageError",
    "DeadlineError",
    "DeletedArrayError",
    "DeletionInProgressError",
    "DeletionRecoveryError",
    "HandlerError",
    "HandlerNotFoundError",
    "HostMemoryError",
    "InvalidArgumentError",
    "InvalidJsonError",
    "InvalidLayoutError",
    "InvalidMetadataError",
    "InvalidNameError",
    "KeyPathCollisionError",
    "LeafIndexError",
    "LeafNotFoundError",
    "NoChecksumsError",
    "NotADirectoryLayoutError",
    "NothingToDeleteError",
    "PartialSaveReplacementError",
    "PeerFailedError",
    "ProcessesError",
    "RenameError",
    "RunningLoopError",
    "SaveError",
    "SaveInProgressError",
    "StepAlreadyExistsError",
    "StepNotFoundError",
    "StowaxError",
    "TreeError",
    "TreeMismatchError",
    "UnsupportedLeafError",
    "UnsupportedOptionError",
]


class StowaxError(Exception):
    """Root of everything this library raises on purpose.

    Example:
        >>> import stowax
        >>> try:
        ...     stowax.load("/no/such/checkpoint")
        ... except stowax.errors.StowaxError as error:
        ...     print(type(error).__name__)
        CheckpointNotFoundError
    """

    def __str__(self) -> str:
        # Our messages are sentences; a KeyError would show their repr.
        return Exception.__str__(self)


class CheckpointExistsError(StowaxError, ValueError, FileExistsError):
    """Something is already saved at the path, and `overwrite=True` was not given."""


class StepAlreadyExistsError(CheckpointExistsError):
    """The step was saved before, and `overwrite=True` was not given."""


class SaveInProgressError(CheckpointExistsError):
    """A save to the same path is under way in this process; wait for it first."""


class InvalidLayoutError(StowaxError, ValueError):
    """What is at the path is not a complete checkpoint of a known format."""


class CheckpointNotFoundError(InvalidLayoutError, FileNotFoundError):
    """There is nothing at the path."""


class StepNotFoundError(CheckpointNotFoundError):
    """The directory of steps has no such step."""


class CheckpointableNotFoundError(InvalidLayoutError, KeyError):
    """The checkpoint holds no checkpointable of that name."""


class DeletionInProgressError(CheckpointableNotFoundError, RuntimeError):
    """Orbax began to delete the checkpointable, and has not finished.

    `stowax.delete` with its name finishes it.
    """


class NothingToDeleteError(CheckpointableNotFoundError, FileNotFoundError):
    """The checkpoint has no checkpointable of the name that is to be deleted."""


class DeletionRecoveryError(InvalidLayoutError, RuntimeError):
    """Orbax began to delete another checkpointable, and has not finished."""


class NotADirectoryLayoutError(InvalidLayoutError, NotADirectoryError):
    """The path is a file; a checkpoint is a directory."""


class InvalidNameError(StowaxError, ValueError, TypeError):
    """A path, a step, or a name of a checkpointable or leaf that cannot be one."""


class InvalidMetadataError(StowaxError, ValueError, TypeError):
    """Metadata or metrics that are no JSON object; nothing was written."""


class TreeError(StowaxError, ValueError):
    """A tree that cannot be saved or loaded as asked."""


class KeyPathCollisionError(TreeError):
    """Two leaves would get one name on disk; nothing was written."""


class UnsupportedLeafError(TreeError, TypeError):
    """Leaves that a checkpoint cannot hold; nothing was written, or loaded.

    Attributes:
        problems: One line per such leaf: its name, what it is, what to do.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class DeletedArrayError(UnsupportedLeafError, RuntimeError):
    """A leaf is an array that was deleted or donated; nothing was written."""


class TreeMismatchError(TreeError):
    """The abstract state and the checkpoint differ; nothing was loaded.

    Attributes:
        problems: One line per leaf that does not fit: key path, asked, stored.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class RenameError(TreeError):
    """Rules of `PyTreeOptions.Loading.rename` that no load could follow."""


class PartialSaveReplacementError(TreeError):
    """A partial save names what its session has already, and may not replace it."""


class LeafNotFoundError(TreeError, KeyError):
    """The tree has no leaf of that name."""


class LeafIndexError(TreeError, IndexError):
    """An index that selects no slice of the stored leaf."""


class CorruptCheckpointError(StowaxError, ValueError):
    """Bytes on disk are not the bytes that were saved."""


class DamageError(CorruptCheckpointError):
    """What `stowax.verify` found: every damaged place at once.

    Attributes:
        report: All of it, a `stowax.VerifyReport`.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class NoChecksumsError(StowaxError, ValueError):
    """Nobody recorded what the bytes of a checkpoint have to be, as in those of Orbax.

    It may be whole or damaged; nothing here can tell.
    """


class HandlerError(StowaxError, ValueError):
    """No handler can save or load a checkpointable, or one broke its contract."""


class HandlerNotFoundError(HandlerError, KeyError):
    """No handler is registered for a name, or can save or load a checkpointable."""


class InvalidJsonError(HandlerError, TypeError):
    """A value that JSON cannot say; nothing was written."""


class SaveError(StowaxError, RuntimeError):
    """A save did not complete; what was saved before is untouched."""


class BackgroundSaveError(SaveError):
    """An earlier background save failed and nobody had asked for its result."""


class ProcessesError(StowaxError, RuntimeError):
    """The processes of a run could not agree."""


class PeerFailedError(ProcessesError):
    """Another process failed its part of the operation."""


class DeadlineError(ProcessesError, TimeoutError):
    """An operation, or a wait for other processes, took longer than allowed."""


class HostMemoryError(StowaxError, MemoryError):
    """The host has no memory for a leaf that is to be loaded; nothing was loaded."""


class ContextInUseError(StowaxError, RuntimeError):
    """Options were assigned to while their Context was active."""


class ContextNotActiveError(StowaxError, RuntimeError):
    """A Context was left that nobody had entered, or that all had left before."""


class RunningLoopError(StowaxError, RuntimeError):
    """A call was made where its loop cannot serve it.

    On that loop itself, which would wait for its own end, or in a forked child, which
    has no loop.
    """


class UnsupportedOptionError(StowaxError, ValueError):
    """An option is set to a value that it cannot have, or that is not built yet."""


class InvalidArgumentError(UnsupportedOptionError, TypeError):
    """An argument is of a kind that it cannot be; nothing was touched."""
