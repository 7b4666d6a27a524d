"""Checkpointers of the older API that bring their handler."""

from __future__ import annotations

from typing import Any

from stowax.v0._async_checkpointer import AsyncCheckpointer
from stowax.v0._checkpointer import Checkpointer
from stowax.v0._standard_handler import (
    StandardCheckpointHandler,
    StandardRestoreArgs,
    StandardSaveArgs,
)
from stowax.v0._tree_handler import PyTreeCheckpointHandler
from stowax.v0.options import (
    AsyncOptions,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)

_ASYNC = AsyncOptions()
_MULTIPROCESSING = MultiprocessingOptions()
_FILE = FileOptions()


class PyTreeCheckpointer(Checkpointer):
    """A `Checkpointer` of trees.

    Args:
        primary_host: See `MultiprocessingOptions`.
        use_ocdbt: See `PyTreeCheckpointHandler`.
        use_zarr3: See `PyTreeCheckpointHandler`.
        use_compression: See `PyTreeCheckpointHandler`.

    Example:
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> with ocp.PyTreeCheckpointer() as checkpointer:
        ...     checkpointer.save(path, {"step": 7})
        ...     checkpointer.restore(path)
        {'step': 7}
    """

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
    ) -> None:
        super().__init__(
            PyTreeCheckpointHandler(
                use_ocdbt=use_ocdbt,
                use_zarr3=use_zarr3,
                use_compression=use_compression,
            ),
            multiprocessing_options=MultiprocessingOptions(primary_host=primary_host),
        )


class StandardCheckpointer(AsyncCheckpointer):
    """An `AsyncCheckpointer` of trees of arrays and numbers.

    Args:
        async_options: See `AsyncCheckpointer`.
        multiprocessing_options: See `Checkpointer`.
        file_options: See `Checkpointer`.
        atomicity_options: See `Checkpointer`.
        checkpoint_metadata_store: See `Checkpointer`.
        temporary_path_class: See `Checkpointer`.
        **kwargs: See `StandardCheckpointHandler`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> state = {"w": jnp.ones((2, 3))}
        >>> with ocp.StandardCheckpointer() as checkpointer:
        ...     checkpointer.save(path, state)
        ...     target = jax.tree.map(jnp.zeros_like, state)
        ...     checkpointer.restore(path, target)["w"][0, 0]
        Array(1., dtype=float32)
    """

    def __init__(
        self,
        *,
        async_options: AsyncOptions = _ASYNC,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
        file_options: FileOptions = _FILE,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            StandardCheckpointHandler(
                multiprocessing_options=multiprocessing_options, **kwargs
            ),
            async_options=async_options,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
        )

    # Narrower than its base, as in Orbax: this one has one kind of arguments.
    def save(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        directory: Any,
        state: Any,
        *,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Saves a state in the background.

        Args:
            directory: See `Checkpointer.save`.
            state: A tree of arrays and numbers.
            save_args: A tree of `SaveArgs` for its leaves, or None.
            force: See `Checkpointer.save`.
            custom_metadata: See `Checkpointer.save`.
        """
        super().save(
            directory,
            args=StandardSaveArgs(state, save_args),
            force=force,
            custom_metadata=custom_metadata,
        )

    def restore(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, directory: Any, target: Any = None, *, strict: bool = True
    ) -> Any:
        """Restores a state.

        Args:
            directory: See `Checkpointer.restore`.
            target: See `StandardRestoreArgs`.
            strict: See `StandardRestoreArgs`.
        """
        return super().restore(
            directory, args=StandardRestoreArgs(target, strict=strict)
        )
