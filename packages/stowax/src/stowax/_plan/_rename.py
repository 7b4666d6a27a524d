"""Rules that say under which stored name a leaf of the result is found.

A rule is a pair of patterns, of a name in the result and of a stored name.  A pattern
fits the beginning of a name: the rest of the name, whole keys, is carried over.  Where
stars could take more or less, each one, from the left, takes as much as it can.

`Rules.stored_name` goes from the result to what is stored, and is the meaning of the
rules.  `Rules.targets_of` is its inverse, found by fitting the other patterns and
looking whether the way back leads home.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stowax.errors import RenameError

Keys = tuple[str, ...]
"""A name, taken apart at its dots; the empty name is no key at all."""

_ANY_KEYS = "**"

_Captured = tuple[str | Keys, ...]
"""What each star stands for: a text, or the keys of a double star."""


def keys_of(name: str) -> Keys:
    """The keys of a name.

    A key that has a dot in it counts as several: rules work on names as they are shown.
    """
    return tuple(name.split(".")) if name else ()


class Renamed(NamedTuple):
    """Where a leaf of the result is stored, and who says so."""

    name: str
    rule: int | None
    """Position of the rule; None where no rule fits, and the name stays."""


class Target(NamedTuple):
    """A leaf of the result that a stored leaf is for."""

    keys: Keys
    rule: int
    rest_count: int
    """How many keys at the end are those of the stored name."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str

    @property
    def keys(self) -> Keys:
        return keys_of(self.text)

    @property
    def stars(self) -> tuple[str, ...]:
        """The stars in order, `*` or `**`."""
        return tuple(
            star
            for key in self.keys
            for star in ([key] if key == _ANY_KEYS else "*" * key.count("*"))
        )

    def fits(self, name: Keys) -> Iterator[tuple[_Captured, Keys]]:
        """What the stars stand for, and the rest of the name; the best way first."""
        yield from _fits(self.keys, name)

    def filled(self, captured: _Captured, rest: Keys) -> Keys:
        """The name that it makes of what the stars of its partner stood for."""
        stars = iter(captured)
        made: list[str] = []
        for key in self.keys:
            if key == _ANY_KEYS:
                made.extend(next(stars))
            else:
                first, *others = key.split("*")
                made.append(first + "".join(f"{next(stars)}{part}" for part in others))
        return (*made, *rest)


class Rules:
    """The rules of one load, in the order in which they are tried.

    Args:
        rules: Pairs of a name in the result and a stored name.

    Raises:
        RenameError: The stars of a rule do not fit each other; names every such rule.
    """

    def __init__(self, rules: Sequence[tuple[str, str]]) -> None:
        problems = [
            f"  {show_rule(key, value)}: {problem}"
            for key, value in rules
            if (problem := _problem(key, value)) is not None
        ]
        if problems:
            raise RenameError(
                f"{len(problems)} rule(s) of `PyTreeOptions.Loading.rename` cannot be "
                "followed:\n" + "\n".join(problems)
            )
        self._rules = [(_Pattern(key), _Pattern(value)) for key, value in rules]

    def __len__(self) -> int:
        return len(self._rules)

    def shown(self, rule: int) -> str:
        """A rule as it was given."""
        key, value = self._rules[rule]
        return show_rule(key.text, value.text)

    def stored_name(self, name: str) -> Renamed:
        """Where a leaf of the result is stored.

        Example:
            >>> rules = Rules([("layers.*", "block_*.dense")])
            >>> rules.stored_name("layers.3.kernel").name
            'block_3.dense.kernel'
        """
        keys, rule = self._stored_keys(keys_of(name))
        return Renamed(name if rule is None else ".".join(keys), rule)

    def _stored_keys(self, name: Keys) -> tuple[Keys, int | None]:
        for position, (key, value) in enumerate(self._rules):
            for captured, rest in key.fits(name):
                return value.filled(captured if value.stars else (), rest), position
        return name, None

    def targets_of(self, stored: str) -> tuple[Target, ...]:
        """The leaves of the result that a stored leaf is for, those of rules alone."""
        found: dict[Keys, Target] = {}
        for position, (key, value) in enumerate(self._rules):
            if key.stars != value.stars:
                continue
            for captured, rest in value.fits(keys_of(stored)):
                made = key.filled(captured, rest)
                # Not by the name: that of the key "" is the one of no key.
                if self._stored_keys(made) == (keys_of(stored), position):
                    found.setdefault(made, Target(made, position, len(rest)))
        return tuple(found.values())

    def check_selects(self) -> None:
        """Refuses rules that cannot say what to load when nothing was asked for.

        Raises:
            RenameError: A star in a name of the result has nothing to stand for.
        """
        for key, value in self._rules:
            if key.stars != value.stars:
                raise RenameError(
                    f"the rule {show_rule(key.text, value.text)} fits any number of "
                    "leaves; give an abstract state, which says how many there are"
                )


def show_rule(key: object, value: object) -> str:
    """A rule as it stands in the mapping."""
    return f"{key!r}: {value!r}"


def near_rule(target: str, stored: str) -> tuple[str, str]:
    """The widest rule that leads from one name to the other.

    Example:
        >>> near_rule("params.dense.kernel", "params.linear.kernel")
        ('params.dense', 'params.linear')
    """
    ours, theirs = keys_of(target), keys_of(stored)
    while len(ours) > 1 and len(theirs) > 1 and ours[-1] == theirs[-1]:
        ours, theirs = ours[:-1], theirs[:-1]
    return ".".join(ours), ".".join(theirs)


def _problem(key: object, value: object) -> str | None:
    for text in (key, value):
        if not isinstance(text, str):
            return f"{text!r} is no name, which is a string; '' is the whole tree"
    assert isinstance(key, str)
    assert isinstance(value, str)
    return _bad_stars(_Pattern(key), _Pattern(value))


def _bad_stars(key: _Pattern, value: _Pattern) -> str | None:
    for pattern in (key, value):
        for part in pattern.keys:
            if _ANY_KEYS in part and part != _ANY_KEYS:
                return f"`**` stands for whole keys, and not for a part of {part!r}"
    if value.stars and key.stars != value.stars:
        return (
            f"the stars of the result are {_shown(key.stars)}, those of the stored "
            f"name {_shown(value.stars)}; they must be the same, in the same order"
        )
    return None


def _shown(stars: Sequence[str]) -> str:
    return " ".join(stars) or "none"


def _fits(pattern: Keys, name: Keys) -> Iterator[tuple[_Captured, Keys]]:
    if not pattern:
        yield (), name
    elif pattern[0] == _ANY_KEYS:
        for count in range(len(name), -1, -1):
            for captured, rest in _fits(pattern[1:], name[count:]):
                yield (name[:count], *captured), rest
    elif name and (match := _compiled(pattern[0]).fullmatch(name[0])):
        for captured, rest in _fits(pattern[1:], name[1:]):
            yield (*match.groups(), *captured), rest


@functools.lru_cache(maxsize=1024)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, key.split("*"))), re.DOTALL)
