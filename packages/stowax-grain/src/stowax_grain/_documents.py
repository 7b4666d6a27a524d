"""The documents of a saved iterator: an index, and one document per process.

    data/
      data.json               the index, under the name that JSON handlers read
      process_0-of-2.json     position and pipeline of the first process
      process_1-of-2.json     position and pipeline of the second

The pipeline is noted per process because processes usually read different shards; the
index repeats that of the primary process for people who look at it.

Grain's own `save` writes only the files `process_<i>-of-<n>.json`, with the bare state.
Those are read too, without the checks that need the index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from stowax import errors
from stowax.path import Path
from stowax_grain._state_json import decode_state, encode_state

__all__ = [
    "Kind",
    "Position",
    "encode_position",
    "read_position",
    "write_position",
]

INDEX_NAME = "data.json"
FORMAT = "stowax-grain"
VERSION = 1

Kind = Literal["dataset", "data_loader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where one process stands in its pipeline."""

    kind: Kind
    """Which Grain API the iterator belongs to; their states do not mix."""

    state: Any
    """What `get_state` returned; for a data loader, its JSON text decoded."""

    process_index: int
    process_count: int

    fingerprint: tuple[str, ...] | None
    """The pipeline, line by line; None when Grain itself wrote the files."""

    tag: str | None
    grain_version: str | None


def write_position(directory: Path, documents: dict[str, str]) -> None:
    """Writes encoded documents into `directory`."""
    # Straight under their names: until all is published, nobody reads them.
    for name, text in documents.items():
        (directory / name).write_text(text, encoding="utf-8")


def encode_position(position: Position, *, is_primary: bool) -> dict[str, str]:
    """Encodes what this process has to write; the primary one writes the index too."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "kind": position.kind,
        "grain_version": position.grain_version,
        "process_count": position.process_count,
        "tag": position.tag,
        "fingerprint": list(position.fingerprint or ()),
    }
    own = about | {
        "process_index": position.process_index,
        "state": encode_state(position.state),
    }
    documents = {_process_name(position.process_index, position.process_count): own}
    if is_primary:
        documents[INDEX_NAME] = about
    return {
        name: json.dumps(document, indent=2) + "\n"
        for name, document in documents.items()
    }


def read_position(
    directory: Path, *, kind: Kind, process_index: int, process_count: int
) -> Position:
    """Reads what the process `process_index` of `process_count` saved.

    Args:
        directory: The checkpointable's directory.
        kind: Kind of the iterator that will be set; Grain's own files do not say it.
        process_index: The process whose position is wanted.
        process_count: How many processes load; as many must have saved.

    Raises:
        stowax.errors.InvalidLayoutError: The directory holds no iterator, or one that
            a later release wrote.
        stowax.errors.TreeMismatchError: Another number of processes saved it.
        stowax.errors.CorruptCheckpointError: A document is damaged or missing.
    """
    path = directory / _process_name(process_index, process_count)
    if not (directory / INDEX_NAME).exists():
        _check_grain_files(directory, path, process_count)
        return Position(
            kind=kind,
            state=_with_int_shards(_read_json(path)),
            process_index=process_index,
            process_count=process_count,
            fingerprint=None,
            tag=None,
            grain_version=None,
        )
    index = _read_index(directory / INDEX_NAME)
    if index["process_count"] != process_count:
        raise _other_process_count(directory, index["process_count"], process_count)
    try:
        own = _read_json(path)
        return Position(
            kind=own["kind"],
            state=decode_state(own["state"]),
            process_index=own["process_index"],
            process_count=own["process_count"],
            fingerprint=tuple(own["fingerprint"]),
            tag=own["tag"],
            grain_version=own["grain_version"],
        )
    except FileNotFoundError as error:
        raise errors.CorruptCheckpointError(
            f"{path} is missing, although the index beside it counts"
            f" {process_count} processes"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise errors.CorruptCheckpointError(
            f"{path} does not hold the position of a Grain iterator: {error!r}"
        ) from error


def _process_name(index: int, count: int) -> str:
    return f"process_{index}-of-{count}.json"


def _read_index(path: Path) -> dict[str, Any]:
    index = _read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise errors.InvalidLayoutError(
            f"{path} is a JSON checkpointable, but not a saved Grain iterator"
        )
    if index.get("version") != VERSION:
        raise errors.InvalidLayoutError(
            f"{path} has version {index.get('version')!r} of the format; this release"
            f" of stowax-grain reads version {VERSION}, a later one may read it"
        )
    if not isinstance(index.get("process_count"), int):
        raise errors.CorruptCheckpointError(f"{path} does not count its processes")
    return index


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.CorruptCheckpointError(f"{path} is not JSON: {error}") from error


def _check_grain_files(directory: Path, path: Path, process_count: int) -> None:
    if path.exists():
        return
    counts = {
        int(other.stem.rpartition("-of-")[2])
        for other in directory.glob("process_*-of-*.json")
        if other.stem.rpartition("-of-")[2].isdecimal()
    }
    if counts:
        raise _other_process_count(directory, max(counts), process_count)
    raise errors.InvalidLayoutError(f"{directory} holds no saved Grain iterator")


def _other_process_count(
    directory: Path, saved: int, loading: int
) -> errors.TreeMismatchError:
    return errors.TreeMismatchError(
        f"the iterator at {directory} was saved by {saved} process(es), and {loading}"
        " process(es) load it; a position belongs to the shards of its process, so load"
        " it with the same number of processes, or start the data afresh by leaving"
        " this checkpointable out"
    )


def _with_int_shards(state: Any) -> Any:
    # Grain's own files turn the shard numbers of an interleave into strings, which its
    # set_state then ignores, restarting those shards from zero.
    match state:
        case list():
            return [_with_int_shards(element) for element in state]
        case dict():
            state = {key: _with_int_shards(value) for key, value in state.items()}
            shards = state.get("future_states")
            if isinstance(shards, dict) and all(key.isdecimal() for key in shards):
                state["future_states"] = {int(key): v for key, v in shards.items()}
            return state
        case _:
            return state
