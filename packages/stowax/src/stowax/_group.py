"""Objects that can be assigned to until somebody uses them.

A group is held while a Context that contains it is active; holding it holds the groups
inside. Holds are counted, so that one group may be held several times at once, by
several threads. A copy starts free.
"""

from __future__ import annotations

import dataclasses
import difflib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from stowax.errors import ContextInUseError, ContextNotActiveError

GroupT = TypeVar("GroupT", bound="OptionGroup")

# Where an instance counts the active Contexts that hold it: beside its fields, and only
# while it is held, so that copies and pickles start free.
_HOLDS: Final = "_holds"
_HOLDS_LOCK: Final = threading.Lock()  # guards the count of every group


class OptionGroup:
    """What all groups have in common: assignable while no active Context holds them."""

    def __setattr__(self, name: str, value: object) -> None:
        assign(self, name, value, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != _HOLDS}


def assign(group: OptionGroup, name: str, value: object, *, stacklevel: int) -> None:
    """Assigns an option; `stacklevel` is how far up a warning points, 1 being here.

    Raises:
        ContextInUseError: A Context that holds the group is active.
    """
    if _HOLDS in vars(group):
        raise ContextInUseError(
            f"cannot assign {type(group).__qualname__}.{name}: its Context is active. "
            "Assign before entering the `with` block, or enter a copy: "
            "`with stowax.Context(context) as inner:`."
        )
    if name not in _field_names(group):
        warnings.warn(_unknown_name(group, name), UserWarning, stacklevel=stacklevel)
    object.__setattr__(group, name, value)


def hold(group: OptionGroup) -> None:
    """Refuses assignment to `group` and all groups inside until `release`."""
    with _HOLDS_LOCK:
        for each in _groups_within(group):
            vars(each)[_HOLDS] = vars(each).get(_HOLDS, 0) + 1


def release(group: OptionGroup) -> None:
    """Ends one `hold`; the groups inside are still those that were held.

    Raises:
        ContextNotActiveError: Nobody holds it.
    """
    with _HOLDS_LOCK:
        if _HOLDS not in vars(group):
            raise ContextNotActiveError(
                f"this {type(group).__qualname__} is not active: it is left more often "
                "than it was entered; let a `with` block do both"
            )
        for each in _groups_within(group):
            if vars(each)[_HOLDS] == 1:
                del vars(each)[_HOLDS]
            else:
                vars(each)[_HOLDS] -= 1


def duplicate(group: GroupT) -> GroupT:
    """Copies a group and the groups inside; other values are shared.

    Not `copy.deepcopy`, which would also copy what a callback is bound to, a registry
    and a runtime.
    """
    copied = object.__new__(type(group))
    for name, value in group.__getstate__().items():
        if isinstance(value, OptionGroup):
            value = duplicate(value)
        object.__setattr__(copied, name, value)
    return copied


def _groups_within(group: OptionGroup) -> Iterator[OptionGroup]:
    yield group
    for value in list(vars(group).values()):
        if isinstance(value, OptionGroup):
            yield from _groups_within(value)


def _field_names(group: OptionGroup) -> tuple[str, ...]:
    assert dataclasses.is_dataclass(group)
    return tuple(each.name for each in dataclasses.fields(group))


def _unknown_name(group: OptionGroup, name: str) -> str:
    """Names the option that was probably meant, in this group or one inside."""
    by_last_part: dict[str, str] = {}
    for path in _option_paths(group):
        by_last_part.setdefault(path.rpartition(".")[2], path)
    nearest = difflib.get_close_matches(name, by_last_part, n=1, cutoff=0.0)
    meant = f" The nearest option is {by_last_part[nearest[0]]!r}." if nearest else ""
    return f"{type(group).__qualname__} has no option {name!r}.{meant}"


def _option_paths(group: OptionGroup, prefix: str = "") -> Iterator[str]:
    for name in _field_names(group):
        yield prefix + name
    for name in _field_names(group):
        value = vars(group).get(name)
        if isinstance(value, OptionGroup):
            yield from _option_paths(value, f"{prefix}{name}.")
