"""Runs one half of a client and prints what it found: CLIENT HALF LIBRARY PATH.

With `stowax` for a library, the module `orbax.checkpoint` is `stowax.v0`, and no module
of Orbax can be loaded; with `orbax` it is what is installed.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np


def main():
    """Prints the answer as the last line."""
    client, half, library, path = sys.argv[1:]
    if library == "stowax":
        replace()
    module = importlib.import_module(f"interop.clients.{client}")
    answer = told(getattr(module, half)(Path(path)))
    if library == "stowax":
        check()
    print(json.dumps(answer))


def replace():
    """Puts `stowax.v0` in the place of `orbax.checkpoint`.

    With every module below: one that is found by another name would be made once more.
    """
    package = types.ModuleType("orbax")
    package.__path__ = []
    package.checkpoint = importlib.import_module("stowax.v0")
    sys.modules["orbax"] = package
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith("stowax.v0."):
            sys.modules[name.replace("stowax.v0", "orbax.checkpoint", 1)] = module


def check():
    """Nothing of Orbax has been loaded, under whatever name."""
    files = [getattr(module, "__file__", None) for module in sys.modules.values()]
    for name, module in sys.modules.items():
        if name.startswith("orbax."):
            ours = name.replace("orbax.checkpoint", "stowax.v0", 1)
            assert name != ours, name
            assert module is sys.modules.get(ours), name
    assert not [file for file in files if file and "/orbax/checkpoint/" in file]


def told(tree):
    """A tree bit for bit, as a JSON value."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [str(structure), {jax.tree_util.keystr(k): leaf(v) for k, v in leaves}]


def leaf(value):
    """A leaf bit for bit, with its kind."""
    if isinstance(value, np.ndarray | jax.Array):
        kind = "jax" if isinstance(value, jax.Array) else "numpy"
        data = np.asarray(value)
        return [kind, data.dtype.name, list(data.shape), data.tobytes().hex()]
    return [type(value).__name__, repr(value)]


if __name__ == "__main__":
    main()
