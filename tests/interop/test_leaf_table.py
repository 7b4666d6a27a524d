"""Every row of the page about leaves, held against both libraries.

The cells are Python expressions; what they mean stands above each table.
"""

import collections
import datetime as dt
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1
from page_tables import table
from sample_trees import HOST_DTYPES, JAX_DTYPES, OWN_DTYPES, bits, differences

import stowax
from stowax._codecs._item_manifest import decode_root
from stowax.errors import (
    KeyPathCollisionError,
    TreeMismatchError,
    UnsupportedLeafError,
)

PAGE = Path(__file__).parents[2] / "docs" / "explain" / "leaves.md"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def rows(heading):
    """The rows of one table, each known by its first cell."""
    return [pytest.param(*row, id=row[0].strip("`")) for row in table(PAGE, heading)]


def names():
    """What expressions of the page may use; its own classes among them."""
    known = {
        "collections": collections,
        "dt": dt,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "stowax": stowax,
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, known)
    return known


NAMES = names()


def expressions(cell):
    """All expressions in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def values(cell):
    """The values of all expressions in a cell."""
    return [eval(text, NAMES) for text in expressions(cell)]


def value(cell):
    """The value of the only expression in a cell."""
    (found,) = values(cell)
    return found


def shown(found):
    """A value as the page shows it."""
    if isinstance(found, jax.Array):
        return f"JAX `{found.dtype}{list(found.shape)}`"
    if isinstance(found, np.ndarray):
        return f"NumPy `{found.dtype}{list(found.shape)}`"
    return f"`{found!r}`"


def is_as_shown(found, cell):
    """Whether a value is what a cell shows of it."""
    if not cell.startswith(("JAX", "NumPy")):
        cell = shown(value(cell))
    return shown(found) == cell


def with_neighbour(leaf):
    """A tree in which a leaf has a neighbour."""
    return {"leaf": leaf, "other": np.arange(3.0)}


def on_disk(path):
    """What the manifest says of the leaf, as the page has it."""
    data = (path / "state" / "stowax.manifest").read_bytes()
    entry = next((e for e in decode_root(data).leaves if e.name == "leaf"), None)
    if entry is None:
        return "nothing"
    facts = [f"`{entry.form.kind}`"]
    if entry.form.dtype is not None:
        facts.append(f"`{entry.form.dtype}{list(entry.form.shape)}`")
    if entry.form.prng_impl is not None:
        facts.append(f"`{entry.form.prng_impl}`")
    return " ".join(facts)


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    """What Orbax saves, and what it makes of abstract leaves.

    Asked in a process of its own, because whatever Orbax refuses leaves threads and
    event loops behind, which end only with their time-outs.
    """
    answer = subprocess.run(
        [sys.executable, __file__, tmp_path_factory.mktemp("orbax")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def ask_orbax(directory):
    """What the fixture `orbax` tells, by the expressions of the page."""
    trees = {
        text: with_neighbour(eval(text, NAMES))
        for heading in ("Kinds", "Refused")
        for row in table(PAGE, heading)
        for text in expressions(row[0])
    }
    trees |= {row[0].strip("`"): value(row[0]) for row in table(PAGE, "Containers")}
    saved = {
        text: said_of(lambda tree=tree, n=n: v1.save(directory / f"saved_{n}", tree))
        for n, (text, tree) in enumerate(trees.items())
    }
    loaded = {}
    for n, (leaf, target, *_) in enumerate(table(PAGE, "Asked for as something else")):
        path, asked = directory / f"loaded_{n}", with_neighbour(value(target))
        stowax.save(path, with_neighbour(value(leaf)))
        loaded[f"{leaf} as {target}"] = said_of(
            lambda path=path, asked=asked: v1.load(path, asked)["leaf"]
        )
    return {"saved": saved, "loaded": loaded}


def said_of(call):
    """What a call gives, or that it refuses."""
    try:
        return shown(call())
    except Exception:  # noqa: BLE001 - whatever it is that Orbax raises
        return "refused"


@pytest.mark.parametrize(
    ("leaf", "stored", "ours", "targets", "theirs", "saved"), rows("Kinds")
)
def test_kinds(tmp_path, orbax, leaf, stored, ours, targets, theirs, saved):
    """A leaf is on disk what the page says, and comes back so from both libraries."""
    path, tree = tmp_path / "c", with_neighbour(value(leaf))

    stowax.save(path, tree)

    assert on_disk(path) == stored
    found = stowax.load(path)
    assert is_as_shown(found["leaf"], ours)
    asked = [*values(targets), tree["leaf"], stowax.metadata(path).metadata["leaf"]]
    for target in asked:
        again = stowax.load(path, with_neighbour(target))
        assert differences(found, again) == [], target
    peer = v1.load(path)
    expected = ours if theirs == "the same" else theirs
    assert is_as_shown(peer["leaf"], expected)
    if theirs == "the same":
        assert differences(found, peer) == []
    assert differences(tree["other"], peer["other"]) == []
    assert (v1.metadata(path).metadata is None) == isinstance(tree["leaf"], bool)
    assert (orbax["saved"][leaf.strip("`")] != "refused") == (saved == "yes")


@pytest.mark.parametrize(("dtypes", "to_orbax"), rows("dtypes"))
def test_dtypes(tmp_path, dtypes, to_orbax):
    """Arrays of JAX and of NumPy come back bit for bit; Orbax sees what is said."""
    found = re.findall(r"`(\w+)`", dtypes)
    host = {name: bits(name, (2, 3)) for name in found}
    with jax.enable_x64(True):
        on_device = [name for name in found if name not in HOST_DTYPES]
        device = {name: jax.device_put(host[name]) for name in on_device}
        tree = {"host": host, "device": device}

        stowax.save(tmp_path / "c", tree)

        assert differences(tree, stowax.load(tmp_path / "c")) == []
        assert differences(tree, stowax.load(tmp_path / "c", tree)) == []

    for name in {*on_device} & {"int64", "uint64", "float64", "complex128"}:
        del device[name]  # Orbax loads in threads in which this mode is off.
    stowax.save(tmp_path / "d", tree)
    peer = v1.load(tmp_path / "d")
    if to_orbax == "the same":
        assert differences(tree, peer) == []
    else:
        patterns = jax.tree.map(lambda a: np.asarray(a).view(np.uint8), tree)
        assert differences(patterns, jax.tree.map(np.asarray, peer)) == []


def test_all_dtypes_have_a_row():
    """The page has every dtype of which JAX makes arrays, and those of NumPy."""
    listed = re.findall(r"`(\w+)`", "".join(row[0] for row in table(PAGE, "dtypes")))
    candidates = {*vars(ml_dtypes), *np.sctypeDict.keys(), "bool"}
    with jax.enable_x64(True):
        jax_has = {name for name in candidates if _has_arrays(name)}

    assert {*jax_has, *HOST_DTYPES} == {*listed}
    assert len(listed) == len({*listed})
    assert {*JAX_DTYPES, *OWN_DTYPES} <= {*listed}


def _has_arrays(name):
    """Whether JAX makes arrays of the dtype of exactly this name."""
    try:
        dtype = np.dtype(getattr(ml_dtypes, str(name), name))
        return dtype.name == name and jax.device_put(np.zeros(1, dtype)).dtype == dtype
    except (TypeError, ValueError, jax.errors.JaxRuntimeError):
        return False


@pytest.mark.parametrize(
    ("leaf", "target", "ours", "theirs"), rows("Asked for as something else")
)
def test_asked_for_as_something_else(tmp_path, orbax, leaf, target, ours, theirs):
    """What is asked for is made of what is stored, or refused, as the page says."""
    stowax.save(tmp_path / "c", with_neighbour(value(leaf)))
    asked = with_neighbour(value(target))
    ours, warns, _ = ours.partition(", with a warning")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if ours == "refused":
            with pytest.raises(TreeMismatchError, match="leaf"):
                stowax.load(tmp_path / "c", asked)
        else:
            assert is_as_shown(stowax.load(tmp_path / "c", asked)["leaf"], ours)

    assert any("leaf" in str(w.message) for w in caught) == bool(warns)
    expected = ours if theirs == "the same" else theirs
    if not expected.startswith(("JAX", "NumPy", "refused")):
        expected = shown(value(expected))
    assert orbax["loaded"][f"{leaf} as {target}"] == expected


@pytest.mark.parametrize(("leaves", "advice", "peer"), rows("Refused"))
def test_refused(tmp_path, orbax, leaves, advice, peer):
    """The leaf is named, the advice is given, and nothing is written."""
    for leaf in expressions(leaves):
        with pytest.raises(UnsupportedLeafError) as caught:
            stowax.save(tmp_path / "c", {"a": {"leaf": eval(leaf, NAMES)}})

        assert "leaf 'a.leaf'" in str(caught.value)
        assert advice.strip("`") in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        assert (orbax["saved"][leaf] == "refused") == (peer == "refuses")


@pytest.mark.parametrize(
    ("container", "ours", "type_name", "theirs", "saved"), rows("Containers")
)
def test_containers(tmp_path, orbax, container, ours, type_name, theirs, saved):
    """A container comes back as the page says; with an abstract state, as it was."""
    tree = value(container)

    stowax.save(tmp_path / "c", tree)

    found = stowax.load(tmp_path / "c")
    assert is_as_shown(_sorted(found), ours) or is_as_shown(found, ours)
    assert differences(tree, stowax.load(tmp_path / "c", tree)) == []
    types = [*stowax.metadata(tmp_path / "c").container_types.values()]
    expected = [] if type_name == "-" else [type_name.strip("`")]
    assert [name.partition(":")[2] for name in types] == expected
    peer = _sorted(v1.load(tmp_path / "c"))
    theirs = ours if theirs == "the same" else theirs
    if isinstance(peer, np.ndarray):
        assert is_as_shown(peer, theirs)
    else:
        assert repr(peer) == repr(_sorted(value(theirs)))
    assert (orbax["saved"][container.strip("`")] != "refused") == (saved == "yes")


def _sorted(tree):
    """Dicts in one order: that of a dict is not kept by either library."""
    if isinstance(tree, dict):
        return {key: _sorted(tree[key]) for key in sorted(tree, key=str)}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_sorted, tree))
    return tree


@pytest.mark.parametrize(("tree", "reason"), rows("Names"))
def test_names_that_collide(tmp_path, tree, reason):
    """Two leaves that nobody could tell apart are refused, and both are named."""
    del reason
    tree = value(tree)

    with pytest.raises(KeyPathCollisionError) as caught:
        stowax.save(tmp_path / "c", tree)

    for key in tree:
        assert repr(key) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


ODD_NAMES = [
    *("", ".", "..", "...", "a.b", ".hidden", "a.", "../up", "../../up", "/etc", "a/b"),
    *("//", "c/0", "zarr.json", "manifest.ocdbt", "stowax.manifest", "_METADATA"),
    *("%2e%2e", "a%b", "~1", "~0", "a:b", "C:", "C:\\", "NUL", " ", " a b ", "a\tb"),
    *(
        "\n",
        "\0",
        "\\",
        "ü",
        "u\u0308",
        "雪",
        "🧊",
        "\u202e",
        "\ufeff",
        "'",
        '"',
        "[0]",
    ),
]


def test_odd_names(tmp_path):
    """Any text is a name, to both libraries; none leads out of the checkpoint."""
    tree = {
        "arrays": {name: np.full(2, i) for i, name in enumerate(ODD_NAMES)},
        "deep": {name: {name: i} for i, name in enumerate(ODD_NAMES)},
    }
    inside = tmp_path / "in" / "side"

    stowax.save(inside / "c", tree)

    assert differences(tree, stowax.load(inside / "c")) == []
    assert differences(tree, stowax.load(inside / "c", tree)) == []
    assert differences(tree, v1.load(inside / "c")) == []
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    stowax.save(tmp_path / "in" / "plain", {"a": {"b": np.ones(2)}, "c": 1})
    plain = (tmp_path / "in" / "plain").rglob("*")
    known = {re.sub("[0-9a-f]{8,}", "#", p.name) for p in plain if p.is_file()}
    assert {re.sub("[0-9a-f]{8,}", "#", Path(f).name) for f in files} <= known
    assert all(name.startswith("in/side/c/") for name in files)


@pytest.mark.parametrize("name", ["~", "a~", "~2", "a~/b"])
def test_names_that_orbax_cannot_look_up(tmp_path, name):
    """A number under such a name is what it is to both; a string is ours alone."""
    tree = {"arrays": {name: np.ones(2)}, "numbers": {name: 3}, "texts": {name: "x"}}

    stowax.save(tmp_path / "c", tree)

    assert differences(tree, stowax.load(tmp_path / "c")) == []
    peer = v1.load(tmp_path / "c")
    assert differences({**tree, "texts": {name: None}}, peer) == []


if __name__ == "__main__":
    print(json.dumps(ask_orbax(Path(sys.argv[1]))), flush=True)
    os._exit(0)  # The threads that are left would be waited for.
