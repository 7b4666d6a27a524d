"""Every checkpoint of tests/golden/ is read, refused or found damaged, as it should be.

A case stands in one of four tables; none is left out.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from golden_cases import GOLDEN, all_cases, compare, load_case

import stowax
from stowax._formats._detect import open_checkpoint
from stowax._formats._orbax_tree_read import decode_documents
from stowax._formats._orbax_tree_write import encode_documents
from stowax._stores._local import LocalStore
from stowax.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidLayoutError,
    InvalidNameError,
    StowaxError,
)

READ = (
    "mp2_basic",
    "v0_array",
    "v0_composite",
    "v0_json",
    "v0_manager",
    "v0_pytree",
    "v0_pytree_files",
    "v0_standard",
    "v1_basic",
    "v1_cast_bf16",
    "v1_checkpointables",
    "v1_chunked",
    "v1_containers",
    "v1_dtypes",
    "v1_dtypes_zarr2",
    "v1_int_keys",
    "v1_list_root",
    "v1_name_collision",
    "v1_nnx_state",
    "v1_odd_keys",
    "v1_only_strings",
    "v1_partial_final",
    "v1_prng",
    "v1_rich_types",
    "v1_scalars",
    "v1_sharded_8dev",
    "v1_sharded_8dev_zarr2_files",
    "v1_sharded_replica_folders",
    "v1_small_data_files",
    "v1_training",
    "v1_uncompressed",
    "v1_zarr2_files",
    "v1_zarr2_ocdbt",
    "v1_zarr3_files",
)
"""Complete checkpoints; what is loaded equals what was saved."""

REFUSED = {
    "v1_interrupted_rename": "checkpoint.orbax-checkpoint-tmp",
    "v1_partial_pending": "checkpoint.partial_save",
}
"""Unfinished saves, with the directory that somebody might try to load."""

DAMAGED = {
    "corrupt_bad_json_metadata": CorruptCheckpointError,
    "corrupt_flipped_byte_btree": CorruptCheckpointError,
    "corrupt_flipped_byte_manifest": CorruptCheckpointError,
    "corrupt_missing_manifest": CorruptCheckpointError,
    "corrupt_missing_metadata": InvalidLayoutError,
    "corrupt_truncated_data_file": CorruptCheckpointError,
}
"""Damage that is found, with the error."""

UNNOTICED = {
    # The format of the peer has no checksum there.
    "corrupt_flipped_byte_data": ["['big']"],
    # A sharding is a wish, not data: arrays are placed without it.
    "corrupt_missing_sharding": [],
}
"""Damage that nothing in the format shows, with the leaves that come out wrong."""


def test_every_case_has_its_place():
    """No directory is left out, not one without a description; none is there twice."""
    listed = [*READ, *REFUSED, *DAMAGED, *UNNOTICED]
    directories = [path.name for path in GOLDEN.iterdir() if path.is_dir()]

    assert sorted(listed) == sorted(directories)
    assert sorted(listed) == [case.name for case in all_cases()]


@pytest.mark.parametrize("name", [*DAMAGED, *UNNOTICED])
def test_damage_is_found_where_it_can_be(name):
    """Only what nothing could notice, by the words of the case, goes unnoticed."""
    by = load_case(name).expected["detectable_by"]

    assert by.startswith(("NOTHING", "not damage")) == (name in UNNOTICED)


@pytest.mark.parametrize("name", READ)
def test_reads_what_was_saved(name):
    """Every checkpointable has the tree, the values and the dtypes that were saved."""
    case = load_case(name)

    assert case.status == "ok"
    for path, content in case.checkpoints.items():
        assert _differences(path, content) == []


@pytest.mark.parametrize("name", READ)
def test_reads_in_the_background(name):
    """So it is in the background: all checkpointables together, and trees alone."""
    for path, content in load_case(name).checkpoints.items():
        assert _differences(path, content, load=_load_later) == []


@pytest.mark.parametrize("name", READ)
def test_knows_what_was_saved_beside(name):
    """Handlers, metrics and the user's metadata are those that were saved."""
    for path, content in load_case(name).checkpoints.items():
        found = asyncio.run(open_checkpoint(LocalStore(), str(path), verify=True))

        handlers = content.get("item_handlers") or {}
        assert found.custom_metadata == (content.get("custom_metadata") or {})
        assert found.metrics == content.get("metrics")
        assert found.typestrs == (
            {"": handlers} if isinstance(handlers, str) else handlers
        )


