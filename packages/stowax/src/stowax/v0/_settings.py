"""The options of checkpointers, as the settings of an operation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stowax._context import current_settings
from stowax._environment import runtime_of
from stowax._settings import Refusal, Settings
from stowax.v0._temporary_path import AtomicRenameTemporaryPath
from stowax.v0.options import (
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)


def settings_of(
    *,
    multiprocessing: MultiprocessingOptions,
    file: FileOptions | None,
    atomicity: AtomicityOptions | None,
    asynchronous: AsyncOptions | None = None,
    temporary_path_class: Any = None,
) -> Settings:
    """The settings of the active Context, with what the options say.

    What cannot be followed is refused by the operation, not here.

    Args:
        multiprocessing: Which processes take part.
        file: How directories are made.
        atomicity: How a checkpoint becomes visible.
        asynchronous: How saves run in the background; None: they do not.
        temporary_path_class: What makes drafts; None: as usual.
    """
    settings = current_settings()
    refusals = [
        *settings.refusals,
        *_of_processes(multiprocessing, runtime_of(settings).processes.count),
        *_of_atomicity(atomicity, temporary_path_class),
    ]
    if asynchronous is not None and asynchronous.barrier_sync_fn is not None:
        refusals.append(
            Refusal(
                option="AsyncOptions.barrier_sync_fn",
                reason="is given; leave it at None: `jax.distributed` is used",
                saving_only=True,
            )
        )
    settings = replace(
        settings,
        barrier_prefix=multiprocessing.barrier_sync_key_prefix
        or settings.barrier_prefix,
        refusals=tuple(refusals),
    )
    if file is not None and file.path_permission_mode is not None:
        settings = replace(settings, permission_mode=file.path_permission_mode)
    if asynchronous is None:
        return settings
    return replace(
        settings,
        timeout_secs=asynchronous.timeout_secs,
        post_finalization_callback=asynchronous.post_finalization_callback
        or settings.post_finalization_callback,
    )


def _of_processes(options: MultiprocessingOptions, count: int) -> list[Refusal]:
    refusals: list[Refusal] = []
    # One process alone is the primary, whatever it is called.
    if options.primary_host not in (0, None) or (
        options.primary_host is None and count > 1
    ):
        refusals.append(
            Refusal(
                option="MultiprocessingOptions.primary_host",
                reason=f"is {options.primary_host!r}; leave it at 0",
                saving_only=False,
            )
        )
    active = options.active_processes
    if active is not None and set(active) != set(range(count)):
        refusals.append(
            Refusal(
                option="MultiprocessingOptions.active_processes",
                reason=f"is {active!r} of {count} processes; leave it at None: all",
                saving_only=False,
            )
        )
    return refusals


def _of_atomicity(
    options: AtomicityOptions | None, temporary_path_class: Any
) -> list[Refusal]:
    refusals: list[Refusal] = []
    if options is not None and options.mode == AtomicityMode.COMMIT_FILE:
        refusals.append(
            Refusal(
                option="AtomicityOptions.mode",
                reason="is COMMIT_FILE; leave it at AUTO: a draft is renamed when it "
                "is whole, and has its commit file then",
                saving_only=True,
            )
        )
    if temporary_path_class not in (None, AtomicRenameTemporaryPath):
        refusals.append(
            Refusal(
                option="temporary_path_class",
                reason=f"is {temporary_path_class!r}; leave it at None, or give "
                "`ocp.path.atomicity.AtomicRenameTemporaryPath`, which is what is done",
                saving_only=True,
            )
        )
    return refusals
