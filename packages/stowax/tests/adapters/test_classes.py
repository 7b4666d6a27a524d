"""The names of classes in documents."""

import pytest

from stowax.adapters import class_name, same_class


class Average:
    """A class of the user's."""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("optax", "optax:Average"),
        ("optax._src.alias", "optax:Average"),
        ("optax.contrib._muon", "optax.contrib:Average"),
        ("optax_extras.alias", "optax_extras.alias:Average"),
        ("my.optax", "my.optax:Average"),
    ],
)
def test_name_does_not_depend_on_where_a_library_keeps_it(monkeypatch, module, name):
    """A class is named after the first package of the library that it is below."""
    monkeypatch.setattr(Average, "__module__", module)
    assert class_name(Average, "optax.contrib", "optax") == name


@pytest.mark.parametrize(
    ("stored", "live", "is_same"),
    [
        (None, None, True),
        ("lib:A", None, False),
        (None, "lib:A", False),
        ("lib:A", "lib:A", True),
        ("lib:A", "lib:B", False),
        ("lib.contrib:A", "lib:A", True),
        ("my.old:A", "my.new:A", True),
        ("my.old:f.<locals>.A", "my.new:g.<locals>.A", True),
        ("my.old:Outer.A", "my.new:A", False),
        ("lib:A", "my:A", False),
        ("my:A", "lib.contrib:A", False),
        ("library:A", "my:A", True),
    ],
)
def test_a_class_may_move_but_not_into_the_library(stored, live, is_same):
    """Classes are told by their names, and those of the library from all others."""
    assert same_class(stored, live, library="lib") is is_same
