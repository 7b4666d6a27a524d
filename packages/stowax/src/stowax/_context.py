"""One set of options for every operation in a ``with`` block.

A `Context` is what users assign to; it is read once, at the door of each operation,
into a `Settings` that is handed down.
"""

from __future__ import annotations

import contextvars
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import (
    Any,
    Final,
    Generic,
    Self,
    TypeVar,
    cast,
    final,
    overload,
)

import jax

from stowax._caller import mesh_in_scope
from stowax._group import OptionGroup, assign, duplicate, hold, release
from stowax._option_values import bad_values
from stowax._settings import (
    READING_BYTES,
    LoadSettings,
    MemorySettings,
    Refusal,
    SaveSettings,
    Settings,
    StorageSettings,
)
from stowax.errors import RenameError, UnsupportedOptionError
from stowax.options import (
    ARRAY_METADATA_STORE,
    ArrayOptions,
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    CheckpointablesOptions,
    CheckpointLayout,
    DeletionOptions,
    FileOptions,
    IntegrityOptions,
    MemoryOptions,
    MultiprocessingOptions,
    PathwaysOptions,
    PyTreeOptions,
    SafetensorsOptions,
)

__all__ = ["Context"]

GroupT = TypeVar("GroupT", bound=OptionGroup)


def current_settings() -> Settings:
    """Reads the active Context; read once, at the door of each operation."""
    return current_context().settings()


def current_context() -> Context:
    """Answers with the innermost active Context, or a new one with the defaults."""
    stack = _ACTIVE.get()
    return stack[-1] if stack else Context()


