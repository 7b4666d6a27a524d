"""The story behind a `Checkpointer`: decide, save, list, delete what need not be kept.

    policy ──▶ previous one over ──▶ staged ──▶ published ──▶ others deleted
      │ no                            │ caller   │ listed
      ▼                               ▼ goes on  ▼

In a run of several processes every process goes the same way. What could come out
differently in them (a clock, a directory, a policy) is asked of the primary one, which
tells the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from stowax._caller import as_caller, on_behalf
from stowax._composite import RootFacts
from stowax._context import Context
from stowax._delete import remove, start_delete
from stowax._environment import runtime_of, store_of
from stowax._operation import operation_id
from stowax._operation_path import absolute
from stowax._response import AsyncResponse, respond
from stowax._save_composite import stage_composite
from stowax.errors import (
    BackgroundSaveError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    PeerFailedError,
    StepAlreadyExistsError,
    StepNotFoundError,
    StowaxError,
)
from stowax.training import _steps
from stowax.training._pending import Pending
from stowax.training._step_list import Found, StepList
from stowax.training._steps import CheckpointMetadata
from stowax.training.preservation_policies import (
    PreservationContext,
    PreservationPolicy,
)
from stowax.training.save_decision_policies import (
    DecisionContext,
    SaveDecisionPolicy,
)

T = TypeVar("T")

_logger = logging.getLogger("stowax")


@runtime_checkable
class HearsOfPreemption(Protocol):
    """Processes that know when a run is about to be stopped from outside."""

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step to save; the same in all processes."""
        ...


