"""The steps of a run on disk: names, directories, and what stands at their roots.

    <directory>/
      0/  100/  200/              a checkpoint each, named by the number of the step
      metadata/_ROOT_METADATA     what holds for all of them
      300.orbax-checkpoint-tmp-…  drafts, and what is being deleted; nobody's steps

A directory with the name of a step counts only if a checkpoint can be opened there: a
power cut may leave such a name with nothing, or with empty files, behind it.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import operator
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

from etils import epath

from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_json import UNFINISHED_MARK, decode_json
from stowax._loop import on_worker
from stowax._metadata import CheckpointMetadata as _CheckpointMetadata
from stowax._stores._base import REPLACEMENT_SUFFIX, Store, join, read_bytes
from stowax._tasks import run_all
from stowax.errors import CheckpointNotFoundError, InvalidNameError, StowaxError

MetadataT = TypeVar("MetadataT")

_logger = logging.getLogger("stowax")

_ROOT_DIRECTORY = "metadata"
_ROOT_DOCUMENT = "_ROOT_METADATA"
_OLD_ROOT_DOCUMENT = "metadata"
"""Before 2025; its whole content is the user's."""

_DOCUMENT_LIMIT_BYTES = 1 << 30

_UNREADABLE = (
    StowaxError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)
"""What opening something that is no complete checkpoint raises. A disk that fails is
another matter: that a step cannot be read now does not mean that there is none."""


