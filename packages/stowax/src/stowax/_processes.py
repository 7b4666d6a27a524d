"""Which process am I, how many are there, and how do we agree.

Everything that the processes of a run tell each other goes through a `Processes`
object: three kinds of meeting, each with a deadline, each under a name that is used
once. This is the only module that asks JAX about other processes.

How a meeting of JAX processes fails with a name in the message
---------------------------------------------------------------
The service behind `jax.distributed` reports a missed deadline in words that change
between releases, and does not answer at all while the process that runs it is
stopped. So two things are done around each of its barriers:

* every process leaves a *presence key* before it waits; after a failure the keys that
  are not there name the processes that are missing;
* the call that blocks is made on a thread of its own, and the caller waits for that
  thread no longer than the deadline and a little more.

How the service is kept small
-----------------------------
A key can be deleted once every process has left the meeting it belongs to. Nobody
knows that of the others, so it is said: the value of a presence key lists the meetings
that its process has left since its previous one. The primary reads these lists after a
barrier, and deletes the keys of each meeting that has been left by all.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import json
import queue
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import jax

# The public face of `jax.distributed` has neither a barrier with a deadline nor a
# key-value store; the client behind it has both, unchanged from JAX 0.8.1 to 0.10.2.
from jax._src.distributed import global_state as _jax_distributed
from jax.experimental import multihost_utils

from stowax.errors import DeadlineError, PeerFailedError, ProcessesError

T = TypeVar("T")

_GRACE_SECS = 1.5
"""How long after the deadline the service may still answer: it looks at its clock once
a second. Past that it is taken for gone."""

_ROLL_CALL_SECS = 0.4
"""How long a process that has missed its deadline may ask who else is missing."""


class Processes(Protocol):
    """The processes of a run, seen from one of them.

    Every name is used once in the life of a run, by all processes, for one kind of
    meeting. Waiting past the deadline raises `DeadlineError`, which names the meeting
    and the processes that are missing.
    """

    @property
    def index(self) -> int:
        """This process, from 0."""
        ...

    @property
    def count(self) -> int:
        """How many processes there are."""
        ...

    @property
    def primary(self) -> int:
        """The process that publishes."""
        ...

    @property
    def is_primary(self) -> bool:
        """Whether this process is the primary."""
        ...

    def owner(self, device: jax.Device) -> int:
        """Returns the index of the process that owns the device."""
        ...

    async def barrier(self, name: str, *, timeout_secs: float) -> None:
        """Returns once every process has called it."""
        ...

    async def broadcast(
        self, name: str, value: bytes | None, *, timeout_secs: float
    ) -> bytes:
        """Returns the value that the primary gave; what the others gave is ignored."""
        ...

    async def gather(
        self, name: str, value: bytes, *, timeout_secs: float
    ) -> tuple[bytes, ...]:
        """Returns everybody's value, by process index, to everybody."""
        ...


def default_processes() -> Processes:
    """Returns the processes of `jax.distributed`, or `OneProcess` where it is not used.

    The answer changes when `jax.distributed.initialize()` is called, so it is asked
    for at the start of each operation.
    """
    client = _jax_distributed.client
    if client is None or _jax_distributed.num_processes == 1:
        return OneProcess()
    return _processes_of(
        client, _jax_distributed.process_id, _jax_distributed.num_processes
    )


# Kept from one operation to the next, because it knows which keys to delete.
@functools.lru_cache(maxsize=1)
def _processes_of(client: Any, index: int, count: int) -> JaxProcesses:
    return JaxProcesses(client, index=index, count=count)


