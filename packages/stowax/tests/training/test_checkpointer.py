"""What a `Checkpointer` promises: which steps are there, saved, kept and loaded."""

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import shutil
import threading
import weakref
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import stowax
from stowax import training
from stowax._processes import OneProcess
from stowax._runtime import Runtime
from stowax.errors import (
    BackgroundSaveError,
    InvalidLayoutError,
    NothingToDeleteError,
    StepAlreadyExistsError,
    StepNotFoundError,
    UnsupportedOptionError,
)
from stowax.options import MemoryOptions
from stowax.testing import MemoryStore, RecordingStore, SimulatedCluster
from stowax.training import Checkpointer
from stowax.training._steps import step_of
from stowax.training.preservation_policies import LatestN
from stowax.training.save_decision_policies import (
    AnySavePolicy,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
)

STATE = {"w": np.arange(6.0).reshape(2, 3), "n": 3}
DRAFT = ".orbax-checkpoint-tmp"


class Gated:
    """A checkpointable whose save goes on in the background until it is told to end."""

    def __init__(self, failure=None):
        self.failure = failure
        self.gate = threading.Event()

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            await asyncio.to_thread(self.gate.wait)
            if self.failure is not None:
                raise self.failure
            (path / "content").write_text("whole")

        return write()

    async def load(self, directory):
        async def read():
            await asyncio.to_thread(self.gate.wait)
            assert (directory / "content").read_text() == "whole"

        return read()

    @contextlib.contextmanager
    def shut(self):
        """Opens the gate at the end, whatever happens."""
        try:
            yield self
        finally:
            self.gate.set()


def steps_of(checkpointer):
    """The numbers of the steps that are listed."""
    return [checkpoint.step for checkpoint in checkpointer.checkpoints]


def names_in(directory):
    """What is in a directory of the disk."""
    return sorted(path.name for path in Path(directory).iterdir())


