"""Several processes in one: each is a thread, with a runtime and peers of its own.

The devices are real and all in this process; which simulated process owns one is
decided here. Meetings are held over a board in memory, fail as those of
`jax.distributed` do, and never wait for a process that cannot come any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import jax

from stowax._processes import describe_missing, missed
from stowax._runtime import Runtime
from stowax.errors import PeerFailedError

T = TypeVar("T")


class SimulatedCluster:
    """A number of simulated processes that share this process's devices.

    Process `i` owns the devices from `i * k` up to `(i + 1) * k`, for `k` devices each.

    Args:
      count: How many processes; the first is the primary.
      devices: Devices to share out evenly; None takes all of them. To JAX all of them
        are those of one process, so that a simulated process can load onto its own
        devices alone, and not onto a mesh over those of several.

    Example:
      >>> from stowax.testing import SimulatedCluster
      >>> with SimulatedCluster(2) as cluster:
      ...
      ...     def meet(index):
      ...         runtime = cluster.runtimes[index]
      ...         value = str(index).encode()
      ...         peers = runtime.processes
      ...         return runtime.run(peers.gather("meet", value, timeout_secs=10))
      ...
      ...     cluster.run(meet)
      [(b'0', b'1'), (b'0', b'1')]
    """

    def __init__(
        self, count: int, *, devices: Sequence[jax.Device] | None = None
    ) -> None:
        self._devices = devices
        self._board = _Board(count)
        self.processes = tuple(
            SimulatedProcesses(self._board, index, self._owner)
            for index in range(count)
        )
        self.runtimes = tuple(
            Runtime(processes=processes) for processes in self.processes
        )

    def run(self, function: Callable[..., T], *args: Any) -> list[T]:
        """Calls `function(index, *args)` in every process at once.

        A process whose call fails is missed at once by those that wait for it.

        Returns:
          The results by process index.

        Raises:
          BaseExceptionGroup: With the error of each process that failed.
        """
        self._board.open()
        outcomes: list[concurrent.futures.Future[T]] = [
            concurrent.futures.Future() for _ in self.processes
        ]

        def call(index: int) -> None:
            try:
                result = function(index, *args)
            except BaseException as error:  # noqa: BLE001 raised in the group below
                error.add_note(f"in simulated process {index}")
                self._board.abandon(index)
                outcomes[index].set_exception(error)
            else:
                outcomes[index].set_result(result)

        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(call, index),
                name=f"stowax-simulated-process-{index}",
            )
            for index in range(len(self.processes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [error for outcome in outcomes if (error := outcome.exception())]
        if errors:
            raise BaseExceptionGroup("simulated processes have failed", errors)
        return [outcome.result() for outcome in outcomes]

    def close(self) -> None:
        """Finishes what is in flight and ends all threads."""
        for runtime in self.runtimes:
            runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _owner(self, device: jax.Device) -> int:
        devices = jax.devices() if self._devices is None else self._devices
        per_process, rest = divmod(len(devices), len(self.processes))
        if rest or not per_process:
            raise ValueError(
                f"{len(devices)} devices cannot be shared out evenly among"
                f" {len(self.processes)} simulated processes: pass `devices=`, or start"
                " Python with XLA_FLAGS=--xla_force_host_platform_device_count=N"
            )
        return list(devices).index(device) // per_process


class SimulatedProcesses:
    """The processes of a `SimulatedCluster`, seen from one of them."""

    primary = 0

    def __init__(
        self, board: _Board, index: int, owner: Callable[[jax.Device], int]
    ) -> None:
        self.index = index
        self.count = board.count
        self._board = board
        self._owner = owner

    @property
    def is_primary(self) -> bool:
        return self.index == self.primary

    def owner(self, device: jax.Device) -> int:
        return self._owner(device)

    async def barrier(self, name: str, *, timeout_secs: float) -> None:
        await self.gather(name, b"", timeout_secs=timeout_secs)

    async def broadcast(
        self, name: str, value: bytes | None, *, timeout_secs: float
    ) -> bytes:
        if self.is_primary and value is None:
            raise ValueError(f"the primary process has nothing to broadcast: {name!r}")
        values = await self._board.meet(
            name,
            self.index,
            value if self.is_primary else None,
            needed=frozenset({self.primary}),
            timeout_secs=timeout_secs,
        )
        return values[self.primary]

    async def gather(
        self, name: str, value: bytes, *, timeout_secs: float
    ) -> tuple[bytes, ...]:
        values = await self._board.meet(
            name,
            self.index,
            value,
            needed=frozenset(range(self.count)),
            timeout_secs=timeout_secs,
        )
        return tuple(values[index] for index in range(self.count))


class _Meeting:
    """What is known of one meeting; all of it is guarded by the board's lock."""

    def __init__(self, needed: frozenset[int]) -> None:
        self.needed = needed
        self.came: set[int] = set()
        self.values: dict[int, bytes] = {}
        self.waiting: list[concurrent.futures.Future[dict[int, bytes]]] = []
        self.failure: Callable[[], Exception] | None = None

    @property
    def missing(self) -> frozenset[int]:
        return self.needed - self.values.keys()

    def settle(self) -> None:
        """Lets those go who need not wait any longer."""
        if self.missing and self.failure is None:
            return
        for future in self.waiting:
            if self.failure is None:
                future.set_result(self.values)
            else:
                future.set_exception(self.failure())
        self.waiting.clear()


class _Board:
    """Where simulated processes leave values for each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        # Guards what is below, and every meeting.
        self._lock = threading.Lock()
        self._meetings: dict[str, _Meeting] = {}
        self._gone: set[int] = set()

    def open(self) -> None:
        """Expects all processes again."""
        with self._lock:
            self._gone.clear()

    def abandon(self, index: int) -> None:
        """Ends the meetings that wait for a process, now and later."""
        with self._lock:
            self._gone.add(index)
            for name, meeting in self._meetings.items():
                self._end_hopeless(name, meeting)

    async def meet(
        self,
        name: str,
        index: int,
        value: bytes | None,
        *,
        needed: frozenset[int],
        timeout_secs: float,
    ) -> dict[int, bytes]:
        """Leaves a value, and returns all once those that are needed are there."""
        future: concurrent.futures.Future[dict[int, bytes]]
        future = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            meeting = self._meetings.setdefault(name, _Meeting(needed))
            if index in meeting.came or meeting.needed != needed:
                raise ValueError(f"the name {name!r} was used before")
            meeting.came.add(index)
            if value is not None:
                meeting.values[index] = value
            meeting.waiting.append(future)
            self._end_hopeless(name, meeting)
            meeting.settle()
        try:
            async with asyncio.timeout(timeout_secs):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            with self._lock:
                if meeting.missing and meeting.failure is None:
                    # What fails for one fails for all, and for those that come late.
                    who = describe_missing(meeting.missing)
                    meeting.failure = lambda: missed(name, who, timeout_secs)
                    meeting.settle()
                if meeting.failure is not None:
                    raise meeting.failure() from None
                return meeting.values

    def _end_hopeless(self, name: str, meeting: _Meeting) -> None:
        gone = meeting.missing & self._gone
        if gone and meeting.failure is None:
            message = (
                f"{describe_missing(gone)} after a failure: cannot meet at {name!r}"
            )
            meeting.failure = lambda: PeerFailedError(message)
            meeting.settle()
