"""What a document says of leaves."""

import pytest

from stowax.adapters import check_type, parse_leaves, parse_path


def test_entries_are_found_by_the_names_of_leaves():
    """Integer keys are texts, as on disk; what is unknown is left to the adapter."""
    first = {"path": ["layers", 0], "weak": True, "more": []}
    second = {"path": [], "owner": None, "hint": "b"}

    found = parse_leaves([first], optional={"hint": str})
    required = parse_leaves([second], required={"owner": str | None})

    assert found == {("layers", "0"): first}
    assert required == {(): second}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"path": ["a"]},
        {"path": ["a"], "owner": 1},
        {"path": ["a"], "owner": None, "hint": None},
        {"path": ["a"], "owner": None, "weak": 1},
        {"path": ["a"], "owner": None, "prng_impl": 1},
        {"path": ["a"], "owner": None, "python": None},
        {"path": "a", "owner": None},
        "path",
        1,
    ],
)
def test_entry_is_read_strictly(entry):
    """What is missing, or of another type, is refused."""
    with pytest.raises((KeyError, TypeError)):
        parse_leaves([entry], required={"owner": str | None}, optional={"hint": str})


@pytest.mark.parametrize("path", ["a", None, {"a": 1}, ["a", 1.5], [True], [["a"]]])
def test_path_is_read_strictly(path):
    """A path is a list of strings and integers."""
    with pytest.raises(TypeError):
        parse_path(path)


def test_type_is_named_with_the_value():
    """The message says what is wrong."""
    check_type("tag", None, str | None)
    with pytest.raises(TypeError, match="tag is 3"):
        check_type("tag", 3, str | None)
