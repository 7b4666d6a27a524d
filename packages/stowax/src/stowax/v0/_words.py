"""What errors propose, in the words of the older API.

The operations below are those of the newer one, and so is the advice in what they
raise. At the doors of this one it is said anew: the class and the attributes of an
error stay, its message and its notes propose what there is here.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from stowax.errors import StowaxError

_NEAR = "if that is its name"

_WORDS = {
    re.compile(theirs): ours
    for theirs, ours in {
        r"`overwrite=True`": "`force=True`",
        r"`result\(\)` on what `save_async` returned": "`wait_until_finished()`",
        r"PyTreeOptions\.Loading\(partial_load=True\)": (
            "PyTreeRestore(partial_restore=True)"
        ),
        r"ArrayOptions\.Loading\(enable_padding_and_truncation=True\)": (
            "ArrayRestoreArgs(strict=False), or StandardRestore(strict=False)"
        ),
        r"ArrayOptions\.Loading\(as_numpy=True\)": (
            "RestoreArgs(restore_type=numpy.ndarray)"
        ),
        r"ArrayOptions\.Loading\(mesh=mesh\)": (
            "ArrayRestoreArgs(mesh=mesh, mesh_axes=...)"
        ),
        _NEAR + r": PyTreeOptions\.Loading\(rename=\{(.*)\}\)": (
            _NEAR + r" (\1): "
            "PyTreeRestore(transforms={...: Transform(original_key=...)})"
        ),
        r"stowax\.preview_load\([\w, ]*\), stowax\.metadata\(path\)": "metadata(path)",
        r"stowax\.PLACEHOLDER": "PLACEHOLDER",
        # Options of a Context count here as well; this is where they are.
        r"`PyTreeOptions\.": "`stowax.options.PyTreeOptions.",
        r"`Context\(integrity=IntegrityOptions": (
            "`stowax.Context(integrity=stowax.options.IntegrityOptions"
        ),
        r"\bthe checkpointable\b": "the item",
    }.items()
}
"""What other doors propose, and what is meant by it here."""


@contextmanager
def in_its_words() -> Generator[None]:
    """Says errors in the words of this API.

    Raises:
        StowaxError: The same error, with another message.
    """
    try:
        yield
    except Exception as error:  # Those of guests have notes of ours, too.
        if isinstance(error, StowaxError) and error.args:
            message, *others = error.args
            error.args = (_said(message), *others)
        if notes := getattr(error, "__notes__", None):
            notes[:] = [_said(note) for note in notes]
        raise


def _said(text: object) -> object:
    if isinstance(text, str):
        for theirs, ours in _WORDS.items():
            text = theirs.sub(ours, text)
    return text
