"""A Grain iterator saved with Stowax continues exactly, or is left alone."""

from __future__ import annotations

import asyncio
import json

import grain
import jax
import numpy as np
import pytest
from grain import experimental
from orbax.checkpoint import v1 as orbax

import stowax
import stowax_grain
from stowax import errors
from stowax.testing import SimulatedCluster

SEEN = 5


class AddNoise(grain.transforms.RandomMap):
    """Makes every element depend on the random state of the pipeline."""

    def random_map(self, element, rng):
        return element + int(rng.integers(1000))


def _range(count=60):
    return grain.MapDataset.range(count)


def _tokens():
    elements = [{"x": np.arange(1 + i % 5)} for i in range(60)]
    return grain.MapDataset.source(elements).to_iter_dataset()


def _data_loader(**changes):
    options = {"shuffle": True, "seed": 3, "num_epochs": 2} | changes
    return grain.DataLoader(
        data_source=list(range(40)),
        sampler=grain.samplers.IndexSampler(40, **options),
        operations=[grain.transforms.Batch(3)],
        worker_count=0,
    )


PIPELINES = {
    "map": lambda: _range().map(lambda x: 2 * x),
    "shuffle": lambda: _range().shuffle(seed=7),
    "repeat": lambda: _range(7).shuffle(seed=7).repeat(4),
    "filter": lambda: _range().filter(lambda x: x % 3 > 0),
    "random map": lambda: _range().seed(4).random_map(AddNoise()),
    "random map, iterable": lambda: (
        _range().seed(4).to_iter_dataset().random_map(AddNoise())
    ),
    "mix": lambda: grain.MapDataset.mix([_range(), _range(90)], [1, 2]),
    "mix, iterable": lambda: grain.IterDataset.mix(
        {"a": _range().to_iter_dataset(), "b": _range(90).to_iter_dataset()},
        {"a": 1, "b": 2},
    ),
    "window shuffle": lambda: experimental.WindowShuffleIterDataset(
        _range().to_iter_dataset(), window_size=7, seed=3
    ),
    "batch": lambda: _range().shuffle(seed=1).to_iter_dataset().batch(4),
    "rebatch": lambda: experimental.RebatchIterDataset(
        _range().map(lambda x: {"x": np.full(2, x)}).to_iter_dataset().batch(3), 5
    ),
    "pack, first fit": lambda: experimental.FirstFitPackIterDataset(
        _tokens(), num_packing_bins=3, length_struct={"x": 8}
    ),
    "pack, best fit": lambda: experimental.BestFitPackIterDataset(
        _tokens(), num_packing_bins=3, length_struct={"x": 8}
    ),
    "concatenate and split": lambda: experimental.ConcatThenSplitIterDataset(
        _tokens(), length_struct={"x": 8}
    ),
    "interleave": lambda: experimental.InterleaveIterDataset(
        [_range(6 + i) for i in range(4)], cycle_length=2
    ),
    "limit": lambda: experimental.LimitIterDataset(_range().to_iter_dataset(), 12),
    "zip": lambda: experimental.ZipIterDataset(
        [_range().to_iter_dataset(), _range().shuffle(seed=2).to_iter_dataset()]
    ),
    "prefetch": lambda: experimental.ThreadPrefetchIterDataset(
        _range().to_iter_dataset(), prefetch_buffer_size=3
    ),
    "data loader": _data_loader,
}


def _advanced(dataset, count=SEEN):
    iterator = iter(dataset)
    for _ in range(count):
        next(iterator)
    return iterator


def _save(path, iterator, **options):
    wrapped = stowax_grain.Iterator(iterator, **options)
    stowax.save_checkpointables(path, {"data": wrapped})


def _load(path, iterator, **options):
    wrapped = stowax_grain.Iterator(iterator, **options)
    stowax.load_checkpointables(path, {"data": wrapped})


class Directory:
    """A directory that is there already, in the shape a save gets it."""

    def __init__(self, path):
        self.path = path
        path.mkdir(exist_ok=True)

    async def await_creation(self):
        return self.path


