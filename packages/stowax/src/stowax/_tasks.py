"""Several coroutines as one: all end together, and one plain error comes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Generator, Iterable, Sequence
from typing import Any


async def run_all(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Runs all side by side; the first failure cancels the rest.

    Returns:
        The results in order.

    Raises:
        Exception: The first failure as it was; others that came before the rest could
            be cancelled are attached to it as notes.
    """
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:  # The group's own form; one goes on alone.
        first = _first_of(_leaves(failures))
        raise first from first.__cause__
    return [task.result() for task in tasks]


async def finish_all(awaitables: Iterable[Awaitable[Any]]) -> None:
    """Waits until every one has ended; then raises the first failure, if any.

    For work that cannot be cancelled halfway, such as that of a guest.
    """
    outcomes = await asyncio.gather(*awaitables, return_exceptions=True)
    failures = [o for o in outcomes if isinstance(o, BaseException)]
    if failures:
        raise _first_of(failures)


def drop(awaitable: Awaitable[Any]) -> None:
    """Ends what nobody is going to await, so that nobody is told of it as forgotten."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


@contextlib.contextmanager
def noting(note: str) -> Generator[None]:
    """Adds to an error what it is about; its class and message stay as they are."""
    try:
        yield
    except Exception as error:  # Whatever it is, its reader wants to know.
        error.add_note(note)
        raise


def tell(error: BaseException) -> str:
    """An error in one line, with its notes."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}" + (f" ({notes})" if notes else "")


def _first_of(failures: Sequence[BaseException]) -> BaseException:
    first, *others = failures
    for other in others:
        first.add_note(f"and: {type(other).__name__}: {other}")
    return first


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
