"""The handler of trees: what `save` and `load` use, and what other handlers may use."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from stowax._context import Context, current_settings
from stowax._formats._orbax_json import PYTREE_TYPESTR
from stowax._handlers._base import OwnHandler
from stowax._handlers._tree import begin_load, begin_save
from stowax._item_read import metadata_tree, open_item
from stowax._keypath import flatten
from stowax._leaves._registry import Leaves
from stowax._operation import Operation
from stowax._operation_path import OperationPath
from stowax._settings import LoadSettings, SaveSettings, Settings, check_supported
from stowax.errors import TreeError, UnsupportedOptionError


class PyTreeHandler(OwnHandler):
    """Saves and loads trees of arrays, numbers and strings.

    Used alone it reads and writes a directory as it is: `save` ends with everything
    written and durable, but not published; there is no draft.  Inside the `save` of a
    `StatefulCheckpointable` or of a user's handler it takes part in the operation under
    way.

    Args:
        context: Options; None takes those of the active Context. In an operation under
            way, its options for trees and arrays count, and no others.
        array_metadata_validator: Of Orbax; must be None. What is stored is verified by
            checksums.
        leaf_handler_registry: Of Orbax; must be None. Leaves of your own types are
            taught by `PyTreeOptions.leaf_handlers`.
        partial_save_mode: Of Orbax; must be False. `stowax.partial` needs no mode.

    Raises:
        UnsupportedOptionError: One of the last three is not at its default.

    Example:
        >>> import asyncio, stowax
        >>> handler = stowax.handlers.PyTreeHandler()
        >>> directory = getfixture("tmp_path") / "item"
        >>> async def there_and_back():
        ...     writing = await handler.save(directory, {"step": 7})
        ...     await writing
        ...     return await (await handler.load(directory))
        >>> asyncio.run(there_and_back())
        {'step': 7}
    """

    typestr = PYTREE_TYPESTR
    kind = "tree"

    def __init__(
        self,
        *,
        context: Context | None = None,
        array_metadata_validator: object | None = None,
        leaf_handler_registry: object | None = None,
        partial_save_mode: bool = False,
    ) -> None:
        _refuse(
            array_metadata_validator=array_metadata_validator,
            leaf_handler_registry=leaf_handler_registry,
            partial_save_mode=partial_save_mode or None,
        )
        self._context = context

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Takes the values of a tree; returns the rest of the work, which has begun.

        Args:
            directory: A `PathAwaitingCreation`, or a plain path.
            checkpointable: The tree.

        Raises:
            TreeError: It cannot be saved; names every leaf in the way.
        """
        where = await OperationPath.of(directory, self._settings(), verb="write")
        return await begin_save(
            where,
            checkpointable,
            saving=lambda: self._saving(where.operation),
            leaves=self._leaves(where.operation.settings),
            is_alone=where is not directory,
        )

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        """Matches the tree that is asked for with what is stored; returns the rest.

        Args:
            directory: The item's directory.
            abstract_checkpointable: The abstract state; None loads all as it is stored.

        Raises:
            TreeMismatchError: Lists every leaf that does not fit.
        """
        where = await OperationPath.of(directory, self._settings())
        operation, location = where.operation, where.location
        loading = self._loading(operation)
        item = await operation.submit(open_item(operation, location, loading))
        return begin_load(
            where,
            item,
            abstract_checkpointable,
            has_target=abstract_checkpointable is not None,
            loading=loading,
            leaves=self._leaves(operation.settings),
        )

    async def metadata(self, directory: Any) -> Any:
        """The tree of abstract leaves that the directory holds."""
        where = await OperationPath.of(directory, self._settings())
        loading = self._loading(where.operation)
        opening = open_item(where.operation, where.location, loading)
        return metadata_tree(await where.operation.submit(opening), loading)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether every leaf can be saved."""
        try:
            self.validate_leaves_handleable(checkpointable)
        except TreeError:
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether every leaf asks for something that can be loaded."""
        try:
            self.validate_abstract_leaves_handleable(abstract_checkpointable)
        except TreeError:
            return False
        return True

    def validate_leaves_handleable(self, checkpointable: Any) -> None:
        """Refuses a tree with leaves that cannot be saved.

        Raises:
            UnsupportedLeafError: Names every such leaf.
        """
        leaves = self._leaves(self._settings())
        leaves.check_values(flatten(checkpointable, leaves.takes_value))

    def validate_abstract_leaves_handleable(self, abstract_checkpointable: Any) -> None:
        """Refuses an abstract tree with leaves that ask for what cannot be loaded.

        Raises:
            UnsupportedLeafError: Names every such leaf.
        """
        leaves = self._leaves(self._settings())
        leaves.check_targets(flatten(abstract_checkpointable, leaves.takes_target))

    def _saving(self, operation: Operation) -> SaveSettings:
        """Its own options, if it was given any, also inside another operation."""
        settings = operation.settings
        if self._context is not None:
            settings = self._context.settings()
        check_supported(settings)
        return settings.saving

    def _leaves(self, settings: Settings) -> Leaves:
        """The kinds of leaves that its own Context teaches, if it has one."""
        own = settings if self._context is None else self._context.settings()
        return Leaves(own.leaf_handlers)

    def _settings(self) -> Settings:
        if self._context is None:
            return current_settings()
        return self._context.settings()

    def _loading(self, operation: Operation) -> LoadSettings:
        """How trees are read: as its own Context says, also in a load under way."""
        settings = operation.settings
        if self._context is not None:
            settings = self._context.settings()
        check_supported(settings, saving=False)
        return settings.loading


_INSTEAD = {
    "array_metadata_validator": "what is loaded is verified by checksums",
    "leaf_handler_registry": "give `Context.pytree.leaf_handlers` what they handle",
    "partial_save_mode": "use `stowax.partial`, in which any handler takes part",
}
"""What we offer in place of arguments that only Orbax knows."""


def _refuse(**arguments: object | None) -> None:
    lines = [
        f"  {name}={value!r}: leave it out; {_INSTEAD[name]}"
        for name, value in arguments.items()
        if value is not None
    ]
    if lines:
        raise UnsupportedOptionError(
            "arguments of PyTreeHandler that this version cannot follow:\n"
            + "\n".join(lines)
        )