def _save_alone(path, iterator, **options):
    async def save():
        await (await stowax_grain.Iterator(iterator, **options).save(Directory(path)))

    asyncio.run(save())


def _load_alone(path, iterator, **options):
    async def load():
        await (await stowax_grain.Iterator(iterator, **options).load(path))

    asyncio.run(load())


def _assert_equal(elements, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
        elements,
        expected,
    )


@pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES)
def test_a_fresh_iterator_continues_where_the_saved_one_stood(tmp_path, make):
    """Every element after the saved position comes again, each exactly once."""
    saved = _advanced(make())
    _save(tmp_path / "step", saved)
    expected = list(saved)
    fresh = iter(make())

    _load(tmp_path / "step", fresh)

    assert expected
    _assert_equal(list(fresh), expected)


def test_an_iterator_before_its_first_element_is_saved_too(tmp_path):
    """Nothing has to be read before the first save."""
    _save(tmp_path / "step", iter(_range(4)))
    ahead = _advanced(_range(4), 2)

    _load(tmp_path / "step", ahead)

    assert list(ahead) == [0, 1, 2, 3]


def test_resized_interleaves_keep_their_shards(tmp_path):
    """Positions of shards not yet started have integer keys, and keep them."""
    shards = [_range(6) for _ in range(6)]
    dataset = experimental.InterleaveIterDataset(shards, cycle_length=2)
    states = [{"exhausted": 0, "state": {"next_index": 2}} for _ in shards]
    saved = iter(dataset)
    saved.set_shard_states(states)
    assert set(saved.get_state()["future_states"]) == {2, 3, 4, 5}
    _save(tmp_path / "step", saved)
    expected = list(saved)
    fresh = iter(dataset)

    _load(tmp_path / "step", fresh)

    assert list(fresh) == expected
    assert len(expected) == 6 * 4


class Counter:
    """An iterator of one's own, counting with NumPy as Grain recommends."""

    def __init__(self):
        self.state = {"next": np.int64(0), "window": [np.int32(0)]}

    def __next__(self):
        self.state["next"] += 1
        self.state["window"][0] = self.state["next"]
        return int(self.state["next"])

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = {**state}


def test_custom_iterators_may_count_with_numpy(tmp_path):
    """Anything with get_state and set_state is an iterator."""
    saved, fresh = Counter(), Counter()
    next(saved)
    next(saved)
    _save(tmp_path / "step", saved)

    _load(tmp_path / "step", fresh)

    assert next(fresh) == 3


def test_save_async_takes_the_position_before_it_returns(tmp_path):
    """The caller may go on reading, and changing the state, at once."""
    counter = Counter()
    next(counter)
    wrapped = stowax_grain.Iterator(counter)

    response = stowax.save_checkpointables_async(tmp_path / "step", {"data": wrapped})
    next(counter)
    response.result()

    fresh = Counter()
    _load(tmp_path / "step", fresh)
    assert next(fresh) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: _range().shuffle(seed=8).to_iter_dataset().batch(4), "seed=8"),
        (lambda: _range().shuffle(seed=7).to_iter_dataset().batch(8), "batch_size=8"),
        (lambda: _range(61).shuffle(seed=7).to_iter_dataset().batch(4), "stop=61"),
        (lambda: _range().to_iter_dataset().batch(4), "-    ShuffleMapDataset"),
    ],
    ids=["seed", "batch size", "length", "no shuffle"],
)
def test_another_pipeline_is_refused(tmp_path, change, said):
    """The error shows both pipelines, and the iterator stays where it was."""
    _save(
        tmp_path / "step",
        _advanced(_range().shuffle(seed=7).to_iter_dataset().batch(4)),
    )
    other = _advanced(change(), 1)
    before = other.get_state()

    with pytest.raises(errors.TreeMismatchError) as caught:
        _load(tmp_path / "step", other)

    assert said in str(caught.value)
    assert said in "\n".join(caught.value.problems)
    assert other.get_state() == before


