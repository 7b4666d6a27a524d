"""What a safetensors checkpoint will look like, decided before a value is looked at.

The format knows tensors by name and texts, and nothing else: no containers, no numbers
of Python, no checksums.  Whatever would be lost is refused here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowax._codecs._safetensors import DTYPES, METADATA, encode_header
from stowax._codecs._zarr import dtype_name
from stowax._keypath import at_leaf, check_names
from stowax._leaves._base import Description
from stowax._leaves._refusal import check_all
from stowax._plan._storage import narrowed, plan_storage
from stowax._plan._tensor_files import (
    TensorPlan,
    TensorSpec,
    file_names,
    plan_tensors,
)
from stowax._settings import SaveSettings
from stowax._tree_values import TreeValues
from stowax.errors import (
    InvalidMetadataError,
    ProcessesError,
    TreeError,
    UnsupportedLeafError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """All that is decided before a value is looked at."""

    values: TreeValues
    plan: TensorPlan
    names: tuple[str, ...]
    """Of the files; one that is the checkpoint itself has none."""
    headers: tuple[bytes, ...]
    narrowed: tuple[str, ...]
    """Leaves that lose range or kind in the dtype that they are written in."""

    @property
    def structure(self) -> bytes:
        """A digest of what all processes have to see alike."""
        specs = [(file.writer, file.specs) for file in self.plan.files]
        facts = self.values.flat.names, specs, self.headers
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).digest()


def lay_out(
    values: TreeValues,
    saving: SaveSettings,
    metadata: Mapping[str, Any],
    *,
    file_limit_bytes: int | None,
) -> TensorLayout:
    """Checks, names and plans what this process writes of a tree.

    Args:
        values: The tree.
        saving: How arrays are to be stored; only dtypes are followed.
        metadata: Texts to keep with it.
        file_limit_bytes: A file that has a tensor takes no other one beyond this; None:
            the checkpoint is one file.

    Raises:
        TreeError: Names every leaf that stands in the way.
        InvalidMetadataError: It has more than texts.
    """
    _check_texts(metadata)
    check_names(values.flat.root)
    described = values.describe()
    storages = plan_storage(values.flat, described, saving)
    dtypes = [None if storage is None else storage.dtype for storage in storages]
    plan = plan_tensors(
        _specs(values, described, dtypes),
        process_index=values.processes.index,
        file_limit_bytes=file_limit_bytes,
    )
    names = values.flat.names
    try:
        headers = tuple(
            encode_header(
                {names[s.leaf]: (dtype_name(s.dtype), s.shape) for s in file.specs},
                metadata,
            )
            for file in plan.files
        )
    except ValueError as error:
        raise TreeError(
            f"{error}. Save into a directory, with a smaller "
            "Context.safetensors.max_file_bytes, so that there are more files"
        ) from None
    return TensorLayout(
        values=values,
        plan=plan,
        names=tuple(file_names(len(plan.files))),
        headers=headers,
        narrowed=narrowed(names, storages),
    )


def _specs(
    values: TreeValues, described: Sequence[Description], dtypes: Sequence[Any]
) -> list[TensorSpec]:
    """What there is to write; refuses all that is no tensor at once."""
    errors: list[UnsupportedLeafError] = []
    specs: list[TensorSpec] = []
    for leaf, (name, encoded, description, dtype) in enumerate(
        zip(values.flat.names, values.leaves, described, dtypes, strict=True)
    ):
        reason = _reason(name, description, dtype)
        if encoded.custom is not None:
            reason = f"is a {encoded.custom.typestr}, which would not be known any more"
        if reason is not None:
            try:
                with at_leaf(name):
                    raise UnsupportedLeafError(reason)
            except UnsupportedLeafError as error:
                errors.append(error)
            continue
        parts = tuple((h.box, h.processes) for h in description.holdings)
        specs.append(TensorSpec(leaf, dtype, description.shape, parts))
    check_all(errors, "written")
    return specs


def _reason(name: str, description: Description, dtype: Any) -> str | None:
    """Why a leaf cannot be a tensor."""
    if description.prng_impl is not None:
        return "PRNG keys are no tensors; save `jax.random.key_data(key)`"
    if description.kind not in ("jax.Array", "np.ndarray"):
        return "safetensors files hold arrays alone; leave it out, or make it an array"
    if dtype_name(dtype) not in DTYPES:
        return (
            f"safetensors files have no {dtype_name(dtype)}; convert to one of "
            + ", ".join(DTYPES)
        )
    if name == METADATA:
        return "the name has another meaning in safetensors files; rename it"
    return None


def _check_texts(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if isinstance(value, str) and not _is_text(key + value):
            raise InvalidMetadataError(
                f"custom_metadata has half of a surrogate pair under {key!r}, which no "
                "file can hold"
            )
    others = [key for key, value in metadata.items() if not isinstance(value, str)]
    if others:
        raise InvalidMetadataError(
            "safetensors files keep texts only; custom_metadata has other values under "
            f"{', '.join(map(repr, others))}: give `json.dumps(value)`"
        )


def check_alike(structures: Sequence[bytes]) -> None:
    """Refuses what processes are about to write together if they do not mean the same.

    Args:
        structures: `TensorLayout.structure` of every process, by index.

    Raises:
        ProcessesError: Names the first that differs.
    """
    for index, structure in enumerate(structures):
        if structure != structures[0]:
            raise ProcessesError(
                f"the trees of processes 0 and {index} differ in names, shapes, dtypes "
                "or shards, or their custom_metadata do; all processes have to save "
                "the same"
            )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