class _DeprecatedAlias(Generic[GroupT]):
    """An attribute under the name it used to have."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, alias: str) -> None:
        self.alias = alias

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Context, owner: type) -> GroupT: ...
    def __get__(self, instance: Context | None, owner: type) -> Self | GroupT:
        if instance is None:
            return self
        _warn_renamed(f"Context.{self.alias}", f"Context.{self.name}", stacklevel=3)
        return getattr(instance, self.name)


@final
@dataclass(init=False, eq=False)
class Context(OptionGroup):
    """Options for every operation inside its ``with`` block.

    A new Context starts from the defaults, also inside another one; to inherit, pass
    the other: ``Context(outer)`` is a copy, and neither sees later assignments to the
    other. Registries, stores, runtimes and callbacks are shared by copies.

    The innermost active Context counts. It is seen by the coroutines and asyncio tasks
    started in the block, but not by other threads, which start from the defaults. A
    Context may be entered again while it is active, also by several threads at once;
    its options can be assigned to whenever nobody is inside.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context()
        >>> context.asynchronous.timeout_secs = 60
        >>> with context:
        ...     inner = ocp.Context(context)
        >>> inner.asynchronous.timeout_secs
        60
    """

    pytree: PyTreeOptions
    """How trees are saved and loaded."""

    array: ArrayOptions
    """How arrays are saved and loaded."""

    asynchronous: AsyncOptions
    """How operations run in the background."""

    multiprocessing: MultiprocessingOptions
    """Which processes take part."""

    file: FileOptions
    """Where and how files are kept."""

    checkpointables: CheckpointablesOptions
    """Which handlers save and load checkpointables."""

    pathways: PathwaysOptions
    """How checkpoints are made under Pathways."""

    checkpoint_layout: CheckpointLayout
    """Which kind of checkpoint is loaded; may be assigned by its value, ``'auto'``."""

    deletion: DeletionOptions
    """How checkpoints are deleted."""

    memory: MemoryOptions
    """How much host memory operations may take."""

    safetensors: SafetensorsOptions
    """How safetensors files are read and written."""

    atomicity: AtomicityOptions
    """How a checkpoint becomes visible."""

    integrity: IntegrityOptions
    """Whether bytes are compared with their checksums."""

    runtime: object | None
    """The runtime to use, `stowax.testing` makes some; None for that of the process."""

    def __init__(
        self,
        context: Context | None = None,
        *,
        pytree: PyTreeOptions | None = None,
        array: ArrayOptions | None = None,
        asynchronous: AsyncOptions | None = None,
        multiprocessing: MultiprocessingOptions | None = None,
        file: FileOptions | None = None,
        checkpointables: CheckpointablesOptions | None = None,
        pathways: PathwaysOptions | None = None,
        checkpoint_layout: CheckpointLayout | str | None = None,
        deletion: DeletionOptions | None = None,
        memory: MemoryOptions | None = None,
        safetensors: SafetensorsOptions | None = None,
        atomicity: AtomicityOptions | None = None,
        integrity: IntegrityOptions | None = None,
        runtime: object | None = None,
        pytree_options: PyTreeOptions | None = None,
        array_options: ArrayOptions | None = None,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        checkpointables_options: CheckpointablesOptions | None = None,
        pathways_options: PathwaysOptions | None = None,
        deletion_options: DeletionOptions | None = None,
        memory_options: MemoryOptions | None = None,
        safetensors_options: SafetensorsOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
    ) -> None:
        """Makes a Context from the defaults, or from another one.

        Args:
            context: The Context to copy; None starts from the defaults.
            pytree: Replaces this group, as do the following; copied.
            array: See the attribute of the same name.
            asynchronous: See the attribute of the same name.
            multiprocessing: See the attribute of the same name.
            file: See the attribute of the same name.
            checkpointables: See the attribute of the same name.
            pathways: See the attribute of the same name.
            checkpoint_layout: See the attribute of the same name.
            deletion: See the attribute of the same name.
            memory: See the attribute of the same name.
            safetensors: See the attribute of the same name.
            atomicity: See the attribute of the same name.
            integrity: See the attribute of the same name.
            runtime: The door for `stowax.testing`: what simulates a process.
            pytree_options: Deprecated name of `pytree`; so are the following.
            array_options: Deprecated name of `array`.
            async_options: Deprecated name of `asynchronous`.
            multiprocessing_options: Deprecated name of `multiprocessing`.
            file_options: Deprecated name of `file`.
            checkpointables_options: Deprecated name of `checkpointables`.
            pathways_options: Deprecated name of `pathways`.
            deletion_options: Deprecated name of `deletion`.
            memory_options: Deprecated name of `memory`.
            safetensors_options: Deprecated name of `safetensors`.
            atomicity_options: Deprecated name of `atomicity`.
        """
        given = {
            "pytree": pytree,
            "array": array,
            "asynchronous": asynchronous,
            "multiprocessing": multiprocessing,
            "file": file,
            "checkpointables": checkpointables,
            "pathways": pathways,
            "checkpoint_layout": checkpoint_layout,
            "deletion": deletion,
            "memory": memory,
            "safetensors": safetensors,
            "atomicity": atomicity,
            "integrity": integrity,
            "runtime": runtime,
        }
        renamed = {
            "pytree_options": pytree_options,
            "array_options": array_options,
            "async_options": async_options,
            "multiprocessing_options": multiprocessing_options,
            "file_options": file_options,
            "checkpointables_options": checkpointables_options,
            "pathways_options": pathways_options,
            "deletion_options": deletion_options,
            "memory_options": memory_options,
            "safetensors_options": safetensors_options,
            "atomicity_options": atomicity_options,
        }
        if not isinstance(context, Context | None):
            raise TypeError(
                f"Context(...) copies a Context, found {type(context).__qualname__}; "
                "give groups of options by name"
            )
        for alias, value in renamed.items():
            if value is None:
                continue
            name = _ALIASES[alias]
            if given[name] is not None:
                raise TypeError(f"Context got both {name}= and {alias}=")
            _warn_renamed(
                f"Context({alias}=...)",
                f"Context({name}=...), or assign to its options one by one, "
                f"`context.{name}. …`, which runs on Orbax as well",
                stacklevel=3,
            )
            given[name] = value
        for name, default in _DEFAULTS.items():
            value = given[name]
            if value is None:
                value = default() if context is None else getattr(context, name)
            setattr(self, name, value)

    pytree_options = _DeprecatedAlias[PyTreeOptions]("pytree")
    array_options = _DeprecatedAlias[ArrayOptions]("array")
    async_options = _DeprecatedAlias[AsyncOptions]("asynchronous")
    multiprocessing_options = _DeprecatedAlias[MultiprocessingOptions](
        "multiprocessing"
    )
    file_options = _DeprecatedAlias[FileOptions]("file")
    checkpointables_options = _DeprecatedAlias[CheckpointablesOptions](
        "checkpointables"
    )
    pathways_options = _DeprecatedAlias[PathwaysOptions]("pathways")
    deletion_options = _DeprecatedAlias[DeletionOptions]("deletion")
    memory_options = _DeprecatedAlias[MemoryOptions]("memory")
    safetensors_options = _DeprecatedAlias[SafetensorsOptions]("safetensors")
    atomicity_options = _DeprecatedAlias[AtomicityOptions]("atomicity")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ALIASES:
            _warn_renamed(f"Context.{name}", f"Context.{_ALIASES[name]}", stacklevel=3)
            name = _ALIASES[name]
        kind = _DEFAULTS.get(name)
        if name == "checkpoint_layout":
            value = _layout(value)
        elif isinstance(kind, type):
            if not isinstance(value, kind):
                raise TypeError(
                    f"Context.{name} must be options.{kind.__qualname__}, "
                    f"found {type(value).__qualname__}"
                )
            value = duplicate(value)
        assign(self, name, value, stacklevel=3)

    def __enter__(self) -> Self:
        hold(self)
        _ACTIVE.set((*_ACTIVE.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack = _ACTIVE.get()
        # Interleaved generators may leave their blocks out of order.
        for index in reversed(range(len(stack))):
            if stack[index] is self:
                _ACTIVE.set(stack[:index] + stack[index + 1 :])
                break
        release(self)

    def settings(self) -> Settings:
        """Reads all options, as values that later assignments cannot change."""
        return Settings(
            verify=self.integrity.verify,
            loading=_load_settings(self),
            leaf_handlers=_several("pytree.leaf_handlers", self.pytree.leaf_handlers),
            rich_types=self.pytree.saving.pytree_metadata_options.support_rich_types,
            timeout_secs=self.asynchronous.timeout_secs,
            post_finalization_callback=self.asynchronous.post_finalization_callback,
            store=self.file.store,
            runtime=self.runtime,
            registry=self.checkpointables.registry,
            handlers=tuple(self.checkpointables.handlers),
            deepcopy_host_arrays=self.memory.deepcopy_host_arrays,
            memory=_memory_settings(self.memory),
            barrier_prefix=self.multiprocessing.barrier_sync_key_prefix or "",
            saving=_saving(self.array.saving, self.memory),
            permission_mode=self.file.path_permission_mode,
            path_class=self.file.path_class,
            writes_safetensors=self.checkpoint_layout is CheckpointLayout.SAFETENSORS,
            safetensors_file_bytes=self.safetensors.max_file_bytes,
            refusals=_refusals(self),
        )


Context.__module__ = "stowax"

_ACTIVE: Final[contextvars.ContextVar[tuple[Context, ...]]] = contextvars.ContextVar(
    "stowax_active_contexts", default=()
)

_DEFAULTS: Final[dict[str, Callable[[], object]]] = {
    "pytree": PyTreeOptions,
    "array": ArrayOptions,
    "asynchronous": AsyncOptions,
    "multiprocessing": MultiprocessingOptions,
    "file": FileOptions,
    "checkpointables": CheckpointablesOptions,
    "pathways": PathwaysOptions,
    "checkpoint_layout": lambda: CheckpointLayout.ORBAX,
    "deletion": DeletionOptions,
    "memory": MemoryOptions,
    "safetensors": SafetensorsOptions,
    "atomicity": AtomicityOptions,
    "integrity": IntegrityOptions,
    "runtime": lambda: None,
}

_ALIASES: Final = {
    alias: value.name
    for alias, value in vars(Context).items()
    if isinstance(value, _DeprecatedAlias)
}


def _layout(value: Any) -> CheckpointLayout:
    try:
        return CheckpointLayout(value)
    except ValueError:
        known = [layout.value for layout in CheckpointLayout]
        raise UnsupportedOptionError(
            f"Context.checkpoint_layout must be one of {known}, found {value!r}"
        ) from None


def _warn_renamed(old: str, new: str, *, stacklevel: int) -> None:
    message = f"{old} is deprecated: use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """The values of one option that this version can follow."""

    option: str
    accepted: tuple[object, ...] = field(default=(None,))
    saving_only: bool = True


# What would change what is written, or returned, and is not built yet. A row goes when
# its option gets its meaning and, if need be, its field in `Settings`.
_LIMITS: Final = (
    _Limit(
        option="array.saving.array_metadata_store",
        accepted=(ARRAY_METADATA_STORE, None),
    ),
    _Limit(
        option="atomicity.mode",
        accepted=(AtomicityMode.AUTO, AtomicityMode.ATOMIC_RENAME),
    ),
    _Limit(option="memory.serialization_status_callback"),
    _Limit(option="multiprocessing.primary_host", accepted=(0,), saving_only=False),
    _Limit(option="multiprocessing.active_processes", saving_only=False),
    _Limit(option="pathways.checkpointing_impl", saving_only=False),
)


def _several(option: str, values: Any) -> tuple[Any, ...]:
    """Reads an option that takes several values.

    Raises:
        UnsupportedOptionError: It is one value.
    """
    if not isinstance(values, Iterable):
        raise UnsupportedOptionError(
            f"Context.{option} is {values!r}; it takes several values, in a tuple"
        )
    return tuple(cast("Iterable[Any]", values))


def _load_settings(context: Context) -> LoadSettings:
    trees, arrays = context.pytree.loading, context.array.loading
    return LoadSettings(
        partial=trees.partial_load,
        rename=_rules(trees.rename),
        container_types=_several(
            "pytree.loading.container_types", trees.container_types
        ),
        casting=arrays.casting,
        pads=arrays.enable_padding_and_truncation,
        fills_missing=not arrays.raise_array_data_missing_error,
        as_numpy=arrays.as_numpy,
        maps_files=arrays.memory_map,
        mesh=_mesh(arrays.mesh),
    )


def _rules(rename: Any) -> tuple[tuple[Any, Any], ...]:
    if rename is None:
        return ()
    if not isinstance(rename, Mapping):
        raise RenameError(
            "`PyTreeOptions.Loading.rename` must be a mapping, from names in the "
            f"result to stored names; found {rename!r}"
        )
    return tuple(cast("Mapping[Any, Any]", rename).items())


def _mesh(mesh: Any) -> jax.sharding.Mesh | None:
    if mesh is None:
        mesh = mesh_in_scope()
    elif not isinstance(mesh, jax.sharding.Mesh):
        raise UnsupportedOptionError(
            "Context.array.loading.mesh must be a jax.sharding.Mesh, which has "
            f"devices; found {type(mesh).__name__}"
        )
    return cast("jax.sharding.Mesh | None", mesh)


def storage_settings(
    options: ArrayOptions.Saving.StorageOptions | None,
) -> StorageSettings:
    """Reads the options of one array; None asks for nothing.

    What is no such object is refused with the other options, see `bad_values`.
    """
    if not isinstance(options, ArrayOptions.Saving.StorageOptions):
        return StorageSettings()
    return StorageSettings(
        dtype=options.dtype,
        chunk_byte_size=options.chunk_byte_size,
        shard_axes=options.shard_axes,
        compression=options.compression,
    )


def _saving(options: ArrayOptions.Saving, memory: MemoryOptions) -> SaveSettings:
    share = options.use_replica_parallel
    return SaveSettings(
        storage=storage_settings(options.storage_options),
        storage_of_leaf=options.scoped_storage_options_creator,
        use_ocdbt=options.use_ocdbt,
        use_zarr3=options.use_zarr3,
        use_compression=options.use_compression,
        data_file_size_bytes=options.ocdbt_target_data_file_size or 0,
        share_among_replicas=True if share is None else share,
        share_from_bytes=options.min_slice_bytes_for_replica_parallel or 0,
        share_among_most=options.max_replicas_for_replica_parallel,
        pins_transfers=options.enable_pinned_host_transfer,
        is_first=memory.is_prioritized_key_fn,
        record_shardings=options.enable_write_sharding_file,
        record_array_metadata=options.array_metadata_store is not None,
    )


def _memory_settings(options: MemoryOptions) -> MemorySettings:
    """Both limits that Orbax has for a save are one here: there is one staging area."""
    asked = [options.write_concurrent_bytes, options.transfer_concurrent_bytes]
    given = [size_bytes for size_bytes in asked if size_bytes is not None]
    reading_bytes = options.read_concurrent_bytes
    return MemorySettings(
        staging_bytes=min(given, default=None),
        reading_bytes=READING_BYTES if reading_bytes is None else reading_bytes,
        surge_bytes=int(options.expected_surge_bytes or 0),
    )


def _refusals(context: Context) -> tuple[Refusal, ...]:
    refusals = [
        Refusal(
            option=f"Context.{bad.option}",
            reason=f"is {bad.value!r}; it takes {bad.expected}",
            saving_only=False,
        )
        for bad in bad_values(context)
    ]
    for limit in _LIMITS:
        found = operator.attrgetter(limit.option)(context)
        # None by identity: `numpy.dtype("float64") == None` is true.
        if not any(
            found is value or (value is not None and found == value)
            for value in limit.accepted
        ):
            accepted = " or ".join(map(repr, limit.accepted))
            refusal = Refusal(
                option=f"Context.{limit.option}",
                reason=f"is {found!r}; leave it at {accepted}",
                saving_only=limit.saving_only,
            )
            refusals.append(refusal)
    return tuple(refusals)
