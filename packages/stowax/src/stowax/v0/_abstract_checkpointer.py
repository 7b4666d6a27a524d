"""What all checkpointers of the older API have."""

from __future__ import annotations

import abc
from typing import Any


class AbstractCheckpointer(abc.ABC):
    """Saves and restores, all or nothing.

    Example:
        >>> from stowax import v0 as ocp
        >>> issubclass(ocp.StandardCheckpointer, ocp.AbstractCheckpointer)
        True
    """

    @abc.abstractmethod
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves an item to a path."""

    @abc.abstractmethod
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores the item of a path."""

    def structure(self, directory: Any) -> Any | None:
        """Nothing; `metadata` tells what is known."""
        del directory

    def metadata(self, directory: Any) -> Any | None:
        """What the item of a path looks like."""
        del directory

    def close(self) -> None:  # noqa: B027 most checkpointers have nothing to close
        """Lets go what it holds."""