@final
class Run:
    """One directory of steps, and what this process does with it.

    Args:
        directory: Where the steps are.
        context: Options of all operations; nobody else assigns to it.
        save_policy: Which steps are saved.
        preservation_policy: Which steps stay.
    """

    def __init__(
        self,
        directory: Any,
        context: Context,
        save_policy: SaveDecisionPolicy,
        preservation_policy: PreservationPolicy,
    ) -> None:
        self.directory = absolute(directory)
        self.settings = context.settings()
        self.runtime = runtime_of(self.settings)
        self._context = context
        self._store = store_of(self.settings, self.directory)
        self._save_policy = save_policy
        self._preservation_policy = preservation_policy
        self._steps = StepList()
        self._pending: Pending | None = None

    # --- the directory ------------------------------------------------------------

    def open(
        self, custom_metadata: Mapping[str, Any] | None, *, cleans_up: bool
    ) -> None:
        """Makes the directory ready to be written to."""
        self._from_primary(
            "open",
            lambda: self.runtime.run(
                _steps.open_directory(
                    self._store, self.directory, custom_metadata, cleans_up=cleans_up
                )
            ),
        )

    def reload(self) -> None:
        """Reads the directory, after what is under way."""
        self._wait_unseen()
        verify = self.settings.verify
        facts = self._from_primary(
            "reload",
            lambda: self.runtime.run(
                _steps.find_steps(self._store, self.directory, verify=verify)
            ),
        )
        self._steps.replace(_steps.describe(self.directory, each) for each in facts)

    def known(self) -> dict[int, Found]:
        """The complete steps by number, in ascending order."""
        known = self._steps.copy()
        if known is None:
            self.reload()
            known = self._steps.copy()
        return known or {}

    def root_metadata(self) -> Any:
        """What was said about the whole run."""
        return self.runtime.run(_steps.read_root_metadata(self._store, self.directory))

    # --- saving -------------------------------------------------------------------

    def start_save(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        *,
        force: bool,
        overwrite: bool,
        facts: RootFacts,
        borrow: bool,
    ) -> Pending | None:
        """Saves a step in the background, or returns None if nobody wants it."""
        with self._context:
            saving = self.saving
            if saving is not None and saving.step == step:
                self._wait_unseen()  # Only then is it known whether the step is there.
            if step in self.known() and not overwrite:
                raise self._step_exists(step)
            if not force and not self.decide(step, is_replaced=overwrite):
                return None
            failure = self._previous_failure()
            if failure is None:
                self._make_room(step)
            current = self._now_at(step)
            try:
                staged = stage_composite(
                    current.path,
                    checkpointables,
                    self._context.settings(),
                    overwrite=overwrite,
                    facts=facts,
                    borrow=borrow,
                    in_background=True,
                    failure=failure,
                )
            except CheckpointExistsError as error:
                raise self._step_exists(step) from error
            published = staged.start()
            try:
                future = self.runtime.start_guest(self._follow(step, published))
            except BaseException:  # An interrupt; raised again.
                staged.cancel()
                with contextlib.suppress(Exception):
                    published.result()  # That it was cancelled is no news to anybody.
                raise
        what = f"save of step {step} in {self.directory}"
        response = respond(self.runtime, future, what=what)
        self._pending = Pending(future, response, saving=current, cancel=staged.cancel)
        return self._pending

    def decide(self, step: int, *, is_replaced: bool) -> bool:
        """Whether to go on with a save; also when that is to raise a failure."""
        processes = self.runtime.processes
        # Asked in every process: they find the step to save at together.
        reached_preemption = isinstance(
            processes, HearsOfPreemption
        ) and processes.reached_preemption(step)

        def decide() -> bool:
            if self._pending is not None and self._pending.has_unseen_failure:
                return True
            # Before the list: a save that ends between the two is on it then.
            saving = self.saving
            steps = self.known()
            if saving is not None:
                steps.setdefault(saving.step, saving)
            if is_replaced:
                steps.pop(step, None)
            if max(steps, default=-1) >= step:
                return False
            answer = self._save_policy.should_save(
                self._now_at(step),
                [steps[number] for number in sorted(steps)],
                context=DecisionContext(
                    is_saving_in_progress=saving is not None,
                    reached_preemption=reached_preemption,
                    multiprocessing_options=self._context.multiprocessing,
                ),
            )
            return bool(answer)

        return self._from_primary("should-save", decide)

    @property
    def saving(self) -> Found | None:
        """The step that is being saved."""
        pending = self._pending
        return pending.saving if pending is not None and pending.is_running else None

    def wait(self) -> None:
        """Waits for what is under way, and raises its failure if nobody has seen it."""
        self._wait_unseen()
        pending, self._pending = self._pending, None
        if pending is not None and pending.has_unseen_failure:
            pending.result()

    def _previous_failure(self) -> BackgroundSaveError | None:
        """What went wrong before, unless somebody has seen it.

        Not raised here: other processes may have seen it, and go on to meet this one.
        """
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 whatever it is, it is reported
            failure = BackgroundSaveError(
                f"an earlier save or deletion in {self.directory} failed in the "
                f"background, and nobody had asked for its result: "
                f"{type(error).__name__}: {error}. This save has not begun; call "
                "`result()` on what `save_async` returns"
            )
            failure.__cause__ = error
            return failure
        return None

    def _wait_unseen(self) -> None:
        if self._pending is not None:
            self._pending.wait()

    def _make_room(self, step: int) -> None:
        """Renames what is left of a step that was never complete."""
        if not self.runtime.processes.is_primary:
            return
        verify = self.settings.verify
        room = _steps.set_aside(self._store, self.directory, step, verify=verify)
        try:
            self.runtime.run(room)
        except (StowaxError, OSError) as error:
            # The save will find the place taken, and tell the other processes.
            _logger.warning("%s cannot be renamed: %s", self._path_of(step), error)

    async def _follow(self, step: int, published: AsyncResponse[None]) -> bool:
        """What comes after the save; has a thread of its own, and may block it."""
        published.result()
        verify = self.settings.verify
        facts = self._from_primary(
            "published",
            lambda: self.runtime.run(
                _steps.read_step(self._store, self.directory, step, verify=verify)
            ),
        )
        self._steps.put_on(_steps.describe(self.directory, facts))
        try:
            deleted = self._from_primary("deleted", self._delete_unpreserved)
        except Exception as error:  # Whatever it is, the step is there.
            error.add_note(f"step {step} is saved; this was about steps to delete")
            raise
        self._steps.take_off(deleted)
        return True

    def _delete_unpreserved(self) -> list[int]:
        """Deletes what the policy does not want; what fails is tried the next time."""
        steps = list(self.known().values())
        context = PreservationContext(now=self._now_at(0).time)
        answers = self._preservation_policy.should_preserve(steps, context=context)
        if len(answers) != len(steps):
            raise ValueError(
                f"{self._preservation_policy!r} gave {len(answers)} answers for "
                f"{len(steps)} steps"
            )
        # Never the last: it is what the run would resume from.
        asked = list(zip(steps, answers, strict=True))[:-1]
        unwanted = [found for found, stays in asked if not stays]
        deleted: list[int] = []
        for found in self._steps.take_unread(unwanted):
            path = self._path_of(found.step)
            try:
                self.runtime.run(remove(self._store, path))
            except (StowaxError, OSError) as error:
                _logger.warning("%s could not be deleted: %s", path, error)
                self._steps.put_on(found)
            else:
                deleted.append(found.step)
        return deleted

    # --- loading and deleting -----------------------------------------------------

    @contextlib.contextmanager
    def reading(self, step: int | CheckpointMetadata[Any] | None) -> Generator[Found]:
        """Keeps a step, by default the newest, from being deleted meanwhile.

        Raises:
            StepNotFoundError: There is no such step.
        """
        with self._context:
            found = self._hold(step)
            try:
                yield found
            finally:
                self._steps.release(found.step)

    def read_later(
        self, step: int | CheckpointMetadata[Any] | None, read: Callable[[Any], T]
    ) -> AsyncResponse[T]:
        """Reads a step on a thread of its own; that the step is there is known now."""
        with self._context:
            found = self._hold(step)
            held = contextlib.ExitStack()  # Released once, whoever comes first.
            held.callback(self._steps.release, found.step)

            async def work() -> T:
                with held, as_caller():
                    return read(found.path)

            try:
                with on_behalf():
                    future = self.runtime.start_guest(work())
            except BaseException:  # An interrupt too; raised again.
                held.close()
                raise
        return respond(self.runtime, future, what=f"load of {found.path}")

    def start_delete(self, step: int, name: str | None, *, missing_ok: bool) -> Pending:
        """Deletes a step, or one checkpointable of it, in the background."""
        self.wait()
        path = self._path_of(step)
        with self._context:
            try:
                runtime, future = start_delete(
                    path, name, missing_ok=missing_ok, is_step=True
                )
            except CheckpointNotFoundError as error:
                raise self._no_step(step) from error
        if name is None:
            self._steps.take_off([step])
        response = respond(runtime, future, what=f"deletion of {path}")
        self._pending = Pending(future, response, saving=None)
        return self._pending

    def _hold(self, step: int | CheckpointMetadata[Any] | None) -> Found:
        number = None if step is None else _steps.check_step(step)
        if number is not None and number not in self.known():
            self._look_for(number)  # Somebody else may have saved it.
        self.known()
        found = self._steps.hold(number)
        if found is None:
            raise self._no_step(number)
        return found

    def _look_for(self, step: int) -> None:
        verify = self.settings.verify
        facts = self.runtime.run(
            _steps.find_step(self._store, self.directory, step, verify=verify)
        )
        if facts is not None:
            self._steps.put_on(_steps.describe(self.directory, facts))

    # --- small things -------------------------------------------------------------

    def _from_primary(self, what: str, decide: Callable[[], T]) -> T:
        """What the primary process comes to, in every process; JSON."""
        processes = self.runtime.processes
        if processes.count == 1:
            return decide()
        name = operation_id(what, self.directory, self.runtime, self.settings)

        def tell(said: Mapping[str, Any] | None) -> bytes:
            value = None if said is None else json.dumps(said).encode()
            timeout_secs = self.settings.timeout_secs
            return self.runtime.run(
                processes.broadcast(name, value, timeout_secs=timeout_secs)
            )

        if not processes.is_primary:
            heard = json.loads(tell(None))
            if "failure" in heard:
                raise PeerFailedError(
                    f"{self.directory}: the primary process failed: {heard['failure']}"
                )
            return heard["value"]
        try:
            value = decide()
        except Exception as error:  # Whatever it is, the others wait to hear of it.
            with contextlib.suppress(StowaxError):
                tell({"failure": f"{type(error).__name__}: {error}"})
            raise
        tell({"value": value})
        return value

    def _path_of(self, step: int) -> str:
        return _steps.path_of(self.directory, step)

    def _now_at(self, step: int) -> Found:
        """A step as policies see it while it is not saved."""
        now_nsecs = self.runtime.now_nsecs()
        return CheckpointMetadata[None](
            step, self._path_of(step), metadata=None, commit_timestamp_nsecs=now_nsecs
        )

    def _step_exists(self, step: int) -> StepAlreadyExistsError:
        return StepAlreadyExistsError(
            f"{self._path_of(step)} exists already. Save another step, or replace this "
            "one with `overwrite=True`."
        )

    def _no_step(self, step: int | None) -> StepNotFoundError:
        steps = ", ".join(map(str, self.known())) or "none"
        wanted = "no steps" if step is None else f"no step {step}"
        return StepNotFoundError(f"{self.directory} has {wanted}; there are: {steps}")