class TestSaving:
    def test_saved_steps_are_listed_and_load(self, place):
        """What `save` saved is in `checkpoints`, is `latest`, and loads bit for bit."""
        with Checkpointer(place / "run") as checkpointer:
            assert checkpointer.latest is None
            assert checkpointer.save(0, STATE) is True
            assert checkpointer.save(7, {"w": STATE["w"] + 1, "n": 4}) is True

            assert steps_of(checkpointer) == [0, 7]
            assert checkpointer.latest.step == 7
            assert checkpointer.load()["n"] == 4
            np.testing.assert_array_equal(checkpointer.load(0)["w"], STATE["w"])
            assert checkpointer.load(checkpointer.checkpoints[0])["n"] == 3

    def test_several_checkpointables(self, place):
        """Named checkpointables come back by name, all or some of them."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save_checkpointables(1, {"model": STATE, "data": {"at": 5}})

            assert checkpointer.load_checkpointables(1, {"data": None}) == {
                "data": {"at": 5}
            }
            assert sorted(checkpointer.load_checkpointables()) == ["data", "model"]

    def test_policy_decides_and_force_overrules(self, place):
        """A step that is not due is not saved, unless the caller insists."""
        every_five = FixedIntervalPolicy(5)
        with Checkpointer(
            place / "run", save_decision_policy=every_five
        ) as checkpointer:
            assert checkpointer.should_save(5)
            assert not checkpointer.should_save(6)
            assert checkpointer.save_async(5, STATE).result() is True
            assert checkpointer.save(6, STATE) is False
            assert checkpointer.save_async(6, STATE) is None
            assert checkpointer.save(7, STATE, force=True) is True

            assert steps_of(checkpointer) == [5, 7]

    def test_nothing_at_or_below_the_newest_is_due(self, place):
        """A lower step is saved only when the caller insists."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(5, STATE)

            assert checkpointer.save(3, STATE) is False
            assert checkpointer.save(3, STATE, force=True) is True
            assert steps_of(checkpointer) == [3, 5]

    def test_existing_step(self, place):
        """A step that is there is an error, and is left as it is."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(5, STATE)

            with pytest.raises(
                StepAlreadyExistsError, match="overwrite=True"
            ) as raised:
                checkpointer.save(5, {"n": 9})
            assert isinstance(raised.value, FileExistsError)
            assert checkpointer.load()["n"] == 3

    def test_existing_step_that_somebody_else_saved(self, place):
        """A step that was not on the list is an error too, not a replaced step."""
        with Checkpointer(place / "run") as ours, Checkpointer(place / "run") as theirs:
            theirs.save(5, STATE)

            with pytest.raises(StepAlreadyExistsError):
                ours.save(5, {"n": 9})

    def test_overwrite(self, place):
        """With `overwrite=True` the new step takes the place of the old one."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(5, STATE)
            checkpointer.save(5, {"n": 9}, overwrite=True, metrics={"loss": 0.5})

            assert steps_of(checkpointer) == [5]
            assert checkpointer.latest.metrics == {"loss": 0.5}
            assert checkpointer.load() == {"n": 9}

    def test_failed_overwrite_keeps_the_old_step(self, place):
        """When the new step cannot be saved, the old one is there as before."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(5, STATE)

            with pytest.raises(ValueError, match="object"):
                checkpointer.save(5, {"n": object()}, overwrite=True)
            assert checkpointer.load()["n"] == 3

    @pytest.mark.parametrize(
        ("step", "error"), [(-1, ValueError), (True, TypeError), (1.5, TypeError)]
    )
    def test_steps_are_natural_numbers(self, place, step, error):
        """What is no number of a step is refused before anything is written."""
        with Checkpointer(place / "run") as checkpointer:
            with pytest.raises(error):
                checkpointer.save(step, STATE)

            assert checkpointer.save(np.int64(3), STATE)
            assert steps_of(checkpointer) == [3]

    def test_metrics_and_custom_metadata(self, place):
        """Numbers of any library come back as JSON, from the list and on their own."""
        metrics = {"loss": jnp.float32(0.5), "count": np.int64(3), "by": {"top1": 0.25}}
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(1, STATE, metrics=metrics, custom_metadata={"tag": "a"})

        plain = {"loss": 0.5, "count": 3, "by": {"top1": 0.25}}
        latest = Checkpointer(place / "run").latest
        assert latest.metrics == plain
        assert latest.custom_metadata == {"tag": "a"}
        described = Checkpointer(place / "run").metadata()
        assert (described.step, described.metrics) == (1, plain)
        assert described.metadata["w"].shape == (2, 3)

    @pytest.mark.parametrize("metrics", [{"a": object()}, {1: 2.0}, [1.0], np.ones(3)])
    def test_metrics_that_are_no_json(self, place, metrics):
        """What is no JSON is refused before anything is written."""
        with Checkpointer(place / "run") as checkpointer:
            with pytest.raises(TypeError, match="metrics"):
                checkpointer.save(1, STATE, metrics=metrics)

            assert steps_of(checkpointer) == []


class TestInTheBackground:
    def test_a_step_is_listed_once_it_is_published(self, tmp_path):
        """While a save is under way, nobody sees its step."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)
            with Gated().shut() as gated:
                response = checkpointer.save_checkpointables_async(
                    2, {"state": gated}, force=True
                )

                assert checkpointer.is_saving_in_progress()
                assert steps_of(checkpointer) == [1]
                assert checkpointer.load()["n"] == 3

            assert response.result() is True
            assert not checkpointer.is_saving_in_progress()
            assert steps_of(checkpointer) == [1, 2]

    def test_default_policy_declines_while_saving(self, tmp_path):
        """By default a save never waits for another: the step is left out."""
        with Checkpointer(tmp_path) as checkpointer:
            with Gated().shut() as gated:
                checkpointer.save_checkpointables_async(1, {"state": gated})

                assert checkpointer.save_async(2, STATE) is None
            checkpointer.wait()

            assert checkpointer.save_async(3, STATE) is not None
        assert steps_of(checkpointer) == [1, 3]

    def test_a_due_save_waits_for_the_one_before(self, tmp_path):
        """Two saves are never under way together."""
        gated, listed = Gated(), []

        class OpensTheGate:
            def should_save(self, step, previous_steps, *, context):
                if context.is_saving_in_progress:
                    gated.gate.set()
                return True

        class Looks:
            async def save(self, directory):
                listed.append(steps_of(checkpointer))
                return directory.await_creation()

            async def load(self, directory):
                raise NotImplementedError

        with Checkpointer(
            tmp_path, save_decision_policy=OpensTheGate()
        ) as checkpointer:
            checkpointer.save_checkpointables_async(1, {"state": gated})
            checkpointer.save_checkpointables_async(2, {"state": Looks()})

            assert listed == [[1]]

    def test_the_step_under_way_counts_for_policies(self, tmp_path):
        """A step that is being saved is a previous step: it is no longer the first."""
        initial = AnySavePolicy([InitialSavePolicy()])
        with (
            Checkpointer(tmp_path, save_decision_policy=initial) as checkpointer,
            Gated().shut() as gated,
        ):
            checkpointer.save_checkpointables_async(1, {"state": gated})

            assert checkpointer.save_async(2, STATE) is None

    def test_the_same_step_twice(self, tmp_path):
        """Saving the step that is being saved waits, and finds it there."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save_async(1, STATE)

            with pytest.raises(StepAlreadyExistsError):
                checkpointer.save_async(1, STATE)


class TestFailures:
    def fail(self, checkpointer, step=2):
        gated = Gated(failure=OSError("no space left"))
        gated.gate.set()
        return checkpointer.save_checkpointables_async(
            step, {"state": gated}, force=True
        )

    @pytest.mark.parametrize("end", ["wait", "close"])
    def test_raised_by_wait_and_close(self, tmp_path, end):
        """A failure that nobody asked for is raised at the end, once."""
        checkpointer = Checkpointer(tmp_path)
        self.fail(checkpointer)

        with pytest.raises(OSError, match="no space left"):
            getattr(checkpointer, end)()
        checkpointer.close()
        assert steps_of(checkpointer) == []

    def test_raised_by_the_next_save(self, tmp_path):
        """A failure that nobody asked for is raised by the next save, due or not."""
        never = training.save_decision_policies.SpecificStepsPolicy(())
        checkpointer = Checkpointer(tmp_path, save_decision_policy=never)
        self.fail(checkpointer)
        checkpointer.reload()  # Comes after the save has ended, and does not ask.

        with pytest.raises(BackgroundSaveError, match="no space left") as raised:
            checkpointer.save(3, STATE)
        assert isinstance(raised.value.__cause__, OSError)
        assert checkpointer.save(3, STATE) is False
        checkpointer.close()

    def test_raised_once(self, tmp_path):
        """Whoever has asked for the result is not told again."""
        with Checkpointer(tmp_path) as checkpointer:
            with pytest.raises(OSError, match="no space left"):
                self.fail(checkpointer).result()

            assert checkpointer.save(3, STATE)

    def test_a_failed_step_is_due_again(self, tmp_path):
        """A step that could not be saved is not taken for one that is there."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)
            with pytest.raises(OSError, match="no space left"):
                self.fail(checkpointer, step=2).result()

            assert checkpointer.latest.step == 1
            assert checkpointer.save(2, STATE)
        assert names_in(tmp_path) == ["1", "2"]

    def test_what_ended_the_loop_comes_first(self, tmp_path):
        """An error of the loop is not hidden by that of a save; it names it."""

        def loop():
            with Checkpointer(tmp_path) as checkpointer:
                self.fail(checkpointer)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as raised:
            loop()

        assert any("no space left" in note for note in raised.value.__notes__)


