"""What may be done as soon as `save_async` returns, and with what it returns."""

import asyncio
import concurrent.futures
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_trees import differences, mesh

import stowax
from stowax.errors import (
    BackgroundSaveError,
    CheckpointableNotFoundError,
    CheckpointExistsError,
    SaveInProgressError,
)
from stowax.handlers import PyTreeHandler


class Held:
    """Saves itself once the test opens its gate, or fails."""

    def __init__(self, error=None):
        self.gate = threading.Event()
        self.error = error

    async def save(self, directory):
        async def write():
            self.gate.wait(60)
            if self.error is not None:
                raise self.error

        return write()

    async def load(self, directory):
        raise NotImplementedError


def make_state(number):
    """Leaves of every sort whose memory somebody might reuse."""
    rng = np.random.default_rng(number)
    base = rng.standard_normal((64, 33))
    frozen = base.copy()
    frozen.setflags(write=False)
    line = NamedSharding(mesh(8), P("x"))
    square = NamedSharding(mesh(4, 2), P("x", "y"))

    def device(shape, dtype=np.float32):
        return rng.standard_normal(shape).astype(dtype)

    return {
        "numpy": {
            "whole": base.copy(),
            "view": base.copy()[::3, 1::2],
            "transposed": base.copy().T,
            "fortran": np.asfortranarray(base),
            "frozen": frozen,
            "view_of_frozen": frozen[3:],
            "small": rng.integers(0, 9, 3),
            "scalar": np.array(rng.standard_normal()),
        },
        "jax": {
            "one": jax.device_put(device((257, 65))),
            "half": jax.device_put(device((64, 64), jnp.bfloat16)),
            "small": jnp.asarray(device(3)),
            "free": jnp.asarray(device((128, 4))) + 1,
        },
        "sharded": {
            "line": jax.device_put(device((64, 32)), line),
            "square": jax.device_put(device((64, 32)), square),
            "replicated": jax.device_put(device((32, 8)), NamedSharding(mesh(8), P())),
        },
        "keys": {
            "one": jax.random.key(number),
            "many": jax.random.split(jax.random.key(number), 7),
            "legacy": jax.random.PRNGKey(number),
        },
    }


