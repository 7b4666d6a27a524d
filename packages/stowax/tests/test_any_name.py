"""Names of all sorts: none leads anywhere, and none is taken for another."""

import itertools
import re
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from sample_states import examples, odd_names, odd_trees
from sample_trees import abstract, differences, plain

import stowax
from stowax._keypath import describe, flatten, leaf_name, walk
from stowax.errors import InvalidNameError, KeyPathCollisionError

FILES = re.compile(
    r"orbax\.checkpoint|_CHECKPOINT_METADATA|commit_success\.txt|stowax\.json"
    r"|state/(stowax\.manifest|stowax\.chunks\.0|d/data-0|d/index|manifest\.ocdbt"
    r"|_METADATA|_sharding|_strings\.json|array_metadatas/process_0)"
)


@given(state=odd_trees())
@example(state={"a": 1, "a/": 2})
@example(state={"a/": 1, "a//": 2})
@example(state={"": 1, "/": 2})
@example(state={"": 1, "//": 2, "///": 3})
@example(state={"a": "s", "a/b": "t"})
@example(state={"a~0": "s", "a~": "t"})
@examples(25)
def test_leaves(state):
    """A tree comes back whatever its keys are, out of files that no key has named.

    Or else two of its leaves would get one name: both are named, nothing is written.
    """
    clashes = clashes_of(state)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "checkpoint")
        try:
            stowax.save(path, state)
        except KeyPathCollisionError as error:
            assert any(a in str(error) and b in str(error) for a, b in clashes)  # noqa: PT017
            assert list(Path(directory).iterdir()) == []
            return

        assert clashes == []
        files = [file for file in Path(directory).rglob("*") if file.is_file()]
        assert all(FILES.fullmatch(f"{file.relative_to(path)}") for file in files)
        assert differences(state, stowax.load(path, abstract(state))) == []
        assert differences(plain(state), stowax.load(path)) == []
        for name, leaf in zip(flatten(state).names, flatten(state).leaves, strict=True):
            assert differences(leaf, stowax.load_leaf(path, name)) == []


def clashes_of(state):
    """How messages call the pairs of leaves that would get one name."""
    flat = flatten(state)
    entries = [(leaf_name(path), path) for path, _ in walk(flat.root)]
    strings = [
        (tuple(unescaped(step) for step in name.split("/")), name)
        for name, leaf in zip(flat.names, flat.leaves, strict=True)
        if isinstance(leaf, str)
    ]
    return [
        (describe(first), describe(second))
        for (a, first), (b, second) in itertools.combinations(entries, 2)
        if prefix(a) == prefix(b)
    ] + [
        (repr(first), repr(second))
        for (a, first), (b, second) in itertools.combinations(strings, 2)
        # Levels of JSON objects, of which one lies in or below the other.
        if a[: len(b)] == b[: len(a)]
    ]


def prefix(name):
    """How TensorStore begins the keys of an array: one "/" at the end says nothing."""
    return "" if name in ("", "/") else name.removesuffix("/") + "/"


def unescaped(step):
    """One level of a JSON pointer."""
    return re.sub("~[01]", lambda match: "~/"[int(match[0][1])], step)


@example(name="n" * 256, other="state")
@example(name="n" * 255, other="雪" * 85)
@given(name=odd_names() | st.sampled_from(["state", "größe"]), other=odd_names())
@examples(25)
def test_checkpointables(name, other):
    """A name is a directory in the checkpoint, or is refused before anything is."""
    parts = {name: {"x": 1}, other: {"x": 2}}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "checkpoint")
        try:
            stowax.save_checkpointables(path, parts)
        except InvalidNameError as error:
            assert repr(name) in str(error) or repr(other) in str(error)  # noqa: PT017
            assert list(Path(directory).iterdir()) == []
            return

        assert [entry.name for entry in Path(directory).iterdir()] == ["checkpoint"]
        assert {
            entry.name for entry in path.iterdir() if entry.is_dir()
        } == parts.keys()
        assert stowax.load_checkpointables(path) == parts
        assert stowax.load(path, checkpointable_name=name) == parts[name]