def broken_directories():
    """What a power cut, or a stranger, may leave under the name of a step."""

    def emptied(step):
        for path in step.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")

    def unsealed(step):
        (step / "stowax.json").unlink()

    def halved(step):
        seal = step / "stowax.json"
        seal.write_bytes(seal.read_bytes()[:100])

    def hollow(step):
        shutil.rmtree(step)
        step.mkdir()

    def without_item(step):
        shutil.rmtree(step / "state")

    return [emptied, unsealed, halved, hollow, without_item]


class TestDiscovery:
    @pytest.mark.parametrize("damage", broken_directories())
    def test_incomplete_steps_are_passed_over(self, tmp_path, caplog, damage):
        """`latest` is a step that can be opened; a broken one is named in a warning."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)
            checkpointer.save(2, STATE)
        damage(tmp_path / "2")

        with caplog.at_level(logging.WARNING, logger="stowax"):
            found = Checkpointer(tmp_path)

        assert steps_of(found) == [1]
        warnings = [r for r in caplog.records if r.name == "stowax"]
        assert [str(tmp_path / "2") in r.getMessage() for r in warnings] == [True]
        assert found.load()["n"] == 3

    @pytest.mark.parametrize("damage", broken_directories())
    def test_a_run_goes_on_over_an_incomplete_step(self, tmp_path, damage):
        """The step is saved again; what was left of it is kept under another name."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)
            checkpointer.save(2, STATE)
        damage(tmp_path / "2")

        with Checkpointer(tmp_path) as resumed:
            assert resumed.save(2, {"n": 9}) is True

            assert resumed.load() == {"n": 9}
        first, second, aside = names_in(tmp_path)
        assert [first, second] == ["1", "2"]
        assert aside.startswith(f"2{DRAFT}-broken-")

    def test_other_names_are_ignored(self, tmp_path, caplog):
        """Drafts, files, and names that are no plain number are nobody's steps."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)
        for name in (f"2{DRAFT}-x", "03", "-4", "five", "٦", "7.5"):
            shutil.copytree(tmp_path / "1", tmp_path / name)
        (tmp_path / "8").write_text("a file")

        with caplog.at_level(logging.WARNING, logger="stowax"):
            found = Checkpointer(tmp_path)

        assert steps_of(found) == [1]
        assert caplog.records == []

    def test_reload_sees_what_others_did(self, place):
        """The list is remembered until `reload`; a step asked for is looked for."""
        watcher = Checkpointer(place / "run")
        with Checkpointer(place / "run") as trainer:
            trainer.save(1, STATE)
            trainer.save(2, STATE)

        assert steps_of(watcher) == []
        assert watcher.load(1)["n"] == 3
        watcher.reload()
        assert steps_of(watcher) == [1, 2]

    def test_lightweight_initialize(self, place):
        """The directory may be read later: the steps are the same."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(1, STATE)

        with Checkpointer(place / "run", lightweight_initialize=True) as late:
            late.save(2, STATE)
            assert steps_of(late) == [1, 2]

    def test_cleanup(self, tmp_path):
        """Leftovers of dead writers go when asked for, and nothing else."""
        with Checkpointer(tmp_path, custom_metadata={"a": 1}) as checkpointer:
            checkpointer.save(1, STATE)
        (tmp_path / f"2{DRAFT}-x" / "state").mkdir(parents=True)
        (tmp_path / "notes").mkdir()

        Checkpointer(tmp_path)
        assert f"2{DRAFT}-x" in names_in(tmp_path)
        Checkpointer(tmp_path, cleanup_tmp_directories=True)
        assert names_in(tmp_path) == ["1", "metadata", "notes"]

    @pytest.mark.parametrize(
        "ask", ["load", "load_checkpointables", "metadata", "load_async"]
    )
    def test_missing_steps(self, place, ask):
        """A step that is not there is an error that says which ones are."""
        with Checkpointer(place / "run") as checkpointer:
            with pytest.raises(StepNotFoundError, match="no steps"):
                getattr(checkpointer, ask)()
            checkpointer.save(4, STATE)

            with pytest.raises(StepNotFoundError, match="no step 5; there are: 4"):
                getattr(checkpointer, ask)(5)

    def test_root_metadata(self, place):
        """What holds for the run is written once and stays."""
        with Checkpointer(place / "run", custom_metadata={"run": 1}):
            pass
        with Checkpointer(place / "run", custom_metadata={"run": 2}) as checkpointer:
            said = checkpointer.root_metadata()

        assert said.custom_metadata == {"run": 1}
        assert str(said.directory) == place / "run"
        assert Checkpointer(place / "x").root_metadata().custom_metadata == {}


