"""Dashboards made for Orbax go on working: names, labels and units are the same."""

import logging

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

import stowax as ocp
from stowax._runtime import Runtime
from stowax.testing import MemoryStore, SimulatedCluster

GIB = 1 << 30


@pytest.fixture
def recorded():
    """Everything about checkpoints that `jax.monitoring` is told: calls by name."""
    calls = []

    def record(kind):
        def listen(name, *values, **labels):
            if name.startswith(("/jax/orbax/", "/jax/checkpoint/")):
                calls.append((kind, name, values, labels))

        return listen

    event, secs, scalar = record("event"), record("duration"), record("scalar")
    monitoring = jax.monitoring
    monitoring.register_event_listener(event)
    monitoring.register_event_duration_secs_listener(secs)
    monitoring.register_scalar_listener(scalar)
    yield calls
    monitoring.unregister_event_listener(event)
    monitoring.unregister_event_duration_listener(secs)
    monitoring.unregister_scalar_listener(scalar)


def state():
    """A MiB, and a little more."""
    return {"w": np.ones((1 << 17) + 1)}


def train(library, directory):
    """Steps of a training run, one of them in the background."""
    with library.training.Checkpointer(directory) as checkpointer:
        checkpointer.save(1, state())
        checkpointer.save_async(2, state()).result()
        checkpointer.load(2)


PROGRAMS = {
    "save": lambda library, path: library.save(path, state()),
    "save_async": lambda library, path: library.save_async(path, state()).result(),
    "load": lambda library, path: library.load(path.parent / "there"),
    "load abstract": lambda library, path: library.load(path.parent / "there", state()),
    "train": lambda library, path: train(library, path),
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("name", PROGRAMS)
def test_orbax_records_the_same(tmp_path, recorded, name):
    """What we record Orbax records, too, as often and with the same labels."""
    ocp.save(tmp_path / "there", state())
    recorded.clear()

    def record(library, directory):
        PROGRAMS[name](library, directory)
        found = [(kind, name, labels) for kind, name, _, labels in recorded]
        recorded.clear()
        return found

    theirs = record(orbax, tmp_path / "theirs")
    ours = record(ocp, tmp_path / "ours")

    shared = [call for call in theirs if call in ours]
    assert ours
    assert sorted(map(repr, ours)) == sorted(map(repr, shared))


def values(recorded, name):
    """The values that were recorded under a name."""
    return [values for _, found, values, _ in recorded if found == name]


def test_values_of_a_save(tmp_path, recorded):
    """Sizes are in GiB, durations in seconds, times in milliseconds since the epoch."""
    runtime = Runtime(clock_nsecs=lambda: 5 * 10**12)
    with ocp.Context(runtime=runtime):
        ocp.save(tmp_path / "a", state())
        ocp.save(tmp_path / "b", state())
    runtime.close()

    write = "/jax/orbax/write/"
    gbytes = state()["w"].nbytes / GIB
    assert values(recorded, f"{write}gbytes") == [(gbytes,)] * 2
    assert values(recorded, f"{write}start_time") == [(5e6,)] * 2
    assert values(recorded, f"{write}blocking_end_time") == [(5e6,)] * 2
    ((blocked,), _) = values(recorded, f"{write}blocking_duration_secs")
    ((total, *_), _) = values(recorded, f"{write}total_duration_secs")
    assert 0 < blocked < total
    ((speed,), _) = values(recorded, f"{write}gbytes_per_sec")
    assert speed * total == pytest.approx(gbytes)
    name = "/jax/checkpoint/write/duration_since_last_checkpoint_secs"
    (_, (between,)) = values(recorded, name)
    assert between > total


def test_values_of_a_load(tmp_path, recorded):
    """The same of what was loaded, however much is stored."""
    ocp.save(tmp_path / "a", {**state(), "more": np.ones(1000)})

    ocp.load_leaf(tmp_path / "a", "w")

    expected = state()["w"].nbytes / GIB
    assert values(recorded, "/jax/checkpoint/read/gbytes") == [(expected,)]


def test_failures(tmp_path, recorded):
    """They are counted, which Orbax does not."""
    with pytest.raises(ocp.errors.UnsupportedLeafError):
        ocp.save(tmp_path / "c", {"w": object()})
    with pytest.raises(ocp.errors.CheckpointNotFoundError):
        ocp.load_async(tmp_path / "c").result()

    assert [name for _, name, _, _ in recorded if name.endswith("failure")] == [
        "/jax/orbax/write/failure",
        "/jax/orbax/read/failure",
    ]


def test_the_primary_process_tells(recorded):
    """What several processes do together is counted once."""
    store = MemoryStore()
    with SimulatedCluster(2) as cluster:

        def save(index):
            options = ocp.options.FileOptions(store=store)
            with ocp.Context(file=options, runtime=cluster.runtimes[index]):
                ocp.save("/c", {"w": np.ones(10)})

        cluster.run(save)

    assert len(values(recorded, "/jax/orbax/write/start")) == 1
    assert len(values(recorded, "/jax/orbax/write/success")) == 1


def test_a_listener_of_jax_that_fails(tmp_path, caplog):
    """It is logged, and breaks no save."""

    def broken(name, **_):
        raise ZeroDivisionError(name)

    jax.monitoring.register_event_listener(broken)
    try:
        with caplog.at_level(logging.ERROR, "stowax"):
            ocp.save(tmp_path / "c", {"w": np.arange(3)})
    finally:
        jax.monitoring.unregister_event_listener(broken)

    assert len(caplog.records) == 1
    assert ocp.load(tmp_path / "c")["w"].tolist() == [0, 1, 2]