def copy_of(leaf):
    """A copy that shares no memory."""
    if isinstance(leaf, np.ndarray):
        return np.array(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.array(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(np.array(leaf), leaf.sharding)


_donate = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0
)


def destroy(state, *, how):
    """Changes, donates or deletes everything, at once."""
    for leaf in state["numpy"].values():
        if leaf.flags.writeable:
            leaf[...] = -1
        else:
            base = leaf if leaf.base is None else leaf.base
            base.setflags(write=True)
            base[...] = -1
    state["numpy"].clear()
    arrays = state["jax"] | state["sharded"] | {"legacy": state["keys"]["legacy"]}
    if how == "donate":
        by_devices = {}
        for name, leaf in arrays.items():
            by_devices.setdefault(leaf.sharding.device_set.__len__(), {})[name] = leaf
        for group in by_devices.values():
            jax.block_until_ready(_donate(group))
    for leaf in [*arrays.values(), *state["keys"].values()]:
        if not leaf.is_deleted():
            leaf.delete()
    # What is freed is soon somebody else's.
    garbage = [np.full(64 * 33, -2.0) for _ in range(20)]
    return [jax.device_put(x) for x in garbage]


@pytest.mark.filterwarnings("ignore:Some donated buffers:UserWarning")
@pytest.mark.parametrize("how", ["delete", "donate"])
def test_everything_may_go_at_once(place, how):
    """When `save_async` returns, every leaf may be changed, donated and deleted.

    Done to all of them at once, while the writes are under way, many times.
    """
    rounds = 8
    held, expected, responses = [], [], []
    for number in range(rounds):
        state = make_state(number)
        expected.append(jax.tree.map(copy_of, state))
        responses.append(stowax.save_async(place / str(number), state))
        held.append(destroy(state, how=how))

    for number, response in enumerate(responses):
        response.result()
        loaded = stowax.load(place / str(number), expected[number])
        assert differences(expected[number], loaded) == []


class TestOnePath:
    """Two saves to one path do not overlap, so that it is no chance which one stays."""

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("again", [stowax.save, stowax.save_async])
    def test_second_is_refused(self, place, again, overwrite):
        """While a save is under way, another one to its path is refused at the call."""
        if overwrite:
            stowax.save(place / "c", {"x": 0})
        held = Held()
        first = stowax.save_checkpointables_async(
            place / "c", {"state": {"x": 1}, "held": held}, overwrite=overwrite
        )

        with pytest.raises(SaveInProgressError, match=r"result\(\)") as caught:
            again(place / "c", {"x": 2}, overwrite=overwrite)
        held.gate.set()
        first.result()

        assert isinstance(caught.value, CheckpointExistsError)
        assert place / "c" in str(caught.value)
        assert stowax.load(place / "c") == {"x": 1}

    def test_other_paths_go_on(self, place):
        """Saves to other paths go on side by side."""
        held = [Held() for _ in range(3)]
        responses = [
            stowax.save_checkpointables_async(place / str(i), {"s": {"x": i}, "h": h})
            for i, h in enumerate(held)
        ]
        stowax.save(place / "other", {"x": 9})

        for each, response in zip(reversed(held), reversed(responses), strict=True):
            each.gate.set()
            response.result()

        assert stowax.load(place / "other") == {"x": 9}
        for i in range(3):
            assert stowax.load(place / str(i)) == {"x": i}

    @pytest.mark.parametrize("spelling", ["{0}/c/", "{0}/a/../c", "{0}/./c"])
    def test_path_by_another_name(self, tmp_path, spelling):
        """A path is the same however it is written."""
        held = Held()
        first = stowax.save_checkpointables_async(tmp_path / "c", {"h": held})

        with pytest.raises(SaveInProgressError):
            stowax.save(spelling.format(tmp_path), {"x": 2})
        held.gate.set()
        first.result()

    def test_free_again(self, place):
        """After its end, good or bad, the path is free."""
        held = Held(OSError("no space"))
        held.gate.set()
        response = stowax.save_checkpointables_async(place / "c", {"h": held})
        with pytest.raises(OSError, match="no space"):
            response.result()
        with pytest.raises(stowax.errors.UnsupportedLeafError):
            stowax.save(place / "c", {"x": object()})
        for number in range(20):
            stowax.save_async(place / "c", {"x": number}, overwrite=True).result()
        stowax.save(place / "c", {"x": 20}, overwrite=True)

        assert stowax.load(place / "c") == {"x": 20}


class TestAwait:
    """A response can be awaited in any running loop."""

    def test_result(self, place):
        """`await` gives the result; other tasks run meanwhile."""

        async def main():
            held = Held()
            response = stowax.save_checkpointables_async(
                place / "c", {"state": {"x": 1}, "h": held}
            )
            waiting = asyncio.ensure_future(_await(response))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            held.gate.set()
            assert await waiting is None
            assert await response is None  # Again, when it is over.
            return await stowax.load_async(place / "c")

        assert asyncio.run(main()) == {"x": 1}

    def test_many_loops(self, place):
        """Several threads may await one response, each in a loop of its own."""
        held = Held()
        response = stowax.save_checkpointables_async(place / "c", {"h": held})
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(asyncio.run, _await(response)) for _ in range(4)]
            held.gate.set()

            assert [each.result(60) for each in waiting] == [None] * 4

    def test_cancelled_waiter(self, place):
        """Who stops waiting does not stop the operation."""
        held = Held()
        response = stowax.save_checkpointables_async(
            place / "c", {"state": {"x": 1}, "h": held}
        )

        async def wait_a_little():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_await(response), 0.01)

        asyncio.run(wait_a_little())  # Its loop is closed when the save ends.
        held.gate.set()
        response.result()

        assert stowax.load(place / "c") == {"x": 1}

    def test_failure_is_seen(self, place):
        """A failure that `await` has raised is over; the next save works."""
        held = Held(OSError("no space"))
        held.gate.set()
        response = stowax.save_checkpointables_async(place / "c", {"h": held})

        with pytest.raises(OSError, match="no space") as caught:
            asyncio.run(_await(response))
        stowax.save(place / "c", {"x": 1})

        assert any(place / "c" in note for note in caught.value.__notes__)

    def test_failure_after_the_waiter_left(self, place):
        """A failure that came when nobody waited any more is not lost."""
        held = Held(OSError("no space"))
        response = stowax.save_checkpointables_async(place / "c", {"h": held})

        async def leave():
            waiting = asyncio.ensure_future(_await(response))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])

        asyncio.run(leave())
        held.gate.set()
        stowax._runtime.default_runtime().finish()

        with pytest.raises(BackgroundSaveError, match=r"no space.*while writing"):
            stowax.save(place / "d", {"x": 1})

    def test_steps(self, tmp_path):
        """So can what a `Checkpointer` returns, its failures included."""
        checkpointer = stowax.training.Checkpointer(tmp_path / "run")
        failing = Held(OSError("no space"))
        failing.gate.set()

        async def main():
            assert await checkpointer.save_async(1, {"x": 1})
            with pytest.raises(OSError, match="no space"):
                await checkpointer.save_checkpointables_async(2, {"h": failing})
            return await checkpointer.load_async(1)

        assert asyncio.run(main()) == {"x": 1}
        checkpointer.close()