class TestPreservation:
    def test_latest_n(self, place):
        """After each save only the wanted steps are left, on disk too."""
        with Checkpointer(
            place / "run",
            save_decision_policy=FixedIntervalPolicy(1),
            preservation_policy=LatestN(2),
        ) as checkpointer:
            for step in range(5):
                checkpointer.save_async(step, STATE)

        assert steps_of(checkpointer) == [3, 4]
        assert steps_of(Checkpointer(place / "run")) == [3, 4]
        if place.store is None:
            assert names_in(place / "run") == ["3", "4"]

    def test_the_newest_stays(self, place):
        """No policy can take away the step that the run would resume from."""
        with Checkpointer(
            place / "run", preservation_policy=LatestN(0)
        ) as checkpointer:
            checkpointer.save(1, STATE)
            checkpointer.save(2, STATE)

            assert steps_of(checkpointer) == [2]

    def test_a_step_being_loaded_stays(self, tmp_path):
        """What is being loaded is deleted after a later save."""
        gated = Gated()
        gated.gate.set()
        with Checkpointer(tmp_path, preservation_policy=LatestN(1)) as checkpointer:
            checkpointer.save_checkpointables(1, {"state": gated})
            gated.gate.clear()
            with gated.shut():
                response = checkpointer.load_checkpointables_async(1, {"state": gated})
                checkpointer.save(2, STATE)
                assert steps_of(checkpointer) == [1, 2]

            response.result()
            checkpointer.save(3, STATE)
            assert steps_of(checkpointer) == [3]

    def test_a_policy_that_fails(self, place):
        """The error of a policy is raised; the step is saved nevertheless."""

        class Broken:
            def should_preserve(self, checkpoints, *, context):
                raise KeyError("loss")

        with Checkpointer(place / "run", preservation_policy=Broken()) as checkpointer:
            with pytest.raises(KeyError, match="loss"):
                checkpointer.save(1, STATE)

            assert steps_of(checkpointer) == [1]

    def test_a_load_that_is_interrupted_at_once(self, place):
        """A step whose load never began is not kept for it."""

        class Interrupted(Runtime):
            armed = False

            def _started_loop(self):
                if self.armed:
                    raise KeyboardInterrupt
                return super()._started_loop()

        runtime = Interrupted()
        with Checkpointer(
            place / "run",
            context=place.context(runtime=runtime),
            preservation_policy=LatestN(1),
        ) as checkpointer:
            checkpointer.save(0, {"a": 1})
            runtime.armed = True
            with pytest.raises(KeyboardInterrupt):
                checkpointer.load_async(0)
            runtime.armed = False
            checkpointer.save(1, {"a": 1})

            assert [each.step for each in checkpointer.checkpoints] == [1]
        runtime.close()

    def test_a_step_that_cannot_be_deleted(self, tmp_path, caplog):
        """A deletion that fails is tried again after the next save."""
        store = Stubborn(MemoryStore())
        with Checkpointer(
            "/run", context=in_store(store), preservation_policy=LatestN(1)
        ) as checkpointer:
            checkpointer.save(1, STATE)
            store.is_stubborn = True
            assert checkpointer.save(2, STATE)
            assert steps_of(checkpointer) == [1, 2]
            assert "/run/1 could not be deleted" in caplog.text

            store.is_stubborn = False
            checkpointer.save(3, STATE)
            assert steps_of(checkpointer) == [3]