class OneProcess:
    """A run of one process: every meeting is over at once."""

    index = 0
    count = 1
    primary = 0
    is_primary = True

    def owner(self, device: jax.Device) -> int:
        if device.process_index != 0:
            raise ProcessesError(
                f"{device} belongs to process {device.process_index}, but stowax knows"
                " of one process only: call `jax.distributed.initialize()` in every"
                " process before the first save or load"
            )
        return 0

    async def barrier(self, name: str, *, timeout_secs: float) -> None:
        pass

    async def broadcast(
        self, name: str, value: bytes | None, *, timeout_secs: float
    ) -> bytes:
        return _given(name, value)

    async def gather(
        self, name: str, value: bytes, *, timeout_secs: float
    ) -> tuple[bytes, ...]:
        return (value,)


class JaxProcesses:
    """The processes that `jax.distributed` has connected.

    Args:
      client: The coordination client of this process.
      index: This process.
      count: How many processes there are.
      primary: The process that publishes.
      key_prefix: First component of every key, to share the service with other
        libraries.
    """

    def __init__(
        self,
        client: Any,
        *,
        index: int,
        count: int,
        primary: int = 0,
        key_prefix: str = "stowax",
    ) -> None:
        self._client = client
        self.index = index
        self.count = count
        self.primary = primary
        self._key_prefix = key_prefix
        self._threads = _WaitThreads()
        # Guards the two records of who has left what.
        self._lock = threading.Lock()
        self._left_here: list[str] = []
        self._left_by: collections.defaultdict[str, set[int]] = collections.defaultdict(
            set
        )

    @property
    def is_primary(self) -> bool:
        return self.index == self.primary

    def owner(self, device: jax.Device) -> int:
        return device.process_index

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step to save before the run is stopped.

        JAX takes note of the signal (SIGTERM) and finds one step for all processes; it
        says so at that step only, so all of them have to ask at every step.
        """
        return multihost_utils.reached_preemption_sync_point(step)

    async def barrier(self, name: str, *, timeout_secs: float) -> None:
        await self._meet(name, lambda: self._arrive(name, timeout_secs), timeout_secs)

    async def broadcast(
        self, name: str, value: bytes | None, *, timeout_secs: float
    ) -> bytes:
        key = f"{self._keys_of(name)}/value/{self.primary}"

        def send() -> bytes:
            given = _given(name, value)
            self._client.key_value_set_bytes(key, given)
            return given

        def receive() -> bytes:
            return self._client.blocking_key_value_get_bytes(key, _msecs(timeout_secs))

        return await self._meet(
            name,
            send if self.is_primary else receive,
            timeout_secs,
            expected=[self.primary],
            directory="value",
        )

    async def gather(
        self, name: str, value: bytes, *, timeout_secs: float
    ) -> tuple[bytes, ...]:
        directory = f"{self._keys_of(name)}/value"

        def exchange() -> tuple[bytes, ...]:
            self._client.key_value_set_bytes(f"{directory}/{self.index}", value)
            self._arrive(name, timeout_secs)
            values = self._by_index(directory)
            return tuple(values[index] for index in range(self.count))

        return await self._meet(name, exchange, timeout_secs)

    async def _meet(
        self,
        name: str,
        call: Callable[[], T],
        timeout_secs: float,
        *,
        expected: Iterable[int] | None = None,
        directory: str = "at",
    ) -> T:
        """Makes the blocking call of a meeting, and says who is missing if it fails.

        The processes that are expected (all, by default) leave a key each in the
        directory.
        """
        try:
            return await self._threads.call(call, timeout_secs + _GRACE_SECS)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error)
        except TimeoutError:
            reason = "DEADLINE_EXCEEDED: no answer"
        finally:
            with self._lock:
                self._left_here.append(name)
        if reason.startswith("ALREADY_EXISTS"):
            raise ValueError(f"the name {name!r} was used before: {reason}")
        who = await self._describe_missing(
            f"{self._keys_of(name)}/{directory}", expected or range(self.count)
        )
        if reason.startswith("DEADLINE_EXCEEDED"):
            raise missed(name, who, timeout_secs)
        raise PeerFailedError(f"{who}: could not meet at {name!r}: {reason}")

    def _arrive(self, name: str, timeout_secs: float) -> None:
        """Blocks until every process has come here."""
        with self._lock:
            left, self._left_here = self._left_here, []
        directory = f"{self._keys_of(name)}/at"
        self._client.key_value_set_bytes(
            f"{directory}/{self.index}", json.dumps(left).encode()
        )
        self._client.wait_at_barrier(self._keys_of(name), _msecs(timeout_secs))
        if self.is_primary:
            # The meeting was held; keys that could not be deleted do no harm.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._delete_left(directory)

    def _delete_left(self, directory: str) -> None:
        """Deletes the keys of the meetings that every process has left."""
        left_by_all: list[str] = []
        lists = self._by_index(directory)
        with self._lock:
            for index, value in lists.items():
                for name in json.loads(value):
                    self._left_by[name].add(index)
                    if len(self._left_by[name]) == self.count:
                        left_by_all.append(name)
                        del self._left_by[name]
        for name in left_by_all:
            # The slash at the end says: everything below.
            self._client.key_value_delete(f"{self._keys_of(name)}/")

    async def _describe_missing(self, directory: str, expected: Iterable[int]) -> str:
        try:
            present = await self._threads.call(
                lambda: self._by_index(directory), _ROLL_CALL_SECS
            )
        except (jax.errors.JaxRuntimeError, TimeoutError):
            return (
                "the coordination service does not answer (process 0 runs it, unless"
                " you have arranged otherwise)"
            )
        return describe_missing(index for index in expected if index not in present)

    def _by_index(self, directory: str) -> dict[int, bytes]:
        """Returns the values below a directory whose keys end in a process index."""
        rows = self._client.key_value_dir_get_bytes(f"{directory}/")
        return {int(key.rpartition("/")[2]): value for key, value in rows}

    def _keys_of(self, name: str) -> str:
        # One component, so that no name lies below another.
        return f"{self._key_prefix}/{urllib.parse.quote(name, safe='')}"


class _WaitThreads:
    """Daemon threads for calls that may never return.

    A thread whose call has returned serves the next one: at interpreter exit, when
    the last save is being finished, Python starts no new threads. One that is stuck is
    left behind, and takes nothing with it.
    """

    def __init__(self) -> None:
        # Guards the list of idle threads, each known by its inbox.
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    async def call(self, function: Callable[[], T], timeout_secs: float) -> T:
        """Returns what the function returns, or raises TimeoutError."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def fulfil() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 it belongs to the waiter
                future.set_exception(error)

        self._inbox().put(fulfil)
        async with asyncio.timeout(timeout_secs):
            return await asyncio.wrap_future(future)

    def _inbox(self) -> queue.SimpleQueue[Callable[[], None]]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(
            target=self._serve, args=(inbox,), name="stowax-wait", daemon=True
        ).start()
        return inbox

    def _serve(self, inbox: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            inbox.get()()
            with self._lock:
                self._idle.append(inbox)


def _given(name: str, value: bytes | None) -> bytes:
    if value is None:
        raise ValueError(f"the primary process has nothing to broadcast as {name!r}")
    return value


def describe_missing(indexes: Iterable[int]) -> str:
    """Says which processes have not come to a meeting that has failed."""
    missing = sorted(indexes)
    match missing:
        case []:
            return "all processes came, but too late"
        case [index]:
            return f"process {index} is missing"
        case _:
            return f"processes {', '.join(map(str, missing))} are missing"


def missed(name: str, who: str, timeout_secs: float) -> DeadlineError:
    """The error for a meeting that others did not come to in time."""
    # What is left of a deadline is never exact: 1.99 s are 2 s to a reader.
    waited_secs = round(timeout_secs, 1 if timeout_secs >= 1 else 3)
    return DeadlineError(f"{who}: waited {waited_secs:g} s at {name!r}")


def _msecs(timeout_secs: float) -> int:
    return max(1, round(timeout_secs * 1000))
