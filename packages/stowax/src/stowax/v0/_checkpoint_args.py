"""Arguments of handlers, and which handler takes which."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from stowax.errors import HandlerNotFoundError, InvalidArgumentError
from stowax.v0._handler_types import register_handler_type

_ArgsT = TypeVar("_ArgsT", bound="CheckpointArgs")


@dataclass
class CheckpointArgs:
    """What a handler is given: one class for its saves and one for its restores.

    Example:
        >>> import dataclasses
        >>> from stowax import v0 as ocp
        >>> class WordsHandler(ocp.CheckpointHandler):
        ...     def save(self, directory, args):
        ...         (directory / "words.txt").write_text(" ".join(args.item))
        ...
        ...     def restore(self, directory, args=None):
        ...         return (directory / "words.txt").read_text().split()
        >>> @ocp.args.register_with_handler(
        ...     WordsHandler, for_save=True, for_restore=True
        ... )
        ... @dataclasses.dataclass
        ... class Words(ocp.args.CheckpointArgs):
        ...     item: list | None = None
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        ...     args = ocp.args.Composite(words=Words(["a", "b"]))
        ...     checkpointer.save(path, args)
        ...     checkpointer.restore(path, ocp.args.Composite(words=Words())).words
        ['a', 'b']
    """


_SAVES: dict[type[CheckpointArgs], Any] = {}
_RESTORES: dict[type[CheckpointArgs], Any] = {}


def register_with_handler(
    handler_cls: Any, for_save: bool = False, for_restore: bool = False
) -> Callable[[type[_ArgsT]], type[_ArgsT]]:
    """Says, as a decorator of arguments, which handler takes them.

    Args:
        handler_cls: The class of the handler.
        for_save: Whether its saves take them.
        for_restore: Whether its restores take them; at least one of both.

    Raises:
        ValueError: Neither is true.
        TypeError: The class is none of arguments.

    Example:
        See `CheckpointArgs`.

        >>> from stowax import v0 as ocp
        >>> ocp.args.has_registered_args(ocp.JsonCheckpointHandler)
        True
    """
    if not for_save and not for_restore:
        raise InvalidArgumentError(
            "`for_save` and `for_restore` are both False; say what the arguments are "
            "for"
        )

    def register(cls: type[_ArgsT]) -> type[_ArgsT]:
        if not issubclass(cls, CheckpointArgs):
            raise InvalidArgumentError(
                f"{cls!r} is no class of arguments; derive it from `CheckpointArgs`"
            )
        if for_save:
            _SAVES[cls] = handler_cls
        if for_restore:
            _RESTORES[cls] = handler_cls
        register_handler_type(handler_cls)
        return cls

    return register


def get_registered_handler_cls(arg: Any) -> Any:
    """The class of the handler that takes arguments, an instance or a class of them.

    Raises:
        TypeError: They are no arguments.
        ValueError: No handler takes them.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.get_registered_handler_cls(ocp.args.JsonRestore).__name__
        'JsonCheckpointHandler'
    """
    cls = arg if inspect.isclass(arg) else type(arg)
    if not issubclass(cls, CheckpointArgs):
        raise InvalidArgumentError(
            f"{arg!r:.80} is no `CheckpointArgs`; give what `ocp.args` has, or a class "
            "of your own that derives from it"
        )
    for known in (_SAVES, _RESTORES):
        if cls in known:
            return known[cls]
    raise HandlerNotFoundError(
        f"no handler takes {cls.__qualname__}; say which with "
        "`ocp.args.register_with_handler`"
    )


def get_registered_args_cls(
    handler: Any,
) -> tuple[type[CheckpointArgs], type[CheckpointArgs]]:
    """The arguments of a handler, a class or an instance: for saves, for restores.

    Raises:
        ValueError: It has none for one of them.

    Example:
        >>> from stowax import v0 as ocp
        >>> saves, restores = ocp.args.get_registered_args_cls(
        ...     ocp.JsonCheckpointHandler
        ... )
        >>> saves is ocp.args.JsonSave, restores is ocp.args.JsonRestore
        (True, True)
    """
    cls = handler if inspect.isclass(handler) else type(handler)
    found: list[type[CheckpointArgs]] = []
    for known, verb in ((_SAVES, "save"), (_RESTORES, "restore")):
        args = _find(known, cls)
        if args is None:
            raise HandlerNotFoundError(
                f"{cls.__qualname__} has no arguments to {verb} with; register some "
                "with `ocp.args.register_with_handler`"
            )
        found.append(args)
    return found[0], found[1]


def check_verb(args: Any, *, for_save: bool) -> None:
    """Refuses arguments of a restore in a save, and the other way round.

    Raises:
        InvalidArgumentError: They are registered for the other alone.
    """
    right, wrong = (_SAVES, _RESTORES) if for_save else (_RESTORES, _SAVES)
    cls = type(args)
    if cls in wrong and cls not in right:
        verbs = ("restore", "save") if for_save else ("save", "restore")
        raise InvalidArgumentError(
            f"{cls.__qualname__} is what is given to a {verbs[0]}; give this "
            f"{verbs[1]} the other arguments of {wrong[cls].__qualname__}"
        )


def _find(
    known: Mapping[type[CheckpointArgs], Any], cls: Any
) -> type[CheckpointArgs] | None:
    """The arguments of a class of handlers, or of one that it derives from.

    The latter only if it calls by them: who overrides a method may take others.
    """
    for base in inspect.getmro(cls):
        if not all(
            getattr(base, name, None) is getattr(cls, name, None) for name in _CALLED
        ):
            return None
        for args, taker in known.items():
            if taker is base:
                return args
    return None


_CALLED = ("save", "async_save", "restore")


def has_registered_args(handler: Any) -> bool:
    """Whether a handler, a class or an instance, has arguments for both.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.has_registered_args(object())
        False
    """
    try:
        get_registered_args_cls(handler)
    except HandlerNotFoundError:
        return False
    return True