class Stubborn:
    """A store that does not rename anything away while it is stubborn."""

    def __init__(self, store):
        self._store = store
        self.is_stubborn = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def publish(self, draft, final, *, replace):
        if self.is_stubborn and "-delete-" in final:
            raise PermissionError(draft)
        await self._store.publish(draft, final, replace=replace)


class TestDeleting:
    def test_delete(self, place):
        """A deleted step is gone from the list at once, and from the directory."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(1, STATE)
            checkpointer.save(2, STATE)

            response = checkpointer.delete_async(2)
            assert steps_of(checkpointer) == [1]
            assert response.result() is True
            assert checkpointer.delete(checkpointer.latest) is True
            checkpointer.reload()
            assert steps_of(checkpointer) == []

    def test_missing(self, place):
        """A step that is not there is an error, or False where that is fine."""
        with Checkpointer(place / "run") as checkpointer:
            with pytest.raises(StepNotFoundError):
                checkpointer.delete(1)

            assert checkpointer.delete(1, missing_ok=True) is False

    def test_broken_steps_can_be_deleted(self, tmp_path):
        """A directory with a step's name can be deleted, whatever is in it."""
        (tmp_path / "3").mkdir()

        assert Checkpointer(tmp_path).delete(3) is True
        assert names_in(tmp_path) == []

    def test_one_checkpointable(self, place):
        """The step stays, with its metrics and all others."""
        with Checkpointer(place / "run") as checkpointer:
            parts = {"state": STATE, "optimizer": {"m": 1}}
            checkpointer.save_checkpointables(1, parts, metrics={"loss": 2.0})

            assert checkpointer.delete(1, checkpointable_name="optimizer") is True
            assert checkpointer.latest.step == 1
            assert list(checkpointer.load_checkpointables()) == ["state"]
            assert checkpointer.metadata(1).metrics == {"loss": 2.0}
            with pytest.raises(NothingToDeleteError):
                checkpointer.delete(1, checkpointable_name="optimizer")
            with pytest.raises(StepNotFoundError):
                checkpointer.delete(2, checkpointable_name="optimizer")
            with pytest.raises(InvalidLayoutError, match="nothing but"):
                checkpointer.delete(1, checkpointable_name="state")

    def test_cancel(self, place):
        """What comes in a later release says so, and does nothing."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(1, STATE)

            with pytest.raises(UnsupportedOptionError, match="later release"):
                checkpointer.cancel()
            assert checkpointer.load()["n"] == 3


class TestFace:
    def test_context_is_that_of_the_construction(self, tmp_path):
        """Options given, or active, at the beginning hold for every operation."""
        store = MemoryStore()
        context = in_store(store)
        given = Checkpointer("/run", context=context)
        with context:
            active = Checkpointer("/run")

        given.save(1, STATE)

        assert active.load(1)["n"] == 3
        assert asyncio.run(store.stat("/run/1")) is not None
        assert not Path("/run/1").exists()

    def test_deprecated_names(self, place):
        """Programs with the old names run, and are told the new ones."""
        with Checkpointer(place / "run") as checkpointer:
            with pytest.deprecated_call(match="called Checkpointer.save"):
                assert checkpointer.save_pytree(1, STATE)
            with pytest.deprecated_call(match="called Checkpointer.load"):
                assert checkpointer.load_pytree(1)["n"] == 3
            with pytest.deprecated_call():
                assert checkpointer.load_pytree_async(1).result()["n"] == 3
            with pytest.deprecated_call():
                assert checkpointer.pytree_metadata(1).step == 1
            with pytest.deprecated_call():
                checkpointer.save_pytree_async(2, STATE).result()

    @pytest.mark.parametrize(
        ("alias", "name"),
        [
            ("save_pytree", "save"),
            ("save_pytree_async", "save_async"),
            ("load_pytree", "load"),
            ("load_pytree_async", "load_async"),
            ("pytree_metadata", "metadata"),
        ],
    )
    def test_deprecated_names_are_documented(self, alias, name):
        """An old name shows the parameters and the words of the new one."""
        old, new = getattr(Checkpointer, alias), getattr(Checkpointer, name)

        assert inspect.signature(old) == inspect.signature(new)
        assert old.__doc__ == new.__doc__
        assert old.__name__ == alias

    def test_memory_is_given_back(self, place):
        """When a step is saved, nothing of ours holds the caller's arrays."""
        array = np.arange(10.0)
        watched = weakref.ref(array)
        memory = MemoryOptions(deepcopy_host_arrays=False)

        with Checkpointer(
            place / "run", context=place.context(memory=memory)
        ) as checkpointer:
            checkpointer.save_async(0, {"x": array}).result()
            del array
            gc.collect()

            assert watched() is None

    def test_metadata_can_be_loaded_from(self, place):
        """What `metadata` returns is an abstract state."""
        with Checkpointer(place / "run") as checkpointer:
            checkpointer.save(1, STATE)

            assert checkpointer.load(1, checkpointer.metadata(1))["n"] == 3
            described = checkpointer.checkpointables_metadata(1)
            assert sorted(described.metadata) == ["state"]

    @pytest.mark.parametrize("option", ["step_name_format", "logger"])
    def test_options_that_are_not_built(self, tmp_path, option):
        """An argument without an effect is refused."""
        with pytest.raises(UnsupportedOptionError, match=option):
            Checkpointer(tmp_path, **{option: object()})

    def test_the_directory_itself_is_no_checkpoint(self, tmp_path):
        """Loading the directory of a run says what it is."""
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, STATE)

        with pytest.raises(InvalidLayoutError):
            stowax.load(tmp_path)

    def test_preemption_is_asked_of_the_processes(self, tmp_path):
        """Where the processes hear of a preemption, its step is saved."""

        class Preempted(OneProcess):
            def reached_preemption(self, step):
                return step == 3

        runtime = Runtime(processes=Preempted())
        with Checkpointer(
            tmp_path,
            context=stowax.Context(runtime=runtime),
            save_decision_policy=PreemptionCheckpointingPolicy(),
        ) as checkpointer:
            saved = [step for step in range(5) if checkpointer.save(step, STATE)]

        assert saved == [3]
        runtime.close()


