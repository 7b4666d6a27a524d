"""Which handler saves a checkpointable, and which one loads it: two tables.

Pure: candidates in, one of them out. Candidates come in the order in which they are
asked, the one that was registered last first. In both tables the first row that gives
an answer counts; if none does, nobody can.

Saving:

    1  the handler tied to the name ¹
    2  the first that is tied to none, and accepts the value

Loading:

    1  the handler tied to the name ¹ ²
    2  the first that the checkpoint has recorded, by its type string or a secondary
       one, unless it refuses what is asked for ²
    3  the first that is tied to no name, and accepts what is asked for, if anything ²
    4  the first that is tied to no name, and is ours and has such files ³

¹ Not a handler of trees for an object that saves itself: `save` ties one to "state".
² Of ours only one that may have written these files: a record may be wrong or
  missing. Where the files tell nothing, a record of ours counts, so that damage is an
  error and not an unknown checkpointable.
³ JSON and protocol buffers only if no foreign handler is recorded: its files may have
  the same names. Not one that has to be told what to load, and is not.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

from stowax._formats._base import ItemKind
from stowax._handlers._base import StatefulCheckpointable, is_own, needs_target
from stowax.errors import HandlerError


class Candidate:
    """A handler that may be chosen; made only when it is asked.

    Args:
        handler: The class, or an instance.
        secondary_typestrs: Other names under which checkpoints may have recorded it.
        name: The checkpointable that it is tied to; None: to none.
    """

    def __init__(
        self,
        handler: Any,
        secondary_typestrs: Sequence[str] = (),
        *,
        name: str | None = None,
    ) -> None:
        self._given = handler
        self.name = name
        self.typestrs = (typestr_of(handler), *secondary_typestrs)
        cls = handler if isinstance(handler, type) else type(handler)
        self.kind: ItemKind | None = cls.kind if is_own(cls, "save") else None
        """What the files are that it writes; None: of a guest, only it knows."""
        self.needs_target = needs_target(cls)
        """Whether it can load nothing unless told what."""

    @functools.cached_property
    def handler(self) -> Any:
        """The handler.

        Raises:
            HandlerError: It is a class that cannot be called without arguments.
        """
        if not isinstance(self._given, type):
            return self._given
        try:
            return self._given()
        except TypeError as error:
            raise HandlerError(
                f"{self._given.__qualname__} cannot be made without arguments "
                f"({error}); register an instance of it"
            ) from error

    def __repr__(self) -> str:
        return f"Candidate({self._given!r})"


def choose_for_saving(
    tied: Candidate | None, candidates: Sequence[Candidate], checkpointable: Any
) -> Candidate | None:
    """The handler that saves a checkpointable.

    Args:
        tied: The one tied to the checkpointable's name.
        candidates: All, in the order in which they are asked.
        checkpointable: The value.
    """
    if tied is not None and not _passes_itself(tied, checkpointable):
        return tied
    for candidate in _untied(candidates):
        if candidate.handler.is_handleable(checkpointable):
            return candidate
    return None


def choose_for_loading(
    tied: Candidate | None,
    candidates: Sequence[Candidate],
    *,
    typestr: str | None,
    kind: ItemKind,
    target: Any,
) -> Candidate | None:
    """The handler that loads a checkpointable.

    Args:
        tied: The one tied to the checkpointable's name.
        candidates: All, in the order in which they are asked.
        typestr: What the checkpoint has recorded, if anything.
        kind: What the files are.
        target: What was asked for; None if nothing was.
    """
    if (
        tied is not None
        and not _passes_itself(tied, target)
        and _may_have_written(tied, kind, typestr)
    ):
        return tied
    for candidate in candidates:
        if (
            typestr in candidate.typestrs
            and _may_have_written(candidate, kind, typestr)
            and _allows(candidate, target)
        ):
            return candidate
    if target is not None:
        for candidate in _untied(candidates):
            if _may_have_written(
                candidate, kind, None
            ) and candidate.handler.is_abstract_handleable(target):
                return candidate
    known = {
        name
        for candidate in candidates
        if candidate.kind is not None or candidate.needs_target
        for name in candidate.typestrs
    }
    if kind == "tree" or (kind != "opaque" and typestr in (None, *known)):
        for candidate in _untied(candidates):
            if candidate.kind == kind and (
                target is not None or not candidate.needs_target
            ):
                return candidate
    return None


def saves_itself(value: Any) -> bool:
    """Whether an object has `save` and `load` of its own."""
    is_object = not isinstance(value, type | types.ModuleType)
    return is_object and isinstance(value, StatefulCheckpointable)


def typestr_of(handler: Any) -> str:
    """The name under which a checkpoint records a handler, class or instance."""
    cls = handler if isinstance(handler, type) else type(handler)
    given = getattr(handler, "typestr", None)
    # Who overrides `save` writes other files than those that our name stands for.
    is_inherited = is_own(cls, "typestr") and not is_own(cls, "save")
    if isinstance(given, str) and not is_inherited:
        return given
    return f"{cls.__module__}.{cls.__qualname__}"


def _untied(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.name is None]


def _passes_itself(tied: Candidate, value: Any) -> bool:
    """Whether a name is tied to trees, but stands for an object that saves itself."""
    return tied.kind == "tree" and saves_itself(value)


def _may_have_written(
    candidate: Candidate, kind: ItemKind, typestr: str | None
) -> bool:
    """Whether files of this kind may be those of a handler."""
    if candidate.kind is None or candidate.kind == kind:
        return True
    if kind != "opaque":
        return False
    # The file of a JSON value or a message may have any name, trees never have.
    return candidate.kind not in ("tree", "opaque") or typestr in candidate.typestrs


def _allows(candidate: Candidate, target: Any) -> bool:
    """Whether a recorded handler goes along with what is asked for."""
    if target is None:
        return not candidate.needs_target
    answer = candidate.handler.is_abstract_handleable(target)
    return bool(answer) if saves_itself(target) else answer is not False