@final
class CheckpointMetadata(_CheckpointMetadata[MetadataT]):
    """Facts about a step; may be given to a `Checkpointer` in place of its number.

    Args:
        step: The number.
        path: The checkpoint.
        metadata: See `stowax.CheckpointMetadata`; None in lists of steps.
        init_timestamp_nsecs: When the save began, in ns since the epoch.
        commit_timestamp_nsecs: When it was complete, in ns since the epoch.
        custom_metadata: What the user gave to `save`.
        metrics: What the user gave to `save`.
        container_types: See `stowax.CheckpointMetadata`.
    """

    def __init__(
        self,
        step: int,
        path: Any,
        *,
        metadata: MetadataT,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        metrics: Any = None,
        container_types: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            path,
            metadata=metadata,
            init_timestamp_nsecs=init_timestamp_nsecs,
            commit_timestamp_nsecs=commit_timestamp_nsecs,
            custom_metadata=custom_metadata,
            container_types=container_types,
        )
        self._step = step
        self._metrics = metrics

    @property
    def step(self) -> int:
        """The number of the step."""
        return self._step

    @property
    def metrics(self) -> Any:
        """What the user gave to `save`; None if nothing."""
        return self._metrics

    @property
    def time(self) -> dt.datetime:
        """When the step was complete, in UTC; the epoch if nobody knows."""
        nsecs = self.commit_timestamp_nsecs or 0
        return dt.datetime.fromtimestamp(nsecs / 1e9, tz=dt.UTC)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(step={self._step}, path={str(self.path)!r}, "
            f"metrics={self._metrics!r}, custom_metadata={self.custom_metadata!r})"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RootMetadata:
    """Facts about all steps of a run."""

    directory: epath.Path
    """Where the steps are."""

    custom_metadata: Any = None
    """What the user gave to the first `Checkpointer` of the directory, a dict."""


Facts = dict[str, Any]
"""What stands at the root of a step: JSON, so that one process can tell the others."""


def check_step(step: Any) -> int:
    """The number of a step, given as any kind of integer or as its metadata.

    Raises:
        InvalidNameError: It is no integer, or negative.
    """
    if isinstance(step, CheckpointMetadata):
        return step.step
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise InvalidNameError(f"a step is an integer, 0 or more, found {step!r}")
    return number


def step_of(name: str) -> int | None:
    """The step that a directory's name stands for; None for any other name."""
    if name.isascii() and name.isdigit() and name == str(int(name)):
        return int(name)
    return None


def path_of(directory: str, step: int) -> str:
    """The directory of a step."""
    return f"{directory}/{step}"


def describe(directory: str, facts: Facts) -> CheckpointMetadata[None]:
    """What users see of a step."""
    path = path_of(directory, facts["step"])
    return CheckpointMetadata[None](path=path, metadata=None, **facts)


async def read_step(store: Store, directory: str, step: int, *, verify: bool) -> Facts:
    """Opens a step and reads what stands at its root.

    Raises:
        StowaxError: It is no complete checkpoint.
        OSError: It cannot be read.
    """
    path = path_of(directory, step)
    checkpoint = await open_checkpoint(store, path, verify=verify)
    commit_nsecs = checkpoint.commit_timestamp_nsecs
    if commit_nsecs is None:
        # Orbax has not always recorded it; policies need some time.
        local = store.local_path(checkpoint.path)
        if local is not None:
            commit_nsecs = (await on_worker(local.stat)).st_mtime_ns
    return {
        "step": step,
        "init_timestamp_nsecs": checkpoint.init_timestamp_nsecs,
        "commit_timestamp_nsecs": commit_nsecs,
        "custom_metadata": dict(checkpoint.custom_metadata),
        "metrics": checkpoint.metrics,
    }


async def find_step(
    store: Store, directory: str, step: int, *, verify: bool
) -> Facts | None:
    """The facts about a step; None, with a warning, if it is no complete checkpoint."""
    try:
        return await read_step(store, directory, step, verify=verify)
    except CheckpointNotFoundError:
        return None
    except _UNREADABLE as error:
        _logger.warning(
            "%s is passed over: it is named like a step, but is no complete checkpoint "
            "(%s)",
            path_of(directory, step),
            error,
        )
        return None


async def find_steps(store: Store, directory: str, *, verify: bool) -> list[Facts]:
    """The facts about every complete step, by number."""
    try:
        entries = await store.list(directory)
    except FileNotFoundError:
        return []
    # While a step is being replaced, the record of it may be all that has its name.
    names = {
        entry.name.removesuffix(REPLACEMENT_SUFFIX)
        for entry in entries
        if entry.is_directory or entry.name.endswith(REPLACEMENT_SUFFIX)
    }
    steps = sorted(step for name in names if (step := step_of(name)) is not None)
    found = await run_all(
        find_step(store, directory, step, verify=verify) for step in steps
    )
    return [facts for facts in found if facts is not None]


async def set_aside(store: Store, directory: str, step: int, *, verify: bool) -> None:
    """Makes room for a step where something incomplete has its name.

    It is kept under the name of a draft, for whoever wants to look at it.
    """
    path = path_of(directory, step)
    if await store.stat(path) is None:
        return
    try:
        await read_step(store, directory, step, verify=verify)
    except _UNREADABLE as error:
        aside = f"{path}{UNFINISHED_MARK}-broken-{uuid.uuid4().hex}"
        await store.publish(path, aside, replace=False)
        await store.sync([directory])
        _logger.warning(
            "%s is no complete checkpoint (%s); to save the step, it was renamed to %s",
            path,
            error,
            aside,
        )


async def open_directory(
    store: Store,
    directory: str,
    custom_metadata: Mapping[str, Any] | None,
    *,
    cleans_up: bool,
) -> None:
    """Makes the directory of a run, and writes what holds for all its steps."""
    if await store.stat(directory) is None:
        await store.make_directory(directory)
        await store.sync([directory])
    if cleans_up:
        await _clean_up(store, directory)
    if custom_metadata is not None:
        await _write_root_metadata(store, directory, custom_metadata)


async def read_root_metadata(store: Store, directory: str) -> Any:
    """What holds for all steps; an empty dict if nothing was said.

    Raises:
        CorruptCheckpointError: The document is no JSON.
    """
    for name in (_ROOT_DOCUMENT, _OLD_ROOT_DOCUMENT):
        path = join(directory, f"{_ROOT_DIRECTORY}/{name}")
        try:
            data = await read_bytes(store, path, limit_bytes=_DOCUMENT_LIMIT_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            continue
        document: Any = decode_json(data, path=path)
        if name == _OLD_ROOT_DOCUMENT or not isinstance(document, dict):
            return document
        document.pop("internal_metadata", None)
        custom_metadata = document.pop("custom_metadata", None) or {}
        # As in the peer, unknown keys belong to the user.
        return {**custom_metadata, **document}
    return {}


async def _write_root_metadata(
    store: Store, directory: str, custom_metadata: Mapping[str, Any]
) -> None:
    final = join(directory, _ROOT_DIRECTORY)
    for name in (_ROOT_DOCUMENT, _OLD_ROOT_DOCUMENT):
        if await store.stat(join(final, name)) is not None:
            return  # An earlier run said it; its word stays.
    draft = f"{final}{UNFINISHED_MARK}-{uuid.uuid4().hex}"
    document = {"internal_metadata": {}, "custom_metadata": dict(custom_metadata)}
    data = json.dumps(document).encode()
    await store.write(join(draft, _ROOT_DOCUMENT), [data], size_bytes=len(data))
    await store.sync([join(draft, _ROOT_DOCUMENT), draft])
    await store.publish(draft, final, replace=True)
    await store.sync([directory])


async def _clean_up(store: Store, directory: str) -> None:
    """Deletes what writers that died have left."""
    names = [entry.name for entry in await store.list(directory)]
    for name in names:
        if name.endswith(REPLACEMENT_SUFFIX):
            final = join(directory, name.removesuffix(REPLACEMENT_SUFFIX))
            await store.complete_replacement(final)
    for name in names:
        if UNFINISHED_MARK in name:
            await store.delete(join(directory, name))