class TestSeveralProcesses:
    def test_all_do_what_the_primary_decides(self):
        """Policies that answer differently do not set the processes apart."""

        class Of:
            def __init__(self, index):
                self.index = index

            def should_save(self, step, previous_steps, *, context):
                return (step.step + self.index) % 2 == 0

            def should_preserve(self, checkpoints, *, context):
                return [(c.step + self.index) % 4 == 0 for c in checkpoints]

        def train(index, store):
            with Checkpointer(
                "/run",
                context=in_store(store, cluster.runtimes[index]),
                save_decision_policy=Of(index),
                preservation_policy=Of(index),
            ) as checkpointer:
                for step in range(7):
                    checkpointer.save_async(step, STATE)
                checkpointer.wait()
                return steps_of(checkpointer), checkpointer.load()["n"]

        with SimulatedCluster(2) as cluster:
            ends = cluster.run(train, MemoryStore())

        assert ends == [([0, 4, 6], 3)] * 2

    def test_all_see_the_same_steps(self):
        """Steps that others saved are found by all; deleting is done once, for all."""

        def prepare(index, store):
            with Checkpointer(
                "/run",
                context=in_store(store, cluster.runtimes[index]),
                custom_metadata={"a": 1},
            ) as run:
                run.save(1, STATE)
                run.save(2, STATE, overwrite=True, metrics={"loss": 1.0})

        def resume(index, store):
            with Checkpointer(
                "/run", context=in_store(store, cluster.runtimes[index])
            ) as run:
                found = [(c.step, c.metrics) for c in run.checkpoints]
                deleted = run.delete(1), run.delete(9, missing_ok=True)
                with pytest.raises(StepAlreadyExistsError):
                    run.save(2, STATE)
                with pytest.raises(StepNotFoundError):
                    run.delete(7)
                return found, deleted, steps_of(run)

        store = MemoryStore()
        with SimulatedCluster(3) as cluster:
            cluster.run(prepare, store)
            ends = cluster.run(resume, store)

        assert ends == [([(1, None), (2, {"loss": 1.0})], (True, False), [2])] * 3

    def test_a_failing_policy_fails_everywhere(self):
        """When the primary cannot decide, nobody waits for it."""

        class Broken:
            def should_save(self, step, previous_steps, *, context):
                raise KeyError("loss")

        def train(index, store):
            with Checkpointer(
                "/run",
                context=in_store(store, cluster.runtimes[index]),
                save_decision_policy=Broken(),
            ) as checkpointer:
                with pytest.raises((KeyError, stowax.errors.PeerFailedError)) as raised:
                    checkpointer.save(1, STATE)
                return type(raised.value).__name__, "loss" in str(raised.value)

        with SimulatedCluster(2) as cluster:
            ends = cluster.run(train, MemoryStore())

        assert ends == [("KeyError", True), ("PeerFailedError", True)]

    def test_the_primary_alone_makes_room(self):
        """What is left of a broken step is renamed once, by the primary."""
        store = MemoryStore()
        asyncio.run(store.make_directory("/run/1"))
        logs = [RecordingStore(store), RecordingStore(store)]

        def train(index):
            with Checkpointer(
                "/run", context=in_store(logs[index], cluster.runtimes[index])
            ) as checkpointer:
                return checkpointer.save(1, STATE)

        with SimulatedCluster(2) as cluster:
            assert cluster.run(train) == [True, True]

        published = [[c for c in log.calls if c.operation == "publish"] for log in logs]
        assert [len(calls) for calls in published] == [2, 0]
        assert [c for c in logs[1].calls if c.paths[:1] == ("/run/1",)] == []


