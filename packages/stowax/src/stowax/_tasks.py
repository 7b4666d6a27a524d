"""Several coroutines as one: all end together, and one plain error comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
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
    except BaseExceptionGroup as failures:
        first, *others = _leaves(failures)
        for other in others:
            first.add_note(f"and: {type(other).__name__}: {other}")
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
