"""The one save or deletion of a `Checkpointer` that may be under way."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Generator
from typing import Any, final

from stowax._response import AsyncResponse
from stowax.training._steps import CheckpointMetadata


@final
class Pending:
    """What the caller of `save_async` gets, and what the next operation waits for.

    Args:
        future: The operation, to its very end.
        response: The same for users, who may have seen a failure or not.
        saving: The step that is being saved; None for a deletion.
        cancel: Ends the operation early, and returns when it has ended; None: it
            cannot be ended.
    """

    def __init__(
        self,
        future: concurrent.futures.Future[bool],
        response: AsyncResponse[bool],
        *,
        saving: CheckpointMetadata[None] | None,
        cancel: Callable[[], None] | None = None,
    ) -> None:
        self._future = future
        self._response = response
        self._cancel = cancel
        self._is_seen = False
        self.saving = saving

    @property
    def is_running(self) -> bool:
        """Whether the operation goes on."""
        return not self._future.done()

    @property
    def has_unseen_failure(self) -> bool:
        """Whether the operation has failed and nobody was told."""
        failed = self._future.done() and self._future.exception() is not None
        return failed and not self._is_seen

    def wait(self) -> None:
        """Waits for the end, whatever it is, without having seen it."""
        concurrent.futures.wait([self._future])

    def result(self, timeout: float | None = None) -> bool:
        """See `AsyncResponse.result`."""
        try:
            return self._response.result(timeout)
        except BaseException as error:  # Raised again; only looked at.
            # Not so when the caller has only run out of patience.
            self._is_seen = self._future.done() and error is self._future.exception()
            raise

    def __await__(self) -> Generator[Any, None, bool]:
        """See `AsyncResponse.__await__`."""
        return self._wait().__await__()

    async def _wait(self) -> bool:
        try:
            return await self._response
        except BaseException as error:  # As in `result`.
            self._is_seen = self._future.done() and error is self._future.exception()
            raise

    def finish(self) -> bool:
        """Waits for the end, and returns the result.

        Who is interrupted has ended the operation, and may change what was borrowed.
        """
        try:
            return self.result()
        except BaseException:  # An interrupt above all; raised again.
            if self._cancel is not None and self.is_running:
                self._cancel()
                with contextlib.suppress(Exception):
                    self.result()  # That it was cancelled is no news to anybody.
            raise
        finally:
            # The error holds this frame, which must not hold the error (Runtime.run).
            del self

    def on_complete(self, callback: Callable[[bool], None]) -> None:
        """See `AsyncResponse.on_complete`."""
        self._response.on_complete(callback)

    def __repr__(self) -> str:
        return repr(self._response)