@pytest.mark.parametrize(
    ("name", "step"),
    [("0", 0), ("12", 12), ("012", None), ("-1", None), ("1.0", None), ("٦", None)],
)
def test_names_of_steps(name, step):
    """A step is named by its plain number, and by nothing else."""
    assert step_of(name) == step


def test_power_cuts():
    """What a Checkpointer has done is durable as soon as it says so."""
    store = MemoryStore()
    with Checkpointer(
        "/runs/new", context=in_store(store), custom_metadata={"run": 1}
    ) as run:
        survivor = Checkpointer("/runs/new", context=in_store(store.durable_view()))
        assert asyncio.run(store.durable_view().stat("/runs/new")) is not None
        assert survivor.root_metadata().custom_metadata == {"run": 1}

        run.save(1, STATE)
        run.save(2, STATE)
        run.delete(1)

    after = Checkpointer("/runs/new", context=in_store(store.durable_view()))
    assert steps_of(after) == [2]
    assert after.load()["n"] == 3


def in_store(store, runtime=None):
    """A Context with a store and perhaps a runtime of its own."""
    options = stowax.options.FileOptions(store=store)
    return stowax.Context(file=options, runtime=runtime)


def test_root_document_is_plain_json(tmp_path):
    """Other tools read what holds for the run from one JSON document."""
    Checkpointer(tmp_path, custom_metadata={"run": 1})

    document = json.loads((tmp_path / "metadata" / "_ROOT_METADATA").read_text())
    assert document == {"internal_metadata": {}, "custom_metadata": {"run": 1}}
