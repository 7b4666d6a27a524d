"""The frozen reading of a `Context`: what an operation got when it started.

Plain values, read once at the door and handed down; nothing below the doors asks for
the active Context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from stowax.errors import UnsupportedOptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One option that an operation must not pass over in silence."""

    option: str
    """Where it is assigned, ``Context.array.saving.use_ocdbt``."""

    reason: str
    """What was found and what to do, to follow the option's name."""

    saving_only: bool
    """Whether loading is the same for every value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How trees are read.

    A handler that was made with a Context reads by that one, also inside an operation
    under way; all other settings are those of the operation.
    """

    partial: bool = False
    """Whether the abstract state may leave out parts of the stored tree."""

    rename: tuple[tuple[str, str], ...] = ()
    """Rules from names in the result to stored names."""

    container_types: tuple[type, ...] = ()
    """Classes that stored containers may be made of."""

    casting: str = "unsafe"
    """Whether a conversion that loses range or kind is a warning or an error (safe)."""

    pads: bool = False
    """Whether arrays of another shape are padded and cut."""

    fills_missing: bool = False
    """Whether missing chunks of foreign checkpoints are zeros."""

    as_numpy: bool = False
    """Whether arrays come back as NumPy unless asked for with a sharding."""

    maps_files: bool = False
    """Whether arrays may be mappings of local files instead of copies."""

    mesh: jax.sharding.Mesh | None = None
    """What shardings over an abstract mesh are resolved against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """How an array is asked to be stored; None where nothing is asked."""

    dtype: Any = None
    """Whatever NumPy takes for a dtype."""

    chunk_byte_size: int | None = None
    """Upper limit of a chunk, uncompressed."""

    shard_axes: Sequence[int] | None = None
    """Axes along which a chunk holds one element."""

    compression: str | None = None
    """How chunks are compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSettings:
    """What a save needs to know about the writing of arrays."""

    storage: StorageSettings = StorageSettings()
    """What is asked of every array."""

    storage_of_leaf: Callable[[Any, Any], Any] | None = None
    """Called with key path and value of a leaf: what is asked of this one before."""

    use_ocdbt: bool = True
    """Whether chunks share data files and are found by an index; else each is a file.
    """

    use_zarr3: bool = True
    """Whether arrays are described as zarr 3; else 2."""

    use_compression: bool | None = None
    """Whether chunks are compressed of which nothing else is said; None leaves it to
    the kind of store."""

    data_file_size_bytes: int = 0
    """Size from which on a data file takes no further chunk; 0: there is none."""

    share_among_replicas: bool = True
    """Whether all processes that hold a part may be chosen to write it."""

    share_from_bytes: int = 0
    """Smaller parts are written by the first process that holds them."""

    share_among_most: int | None = None
    """How many of the processes that hold a part are considered; None: all."""

    pins_transfers: bool | None = None
    """Whether devices write to page-locked host memory; None: GPUs do."""

    is_first: Callable[[Any], Any] | None = field(default=None, compare=False)
    """Called with the key path of a leaf: whether it is staged and written before
    others. Not compared: what it answers decides, not who."""

    record_shardings: bool = True
    """Whether shardings are written down."""

    record_array_metadata: bool = True
    """Whether `array_metadatas` is written, for Orbax."""


READING_BYTES = 48 << 20
"""What loads may take beside their results, unless an option says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """How much host memory operations may take beside values and results."""

    staging_bytes: int | None = None
    """Of all saves together; None: half of what the process may still take."""

    reading_bytes: int = READING_BYTES
    """Of all loads together, beside what they return."""

    surge_bytes: int = 0
    """What the program is about to need elsewhere."""

    @property
    def passing_bytes(self) -> int:
        """How much of `reading_bytes` is for what was read and becomes something else.

        An array of another dtype, or on a device with memory of its own.
        """
        return self.reading_bytes // 2

    def staging_limit_bytes(self, spare_bytes: int, taken_bytes: int) -> int:
        """What all saves together may take.

        Args:
            spare_bytes: What the process may still take.
            taken_bytes: What saves have taken already.
        """
        if self.staging_bytes is not None:
            return self.staging_bytes
        return taken_bytes + max(0, spare_bytes - self.surge_bytes) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operation needs to know of its Context, for as long as it runs."""

    verify: bool = True
    """Whether loaded bytes are compared with their checksums."""

    loading: LoadSettings = LoadSettings()
    """How trees are read."""

    leaf_handlers: tuple[object, ...] = ()
    """Types of leaves on top of the standard ones, the last one first."""

    rich_types: bool = False
    """Whether tuples and NamedTuples are told apart in the documents of Orbax, too."""

    timeout_secs: float = 1200
    """Deadline of the whole operation, in seconds from the call."""

    post_finalization_callback: Callable[[], None] | None = None
    """Called once a save is published and durable."""

    store: object | None = None
    """The store to use; None for the one that the path names."""

    runtime: object | None = None
    """The runtime to use; None for that of this process."""

    registry: object | None = None
    """Finds handlers; None for the global registry."""

    handlers: tuple[tuple[str | None, object], ...] = ()
    """Handlers on top of the registry, the last one first, with the name they serve."""

    deepcopy_host_arrays: bool = True
    """Whether host arrays are copied before a background save begins."""

    barrier_prefix: str = ""
    """Prefix of every barrier name."""

    saving: SaveSettings = SaveSettings()
    """How arrays are written."""

    memory: MemorySettings = MemorySettings()
    """How much memory is taken."""

    permission_mode: int | None = None
    """Permission bits of the directory of a checkpoint; None: those of any other."""

    path_class: type[Any] = epath.Path
    """Class of the paths that guests get."""

    writes_safetensors: bool = False
    """Whether saves write safetensors files."""

    safetensors_file_bytes: int = 5_000_000_000
    """How many bytes of tensors one of several such files has at most."""

    report: object | None = field(default=None, compare=False)
    """Who is told what the operation does; None: nobody."""

    refusals: tuple[Refusal, ...] = ()
    """Options that ask for more than is built; see `check_supported`."""


def check_supported(
    settings: Settings, *, saving: bool = True, as_safetensors: bool = False
) -> None:
    """Refuses options whose meaning is not built yet.

    Args:
        settings: What the operation was given.
        saving: Whether the operation writes; a load ignores what concerns only saves.
        as_safetensors: Whether it can write safetensors files.

    Raises:
        UnsupportedOptionError: An option would change what is written or returned.
            Names every such option.
    """
    lines = [
        f"  {refusal.option} {refusal.reason}"
        for refusal in settings.refusals
        if saving or not refusal.saving_only
    ]
    if saving and settings.writes_safetensors and not as_safetensors:
        lines.append(
            "  Context.checkpoint_layout is SAFETENSORS, which only `save` and "
            "`save_async` write; leave it at ORBAX"
        )
    if lines:
        raise UnsupportedOptionError(
            "options that this version cannot follow:\n" + "\n".join(lines)
        )