@pytest.mark.parametrize("name", REFUSED)
def test_unfinished_save_is_refused(name):
    """An unfinished save is no checkpoint, neither under its own name nor the final."""
    case = load_case(name)

    assert case.status == "incomplete"
    with pytest.raises(CheckpointNotFoundError, match=REFUSED[name]):
        stowax.load(case.directory / "checkpoint")
    with pytest.raises((InvalidLayoutError, InvalidNameError)):
        stowax.load(case.directory / REFUSED[name])


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_found(name):
    """Damage that the format shows is an error of ours that names the item."""
    case = load_case(name)

    assert case.status == "corrupt"
    with pytest.raises(DAMAGED[name], match="state"):
        stowax.load_checkpointables(case.directory / "checkpoint")
    with pytest.raises(StowaxError, match="state"):
        stowax.load(case.directory / "checkpoint")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes by name")
@pytest.mark.parametrize("name", ["v1_basic", "v1_zarr3_files", "v0_pytree_files"])
def test_pipe_in_place_of_a_file(tmp_path, name):
    """No load waits for the other end of a pipe: it is named, or was not needed."""
    (path,) = load_case(name).checkpoints
    copy = Path(shutil.copytree(path, tmp_path / "c"))
    pipes = 0
    for file in sorted(file for file in copy.rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        for look in (stowax.checkpointables_metadata, stowax.load_checkpointables):
            try:
                with jax.enable_x64(True):
                    look(copy)
            except CorruptCheckpointError as error:
                pipes += f"{file} is no file" in str(error)
        file.unlink()
        file.write_bytes(content)

    assert pipes >= 4


@pytest.mark.parametrize("name", UNNOTICED)
def test_damage_that_the_format_cannot_show(name):
    """Without a checksum only the damaged leaf is wrong, and nothing else."""
    case = load_case(name)
    content = case.expected["undamaged"]["checkpoint"]

    differences = _differences(case.directory / "checkpoint", content)

    assert [line.partition(":")[0] for line in differences] == UNNOTICED[name]


@pytest.mark.parametrize(
    "item",
    sorted(GOLDEN.glob("v?_*/checkpoint*/**/_METADATA")),
    ids=lambda p: p.parts[-3],
)
def test_documents_are_written_as_the_peer_writes_them(item):
    """What the documents of Orbax say comes out again when they are written anew."""
    directory = item.parent
    names = ("_METADATA", "_sharding", "_strings.json", "array_metadatas/*")
    files = [file for name in names for file in directory.glob(name)]
    documents = {str(f.relative_to(directory)): f.read_bytes() for f in files}
    manifest = decode_documents(documents, path=str(directory)).manifest

    again = encode_documents(
        manifest,
        process_count=sum("/" in name for name in documents),
        manifest_name=None,
    )

    # Without its option for rich types, Orbax itself says None for a NamedTuple.
    said = {k: v.replace(b"NamedTuple", b"None") for k, v in documents.items()}
    assert {k: _tree_part(v) for k, v in again.items()} == {
        k: _tree_part(v) for k, v in said.items()
    }


def _tree_part(document: bytes) -> Any:
    said = json.loads(document)
    return said.get("tree_metadata", said)


def _load_later(path: Path) -> dict[str, Any]:
    loaded = stowax.load_checkpointables_async(path).result()
    kinds = stowax.checkpointables_metadata(path).metadata
    for name, value in loaded.items():
        if not isinstance(value, stowax.OpaqueCheckpointable) and kinds[name]:
            named = {"checkpointable_name": name} if name else {}
            loaded[name] = stowax.load_async(path, **named).result()
    return loaded


def _differences(
    path: Path,
    content: dict[str, Any],
    load: Callable[[Path], dict[str, Any]] = stowax.load_checkpointables,
) -> list[str]:
    """How what is loaded differs from a description of the whole checkpoint."""
    items = content.get("items") or {"": content["item"]}
    with jax.enable_x64(True):
        loaded = load(path)

    # Metrics belong to the checkpoint; they are none of its checkpointables.
    assert loaded.keys() == items.keys() - {"metrics"}
    return [
        difference
        for name, value in loaded.items()
        for difference in _item_differences(items[name], value)
    ]


def _item_differences(item: dict[str, Any], value: Any) -> list[str]:
    match item:
        case {"kind": "pytree", "tree": tree}:
            return compare(tree, value)
        case {"kind": "json", "json": expected}:
            return [] if value == expected else [f"other JSON: {value}"]
        case {"kind": "proto", "text": expected}:
            text = Path(value.path, "proto.pbtxt").read_text()
            return [] if text == expected else [f"other text: {text}"]
        case {"kind": "opaque", "files": expected}:
            files = list(value.files)
            return [] if files == expected else [f"other files: {files}"]
    raise ValueError(item["kind"])
