"""A session: what several calls save, until it becomes one checkpoint.

    <final>.partial_save/                                  the session
        <name>.partial_save.pending_<nsecs>_<id>/          an update: what a call saved
            stowax.update.<id>                             its record, a seal
            _CHECKPOINT_METADATA, …                        as in a checkpoint
            <item>/
                stowax.manifest.<id>, stowax.chunks.<id>.0, …
                ocdbt.process_0/manifest.ocdbt, …          a database for each process
        <id>.orbax-checkpoint-tmp                          an update that is not whole
        stowax.finalized                                   what the session has become

The directories are those of Orbax, which can finish a session as long as nothing is
replaced; that is why our records have names of their own in every update: Orbax puts
the files of all updates into one directory. Names order updates: the later ones lie on
top of the earlier ones.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stowax._codecs._checksum import seal, unseal
from stowax._codecs._item_manifest import FINALIZED as FINALIZED_FORMAT
from stowax._codecs._item_manifest import (
    UPDATE,
    check_version,
    decode_digests,
    digest,
    encode_digests,
)
from stowax._formats._base import ITEM_DOCUMENT
from stowax._formats._orbax_json import PARTIAL_MARK, UNFINISHED_MARK
from stowax._formats._stowax import Seal
from stowax._manifest import Digest
from stowax._stores._base import join
from stowax.errors import CorruptCheckpointError

FINALIZED = "stowax.finalized"
"""Names the checkpoint that the session has become, for who finds both."""

_RECORD = "stowax.update."
_UPDATE_NAME = re.compile(r".*\.pending_([0-9]+)_([0-9a-f]{32})", re.DOTALL)
_GUARD_ID = "0" * 32


def session_of(final: str) -> str:
    """The directory of the session of a final path; that of a session is itself."""
    return final if final.endswith(PARTIAL_MARK) else f"{final}{PARTIAL_MARK}"


def final_of(path: str) -> str:
    """The final path of a session, given either."""
    return path.removesuffix(PARTIAL_MARK)


def draft_of_update(final: str, identity: str) -> str:
    """Where an update is made; Orbax takes it for nothing of its own."""
    return join(session_of(final), f"{identity}{UNFINISHED_MARK}")


def identity_of_draft(draft: str) -> str:
    """The id of an update that is being made."""
    return posixpath.basename(draft).removesuffix(UNFINISHED_MARK)


def update_path(final: str, nsecs: int, identity: str) -> str:
    """Where a complete update lies."""
    session = session_of(final)
    name = f"{posixpath.basename(session)}.pending_{nsecs}_{identity}"
    return join(session, name)


def parse_update(name: str) -> tuple[int, str] | None:
    """When an update was made, and its id, by its name; None: it is no update."""
    found = _UPDATE_NAME.fullmatch(name)
    if found is None or found[2] == _GUARD_ID:
        return None
    return int(found[1]), found[2]


def is_of_session(name: str) -> bool:
    """Whether a directory in a session may be there: it is an update, or will be."""
    return UNFINISHED_MARK in name or _UPDATE_NAME.fullmatch(name) is not None


def guard_files(final: str) -> dict[str, bytes]:
    """Files, by path, at which a finalization by Orbax stops before it does anything.

    It knows no replacement, and nothing of a checkpoint that the session began from: it
    would mix old values with new ones. It looks at the first directory first.
    """
    path = f"{update_path(final, 0, _GUARD_ID)}/finalize-with-stowax/{ITEM_DOCUMENT}"
    text = "This session replaces values: finish it with `stowax.partial.finalize`.\n"
    return {path: text.encode()}


def update_record(identity: str) -> str:
    """Name of the record of an update, in its directory."""
    return f"{_RECORD}{identity}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFacts:
    """What there is to know of an update beside what it saves."""

    replaces: bool
    """Whether it may replace what lies below it."""
    base: Digest | None
    """Of the root document of the checkpoint that the session began from."""


def encode_update(
    facts: UpdateFacts,
    *,
    documents: Mapping[str, Digest],
    manifests: Mapping[str, Digest],
    guests: Mapping[str, Digest],
) -> bytes:
    """The record of an update; all names are relative to its directory."""
    base = None if facts.base is None else [facts.base.size_bytes, facts.base.sha256]
    return seal(
        {
            "format": UPDATE,
            "version": 1,
            "replaces": facts.replaces,
            "base": base,
            "documents": encode_digests(documents),
            "manifests": encode_digests(manifests),
            "guests": encode_digests(guests),
        }
    )


def decode_update(data: bytes) -> tuple[UpdateFacts, Seal]:
    """Reads the record of an update.

    Raises:
        CorruptCheckpointError: A byte is not what was written.
    """
    document = unseal(data)
    check_version(document, UPDATE)
    try:
        base = document["base"]
        facts = UpdateFacts(
            replaces=bool(document["replaces"]),
            base=None if base is None else decode_digests({"base": base})["base"],
        )
        sealed = Seal(
            layout="composite",
            documents=decode_digests(document["documents"]),
            manifests=decode_digests(document["manifests"]),
            guests=decode_digests(document["guests"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCheckpointError(f"it is no record: {error}") from error
    return facts, sealed


def encode_finalized(root: bytes, updates: Sequence[str]) -> bytes:
    """Says what a session has become: its updates, and the document at the root."""
    found = encode_digests({"root": digest(root)})
    return seal(
        {"format": FINALIZED_FORMAT, "version": 1, "updates": list(updates), **found}
    )


def finalized_as(data: bytes, root: bytes) -> frozenset[str]:
    """The updates that became the checkpoint with this root, by a record; or none."""
    try:
        document = unseal(data)
        check_version(document, FINALIZED_FORMAT)
        if decode_digests({"root": document["root"]})["root"] == digest(root):
            return frozenset(map(str, document["updates"]))
    except (CorruptCheckpointError, KeyError, TypeError, ValueError):
        pass  # It was being written when somebody died.
    return frozenset()
