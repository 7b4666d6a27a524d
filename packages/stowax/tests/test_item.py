"""One tree item: staged, written, planned, loaded, without any checkpoint around it."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest
from sample_trees import bits, differences, shardings

from stowax._box import whole
from stowax._budget import Budget
from stowax._context import Context
from stowax._formats._detect import open_tree
from stowax._item_layout import stage_item
from stowax._item_plan import plan_load
from stowax._item_read import ItemLoad, metadata_tree
from stowax._item_write import complete_items, told_parts, write_part
from stowax._leaves._registry import Leaves
from stowax._operation import Operation, in_place
from stowax._processes import OneProcess
from stowax._recent import Recent
from stowax._runtime import Runtime, drive
from stowax._settings import LoadSettings
from stowax.errors import TreeError, TreeMismatchError
from stowax.options import FileOptions
from stowax.testing import MemoryStore

ONE = OneProcess()
LEAVES = Leaves()


def operation(store) -> Operation:
    """An operation on the directory /item of a store."""
    return in_place("/item", Context(file=FileOptions(store=store)).settings())


def staged_item(tree, *, borrow=True):
    """Takes a tree in, without any limit; nothing is staged yet."""
    return stage_item(
        tree,
        ONE,
        borrow=borrow,
        leaves=LEAVES,
        budget=Budget(),
        limit_bytes=1 << 40,
        known=Recent(1),
    )


async def staged_parts(tree, *, borrow=True):
    """What is staged of a tree."""
    staging = staged_item(tree, borrow=borrow).staging
    await staging.stage_first()
    return staging.parts


def saved(tree):
    """Writes a tree to a store; returns the operation and the open item."""
    current = operation(MemoryStore())

    async def there():
        staged = staged_item(tree)
        await staged.staging.stage_first()
        await write_part(staged, "/item", current)
        await complete_items(current, [told_parts(current)])
        return await open_tree(current.store, "/item", {}, verify=True)

    return current, current.runtime.run(there())


def plan(item, target, *, has_target=True):
    """Plans a load of what fits."""
    planned = plan_load(
        item,
        target,
        has_target=has_target,
        loading=LoadSettings(),
        processes=ONE,
        leaves=LEAVES,
    )
    planned.check()
    return planned


def loaded(operation, item, planned):
    """Carries out a plan."""
    load = ItemLoad(operation, item, planned, None)
    load.begin()
    return drive(load.finish())


def test_an_item_is_complete_by_itself():
    """Manifest, table, documents and data are there; the operation knows them all."""
    current, item = saved({"w": bits("float32", (3,)), "s": "text"})

    names = {
        *("_METADATA", "_strings.json", "d", "manifest.ocdbt"),
        *("stowax.chunks.0", "stowax.manifest"),
    }
    entries = current.runtime.run(current.store.list("/item"))
    assert {entry.name for entry in entries} == names
    _, covered = current.manifests["/item"]
    assert covered == (names - {"d", "stowax.manifest"}) | {"d/index", "d/data-0"}
    assert [leaf.name for leaf in item.manifest.leaves] == ["s", "w"]


def test_without_arrays_there_are_no_data_files():
    """An item of strings alone is made of documents alone."""
    current, item = saved({"s": "text"})

    entries = current.runtime.run(current.store.list("/item"))
    assert not any(entry.is_directory for entry in entries)
    planned = plan(item, None, has_target=False)
    assert loaded(current, item, planned) == {"s": "text"}


class Watched(dict):
    """A sharding's description that notes which threads encode it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.threads = set()

    def keys(self):
        """Asked for by whoever copies or encodes it."""
        self.threads.add(threading.get_ident())
        return super().keys()

    def __iter__(self):
        return iter(self.keys())

    def items(self):
        """Asked for by whoever encodes it."""
        self.threads.add(threading.get_ident())
        return super().items()