def test_another_sampler_is_refused(tmp_path):
    """A data loader knows its sampler; its objection is passed on."""
    _save(tmp_path / "step", _advanced(_data_loader()))
    other = _advanced(_data_loader(seed=4), 1)
    before = other.get_state()

    with pytest.raises(errors.TreeMismatchError, match="seed=4"):
        _load(tmp_path / "step", other)

    assert other.get_state() == before


def test_another_pipeline_may_be_allowed(tmp_path):
    """`check="warn"` says the same and loads; `check="off"` only loads."""
    _save(tmp_path / "step", _advanced(_range().shuffle(seed=7)))
    warned, silent = iter(_range().shuffle(seed=8)), iter(_range().shuffle(seed=8))

    with pytest.warns(UserWarning, match="seed=8"):
        _load(tmp_path / "step", warned, check="warn")
    _load(tmp_path / "step", silent, check="off")

    assert next(warned) == next(silent) == _range().shuffle(seed=8)[SEEN]


def test_another_release_of_grain_is_named(tmp_path):
    """Releases may describe one pipeline in other words; the error says so."""
    _save_alone(tmp_path, iter(_range().shuffle(seed=7)))
    document = tmp_path / "process_0-of-1.json"
    text = document.read_text().replace(grain.__version__, "0.1.0")
    document.write_text(text.replace("ShuffleMapDataset", "ShuffleDataset"))

    with pytest.raises(errors.TreeMismatchError, match=r"saved with Grain 0\.1\.0"):
        _load_alone(tmp_path, iter(_range().shuffle(seed=7)))


def test_another_tag_is_refused(tmp_path):
    """What the description cannot see, the tag can."""
    _save(tmp_path / "step", iter(_range()), tag="data of May")

    with pytest.raises(errors.TreeMismatchError, match="data of June"):
        _load(tmp_path / "step", iter(_range()), tag="data of June")


def test_another_kind_of_iterator_is_refused(tmp_path):
    """The positions of datasets and of data loaders do not mix."""
    _save(tmp_path / "step", iter(_range()))

    with pytest.raises(errors.TreeMismatchError, match="data_loader"):
        _load(tmp_path / "step", iter(_data_loader()))


class Picky(Counter):
    """Notices only after the first change that a state is not for it."""

    def get_state(self):
        return {"next_index": self.state["next"], "window": self.state["window"]}

    def set_state(self, state):
        self.state["next"] = state["next_index"]
        self.state["window"] = state["window"]


def test_a_position_of_another_shape_leaves_the_iterator_alone(tmp_path):
    """A state that the iterator stumbles over is not half set."""
    _save(tmp_path / "step", _advanced(_range()), tag="of another iterator")
    picky = Picky()
    next(picky)

    with pytest.raises(errors.TreeMismatchError, match=r"left where it was.*window"):
        _load(tmp_path / "step", picky, check="off")

    assert next(picky) == 2


def test_each_process_has_its_own_document(tmp_path):
    """Two processes with different shards save and load side by side."""
    shards = [_range(20).shuffle(seed=1)[i::2] for i in range(2)]
    for index, shard in enumerate(shards):
        _save_alone(tmp_path, _advanced(shard, 3), process_index=index, process_count=2)

    assert {path.name for path in tmp_path.iterdir()} == {
        "data.json",
        "process_0-of-2.json",
        "process_1-of-2.json",
    }
    for index, shard in enumerate(shards):
        fresh = iter(shard)
        _load_alone(tmp_path, fresh, process_index=index, process_count=2)
        assert list(fresh) == [shard[i] for i in range(3, 10)]


def test_another_number_of_processes_is_refused(tmp_path):
    """Positions are not handed to processes that read other shards."""
    for index in range(2):
        _save_alone(tmp_path, iter(_range()), process_index=index, process_count=2)

    with pytest.raises(errors.TreeMismatchError, match=r"by 2 process.*1 process"):
        _load_alone(tmp_path, iter(_range()), process_index=0, process_count=1)


def test_one_process_is_process_0_of_1(tmp_path):
    """Without arguments, the one process of this test is read from JAX."""
    _save_alone(tmp_path, iter(_range()))

    assert (tmp_path / "process_0-of-1.json").exists()


