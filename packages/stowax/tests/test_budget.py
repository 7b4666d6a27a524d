"""Memory that operations share: who needs some waits, and nobody waits for ever."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax._budget import Budget


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30))
def test_no_more_is_taken_than_the_limit(steps):
    """Whatever is asked for and given back: the limit holds, or one has all alone."""
    budget, limit_bytes = Budget(), 40
    held, waiting = [], []
    for size_bytes, gives in steps:
        if gives and held:
            budget.give(held.pop(0))
        else:
            waiting.append((size_bytes, budget.take(size_bytes, limit_bytes=40)))
        granted = [size for size, future in waiting if future.done()]
        waiting = [(size, future) for size, future in waiting if not future.done()]
        held += granted
        assert budget.taken_bytes == sum(held)
        assert sum(held) <= limit_bytes or len([s for s in held if s]) == 1
    while held:
        budget.give(held.pop(0))
        held += [size for size, future in waiting if future.done()]
        waiting = [(size, future) for size, future in waiting if not future.done()]
    assert not waiting


def test_first_come_first_served():
    """A small wish does not overtake a large one, which would wait for ever."""
    budget = Budget()
    budget.take(60, limit_bytes=100)

    large = budget.take(90, limit_bytes=100)
    small = budget.take(10, limit_bytes=100)

    assert (large.done(), small.done()) == (False, False)
    budget.give(60)
    assert (large.done(), small.done()) == (True, True)


def test_more_than_there_is():
    """What is larger than the limit is had alone."""
    budget = Budget()

    assert budget.take(500, limit_bytes=100).done()
    assert not budget.take(1, limit_bytes=100).done()


def test_who_stops_to_wait_leaves_nothing_taken():
    """A wait that is cancelled takes no memory, and lets others pass."""
    budget = Budget()

    async def work():
        async with budget.hold(100, limit_bytes=100):
            waiting = asyncio.create_task(budget.wait_for(50, limit_bytes=100))
            behind = asyncio.create_task(budget.wait_for(20, limit_bytes=100))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await behind

    asyncio.run(work())

    assert budget.taken_bytes == 20


def test_who_gives_up_at_the_head_lets_others_pass():
    """What did not fit held up those behind it, until it was wanted no more."""
    budget = Budget()
    budget.take(50, limit_bytes=100)

    async def work():
        waiting = asyncio.create_task(budget.wait_for(60, limit_bytes=100))
        await asyncio.sleep(0)
        behind = budget.take(20, limit_bytes=100)
        assert not behind.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return behind.done()

    assert asyncio.run(work())
    assert budget.taken_bytes == 70


def test_who_gives_up_when_it_is_granted():
    """What is granted to a wait that is being cancelled is given back."""
    budget = Budget()
    budget.take(100, limit_bytes=100)

    async def work():
        waiting = asyncio.create_task(budget.wait_for(60, limit_bytes=100))
        await asyncio.sleep(0)
        budget.give(100)
        waiting.cancel()  # Before the loop could tell it.
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(work())

    assert budget.taken_bytes == 0


def test_many_threads():
    """Loops of several threads share one budget."""
    budget, limit_bytes = Budget(), 30
    seen = []

    async def work():
        for size_bytes in range(1, 25):
            async with budget.hold(size_bytes, limit_bytes=limit_bytes):
                seen.append(budget.taken_bytes)

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert budget.taken_bytes == 0
    assert 24 <= budget.peak_bytes <= limit_bytes
    assert max(seen) <= limit_bytes


def test_a_gauge_shows_the_most_since_somebody_looks():
    """What was taken before counts if it is still taken; what is given back stays."""
    budget = Budget()
    budget.take(50, limit_bytes=100)
    budget.take(30, limit_bytes=100)
    budget.give(30)
    gauge = budget.ledger.gauge()

    assert gauge.peak_bytes == 50
    budget.take(40, limit_bytes=100)
    budget.take(40, limit_bytes=100)  # Waits.
    budget.give(40)
    assert gauge.peak_bytes == 90
    assert budget.ledger.gauge().peak_bytes == 90
    budget.give(90)
    assert (gauge.peak_bytes, budget.ledger.gauge().peak_bytes) == (90, 0)
