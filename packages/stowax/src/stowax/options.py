"""The options of a `Context`, group by group.

A group is a plain, assignable object until a `Context` that holds it is entered; from
then on, and until the last such ``with`` block ends, assignment raises
`ContextInUseError`, in every thread. Operations read all options once, when they are
called, so an option assigned later never changes what is already running.

Names and defaults are those of Orbax v1, with these exceptions:

* `CheckpointablesOptions.registry` is None, the global registry as it is when an
  operation starts; Orbax copies the global registry when the options are made.
* `ArrayOptions.Saving.use_compression` is None, which leaves it to the kind of store.
* `ArrayOptions.Saving.array_metadata_store` is a marker for "as usual".
* `IntegrityOptions`, `FileOptions.store`, `CheckpointablesOptions.handlers`,
  `PyTreeOptions.leaf_handlers`, and of `PyTreeOptions.Loading`,
  `ArrayOptions.Loading` and `StorageOptions` what says so, are ours.

An option that would change what is written, but whose meaning is not built yet, is
refused by the operation that meets it, and so is a value that makes no sense for what
is saved. Hints about speed and memory are accepted; those that nothing follows yet say
so.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, final

from etils import epath

from stowax._group import OptionGroup
from stowax.errors import UnsupportedOptionError

if TYPE_CHECKING:
    import jax.typing

    from stowax.tree import PyTreeKeyPath

__all__ = [
    "ArrayOptions",
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointLayout",
    "CheckpointablesOptions",
    "DeletionOptions",
    "FileOptions",
    "IntegrityOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeMetadataOptions",
    "PyTreeOptions",
    "SafetensorsOptions",
]


@final
@dataclass(kw_only=True)
class AsyncOptions(OptionGroup):
    """How operations run in the background.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context()
        >>> context.asynchronous.timeout_secs = 60
    """

    timeout_secs: int | float = 1200
    """Deadline of a whole save or load, blocking or not, in seconds from the call.

    Every wait for another process shares it; past it, `DeadlineError` is raised on
    every process and nothing was published.
    """

    post_finalization_callback: Callable[[], None] | None = None
    """Called in the background, once a save is published and durable."""

    create_directories_asynchronously: bool = True
    """A hint: nothing becomes visible under the final path before publish anyway."""


class AtomicityMode(enum.StrEnum):
    """How a checkpoint becomes visible."""

    AUTO = "auto"
    """What suits the store: an atomic rename on file systems."""

    COMMIT_FILE = "commit_file"
    """Files in place, then a file that says so. Not built yet: refused."""

    ATOMIC_RENAME = "atomic_rename"
    """A draft directory beside the final path, renamed when it is durable."""


@final
@dataclass(kw_only=True)
class AtomicityOptions(OptionGroup):
    """How a checkpoint becomes visible."""

    mode: AtomicityMode = AtomicityMode.AUTO
    """The protocol; for us `AUTO` is `ATOMIC_RENAME` on every file system."""

    allow_legacy_atomic_rename: bool = False
    """A hint for `COMMIT_FILE`, hence without effect."""


@final
@dataclass(kw_only=True)
class MultiprocessingOptions(OptionGroup):
    """Which processes take part, and how they meet."""

    primary_host: int | None = 0
    """Index of the process that publishes. Others than 0 are refused for now."""

    active_processes: set[int] | None = None
    """Indexes of the processes that call; None for all. A set is refused for now."""

    barrier_sync_key_prefix: str | None = None
    """Prefix of every barrier name, to tell concurrent operations apart."""


@final
@dataclass(kw_only=True)
class FileOptions(OptionGroup):
    """Where and how files are kept.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context(file=ocp.options.FileOptions())
        >>> context.file.path_permission_mode = 0o750
    """

    path_permission_mode: int | None = None
    """Permission bits of the directory of a checkpoint, whatever the umask says.

    It has them from the beginning, so that nobody else looks at a save under way; what
    is inside follows the umask, as with None everything does. Refused by a store whose
    directories have no such bits.
    """

    path_class: type[Any] = epath.Path
    """Class of the paths that handlers of your own get; it is called with a string."""

    skip_sync_file_validations: bool = False
    """A hint: the checks made before a background save begins are cheap, and stay."""

    # `object`, because the port that it must satisfy lives in a higher layer.
    store: object | None = None
    """The store that keeps the checkpoints; None for the one that the path names."""


@final
@dataclass(kw_only=True)
class PyTreeMetadataOptions(OptionGroup):
    """How the structure of a tree is described."""

    support_rich_types: bool = False
    """Whether the documents of Orbax, too, tell tuples from lists, NamedTuples from
    dicts.

    Saving writes it down for Orbax; loading uses what Orbax wrote down, as Orbax does
    where the option is set. Our own manifest always tells.
    """


@final
@dataclass(kw_only=True)
class PyTreeOptions(OptionGroup):
    """How trees are saved and loaded.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context()
        >>> context.pytree.loading.partial_load = True
    """

    @final
    @dataclass(kw_only=True)
    class Saving(OptionGroup):
        """How trees are saved."""

        pytree_metadata_options: PyTreeMetadataOptions = field(
            default_factory=PyTreeMetadataOptions
        )
        """How the structure is described."""

    @final
    @dataclass(kw_only=True)
    class Loading(OptionGroup):
        """How trees are loaded."""

        partial_load: bool = False
        """Whether the abstract state may leave out parts of the stored tree.

        What it asks for must be stored all the same.
        """

        rename: Mapping[str, str] | None = None
        """Where leaves of the result are stored, by rules; the first that fits counts.

        A rule maps a name in the result to a stored one, both as messages have them,
        ``{"params.dense": "model.linear"}``: the name itself and all below it, ``""``
        being the root. ``*`` stands for any text within one key, ``**`` for any number
        of keys; they return, in order, in the stars of the stored name:
        ``{"layers.*.w": "blocks.block_*.kernel"}``. A leaf that no rule fits keeps its
        name. Without an abstract state exactly what the rules map is loaded.
        `stowax.preview_load` shows what rules do. Ours.
        """

        container_types: tuple[type, ...] = ()
        """NamedTuples and dataclasses to be made again without an abstract state.

        A stored container gets one of these classes if its recorded name is that of
        the class; nothing is imported. Others come back as dicts of their fields. One
        that was saved with static fields is refused: only an abstract state has them.
        Ours.
        """

    saving: Saving = field(default_factory=Saving)
    """How trees are saved."""

    loading: Loading = field(default_factory=Loading)
    """How trees are loaded."""

    # `object`, because handlers live in a higher layer.
    leaf_handlers: tuple[object, ...] = ()
    """Types of leaves that trees may hold besides the standard ones. Ours.

    Each is a `stowax.handlers.LeafHandler`, class or instance; asked before the
    standard kinds, the last one first. Copies of the options share them.
    """


class _AsUsual(enum.Enum):
    """Marks a default that Orbax fills with a class of its own."""

    ARRAY_METADATA_STORE = enum.auto()


ARRAY_METADATA_STORE: Final = _AsUsual.ARRAY_METADATA_STORE


@final
@dataclass(kw_only=True)
class ArrayOptions(OptionGroup):
    """How arrays are saved and loaded.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context()
        >>> context.array.loading.enable_padding_and_truncation = True
    """

    @final
    @dataclass(kw_only=True)
    class Saving(OptionGroup):
        """How arrays are saved."""

        class ScopedStorageOptionsCreator(Protocol):
            """Chooses the storage options of one leaf."""

            def __call__(
                self, key: PyTreeKeyPath, value: Any
            ) -> ArrayOptions.Saving.StorageOptions | None:
                """Answers with options for the leaf, or None for the general ones.

                What the answer leaves at None is taken from the general ones, too.

                Args:
                    key: The key path of the leaf, as JAX tells it.
                    value: The leaf, of any kind.
                """
                ...

        @final
        @dataclass(kw_only=True)
        class StorageOptions(OptionGroup):
            """How one array is stored.

            What cannot be done is refused before anything is written, with the names
            of all leaves concerned.

            Example:
                >>> import jax.numpy as jnp
                >>> import numpy as np
                >>> import stowax as ocp
                >>> context = ocp.Context()
                >>> context.array.saving.storage_options.dtype = jnp.bfloat16
                >>> path = getfixture("tmp_path") / "checkpoint"
                >>> with context:
                ...     ocp.save(path, {"w": np.ones((2, 3), np.float32)})
                >>> ocp.load(path)["w"].dtype
                dtype(bfloat16)
            """

            dtype: jax.typing.DTypeLike | None = None
            """Dtype to store arrays and numbers in; None for their own.

            They are converted one chunk at a time. A warning lists the leaves that
            lose range or kind. Typed PRNG keys keep theirs.
            """

            chunk_byte_size: int | None = None
            """Upper limit of one chunk, uncompressed, in bytes.

            The longest axes are split first, and before all others those along which
            the array is sharded. None for a chunk per shard; a shard larger than 64
            MiB, or 4 MiB where it may be compressed, is split anyway.
            """

            shard_axes: tuple[int, ...] | None = None
            """Axes along which a chunk holds one element, counted from 0."""

            compression: Literal["none", "zstd", "blosc", "auto"] | None = None
            """How chunks are compressed; None leaves it to `use_compression`. Ours.

            ``"blosc"`` (LZ4 behind a shuffle of bits) is faster than ``"zstd"`` and
            makes float weights smaller. ``"auto"`` looks at a sample of each array and
            compresses, with blosc, what it shows to shrink by three tenths or more;
            arrays below 1 MiB stay as they are. Orbax reads all of it.
            """

        storage_options: StorageOptions = field(default_factory=StorageOptions)
        """How arrays are stored, where `scoped_storage_options_creator` is silent."""

        use_ocdbt: bool = True
        """Whether chunks share data files, and an OCDBT index says where each lies.

        False makes every array a directory, and every chunk a file, for programs that
        read zarr but not OCDBT. Names then have to be paths, and many arrays take long.
        """

        use_zarr3: bool = True
        """Whether arrays are described as zarr 3.

        False writes zarr 2, for programs that know no other. It has no checksums that
        they could compare; what Stowax loads is verified in any case.
        """

        use_compression: bool | None = None
        """Whether chunks are compressed, with zstd, where `StorageOptions.compression`
        says nothing.

        None: not on local disks, which take bytes faster than they are compressed, but
        on stores that are reached over a network.
        """

        ocdbt_target_data_file_size: int | None = None
        """Size that a data file, uncompressed, stays within, in bytes.

        No chunk is larger either. None or 0 for no limit.
        """

        enable_pinned_host_transfer: bool | None = None
        """Whether devices bring arrays to page-locked memory of the host.

        None: GPUs do, which is many times faster. Where a device has no such memory, or
        none is left, ordinary memory is used.
        """

        enable_post_merge_validation: bool = True
        """A hint: that all parts were written, once, is always checked."""

        use_replica_parallel: bool | None = None
        """Whether processes share the writing of what several of them hold.

        None for yes. With False the first of them writes all of it.
        """

        min_slice_bytes_for_replica_parallel: int | None = None
        """Smallest shard, in bytes, that is worth sharing; None for any."""

        max_replicas_for_replica_parallel: int | None = None
        """How many of the processes that hold a shard share the writing; None: all."""

        enable_replica_parallel_separate_folder: bool = False
        """A hint: our data areas are one per process already."""

        enable_write_sharding_file: bool = True
        """Whether shardings are recorded, for loads without an abstract state.

        Without them Orbax cannot load `jax.Array` leaves without an abstract state.
        """

        # `object`, because Orbax's class is Orbax's own.
        array_metadata_store: object | None = ARRAY_METADATA_STORE
        """None leaves out `array_metadatas`, which only Orbax reads.

        Without it Orbax loads typed PRNG keys as plain integers. Other stores are
        refused.
        """

        scoped_storage_options_creator: ScopedStorageOptionsCreator | None = None
        """Chooses storage options leaf by leaf."""

    @final
    @dataclass(kw_only=True)
    class Loading(OptionGroup):
        """How arrays are loaded."""

        @final
        @dataclass(kw_only=True)
        class LoadAndBroadcastOptions(OptionGroup):
            """How one replica reads for the others. Hints, all of them."""

            replica_axis_index: int | None = 0
            """Axis of the mesh along which replicas lie."""

            primary_replica_id: int | None = 0
            """The replica that reads."""

            broadcast_memory_limit_bytes: int | None = None
            """Memory for the broadcast, in bytes; None for no limit."""

            broadcast_memory_scaling_factor: float | None = 0.75
            """Fraction of the free memory that the broadcast may use."""

        enable_padding_and_truncation: bool = False
        """Whether an array of another shape is cut, or padded with zeros, at the end of
        each axis, instead of an error. The number of axes must be right."""

        raise_array_data_missing_error: bool = True
        """Whether missing parts of an array are an error, or else zeros.

        False is for checkpoints of Orbax that leave chunks out. We leave none out: one
        that is missing in a checkpoint of ours is damage, whatever this says.
        """

        casting: Literal["unsafe", "safe"] = "unsafe"
        """What happens when the dtype asked for cannot hold what is stored.

        ``"unsafe"`` converts, with one warning that lists the leaves that lose range
        (300 in int8) or kind (a fraction, a sign, an imaginary part); ``"safe"`` makes
        these a `TreeMismatchError`. Losing precision is neither. Ours.
        """

        as_numpy: bool = False
        """Whether arrays come back as NumPy, unless asked for with a sharding.

        Typed PRNG keys come back as their key data. JAX's devices are never touched, so
        a machine without them reads any checkpoint. Ours.
        """

        memory_map: bool = False
        """Whether arrays are local files, mapped into memory, instead of copies.

        For what is read and hardly changed: inference, or many processes that load the
        same weights, which then share the memory. The bytes are verified once, when
        they are mapped; with `IntegrityOptions.verify` off they are not even read
        before they are used. NumPy arrays, and arrays of JAX on the CPU, stay mapped as
        long as they live; what a program writes to them does not reach the file.

        The files must not be changed in place, nor cut short, while arrays live:
        the arrays would change, or the process be killed. To delete or to replace the
        checkpoint is no such change on a local disk.

        Mapped is what lies in uncompressed chunks of more than a MiB, on local file
        systems, in checkpoints of this library; everything else is read. Ours.
        """

        # `object`, because a mesh is JAX's own.
        mesh: object | None = None
        """A `jax.sharding.Mesh` for shardings over an `AbstractMesh` in an abstract
        state; None takes that of `jax.set_mesh`. Ours."""

        use_load_and_broadcast: bool = False
        """A hint: what is loaded is the same."""

        load_and_broadcast_options: LoadAndBroadcastOptions = field(
            default_factory=LoadAndBroadcastOptions
        )
        """How one replica reads for the others."""

    saving: Saving = field(default_factory=Saving)
    """How arrays are saved."""

    loading: Loading = field(default_factory=Loading)
    """How arrays are loaded."""


@final
@dataclass(kw_only=True)
class CheckpointablesOptions(OptionGroup):
    """Which handlers save and load checkpointables.

    Example:
        >>> import stowax as ocp
        >>> handlers = ocp.options.CheckpointablesOptions.create_with_handlers(
        ...     config=ocp.handlers.JsonHandler
        ... )
        >>> context = ocp.Context(checkpointables=handlers)
    """

    # `object`, because registries and handlers live in higher layers.
    registry: object | None = None
    """Finds handlers; None for the global registry. Copies of the options share it."""

    handlers: tuple[tuple[str | None, object], ...] = ()
    """Handlers, classes or instances, asked before those of `registry`, the last one
    first; a name ties one to the checkpointable of that name."""

    @classmethod
    def create_with_handlers(cls, *handlers: object, **named_handlers: object) -> Self:
        """Makes options with handlers on top of the global registry.

        Args:
            *handlers: Handlers, classes or instances, for every checkpointable that
                they can handle.
            **named_handlers: Handlers for the checkpointable of that name only.
        """
        general = tuple((None, handler) for handler in handlers)
        return cls(handlers=general + tuple(named_handlers.items()))


@final
@dataclass(kw_only=True)
class PathwaysOptions(OptionGroup):
    """How checkpoints are made under Pathways, which we do not support."""

    # `object`, because there is no implementation to name.
    checkpointing_impl: object | None = None
    """Anything but None is refused."""


@final
@dataclass(kw_only=True)
class DeletionOptions(OptionGroup):
    """How checkpoints are deleted."""

    @final
    @dataclass(kw_only=True)
    class GcsDeletionOptions(OptionGroup):
        """How checkpoints are deleted from Google Cloud Storage."""

        todelete_full_path: str | None = None
        """Where, in the bucket, to move what is deleted; None deletes it.

        Has no effect on other stores.
        """

    gcs_deletion_options: GcsDeletionOptions = field(default_factory=GcsDeletionOptions)
    """How checkpoints are deleted from Google Cloud Storage."""


@final
@dataclass(kw_only=True)
class MemoryOptions(OptionGroup):
    """How much host memory operations may take, per process.

    Example:
        >>> import stowax as ocp
        >>> context = ocp.Context()
        >>> context.memory.read_concurrent_bytes = 2**30
    """

    @final
    @dataclass(frozen=True, kw_only=True)
    class RegulatorOptions:
        """How the transfer limit follows measured memory use. Ignored for now."""

        max_memory_limit_gib: float
        """Upper end of the limit, in GiB."""

        # `object`, because a profiler is the caller's own.
        profiler: object
        """Measures peak host memory during each save."""

        target_ratio: float = 0.80
        """Fraction of host memory to aim for."""

        min_memory_limit_gib: float = 10.0
        """Lower end of the limit, in GiB, and where it starts."""

        kp: float = 0.4
        """Proportional coefficient."""

        ki: float = 0.05
        """Integral coefficient."""

        kd: float = 0.1
        """Derivative coefficient."""

        def __post_init__(self) -> None:
            if self.profiler is None:
                raise UnsupportedOptionError(
                    "RegulatorOptions needs a `profiler`, found None"
                )

    write_concurrent_bytes: int | None = None
    """Memory that all saves together may take for values on their way to the store.

    It counts copies of NumPy leaves, and of arrays on devices with memory of their own;
    arrays of JAX on the CPU are written from where they are. A state that does not fit
    is staged as its files are written: `save_async` then returns when the last leaf is
    staged. None: half of what the process may still take, a container's limit included.
    """

    read_concurrent_bytes: int | None = None
    """Memory that all loads together may take beside what they return; None: 48 MiB.

    Half of it is for arrays that were read and become others, such as those on devices
    with memory of their own: there, more may be faster. A single array may exceed it.
    """

    transfer_concurrent_bytes: int | None = None
    """The same limit as `write_concurrent_bytes`; the lower one counts."""

    regulator_options: RegulatorOptions | None = None
    """How the transfer limit follows measured memory use. Ignored for now."""

    expected_surge_bytes: int | float | None = None
    """Memory that the program is about to need elsewhere, in bytes.

    It is taken from what the process may still take, where no limit is given.
    """

    is_prioritized_key_fn: Callable[[PyTreeKeyPath], bool] | None = None
    """Which leaves to stage and to write before all others.

    It is given the key path of each leaf. As ever, all leaves are safe once
    `save_async` has returned; this matters for a state larger than the limit above.
    """

    # `object`, because Orbax's protocol is no part of its v1 names.
    serialization_status_callback: object | None = None
    """Told of the progress of each leaf. Refused for now."""

    deepcopy_host_arrays: bool = True
    """Whether host arrays are copied before `save_async` returns.

    With False the caller promises not to change them until the save is done.
    """


@final
@dataclass(kw_only=True)
class SafetensorsOptions(OptionGroup):
    """How safetensors files are read, and written; to read, hints, all of them."""

    max_over_read_ratio: float | None = None
    """Bytes read per byte needed when neighbouring reads are joined."""

    read_chunk_bytes: int | None = None
    """Size of one read, in bytes."""

    max_file_bytes: int = 5_000_000_000
    """How many bytes of tensors are saved into one file of a directory, unless a single
    tensor has more. Ours; Orbax writes no such files."""


@final
@dataclass(kw_only=True)
class IntegrityOptions(OptionGroup):
    """Whether bytes are compared with their checksums. Ours; Orbax has no such group.

    Example:
        >>> import stowax as ocp
        >>> unverified = ocp.Context(
        ...     integrity=ocp.options.IntegrityOptions(verify=False)
        ... )
    """

    verify: bool = True
    """Whether every byte that is loaded is compared with its checksum.

    False loads a checkpoint that another program edited after it was saved; what
    is damaged then goes unnoticed.
    """


class CheckpointLayout(enum.Enum):
    """Which kind of checkpoint is saved; what is loaded is told by what is there."""

    ORBAX = "orbax"
    """Ours and Orbax's: the two libraries read each other's checkpoints."""

    SAFETENSORS = "safetensors"
    """The files of Hugging Face: one, where the path ends in `.safetensors`, or else a
    directory of them. For `save` and `save_async` of arrays alone."""

    AUTO = "auto"
    """Whatever is found at the path, as any load does; saves write `ORBAX`."""
