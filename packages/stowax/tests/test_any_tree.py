"""What holds of every tree, however it is saved and however it is loaded.

Trees of all containers with leaves of all kinds, those that tests teach among them.
"""

import asyncio
import re
from typing import Any

import jax
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_states import context, examples, is_taught, our_saving, spread, states
from sample_trees import (
    Layer,
    Nothing,
    Pair,
    Point,
    abstract,
    differences,
    plain,
    trees,
)

import stowax
from stowax._keypath import flatten
from stowax.errors import StowaxError, TreeMismatchError
from stowax.handlers import PyTreeHandler
from stowax.testing import MemoryStore

PATH = "/runs/one"
SEVERAL = "/runs/several"
ITEM = "/runs/item"

WITH_TARGET = {
    "load": lambda target: stowax.load(PATH, target),
    "async": lambda target: stowax.load_async(PATH, target).result(),
    "several": lambda target: stowax.load_checkpointables(SEVERAL, {"a": target})["a"],
    "several async": lambda target: stowax.load_checkpointables_async(
        SEVERAL, {"a": target}
    ).result()["a"],
    "name": lambda target: stowax.load(SEVERAL, target, checkpointable_name="a"),
    "item": lambda target: stowax.load(ITEM, target, checkpointable_name=None),
}
WITHOUT_TARGET = {
    "load": lambda: stowax.load(PATH),
    "async": lambda: stowax.load_async(PATH).result(),
    "metadata": lambda: stowax.load(PATH, stowax.metadata(PATH)),
    "tree of metadata": lambda: stowax.load(PATH, stowax.metadata(PATH).metadata),
    "several": lambda: stowax.load_checkpointables(SEVERAL)["a"],
    "all metadata": lambda: stowax.load_checkpointables(
        SEVERAL, stowax.checkpointables_metadata(SEVERAL)
    )["a"],
    "item": lambda: stowax.load(ITEM, checkpointable_name=None),
}


@given(state=states(), saving=our_saving())
@examples(25)
def test_every_way(state, saving):
    """Whatever way a tree is saved and loaded, it comes back bit for bit."""
    with context(MemoryStore(), saving=saving) as usual:
        stowax.save(PATH, state)
        stowax.save_checkpointables_async(SEVERAL, {"a": state, "b": {}}).result()
        asyncio.run(_save_alone(state))

        target = abstract(state)
        exact = {way: load(target) for way, load in WITH_TARGET.items()}
        bare = {way: load() for way, load in WITHOUT_TARGET.items()}
    typing = stowax.Context(usual)
    typing.pytree.loading.container_types = (Point, Nothing)
    with typing:
        typed = stowax.load(PATH)

    assert _all_differences(state, exact, placement=True) == {}
    assert _all_differences(plain(state), bare) == {}
    assert (
        _all_differences(
            spread(plain(state)),
            {way: spread(found) for way, found in bare.items()},
            placement=True,
        )
        == {}
    )
    assert differences(_typed(state), typed) == []


async def _save_alone(state: Any) -> None:
    await (await PyTreeHandler().save(ITEM, state))


def _all_differences(
    expected: Any, found: dict[str, Any], **options: bool
) -> dict[str, list[str]]:
    """How what came back differs, by the way it came."""
    pairs = ((way, differences(expected, f, **options)) for way, f in found.items())
    return {way: problems for way, problems in pairs if problems}


def _typed(state: Any) -> Any:
    """What a load gives that may make our NamedTuples."""
    if isinstance(state, Point | Nothing):
        return type(state)(*map(_typed, state))
    if isinstance(state, Layer):
        return {"kernel": _typed(state.kernel), "bias": _typed(state.bias)}
    if isinstance(state, Pair):
        return [_typed(state.first), _typed(state.second)]
    if isinstance(state, dict):
        return {key: _typed(child) for key, child in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_typed, state))
    return state


@given(state=states(), saving=our_saving())
@examples(25)
def test_snapshot(state, saving):
    """When `save_async` returns, all of a tree may be overwritten and deleted."""
    mine = jax.tree.map(_own, state)
    with context(MemoryStore(), saving=saving):
        response = stowax.save_async(PATH, mine)
        jax.tree.map(_destroy, mine)
        response.result()

        loaded = stowax.load(PATH, abstract(state))

    assert differences(state, loaded, placement=True) == []


def _own(leaf: Any) -> Any:
    """The leaf with memory of its own."""
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if not isinstance(leaf, jax.Array):
        return leaf
    sharding = leaf.sharding if leaf.committed else None
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.array(jax.random.key_data(leaf))
        copy = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(copy, sharding)
    return jax.device_put(np.array(leaf), sharding)


