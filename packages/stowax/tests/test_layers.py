"""Who may import whom: the picture of docs/explain/design.md, read from the sources.

Every import counts, also inside a function or under `TYPE_CHECKING`.  The checks are
functions over syntax trees, so that each of them is first seen to find a violation.
"""

import ast
import graphlib
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from page_tables import DESIGN, table

PACKAGES = Path(__file__).parents[2]

# Module prefix, below `stowax`, to layer.  The longest prefix decides, and a module
# that has none fails: a new room is given its place in the picture first.
LAYERS = {
    # words
    "_group": 0,
    "_public": 0,
    "errors": 0,
    "_events": 0,
    "options": 0,
    "tree": 0,
    # facts
    "_box": 1,
    "_caller": 1,
    "_context": 1,
    "_custom_metadata": 1,
    "_damage": 1,
    "_keypath": 1,
    "_manifest": 1,
    "_metadata": 1,
    "_option_values": 1,
    "_settings": 1,
    "_sharding": 1,
    # ports
    "_formats._base": 2,
    "_budget": 2,
    "_calls": 2,
    "_handlers._base": 2,
    "_leaves._base": 2,
    "_listeners": 2,
    "_loop": 2,
    "_memory": 2,
    "_monitoring": 2,
    "_processes": 2,
    "_recent": 2,
    "_report": 2,
    "_runtime": 2,
    "_stores._base": 2,
    "_tasks": 2,
    "_uncollected": 2,
    # decisions and encodings
    "_codecs": 3,
    "_plan": 3,
    # movers
    "_chunk_index": 4,
    "_database_index": 4,
    "_database_source": 4,
    "_digest": 4,
    "_engine_encode": 4,
    "_engine_read": 4,
    "_engine_write": 4,
    "_mapped": 4,
    "_response": 4,
    "_staging": 4,
    "_stores": 4,
    "_tensorstore": 4,
    "_transfer": 4,
    # translators
    "_formats": 5,
    "_leaves": 5,
    # one item
    "_array_directories": 6,
    "_deadline": 6,
    "_environment": 6,
    "_item_layout": 6,
    "_item_fit": 6,
    "_item_leaf": 6,
    "_item_plan": 6,
    "_item_read": 6,
    "_item_target": 6,
    "_item_types": 6,
    "_item_united": 6,
    "_item_write": 6,
    "_item_verify": 6,
    "_operation": 6,
    "_operation_path": 6,
    "_session": 6,
    "_session_calls": 8,
    "_session_items": 6,
    "_session_records": 6,
    "_tensor_layout": 6,
    "_tensor_write": 6,
    "_tree_values": 6,
    # who saves what
    "_handlers": 7,
    # operations
    "_commit": 8,
    "_composite": 8,
    "_delete": 8,
    "_deprecated": 9,
    "_finalize": 8,
    "_inspect": 8,
    "_load": 8,
    "_load_leaf": 8,
    "_named_tree": 8,
    "_opened": 8,
    "_preview": 8,
    "_remove_item": 8,
    "_save": 8,
    "_save_composite": 8,
    "_save_names": 8,
    "_save_tensors": 8,
    "_save_update": 8,
    "_staged_save": 8,
    "_verify": 8,
    # faces
    "adapters": 9,
    "arrays": 9,
    "events": 9,
    "handlers": 9,
    "multihost": 9,
    "partial": 9,
    "path": 9,
    "testing": 9,
    "training": 9,
    # doors
    "": 10,
    "v0": 10,
    # for people
    "__main__": 11,
    "cli": 11,
    "report": 11,
}
DOORS = 8
"""From this layer up, settings, clock and environment may be read."""

SCRATCH = "_operation"
"""Gives guests a local directory where the store has none; no checkpoint lies there."""

FAMILIES = ("_formats", "_handlers", "_leaves", "_stores")
"""Folders of interchangeable members; a member is named by its first word."""

CHOOSERS = ("_detect", "_open", "_registry")
"""The modules of a family that know its members."""

SHARED = ("_abstract", "_base", "_choose", "_file", "_orbax_json", "_tree")
"""What the members of a family know: our format, too, writes Orbax's documents."""

FOREIGN = {"flax", "grain", "optax", "orbax"}
"""What the core never imports, installed or not."""

# What only one module may touch, by the name under which the world knows it.
ONLY_IN = {
    "tensorstore": ("_tensorstore",),
    "jax._src": ("_processes",),
    "jax.distributed": ("_processes",),
    "jax.experimental.multihost_utils": ("_processes",),
    "jax.process_count": ("_processes",),
    "jax.process_index": ("_processes",),
    "jax.process_indices": ("_processes",),
    "jax.device_get": ("_transfer",),
    "jax.device_put": ("_transfer",),
    "os.fsync": ("_stores._local",),
    "os.mkdir": ("_stores._local",),
    "os.makedirs": ("_stores._local", SCRATCH),
    "os.open": ("_stores._local",),
    "os.remove": ("_stores._local",),
    "os.rename": ("_stores._local",),
    "os.replace": ("_stores._local",),
    "os.rmdir": ("_stores._local",),
    "os.unlink": ("_stores._local",),
    "shutil.rmtree": ("_stores._local", SCRATCH),
}
NOT_BELOW_THE_DOORS = {
    "os.environ": (),
    "os.getenv": (),
    "time.time": ("_runtime",),
    "time.time_ns": ("_runtime",),
}

