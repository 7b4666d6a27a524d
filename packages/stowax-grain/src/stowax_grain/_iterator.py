"""A Grain iterator as a checkpointable of its own.

The position is taken on the thread that asks for the save, before `save_async`
returns: a Grain iterator that is read by one thread while another advances it reports
positions it never had.
"""

from __future__ import annotations

import copy
import difflib
import json
import warnings
from collections.abc import Awaitable
from typing import Any, Literal

import grain

from stowax import errors, multihost
from stowax.path import Path, PathAwaitingCreation
from stowax_grain._documents import (
    Kind,
    Position,
    encode_position,
    read_position,
    write_position,
)
from stowax_grain._fingerprint import fingerprint

__all__ = ["Iterator"]


class Iterator:
    """Saves and loads the position of a Grain iterator.

    Works for what `iter` makes of a `grain.MapDataset`, a `grain.IterDataset` or a
    `grain.DataLoader`, and for any object with Grain's `get_state` and `set_state`.
    Goes on using the wrapped iterator: `next(iterator)` as before.

    A load is all or nothing: the iterator continues exactly where the saved one stood,
    or an error is raised and it stays where it was.

    Args:
        iterator: The iterator. Advance it only on the thread that saves.
        tag: Names what the pipeline's description cannot show, such as the version of
            the data; loads with another tag are refused.
        check: What to do when the pipeline is not the one that was saved: `"error"`
            raises, `"warn"` warns and loads, `"off"` does not look.
        process_index: Which of the processes that read the data this is. By default
            `stowax.multihost.process_index()`, asked when the object is made; so
            initialise `jax.distributed` before.
        process_count: How many processes read the data; by default all of the run.

    Example:
        >>> import grain, stowax, stowax_grain
        >>> dataset = grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset()
        >>> data = iter(dataset)
        >>> seen = [next(data) for _ in range(3)]
        >>> stowax.save_checkpointables(
        ...     "checkpoint", {"data": stowax_grain.Iterator(data)}
        ... )
        >>> resumed = iter(dataset)
        >>> _ = stowax.load_checkpointables(
        ...     "checkpoint", {"data": stowax_grain.Iterator(resumed)}
        ... )
        >>> next(resumed) == next(data)
        True
    """

    def __init__(
        self,
        iterator: Any,
        *,
        tag: str | None = None,
        check: Literal["error", "warn", "off"] = "error",
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> None:
        if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
            raise errors.HandlerError(
                f"{type(iterator).__name__} has no position to save; wrap the iterator"
                " that iter() makes of it: stowax_grain.Iterator(iter(dataset))"
            )
        if check not in ("error", "warn", "off"):
            raise ValueError(f'check must be "error", "warn" or "off", not {check!r}')
        index = multihost.process_index() if process_index is None else process_index
        count = multihost.process_count() if process_count is None else process_count
        if not 0 <= index < count:
            raise ValueError(f"process_index {index} is not one of {count} processes")
        self._iterator = iterator
        self._tag = tag
        self._check = check
        self._process_index = index
        self._process_count = count

    def __repr__(self) -> str:
        return f"stowax_grain.Iterator({self._iterator!r}, tag={self._tag!r})"

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Takes the position now; the awaitable it returns writes it.

        Raises:
            stowax.errors.UnsupportedLeafError: The state of a custom iterator holds a
                value that JSON cannot say exactly.
        """
        documents = encode_position(
            self._position(), is_primary=multihost.is_primary_host()
        )

        async def write() -> None:
            write_position(await directory.await_creation(), documents)

        return write()

    async def load(self, directory: Path) -> Awaitable[None]:
        """Reads and checks the position now; the awaitable it returns sets it.

        Raises:
            stowax.errors.InvalidLayoutError: The directory holds no iterator, or one
                that a later release wrote.
            stowax.errors.TreeMismatchError: Another pipeline, tag, kind of iterator or
                number of processes was saved.
            stowax.errors.CorruptCheckpointError: A document is damaged or missing.
        """
        stored = read_position(
            directory,
            kind=self._kind,
            process_index=self._process_index,
            process_count=self._process_count,
        )
        self._check_kind(stored, directory)
        self._check_pipeline(stored, directory)

        async def move() -> None:
            self._move_to(stored, directory)

        return move()

    @property
    def _kind(self) -> Kind:
        if isinstance(self._iterator, grain.DataLoaderIterator):
            return "data_loader"
        return "dataset"

    def _position(self) -> Position:
        state = self._iterator.get_state()
        return Position(
            kind=self._kind,
            # A data loader's state is the bytes of a JSON document.
            state=json.loads(state) if self._kind == "data_loader" else state,
            process_index=self._process_index,
            process_count=self._process_count,
            fingerprint=fingerprint(self._iterator),
            tag=self._tag,
            grain_version=grain.__version__,
        )

    def _check_kind(self, stored: Position, directory: Path) -> None:
        if stored.kind != self._kind:
            raise errors.TreeMismatchError(
                f"{directory} holds the position of a {stored.kind} iterator, and the"
                f" iterator to load into is a {self._kind} iterator"
            )

    def _check_pipeline(self, stored: Position, directory: Path) -> None:
        if self._check == "off" or stored.fingerprint is None:
            return
        difference = _difference(
            _described(stored.fingerprint, stored.tag),
            _described(fingerprint(self._iterator), self._tag),
        )
        if not difference:
            return
        headline = (
            f"the pipeline saved at {directory} is not the one to load into, where its"
            " position would name other elements:"
        )
        message = "\n".join([headline, *difference])
        if stored.grain_version != grain.__version__:
            message += (
                f"\n(saved with Grain {stored.grain_version}, loaded with"
                f" {grain.__version__}: releases may describe one pipeline differently)"
            )
        if self._check == "error":
            raise errors.TreeMismatchError(
                f'{message}\nMake them equal, or pass check="warn" when the elements'
                " are the same nevertheless",
                problems=difference,
            )
        warnings.warn(message, stacklevel=2)

    def _move_to(self, stored: Position, directory: Path) -> None:
        # What get_state hands out may still belong to the iterator, and an iterator may
        # keep and change what set_state is given; `stored` was decoded for this load.
        before = copy.deepcopy(self._iterator.get_state())
        state = stored.state
        if stored.kind == "data_loader":
            state = json.dumps(state, indent=4).encode()
        try:
            self._iterator.set_state(state)
        except Exception as error:  # Grain raises whatever it stumbles over.
            self._iterator.set_state(before)
            raise errors.TreeMismatchError(
                f"the iterator does not take the position saved at {directory}, and was"
                f" left where it was; it said {type(error).__name__}: {error}"
            ) from error


def _described(lines: tuple[str, ...], tag: str | None) -> list[str]:
    return [f"tag: {tag}", *lines]


def _difference(saved: list[str], loading: list[str]) -> list[str]:
    """Compares two descriptions; empty when they are equal."""
    context_count = max(len(saved), len(loading))
    lines = difflib.unified_diff(
        saved, loading, "saved", "loading", lineterm="", n=context_count
    )
    # The hunk header counts lines of a file that nobody has.
    return [line for line in lines if not line.startswith("@@")]
