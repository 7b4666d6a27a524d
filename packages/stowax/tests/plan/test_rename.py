"""Rules from names in the result to stored names."""

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stowax._plan._rename import Rules, keys_of, near_rule
from stowax.errors import RenameError, TreeError


def stored_name(rename, name):
    """The name under which rules look a leaf up."""
    return Rules(tuple(rename.items())).stored_name(name).name


@pytest.mark.parametrize(
    ("rename", "name", "stored"),
    [
        ({"a": "b"}, "a", "b"),
        ({"a": "b"}, "a.x.y", "b.x.y"),
        ({"a": "b"}, "ab", "ab"),
        ({"a.b": "c"}, "a", "a"),
        ({"": "params"}, "w", "params.w"),
        ({"": "params"}, "", "params"),
        ({"model": ""}, "model.w", "w"),
        ({"model": ""}, "model", ""),
        ({"*": "p.*"}, "a.b", "p.a.b"),
        ({"*": "p.*"}, "", ""),
        ({"*.w": "*.kernel"}, "dense.w", "dense.kernel"),
        ({"*.w": "*.kernel"}, "a.dense.w", "a.dense.w"),
        ({"**.w": "**.kernel"}, "a.dense.w", "a.dense.kernel"),
        ({"**.w": "**.kernel"}, "w", "kernel"),
        ({"**.w": "m.**.kernel"}, "w.x", "m.kernel.x"),
        ({"**": "p.**"}, "a.b", "p.a.b"),
        ({"**.w": "**.k"}, "w.w.x", "w.k.x"),
        ({"layers.*": "block_*"}, "layers.12.w", "block_12.w"),
        ({"block_*": "layers.*"}, "block_12.w", "layers.12.w"),
        ({"block_*": "layers.*"}, "block.w", "block.w"),
        ({"*_*": "*.*"}, "a_b_c.x", "a_b.c.x"),
        ({"a.*.c": "shared"}, "a.b.c.w", "shared.w"),
        ({"a.b": "x", "a": "y"}, "a.b.c", "x.c"),
        ({"a.b": "x", "a": "y"}, "a.c", "y.c"),
        ({"a.(b": "x"}, "a.(b", "x"),
        ({"a": "b"}, "a\n", "a\n"),
    ],
)
def test_stored_name(rename, name, stored):
    """The first rule that fits the beginning of a name decides; the rest is kept."""
    assert stored_name(rename, name) == stored


@pytest.mark.parametrize(
    ("rename", "why"),
    [
        ({"a": "*"}, "must be the same"),
        ({"*": "**"}, "must be the same"),
        ({"*.*": "*"}, "must be the same"),
        ({"*.**": "**.*"}, "must be the same"),
        ({"a**": "b"}, "whole keys"),
        ({"a": "b**.c"}, "whole keys"),
    ],
)
def test_stars_that_do_not_fit(rename, why):
    """A rule whose stars have nothing to stand for is refused, and named."""
    (rule,) = rename.items()
    shown = re.escape(f"{rule[0]!r}: {rule[1]!r}")

    with pytest.raises(RenameError, match=f"{shown}.*{why}") as caught:
        Rules((("fine", "good"), rule))

    assert isinstance(caught.value, TreeError)
    assert "good" not in str(caught.value)


KEYS = st.sampled_from(["a", "b", "ab", "a_b", ""])
NAMES = st.lists(KEYS, min_size=1, max_size=4).map(".".join)
PARTS = st.sampled_from(["a", "b", "*", "**", "a*", "*_*"])
PATTERNS = st.lists(PARTS, max_size=3)


@st.composite
def rules(draw):
    """A rule: the stars of its sides are the same, or the stored name has none."""
    key = draw(PATTERNS)
    value = draw(PATTERNS)
    if stars_of(key) != stars_of(value):
        kept = [part for part in key if "*" in part]
        value = draw(st.sampled_from([kept, ["x", *kept], [*kept, "x"], ["x"], []]))
    return ".".join(key), ".".join(value)