async def _await(response):
    return await response


class TestPhases:
    """The error of a background save says where it was, and in which phase."""

    @pytest.mark.parametrize(
        ("operation", "name", "phase"),
        [
            ("write", "data-0", "writing the checkpointable 'state'"),
            ("write", "stowax.manifest", "writing the documents"),
            ("write", "stowax.json", "writing the documents"),
            ("sync", None, "syncing the directories"),
            ("publish", None, "publishing"),
        ],
    )
    def test_phase(self, tmp_path, operation, name, phase):
        """It keeps its class, and names path and phase."""
        store = Failing(operation, name)
        options = stowax.options.FileOptions(store=store)
        with stowax.Context(file=options):
            response = stowax.save_async(tmp_path / "c", {"x": np.ones(3)})

        with pytest.raises(OSError, match="injected") as caught:
            response.result()

        notes = "\n".join(caught.value.__notes__)
        assert f"while {phase}" in notes
        assert f"in the save to {tmp_path / 'c'}" in notes
        assert list(tmp_path.iterdir()) == []

    def test_nobody_looked(self, tmp_path):
        """At the end of a program it is printed, with path and phase; status 1."""
        program = f"""
            import numpy as np, stowax

            class Failing:
                async def save(self, directory):
                    async def write():
                        raise OSError("no space left")
                    return write()
                async def load(self, directory): ...

            parts = {{"x": Failing(), "state": {{"w": np.ones(3)}}}}
            stowax.save_checkpointables_async({str(tmp_path / "c")!r}, parts)
            print("the program goes on")
        """

        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=120,
        )

        assert ended.returncode == 1
        assert ended.stdout == "the program goes on\n"
        report = ended.stderr.splitlines()[-1]
        assert f"save to {tmp_path / 'c'} failed" in report
        assert "OSError: no space left (while writing the checkpointable 'x')" in report
        assert list(tmp_path.iterdir()) == []


