"""Groups of real JAX processes on this machine, connected in a tenth of a second.

A process of a group is forked from a server that has imported JAX and started nothing:
no backend, no TensorStore operation, because neither survives a fork. (pytest itself
has a backend; it never forks.) Each process gets devices of its own, joins
`jax.distributed`, calls one function and sends back what came of it.

Nothing outlives `launch`: a process ends when told to, when pytest goes away, or by
force; its output is in the error when it did not do what it should. Process 0, which
runs the coordination service, ends last, because it takes the others with it.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import operator
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest

# What costs seconds to import. `forkserver` skips what is not installed.
PRELOADED = ["numpy", "jax", "tensorstore", "pytest", "orbax.checkpoint", "stowax"]

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Collectives of two devices in a process hang when there are only two threads.
    "NPROC": "8",
    # The server must be a single thread when it forks.
    "OPENBLAS_NUM_THREADS": "1",
}

FAILED_GRACE_SECS = 5.0
"""How long the others may go on once one process has failed."""

LOG_TAIL_LINES = 30


class ProcessDiedError(Exception):
    """A process ended, or did not, without saying what came of its function."""


def launch(count, function, *args, devices=2, timeout_secs=60.0):
    """Calls `function(index, *args)` in `count` new JAX processes.

    Args:
      count: How many processes.
      function: A module's function. The module is imported in every process.
      *args: What can be pickled.
      devices: CPU devices of each process.
      timeout_secs: From here to the last result; then the processes are killed.

    Returns:
      The results by process index.

    Raises:
      BaseExceptionGroup: With the error of each process that failed; its notes hold
        the traceback and the end of the output.
    """
    deadline = time.monotonic() + timeout_secs
    port = _free_port()
    processes = []
    with tempfile.TemporaryDirectory() as logs:
        try:
            for index in range(count):
                job = _Job(index, count, port, devices, Path(logs, str(index)))
                processes.append(_Process(job, function, args))
                if index == 0:
                    # A process that dials too early waits a second to dial again.
                    _wait_until_listening(port, processes[0], deadline)
            outcomes = _collect(processes, deadline)
        finally:
            for process in reversed(processes):
                process.end()
        errors = [
            _explained(process, outcomes.get(process))
            for process in processes
            if not isinstance(outcomes.get(process), _Returned)
        ]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {count} processes failed", errors)
    return [outcomes[process].value for process in processes]


def _collect(processes, deadline):
    """Returns what the processes have sent; one that was too late has no entry."""
    outcomes = {}
    pending = {process.connection: process for process in processes}
    while pending:
        ready = multiprocessing.connection.wait(
            pending, max(0.0, deadline - time.monotonic())
        )
        if not ready:
            break
        for connection in ready:
            process = pending.pop(connection)
            outcomes[process] = process.receive()
            if not isinstance(outcomes[process], _Returned):
                deadline = min(deadline, time.monotonic() + FAILED_GRACE_SECS)
    return outcomes


def _explained(process, outcome):
    match outcome:
        case _Raised(error):
            pass
        case _Died(exit_code):
            error = ProcessDiedError(f"ended with exit code {exit_code}")
        case None:
            error = ProcessDiedError("did not finish in time")
    lines = process.job.log.read_text(errors="replace").splitlines()
    error.add_note(f"in process {process.job.index}; its output ends:")
    error.add_note("\n".join(lines[-LOG_TAIL_LINES:]))
    return error


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a process has to know of its group."""

    index: int
    count: int
    port: int
    devices: int
    log: Path

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


@dataclasses.dataclass(frozen=True)
class _Returned:
    value: object


@dataclasses.dataclass(frozen=True)
class _Raised:
    error: BaseException


@dataclasses.dataclass(frozen=True)
class _Died:
    exit_code: int


class _Process:
    """One process, seen from the test."""

    def __init__(self, job, function, args):
        self.job = job
        job.log.touch()
        self.connection, theirs = _context().Pipe()
        # By name, so that a failing import is reported as any other failure.
        name = (function.__module__, function.__qualname__)
        self._process = _context().Process(target=_main, args=(job, name, args, theirs))
        self._process.start()
        # Else the end of the process would not be seen here.
        theirs.close()
        self._is_waiting = False

    def receive(self):
        """Returns what came of the function, once there is something to read."""
        try:
            report = self.connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return _Died(self._process.exitcode)
        self._is_waiting = True
        return pickle.loads(report)

    def end(self):
        """Lets the process go, if need be by force."""
        if self._is_waiting:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.connection.send_bytes(b"go")
        elif self._process.is_alive():
            # Writes the stack of every thread to the output before it ends.
            os.kill(self._process.pid, signal.SIGABRT)
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _main(job, name, args, connection):
    """The life of one process."""
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    faulthandler.enable()
    # The stacks that it writes when a process is aborted say enough.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_when_told, args=[connection], daemon=True).start()
    try:
        outcome = _Returned(_call(job, name, args))
        report = pickle.dumps(outcome)
    except BaseException as error:  # noqa: BLE001 raised in the test
        report = _pickled(error)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send_bytes(report)
    # The others may still need this process; `_end_when_told` ends it.
    threading.Event().wait()


def _call(job, name, args):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={job.devices}"
    import jax

    jax.distributed.initialize(
        job.address, job.count, job.index, coordinator_bind_address=job.address
    )
    # Waits for all processes; nobody's deadline should pay for that later.
    jax.devices()
    module, qualified_name = name
    function = operator.attrgetter(qualified_name)(importlib.import_module(module))
    return function(job.index, *args)


def _pickled(error):
    error.add_note("".join(traceback.format_exception(error)))
    try:
        report = pickle.dumps(_Raised(error))
        pickle.loads(report)
    except Exception:  # noqa: BLE001 an error that cannot travel goes as text
        report = pickle.dumps(_Raised(RuntimeError("".join(error.__notes__))))
    return report


def _end_when_told(connection):
    with contextlib.suppress(EOFError, ConnectionResetError):
        connection.recv_bytes()
    # No handlers: that of jax.distributed waits for the others.
    os._exit(0)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_listening(port, process, deadline):
    while time.monotonic() < deadline and not process.connection.poll(0.002):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return


@functools.cache
def _context():
    """Starts the server that forks, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context