def test_the_process_is_that_of_the_run(tmp_path):
    """Without arguments, the Context's runtime says which process this is."""
    with SimulatedCluster(2, devices=jax.devices()[:2]) as cluster:

        def save(index):
            with stowax.Context(runtime=cluster.runtimes[index]):
                wrapped = stowax_grain.Iterator(iter(_range()))
                stowax.save_checkpointables(tmp_path / "c", {"data": wrapped})

        cluster.run(save)

    assert sorted(path.name for path in (tmp_path / "c" / "data").iterdir()) == [
        "data.json",
        "process_0-of-2.json",
        "process_1-of-2.json",
    ]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("data.json", "{", errors.CorruptCheckpointError),
        ("data.json", '{"learning_rate": 0.1}', errors.InvalidLayoutError),
        ("process_0-of-1.json", "{", errors.CorruptCheckpointError),
        ("process_0-of-1.json", "{}", errors.CorruptCheckpointError),
        ("process_0-of-1.json", None, errors.CorruptCheckpointError),
    ],
)
def test_damaged_documents_are_refused(tmp_path, name, content, error):
    """A document that is cut, foreign or missing is named."""
    _save_alone(tmp_path, iter(_range()))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(error, match=name):
        _load_alone(tmp_path, iter(_range()))


def test_a_later_format_is_refused(tmp_path):
    """An unknown version is not guessed at."""
    _save_alone(tmp_path, iter(_range()))
    index = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(index | {"version": 2}))

    with pytest.raises(errors.InvalidLayoutError, match="version 2"):
        _load_alone(tmp_path, iter(_range()))


def test_an_empty_directory_is_refused(tmp_path):
    """There is nothing to continue from."""
    with pytest.raises(errors.InvalidLayoutError, match="no saved Grain iterator"):
        _load_alone(tmp_path, iter(_range()))


@pytest.mark.parametrize("make", [lambda: _range().shuffle(seed=1), _data_loader])
def test_files_that_grain_wrote_are_read(tmp_path, make):
    """Checkpoints made with Grain's own save go on."""
    saved = _advanced(make())

    async def save_with_grain():
        await (await saved.save(Directory(tmp_path)))

    asyncio.run(save_with_grain())
    expected = list(saved)
    fresh = iter(make())

    _load_alone(tmp_path, fresh)

    _assert_equal(list(fresh), expected)


def test_shard_numbers_that_grain_wrote_as_strings_are_mended(tmp_path):
    """What Grain itself would silently restart from zero continues."""
    shards = [_range(6) for _ in range(6)]
    dataset = experimental.InterleaveIterDataset(shards, cycle_length=2)
    saved = iter(dataset)
    saved.set_shard_states([{"exhausted": 0, "state": {"next_index": 2}}] * 6)

    async def save_with_grain():
        await (await saved.save(Directory(tmp_path)))

    asyncio.run(save_with_grain())
    fresh = iter(dataset)

    _load_alone(tmp_path, fresh)

    assert len(list(fresh)) == 6 * 4


def test_plain_load_reads_the_index(tmp_path):
    """Without the adapter it is a JSON document about the data, for Orbax too."""
    _save(tmp_path / "step", _advanced(_range().shuffle(seed=7)), tag="May")

    index = stowax.load_checkpointables(tmp_path / "step")["data"]

    assert index["format"] == "stowax-grain"
    assert index["kind"] == "dataset"
    assert index["process_count"] == 1
    assert index["tag"] == "May"
    assert "  ShuffleMapDataset seed=7 len=60" in index["fingerprint"]
    assert orbax.load_checkpointables(tmp_path / "step")["data"] == index


def test_datasets_are_refused_with_advice():
    """A dataset has no position; its iterator has."""
    with pytest.raises(errors.HandlerError, match=r"iter\(dataset\)"):
        stowax_grain.Iterator(_range().to_iter_dataset())


def test_a_process_outside_the_run_is_refused():
    """Process 2 of 2 does not exist."""
    with pytest.raises(ValueError, match="not one of 2"):
        stowax_grain.Iterator(iter(_range()), process_index=2, process_count=2)