class Failing(stowax._stores._local.LocalStore):
    """Fails in one method, for files of one name; None: for the draft itself."""

    def __init__(self, operation, name):
        super().__init__()
        self.operation, self.name = operation, name

    def check(self, operation, paths):
        is_meant = any(
            path.endswith(f"/{self.name}") if self.name else "tmp-" in path[-38:]
            for path in paths
        )
        if operation == self.operation and is_meant:
            raise OSError(28, "injected")

    async def write(self, path, pieces, *, size_bytes=None):
        self.check("write", [path])
        await super().write(path, pieces, size_bytes=size_bytes)

    async def sync(self, paths):
        self.check("sync", paths)
        await super().sync(paths)

    async def publish(self, draft, final, *, replace):
        self.check("publish", [draft])
        await super().publish(draft, final, replace=replace)


class TestLoads:
    """`load_async` and `load_checkpointables_async` read what `load` reads."""

    def test_tree(self, place):
        """Of a whole checkpoint, and of the directory of a tree alone."""
        state = make_state(1)
        stowax.save(place / "c", state)

        whole = stowax.load_async(place / "c").result()
        asked = stowax.load_async(place / "c", state).result()
        alone = stowax.load_async(
            place / "c/state", state, checkpointable_name=None
        ).result()

        assert differences(stowax.load(place / "c"), whole) == []
        assert differences(state, asked) == []
        assert differences(state, alone) == []

    def test_parts(self, place):
        """Of all parts, and of those asked for; `result` says what is missing."""
        parts = {"state": {"x": np.arange(3)}, "text": "t", "step": 3}
        stowax.save_checkpointables(place / "c", parts)

        everything = stowax.load_checkpointables_async(place / "c").result()
        some = stowax.load_checkpointables_async(place / "c", {"step": int}).result()
        missing = stowax.load_checkpointables_async(place / "c", {"other": None})

        assert differences(parts, everything) == []
        assert some == {"step": 3}
        with pytest.raises(CheckpointableNotFoundError, match="other") as caught:
            missing.result()
        assert caught.value.__notes__ == [f"in the load of {place / 'c'}"]

    def test_as_the_caller_has_it(self, place):
        """Precision, default device and mesh are those of the thread that called."""
        state = {"x": np.arange(6.0), "y": jnp.arange(8)}
        stowax.save(place / "c", state)
        asked = {
            "x": jax.ShapeDtypeStruct((6,), np.float64),
            "y": jax.ShapeDtypeStruct(
                (8,), np.int32, sharding=NamedSharding(mesh(8).abstract_mesh, P("x"))
            ),
        }

        device = jax.devices()[3]
        with jax.enable_x64(True), jax.default_device(device), jax.set_mesh(mesh(8)):
            now = stowax.load(place / "c", asked)
            later = stowax.load_async(place / "c", asked)
            parts = stowax.load_checkpointables_async(place / "c", {"state": asked})

        for loaded in (now, later.result(), parts.result()["state"]):
            assert loaded["x"].dtype == np.float64
            assert loaded["x"].devices() == {device}
            assert len(loaded["y"].devices()) == 8

    @pytest.mark.parametrize("name", ["model.safetensors", "directory"])
    def test_safetensors(self, tmp_path, name):
        """Files of Hugging Face load in the background, whatever layout is set."""
        path = tmp_path / name
        if name == "directory":
            path.mkdir()
        file = path / "model.safetensors" if path.is_dir() else path
        safetensors.numpy.save_file({"a.w": np.arange(3)}, file)

        for layout in stowax.options.CheckpointLayout:
            with stowax.Context(checkpoint_layout=layout):
                tree = stowax.load_async(path)
                named = stowax.load_checkpointables_async(path)
            assert tree.result()["a.w"].tolist() == [0, 1, 2]
            assert named.result()[""]["a.w"].tolist() == [0, 1, 2]


def test_handler_alone(tmp_path):
    """What a handler used alone returns is awaited as well."""

    async def main():
        await (await PyTreeHandler().save(tmp_path / "item", {"x": 1}))
        return await (await PyTreeHandler().load(tmp_path / "item"))

    assert asyncio.run(main()) == {"x": 1}