Sources = Mapping[str, ast.Module]
"""Syntax trees by full module name; a package goes by its own name."""


def test_imports_go_down():
    """A module imports only from lower layers, or from its own."""
    assert _upward_imports(_sources("stowax")) == []


def test_there_is_no_import_cycle():
    """Imports within a layer run one way."""
    assert _cycle(_sources("stowax")) is None


def test_members_of_a_family_do_not_know_each_other():
    """Only a family's chooser imports its members."""
    assert _family_imports(_sources("stowax")) == []


def test_every_module_has_its_layer():
    """A module that the picture does not show is not in the package."""
    assert [name for name in _sources("stowax") if _layer(name) is None] == []
    assert _layer("stowax._new_room") is None


def test_the_page_has_the_same_picture():
    """The table that people read has every module, in its layer, and no others."""
    there, to_come = _shown_layers()

    assert there | to_come == LAYERS


def test_what_is_to_come_is_not_there():
    """A module of the picture has been written, unless the page says "to come"."""
    sources = _sources("stowax")
    _, to_come = _shown_layers()

    assert {n for n in LAYERS if n and f"stowax.{n}" not in sources} == set(to_come)


def test_each_foreign_thing_has_one_door():
    """TensorStore, processes, transfers and durable file calls have one module each."""
    assert _outside_the_door(_sources("stowax")) == []


def test_core_imports_no_adapted_library():
    """The core stands without Flax, Optax and Grain, and without its peer."""
    assert _foreign_imports(_sources("stowax"), FOREIGN) == []


@pytest.mark.parametrize("adapter", ["flax", "grain", "optax"])
def test_adapters_use_public_names_only(adapter):
    """An adapter is written with what every user of the core has."""
    sources = _sources(f"stowax_{adapter}")

    assert sources
    assert _private_uses(sources) == []
    assert _foreign_imports(sources, {"orbax"}) == []


@pytest.mark.parametrize("adapter", ["flax", "grain", "optax"])
def test_names_that_adapters_import_are_exported(adapter):
    """What an adapter imports from a module of the core is in its `__all__`."""
    for module, imported in _imported_names(_sources(f"stowax_{adapter}")):
        public = importlib.import_module(module)
        assert imported in public.__all__, f"{module} does not export {imported}"


@pytest.mark.parametrize(
    ("check", "source", "found"),
    [
        ("up", "from stowax._save import save", ["stowax._box -> stowax._save"]),
        ("up", "import stowax", ["stowax._box -> stowax"]),
        ("up", "from stowax import _save", ["stowax._box -> stowax._save"]),
        ("up", "from . import _save", ["stowax._box -> stowax._save"]),
        ("up", "def f():\n    import stowax._save", ["stowax._box -> stowax._save"]),
        ("up", "from stowax import errors", []),
        ("door", "import tensorstore as ts", ["stowax._box: tensorstore"]),
        ("door", "from jax._src import x", ["stowax._box: jax._src.x"]),
        ("door", "import jax\njax.process_index()", ["stowax._box: jax.process_index"]),
        ("door", "from os import environ", ["stowax._box: os.environ"]),
        ("door", "import jax\njax.devices()", []),
        ("foreign", "from flax import nnx", ["stowax._box: flax"]),
        ("foreign", "import jax", []),
        ("private", "from stowax._box import Box", ["stowax._box: stowax._box.Box"]),
        ("private", "import stowax\nstowax._box", ["stowax._box: stowax._box"]),
        ("private", "from stowax import errors", []),
    ],
)
def test_checks_find_what_they_look_for(check, source, found):
    """Each check above fails on a module that breaks its rule, and only on that."""
    sources = {
        "stowax": ast.parse(""),
        "stowax._box": ast.parse(source),
        "stowax._save": ast.parse(""),
        "stowax.errors": ast.parse(""),
    }
    checks = {
        "up": _upward_imports,
        "door": _outside_the_door,
        "foreign": lambda sources: _foreign_imports(sources, FOREIGN),
        "private": _private_uses,
    }

    assert checks[check](sources) == found


def test_checks_find_cycles_and_family_imports():
    """Two modules that import each other, and two siblings, are both found."""
    sources = {
        "stowax._stores._local": ast.parse("import stowax._stores._remote"),
        "stowax._stores._remote": ast.parse("import stowax._stores._local"),
        "stowax._stores._local_exchange": ast.parse("import stowax._stores._local"),
        "stowax._stores._open": ast.parse("import stowax._stores._local"),
    }

    assert _cycle(sources) is not None
    assert _family_imports(sources) == [
        "stowax._stores._local -> stowax._stores._remote",
        "stowax._stores._remote -> stowax._stores._local",
    ]


