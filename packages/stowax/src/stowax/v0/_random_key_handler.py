"""The handlers of random keys of the older API.

An item is two: a value, and JSON that says of which kind it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from stowax._leaves._jax_array import is_key, key_impl_name
from stowax._operation_path import OperationPath
from stowax._tasks import drop, finish_all
from stowax.errors import UnsupportedLeafError
from stowax.v0._arguments import RestoreArgs, SaveArgs
from stowax.v0._array_handler import (
    ArrayCheckpointHandler,
    ArrayRestoreArgs,
    ArraySaveArgs,
)
from stowax.v0._checkpoint_args import CheckpointArgs, register_with_handler
from stowax.v0._json_handler import (
    JsonCheckpointHandler,
    JsonRestoreArgs,
    JsonSaveArgs,
)
from stowax.v0._own import OwnHandler
from stowax.v0._tree_args import PyTreeRestoreArgs, PyTreeSaveArgs
from stowax.v0._tree_handler import PyTreeCheckpointHandler

NumpyRandomKeyType: TypeAlias = tuple[Any, ...] | dict[str, Any]

_HANDLERS = "orbax.checkpoint._src.handlers.random_key_checkpoint_handler."


class _RandomKeyHandler(OwnHandler):
    """A value in a directory of its own, and JSON about it in another."""

    def __init__(self, key_name: str, values: OwnHandler) -> None:
        self._name = key_name
        self._values = values
        self._facts = JsonCheckpointHandler()

    async def _begin_both(
        self, directory: OperationPath, value: Any, facts: Mapping[str, Any]
    ) -> Awaitable[None]:
        places = directory / self._name, directory / f"{self._name}_metadata"
        begun = [
            await self._values.begin_save(places[0], value),
            await self._facts.begin_save(places[1], JsonSaveArgs(facts)),
        ]
        return directory.operation.submit(finish_all(begun))

    async def _begin_value(
        self, directory: OperationPath, args: Any
    ) -> tuple[Awaitable[Any], Mapping[str, Any]]:
        """The rest of the restore of the value, and what is told of it."""
        reading = await self._values.begin_restore(directory / self._name, args)
        try:
            facts = await self._facts.begin_restore(
                directory / f"{self._name}_metadata", JsonRestoreArgs()
            )
            return reading, await facts
        except BaseException:  # A cancellation too; raised again.
            drop(reading)
            raise


class JaxRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves and restores a random key of JAX, typed or not.

    Args:
        key_name: Name of the directory that holds it; None: `jax_random_key`.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> handler = ocp.JaxRandomKeyCheckpointHandler()
        >>> with ocp.Checkpointer(handler) as checkpointer:
        ...     args = ocp.args.JaxRandomKeySave(jax.random.key(7))
        ...     checkpointer.save(path, args=args)
        ...     checkpointer.restore(path) == jax.random.key(7)
        Array(True, dtype=bool)
    """

    _TYPESTR = _HANDLERS + "JaxRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        super().__init__(key_name or "jax_random_key", ArrayCheckpointHandler())

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        key = args.item
        if not isinstance(key, jax.Array):
            raise UnsupportedLeafError(
                f"a {type(key).__qualname__} is no random key of JAX; give what "
                "`jax.random.key` makes"
            )
        facts: dict[str, Any] = {"typed": is_key(key.dtype)}
        if is_key(key.dtype):
            # Orbax takes the default; what it reads beside `typed` does not matter.
            facts["impl"] = key_impl_name(key.dtype)
            key = jax.random.key_data(key)
        return await self._begin_both(
            directory, ArraySaveArgs(key, args.save_args), facts
        )

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        asked = ArrayRestoreArgs(restore_args=args.restore_args)
        return _jax_key(*await self._begin_value(directory, asked))


class NumpyRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves and restores the state of a random generator of NumPy.

    Args:
        key_name: Name of the directory that holds it; None: `np_random_key`.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> handler = ocp.NumpyRandomKeyCheckpointHandler()
        >>> with ocp.Checkpointer(handler) as checkpointer:
        ...     state = np.random.RandomState(7).get_state()
        ...     checkpointer.save(path, args=ocp.args.NumpyRandomKeySave(state))
        ...     checkpointer.restore(path)[0]
        'MT19937'
    """

    _TYPESTR = _HANDLERS + "NumpyRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        super().__init__(key_name or "np_random_key", PyTreeCheckpointHandler())

    async def begin_save(self, directory: OperationPath, args: Any) -> Awaitable[None]:
        """See `OwnHandler`."""
        state = args.item
        if not isinstance(state, tuple | dict):
            raise UnsupportedLeafError(
                f"a {type(state).__qualname__} is no state of a random generator of "
                "NumPy; give what `get_state()` returns"
            )
        facts = {"legacy": isinstance(state, tuple)}
        return await self._begin_both(directory, PyTreeSaveArgs(state), facts)

    async def begin_restore(
        self, directory: OperationPath, args: Any
    ) -> Awaitable[Any]:
        """See `OwnHandler`."""
        del args
        return _numpy_state(*await self._begin_value(directory, PyTreeRestoreArgs()))


@register_with_handler(JaxRandomKeyCheckpointHandler, for_save=True)
@dataclass
class JaxRandomKeySaveArgs(CheckpointArgs):
    """What a random key of JAX is saved with.

    Args:
        item: The key.
        save_args: How its data are stored.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> ocp.args.JaxRandomKeySave(jax.random.key(7)).save_args is None
        True
    """

    item: jax.Array
    save_args: SaveArgs | None = None


@register_with_handler(JaxRandomKeyCheckpointHandler, for_restore=True)
@dataclass
class JaxRandomKeyRestoreArgs(CheckpointArgs):
    """What a random key of JAX is restored with.

    Args:
        restore_args: As what its data are restored.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.JaxRandomKeyRestore().restore_args is None
        True
    """

    restore_args: RestoreArgs | None = None


@register_with_handler(NumpyRandomKeyCheckpointHandler, for_save=True)
@dataclass
class NumpyRandomKeySaveArgs(CheckpointArgs):
    """What the state of a random generator of NumPy is saved with.

    Args:
        item: The state, a tuple or a dict.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> state = np.random.RandomState(7).get_state()
        >>> len(ocp.args.NumpyRandomKeySave(state).item)
        5
    """

    item: NumpyRandomKeyType


@register_with_handler(NumpyRandomKeyCheckpointHandler, for_restore=True)
@dataclass
class NumpyRandomKeyRestoreArgs(CheckpointArgs):
    """What the state of a random generator of NumPy is restored with: nothing.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.args.NumpyRandomKeyRestore()
        NumpyRandomKeyRestoreArgs()
    """


async def _jax_key(reading: Awaitable[Any], facts: Mapping[str, Any]) -> Any:
    data = await reading
    if not facts.get("typed"):
        return data
    return jax.random.wrap_key_data(data, impl=facts.get("impl"))


async def _numpy_state(reading: Awaitable[Any], facts: Mapping[str, Any]) -> Any:
    state = await reading
    return tuple(state) if facts.get("legacy") else state
