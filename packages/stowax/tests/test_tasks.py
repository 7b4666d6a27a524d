import asyncio

import pytest

from stowax._tasks import run_all


async def give(value):
    """Returns the value."""
    return value


async def fail(error):
    """Raises the error."""
    raise error


def test_results_in_order():
    """The results stand in the order of the coroutines."""

    async def main():
        first = asyncio.Event()

        async def late():
            await first.wait()
            return "late"

        async def early():
            first.set()
            return "early"

        return await run_all([late(), early()])

    assert asyncio.run(main()) == ["late", "early"]


def test_nothing_to_do():
    """No coroutines, no results."""
    assert asyncio.run(run_all([])) == []


def test_first_failure_is_plain():
    """The failure comes out as it was, not in a group; others are in its notes."""
    error = KeyError("first")

    with pytest.raises(KeyError) as caught:
        asyncio.run(run_all([fail(error), fail(OSError("second")), give(1)]))

    assert caught.value is error
    assert caught.value.__notes__ == ["and: OSError: second"]


def test_nested_groups_are_flattened():
    """Groups inside come out as their first failure, too."""
    group = ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [OSError("b")])])

    with pytest.raises(ValueError, match="a") as caught:
        asyncio.run(run_all([fail(group)]))

    assert caught.value.__notes__ == ["and: OSError: b"]


def test_all_have_ended():
    """When it raises, no other coroutine is running any more."""
    ended = []

    async def patient():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("patient")

    async def main():
        with pytest.raises(OSError):
            await run_all([patient(), fail(OSError())])
        return list(ended)

    assert asyncio.run(main()) == ["patient"]


def test_cause_is_kept():
    """The cause of the failure is still its own."""
    error = KeyError("x")
    error.__cause__ = OSError("disk")

    with pytest.raises(KeyError) as caught:
        asyncio.run(run_all([fail(error)]))

    assert isinstance(caught.value.__cause__, OSError)