def _destroy(leaf: Any) -> None:
    """Overwrites or deletes what can be."""
    if isinstance(leaf, np.ndarray):
        leaf.reshape(-1).view(np.uint8)[...] ^= 1
    if isinstance(leaf, jax.Array):
        leaf.delete()


@given(state=states(), saving=our_saving(), data=st.data())
@examples(40)
def test_flipped_bit(state, saving, data):
    """A flipped bit anywhere is damage that is named, or changes nothing."""
    store = MemoryStore()
    with context(store, saving=saving):
        stowax.save(PATH, state)
    file = data.draw(st.sampled_from(_files(store)), "file")
    assume(file.content)
    content = bytearray(file.content)
    position = data.draw(st.integers(0, len(content) - 1), "position")
    content[position] ^= 1 << data.draw(st.integers(0, 7), "bit")
    file.content = bytes(content)

    for target, expected in ((None, plain(state)), (abstract(state), state)):
        with context(store):
            try:
                loaded = stowax.load(PATH, target)
            except StowaxError as error:
                assert PATH in str(error)  # noqa: PT017 no error is right as well
            else:
                assert differences(expected, loaded) == []


def _files(store: MemoryStore) -> list[Any]:
    """The files of a store, as it keeps them."""

    def below(directory):
        for _, child in sorted(directory.children.items()):
            yield from below(child) if hasattr(child, "children") else [child]

    return list(below(store._root))


class TestParts:
    @given(state=states(), saving=our_saving())
    @examples(25)
    def test_leaves_alone(self, state, saving):
        """A leaf that is loaded alone is that of the whole, or what is asked for."""
        with context(MemoryStore(), saving=saving):
            stowax.save(PATH, state)

            whole, asked = _by_name(stowax.load(PATH)), _by_name(state)
            alone = {name: stowax.load_leaf(PATH, name) for name in asked}
            exact = {
                name: stowax.load_leaf(PATH, name, abstract_leaf=abstract(leaf))
                for name, leaf in asked.items()
            }

        assert differences(whole, alone, placement=True) == []
        assert differences(asked, exact, placement=True) == []

    @given(state=states(), data=st.data())
    @examples(40)
    def test_placeholders(self, state, data):
        """What a placeholder stands for stays one; the rest is as in the whole."""
        gone = jax.tree.map(
            lambda _: data.draw(st.booleans(), "gone"), state, is_leaf=is_taught
        )

        def blanked(tree):
            return jax.tree.map(
                lambda gone, leaf: stowax.PLACEHOLDER if gone else leaf, gone, tree
            )

        with context(MemoryStore()):
            stowax.save(PATH, state)
            loaded = stowax.load(PATH, blanked(abstract(state)))

        assert differences(blanked(state), loaded, placement=True) == []

    @given(state=states(), data=st.data())
    @examples(40)
    def test_partial_load(self, state, data):
        """What an abstract state leaves out is not loaded; the rest is as ever."""
        part = _some_of(plain(state), data)

        with context(MemoryStore(), partial_load=True):
            stowax.save(PATH, state)
            loaded = stowax.load(PATH, abstract(part))

        assert differences(part, loaded, placement=True) == []


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names."""
    found = flatten(tree, is_taught)
    return dict(zip(found.names, found.leaves, strict=True))


def _some_of(tree: Any, data: st.DataObject) -> Any:
    """The tree less some entries of its dicts and the ends of its lists."""
    if type(tree) is dict:
        kept = [key for key in tree if data.draw(st.booleans(), "kept")]
        return {key: _some_of(tree[key], data) for key in kept}
    if type(tree) in (list, tuple):
        count = data.draw(st.integers(0, len(tree)), "kept")
        return type(tree)(_some_of(child, data) for child in tree[:count])
    return tree


@given(first=trees(st.just(1)), second=trees(st.just(1)))
@examples(60)
def test_all_that_differs(first, second):
    """An abstract state loads, or the error lists exactly the leaves amiss."""
    assume(first is not None)
    with context(MemoryStore()):
        stowax.save(PATH, first)

        preview = stowax.preview_load(PATH, second)
        try:
            loaded, problems = stowax.load(PATH, second), ()
        except TreeMismatchError as error:
            problems = error.problems

    amiss = [
        ".".join(path) or ("''" if path else "<root>")
        for path in _paths(first) ^ _paths(second)
    ]
    named = [re.split(": (?:asked|stored) ", line)[0] for line in problems]
    assert sorted(named) == sorted(amiss)
    assert preview.problems == problems
    assert amiss or differences(second, loaded) == []


def _paths(tree: Any) -> set[tuple[str, ...]]:
    """The paths of all leaves, as the texts of their keys."""
    return {tuple(key.text for key in path) for path in flatten(tree).paths}