def test_documents_are_encoded_off_the_loop():
    """However many leaves there are, the engine's loop goes on meanwhile."""
    current = operation(MemoryStore())
    staged = staged_item({"w": jax.numpy.zeros(3)})
    (entry,) = staged.layout.entries
    sharding = Watched(entry.form.sharding)
    form = dataclasses.replace(entry.form, sharding=sharding)
    layout = dataclasses.replace(staged.layout, entries=(entry._replace(form=form),))
    staged = dataclasses.replace(staged, layout=layout)

    async def write():
        await staged.staging.stage_first()
        await write_part(staged, "/item", current)
        await complete_items(current, [told_parts(current)])
        return threading.get_ident()

    loop_thread = current.runtime.run(write())

    assert sharding.threads
    assert loop_thread not in sharding.threads


def test_staging_copies_what_may_change():
    """Unless it may be borrowed, host memory is copied; arrays of JAX never."""
    array = np.arange(4.0)

    (copied,) = asyncio.run(staged_parts({"a": array}, borrow=False))
    (borrowed,) = asyncio.run(staged_parts({"a": array}))

    assert not np.shares_memory(copied, array)
    assert np.shares_memory(borrowed, array)


def test_every_shard_is_staged_once():
    """Of a replicated array one replica of every part is staged."""
    array = jax.device_put(bits("int16", (8, 16)), shardings()["half"])

    parts = staged_item(array).layout.plan.parts

    assert sorted(part.box.start for part in parts) == [(0, 0), (4, 0)]
    assert sum(part.size for part in asyncio.run(staged_parts(array))) == array.size


def test_nothing_is_staged_of_a_bad_tree():
    """A tree that cannot be saved as a whole is refused as a whole."""
    for tree in (None, {"a": object()}, {"a.b": 1, "a": {"b": 2}}):
        with pytest.raises(TreeError):
            staged_item(tree)


def test_plan_reads_only_what_is_needed():
    """Requests are made for the parts that the target wants, and for no others."""
    _, item = saved({"a": bits("float32", (4,)), "b": bits("float32", (8,)), "c": "x"})

    planned = plan(item, {"a": ..., "b": np.zeros(8, np.float32), "c": str})

    asked = [
        None if how is None else [part.stored for part in how.parts]
        for how in planned.plans()
    ]
    assert asked == [None, [whole((8,))], []]
    assert planned.narrowed() == []


def test_plan_lists_narrowed_leaves():
    """The leaves that lose range or kind are listed, with what they lose."""
    _, item = saved({"a": bits("float32", (4,)), "b": bits("int8", (8,))})

    planned = plan(item, {"a": np.zeros(4, np.int8), "b": np.zeros(8, np.int16)})

    assert planned.narrowed() == ["a: float32 to int8 drops fractions"]


def test_finish_converts_and_places():
    """Once everything has been read, the tree is built of the converted values."""
    host = np.array([1.0, -2.0, 3.5], np.float32)
    current, item = saved({"a": host, "n": 3})
    asked = {"a": jax.ShapeDtypeStruct((3,), np.float16), "n": float}

    found = loaded(current, item, plan(item, asked))

    expected = {"a": jax.device_put(host.astype(np.float16)), "n": 3.0}
    assert differences(expected, found) == []


def test_mismatch_names_the_item():
    """The error names the directory."""
    _, item = saved({"a": 1})

    with pytest.raises(TreeMismatchError, match="/item"):
        plan(item, {"b": 1})


def test_metadata_tree():
    """The tree of what is stored, without values."""
    _, item = saved({"a": bits("int8", (2,)), "b": [1, "text", None]})

    found = metadata_tree(item, LoadSettings())

    assert found["a"].shape == (2,)
    assert found["b"] == [0, "string", None]


def test_runs_outside_of_the_engine():
    """Planning needs no loop."""
    _, item = saved({"s": "text"})

    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert len(plan(item, {"s": str}).plans()) == 1


def test_what_cannot_be_begun_is_closed():
    """On a closed runtime work is refused, and nothing is left that nobody awaits."""
    runtime = Runtime()
    runtime.close()
    settings = Context(
        runtime=runtime, file=FileOptions(store=MemoryStore())
    ).settings()

    async def work():
        pass

    begun = work()
    with pytest.raises(RuntimeError, match="closed"):
        in_place("/item", settings).submit(begun)
    assert begun.cr_frame is None