def stars_of(parts):
    """Kinds of the stars of a pattern."""
    found = [[part] if part == "**" else ["*"] * part.count("*") for part in parts]
    return list(itertools.chain(*found))


def naive_stored_name(name, ordered):
    """The meaning, written down without any cleverness: all ways, the best of them."""
    keys = keys_of(name)
    for key, value in ordered:
        ways = list(naive_ways(list(keys_of(key)), list(keys)))
        if not ways:
            continue
        # From the left, every star takes as much as it can.
        size = [tuple(len(taken) for taken in way[0]) for way in ways]
        captured, rest = ways[size.index(max(size))]
        stars = iter(captured)
        made = []
        for part in keys_of(value):
            if part == "**":
                made += next(stars)
            else:
                made.append(re.sub(r"\*", lambda _, stars=stars: next(stars), part))
        return ".".join([*made, *rest])
    return name


def naive_ways(pattern, keys):
    """Every way in which a pattern fits the beginning of a name."""
    if not pattern:
        yield [], keys
        return
    part = pattern[0]
    for count in range(len(keys) + 1) if part == "**" else [1][: len(keys)]:
        for taken in naive_captures(part, keys[:count]):
            for others, rest in naive_ways(pattern[1:], keys[count:]):
                yield [*taken, *others], rest


def naive_captures(part, keys):
    """Every list of what the stars of one part may stand for."""
    if part == "**":
        return [[keys]]
    pieces = part.split("*")
    return [
        list(texts)
        for texts in itertools.product(substrings(keys[0]), repeat=len(pieces) - 1)
        if pieces[0] + "".join(map("".join, zip(texts, pieces[1:], strict=True)))
        == keys[0]
    ]


def substrings(text):
    """All parts of a text."""
    cuts = range(len(text) + 1)
    return {text[a:b] for a in cuts for b in cuts if a <= b}


@given(NAMES, st.lists(rules(), max_size=3))
def test_any_rules(name, ordered):
    """Rules mean what the naive reading of them means."""
    assert Rules(ordered).stored_name(name).name == naive_stored_name(name, ordered)


@example(names=["a."], ordered=[("", "a")])
@example(names=["a."], ordered=[("a", "")])
@given(st.lists(NAMES, max_size=6, unique=True), st.lists(rules(), max_size=3))
def test_the_way_back(names, ordered):
    """`targets_of` finds the leaves of the result that lead to a stored name."""
    made = Rules(ordered)
    for name in names:
        for target in made.targets_of(name):
            if target.keys == ("",):
                continue  # Written as a name, it is that of the root.
            assert made.stored_name(".".join(target.keys)) == (name, target.rule)
    for name in names:
        stored, rule = made.stored_name(name)
        if not stored:
            continue  # As above.
        key, value = ordered[rule] if rule is not None else ("", "")
        # Two stars in one key may share its text in other ways, too.
        is_clear = all(k == "**" or k.count("*") < 2 for k in keys_of(value))
        is_way = stars_of(keys_of(key)) == stars_of(keys_of(value))
        if rule is not None and is_clear and is_way:
            assert keys_of(name) in {t.keys for t in made.targets_of(stored)}


def test_selecting_needs_stars_on_both_sides():
    """A rule that fits any number of leaves cannot say which there are."""
    made = Rules((("layers.*", "shared"),))

    with pytest.raises(RenameError, match="abstract state"):
        made.check_selects()
    assert made.targets_of("shared") == ()


def test_near_rule():
    """The widest rule between two names leaves out what they end with alike."""
    assert near_rule("a.b.kernel", "a.c.kernel") == ("a.b", "a.c")
    assert near_rule("kernel", "a.kernel") == ("kernel", "a.kernel")
    assert near_rule("a.kernel", "kernel") == ("a.kernel", "kernel")
