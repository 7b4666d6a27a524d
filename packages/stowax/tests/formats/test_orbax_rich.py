"""The second description of a tree in `_METADATA`, with Orbax as the oracle."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1
from sample_trees import Layer, Nothing, Point, abstract, containers, differences

import stowax
from stowax._formats._orbax_rich import encode_rich, refine
from stowax._keypath import flatten, from_named_paths, walk

SAMPLES = {
    **containers(),
    "deep": [(Point(x=({"k": (1,)},), y=()), Layer(kernel=(2, 3), bias=[(4,)]))],
    "like_a_tag": {"category": "custom", "clazz": "tuple", "entries": (1,)},
}
OURS = stowax.Context()
OURS.pytree.saving.pytree_metadata_options.support_rich_types = True
THEIRS = v1.Context()
THEIRS.pytree.saving.pytree_metadata_options = type(
    THEIRS.pytree.saving.pytree_metadata_options
)(support_rich_types=True)


def plain(root):
    """The skeleton that the first description gives."""
    return from_named_paths(
        [(tuple(key for key in path), node) for path, node in walk(root)]
    )


def described(path):
    """The second description of a saved tree."""
    document = json.loads((path / "state" / "_METADATA").read_text())
    return json.loads(document["value_metadata_tree"])


def kinds(node):
    """What a skeleton says of containers, by path."""
    here = {} if node.kind in ("leaf", "none") else {(): (node.kind, node.type_name)}
    for key, child in zip(node.keys, node.children, strict=True):
        here |= {(key.text, *path): kind for path, kind in kinds(child).items()}
    return here


@pytest.mark.parametrize("name", SAMPLES)
def test_written_as_orbax_writes_it(tmp_path, name):
    """For the same tree the text means what that of Orbax means."""
    with OURS:
        stowax.save(tmp_path / "ours", {"x": SAMPLES[name]})
    with THEIRS:
        v1.save(tmp_path / "theirs", {"x": SAMPLES[name]})

    assert described(tmp_path / "ours") == described(tmp_path / "theirs")


@pytest.mark.parametrize("name", SAMPLES)
def test_orbax_finds_the_types(tmp_path, name):
    """Orbax, told to look, gives the containers of its own checkpoint."""
    with OURS:
        stowax.save(tmp_path / "ours", {"x": SAMPLES[name]})
    with THEIRS:
        v1.save(tmp_path / "theirs", {"x": SAMPLES[name]})

        found, expected = (v1.load(tmp_path / who) for who in ("ours", "theirs"))
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_types_that_orbax_wrote_are_found(tmp_path, name):
    """With the option, what Orbax wrote has the containers that ours would have."""
    tree = {"x": SAMPLES[name]}
    with THEIRS:
        v1.save(tmp_path / "theirs", tree)
    with OURS:
        stowax.save(tmp_path / "ours", tree)

        found = stowax.load(tmp_path / "theirs")
        target = stowax.load(tmp_path / "theirs", abstract(tree))

    # Orbax makes text of integer keys, which nothing can undo.
    if name != "int_keys":
        assert differences(stowax.load(tmp_path / "ours"), found) == []
    assert differences(tree, target) == []


def test_without_the_option_nothing_changes(tmp_path):
    """The description is neither written nor looked at unless that is asked for."""
    stowax.save(tmp_path / "ours", {"x": (1,)})
    with THEIRS:
        v1.save(tmp_path / "theirs", {"x": (1,)})

    with pytest.raises(KeyError):
        described(tmp_path / "ours")
    assert stowax.load(tmp_path / "theirs") == {"x": [1]}


@pytest.mark.parametrize(
    "rich",
    [
        None,
        "text",
        [],
        {"y": {}},
        {"x": {}},
        {"x": [1]},
        {"x": [1, 2, 3]},
        {"x": {"category": "custom", "clazz": "tuple", "entries": [1]}},
        {"x": {"category": "custom", "clazz": "tuple", "entries": 1}},
        {"x": {"category": "custom", "clazz": "set", "entries": [1, 2]}},
        {"x": {"category": "namedtuple", "module": "a", "clazz": "B", "entries": [1]}},
        {"category": "namedtuple", "module": "a", "clazz": "B", "entries": [{"x": 1}]},
    ],
)
def test_another_tree_is_not_followed(rich):
    """A second description of another tree leaves the first as it is."""
    root = plain(flatten({"x": [1, 2]}).root)

    assert refine(root, rich) == root


def test_broken_text_is_damage(tmp_path):
    """Text that is no JSON is damage, like anything else in the document."""
    with THEIRS:
        v1.save(tmp_path / "theirs", {"x": (1,)})
    path = tmp_path / "theirs" / "state" / "_METADATA"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "value_metadata_tree": "{"}))

    with OURS, pytest.raises(stowax.errors.CorruptCheckpointError, match="value_meta"):
        stowax.load(tmp_path / "theirs")


NAMES = st.text("abcz", min_size=1, max_size=2)
TREES = st.recursive(
    st.sampled_from([1, None, (), [], {}, Nothing()]),
    lambda child: (
        st.lists(child, max_size=3)
        | st.lists(child, max_size=3).map(tuple)
        | st.dictionaries(
            NAMES | st.sampled_from(["category", "clazz", "entries"]), child, max_size=3
        )
        | st.builds(Point, child, child)
    ),
    max_leaves=12,
)


@settings(deadline=None)  # machines may be busy
@given(TREES)
def test_description_brings_every_container_back(tree):
    """From plain containers and the text comes the skeleton that was described."""
    root = flatten(tree).root
    text = encode_rich(root, lambda node: {"value_type": node.kind})

    found = refine(plain(root), json.loads(text))

    assert kinds(found) == kinds(root)
    assert [n.leaf for _, n in walk(found)] == [n.leaf for _, n in walk(root)]
