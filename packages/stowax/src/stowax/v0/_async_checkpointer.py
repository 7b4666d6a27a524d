"""The checkpointer of the older API whose saves go on in the background."""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import Any

from stowax._response import Response
from stowax._settings import Settings
from stowax._staged_save import StagedSave
from stowax.errors import InvalidArgumentError
from stowax.v0._checkpointer import Checkpointer
from stowax.v0._settings import settings_of
from stowax.v0._words import in_its_words
from stowax.v0.options import (
    AsyncOptions,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)

_ASYNC = AsyncOptions()
_MULTIPROCESSING = MultiprocessingOptions()
_FILE = FileOptions()


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose saves return once the item may be changed again.

    One save is under way at a time: the next one, a restore and `close` wait for it,
    and raise what went wrong in it.

    Args:
        handler: See `Checkpointer`.
        timeout_secs: Deadline of a save; None: that of `async_options`.
        async_options: How saves run in the background.
        multiprocessing_options: See `Checkpointer`.
        file_options: See `Checkpointer`.
        atomicity_options: See `Checkpointer`.
        checkpoint_metadata_store: See `Checkpointer`.
        temporary_path_class: See `Checkpointer`.

    Raises:
        InvalidArgumentError: The deadline is none.

    Example:
        >>> import numpy as np
        >>> from stowax import v0 as ocp
        >>> path = getfixture("tmp_path") / "checkpoint"
        >>> handler = ocp.StandardCheckpointHandler()
        >>> with ocp.AsyncCheckpointer(handler) as checkpointer:
        ...     state = {"w": np.ones(2)}
        ...     checkpointer.save(path, args=ocp.args.StandardSave(state))
        ...     state["w"][:] = 0  # already allowed
        ...     checkpointer.wait_until_finished()
        ...     checkpointer.restore(path)
        {'w': array([1., 1.])}
    """

    _blocks = False

    def __init__(
        self,
        handler: Any,
        timeout_secs: int | None = None,
        *,
        async_options: AsyncOptions = _ASYNC,
        multiprocessing_options: MultiprocessingOptions = _MULTIPROCESSING,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
    ) -> None:
        super().__init__(
            handler,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options or FileOptions(),
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
        )
        secs = timeout_secs or async_options.timeout_secs
        if secs <= 0:
            raise InvalidArgumentError(
                f"the deadline of a save is {secs} s; give more than 0"
            )
        self._async_options = AsyncOptions(
            timeout_secs=secs,
            barrier_sync_fn=async_options.barrier_sync_fn,
            post_finalization_callback=async_options.post_finalization_callback,
        )
        self._under_way: tuple[StagedSave, Response[None]] | None = None

    @in_its_words()
    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        save_context: Any = None,
        **kwargs: Any,
    ) -> None:
        """Saves an item in the background; see `Checkpointer.save`.

        Waits for the save before it, first.

        Args:
            directory: See `Checkpointer.save`.
            *args: See `Checkpointer.save`.
            force: See `Checkpointer.save`.
            custom_metadata: See `Checkpointer.save`.
            save_context: Ignored.
            **kwargs: See `Checkpointer.save`.

        Raises:
            Exception: See `Checkpointer.save`; and what the save before it has failed
                with.
        """
        del save_context
        self.wait_until_finished()
        staged = self._stage(
            directory,
            args,
            kwargs,
            force=force,
            custom_metadata=custom_metadata,
            in_background=True,
        )
        self._under_way = staged, staged.start()

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores the item of a path, when the save under way is done."""
        self.wait_until_finished()
        return super().restore(directory, *args, **kwargs)

    def check_for_errors(self) -> None:
        """Raises what the last save has failed with, once; does not wait for it."""
        if self._under_way is not None and self._under_way[1].is_done():
            self.wait_until_finished()

    @in_its_words()
    def wait_until_finished(self) -> None:
        """Waits for the save under way, and raises what it failed with, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way[1].result()

    @in_its_words()
    def cancel(self) -> None:
        """Ends the save under way; nothing of it is left."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            staged, response = under_way
            staged.cancel()
            with contextlib.suppress(concurrent.futures.CancelledError):
                response.result()

    def close(self) -> None:
        """Waits for the save under way, and closes the handler."""
        try:
            self.wait_until_finished()
        finally:
            super().close()

    def _settings(self) -> Settings:
        return settings_of(
            multiprocessing=self._multiprocessing_options,
            file=self._file_options,
            atomicity=self._atomicity_options,
            asynchronous=self._async_options,
            temporary_path_class=self._temporary_path_class,
        )