def _sources(package: str) -> dict[str, ast.Module]:
    root = PACKAGES / package.replace("_", "-") / "src"
    sources = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        sources[name] = ast.parse(path.read_text(), filename=str(path))
        # How a relative import is read depends on it.
        sources[name].is_package = path.name == "__init__.py"
    return sources


def _shown_layers() -> tuple[dict[str, int], dict[str, int]]:
    """Layers by module as the page has them: those that are there, those to come."""
    there, to_come = {}, {}
    for layer, modules, _ in table(DESIGN, "Layers"):
        for part in modules.split(";"):
            found = to_come if part.endswith("(to come)") else there
            for name in re.findall("`([^`]+)`", part):
                names = [f"{family}._base" for family in FAMILIES]
                if name != "_base":
                    names = [name.replace("__init__", "")]
                found |= dict.fromkeys(names, int(layer))
    return there, to_come


def _layer(module: str) -> int | None:
    """The layer of a module; None where the table has no place for it."""
    below = module.partition(".")[2]
    while below not in LAYERS:
        below = below.rpartition(".")[0]
        if not below:
            return None
    return LAYERS[below]


def _upward_imports(sources: Sources) -> list[str]:
    found = []
    for name, imported in _internal_imports(sources):
        ours, theirs = _layer(name), _layer(imported)
        if ours is not None and theirs is not None and theirs > ours:
            found.append(f"{name} -> {imported}")
    return found


def _cycle(sources: Sources) -> list[str] | None:
    graph = {name: set() for name in sources}
    for name, imported in _internal_imports(sources):
        graph[name].add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def _family_imports(sources: Sources) -> list[str]:
    found = []
    for name, imported in _internal_imports(sources):
        ours, theirs = _member(name), _member(imported)
        if ours is None or theirs is None or ours[0] != theirs[0]:
            continue
        if ours[1] != theirs[1]:
            found.append(f"{name} -> {imported}")
    return found


def _member(module: str) -> tuple[str, str] | None:
    """Family and member that a module is part of; None for what is no member."""
    _, family, *rest = [*module.split("."), ""]
    if family not in FAMILIES or rest[0] in ("", *SHARED, *CHOOSERS):
        return None
    return family, rest[0].split("_")[1]


def _outside_the_door(sources: Sources) -> list[str]:
    found = []
    for name, tree in sources.items():
        below = name.partition(".")[2]
        layer = _layer(name)
        rules = dict(ONLY_IN)
        if layer is not None and layer < DOORS:
            rules |= NOT_BELOW_THE_DOORS
        if below.startswith("testing"):
            continue  # fakes of the ports stand in for all of these
        for used in sorted(_uses(tree)):
            for thing, doors in rules.items():
                touches = used == thing or used.startswith(f"{thing}.")
                if touches and not below.startswith(doors or ("-",)):
                    found.append(f"{name}: {used}")
    return found


def _foreign_imports(sources: Sources, foreign: set[str]) -> list[str]:
    return [
        f"{name}: {top}"
        for name, tree in sources.items()
        for top in sorted({imported.partition(".")[0] for imported in _imports(tree)})
        if top in foreign
    ]


def _private_uses(sources: Sources) -> list[str]:
    return [
        f"{name}: {used}"
        for name, tree in sources.items()
        for used in sorted(_uses(tree))
        if used.startswith("stowax.") and any(p[0] == "_" for p in used.split("."))
    ]


def _imported_names(sources: Sources) -> Iterator[tuple[str, str]]:
    """Pairs of a module of the core and a name that is imported from it."""
    core = _sources("stowax")
    for tree in sources.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            if node.module.partition(".")[0] == "stowax":
                for alias in node.names:
                    if f"{node.module}.{alias.name}" not in core:
                        yield node.module, alias.name


def _internal_imports(sources: Sources) -> Iterator[tuple[str, str]]:
    """Pairs of a module and one of `sources` that it imports."""
    for name, tree in sources.items():
        for imported in sorted(_imports(tree, name)):
            # `from a.b import c` is about the module a.b.c where there is one, and
            # about a.b where c is something inside of it.
            module = imported
            while module not in sources and "." in module:
                module = module.rpartition(".")[0]
            if module in sources and module != name:
                yield name, module


def _imports(tree: ast.Module, name: str = "") -> set[str]:
    """Full names of what a module imports, wherever it does."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                up = node.level - getattr(tree, "is_package", False)
                base = ".".join([*parts[: len(parts) - up], *filter(None, [base])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _uses(tree: ast.Module) -> set[str]:
    """Full names of what a module imports or reaches through an imported module."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    used = _imports(tree)
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and parts and node.id in known:
            used.add(".".join([known[node.id], *reversed(parts)]))
    return used
