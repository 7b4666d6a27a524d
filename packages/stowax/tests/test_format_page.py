"""The worked example of docs/explain/format.md, made anew and compared.

`python packages/stowax/tests/test_format_page.py` writes it into the page.
"""

import pathlib
import re
import sys
import tempfile
import uuid
from unittest import mock

import numpy as np
import pytest

import stowax
from stowax._codecs._checksum import crc32c
from stowax._codecs._item_manifest import decode_part, decode_root
from stowax._runtime import Runtime

PAGE = pathlib.Path(__file__).parents[3] / "docs/explain/format.md"
BEGIN, END = "<!-- example -->\n", "<!-- end of example -->\n"
STATE = {"step": "7", "w": np.array([1, 2.5, -1], np.float32)}
SHOWN_AS_TEXT = (
    "_CHECKPOINT_METADATA",
    "stowax.json",
    "state/_METADATA",
    "state/stowax.manifest",
)
SHOWN_IN_HEX = ("state/d/data-0", "state/stowax.chunks.0")


def saved(directory):
    """The files of the example, by name; the same whenever it is made."""
    runtime = Runtime(clock_nsecs=lambda: 1_700_000_000_000_000_000)
    path = pathlib.Path(directory) / "example"
    # Drafts and databases have names of their own, by chance.
    fixed = mock.patch.object(uuid, "uuid4", return_value=uuid.UUID(int=7))
    with fixed, stowax.Context(runtime=runtime):
        stowax.save(path, STATE, custom_metadata={"made": "by hand"})
    runtime.close()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def shown(files):
    """The example as the page has it."""
    lines = ["```text\n", *_listing(files), "```\n"]
    for name in SHOWN_AS_TEXT:
        lines += [f"\n`{name}`:\n\n```json\n", _wrapped(files[name].decode()), "```\n"]
    for name in SHOWN_IN_HEX:
        lines += [f"\n`{name}`:\n\n```text\n", *_hex(files[name]), "```\n"]
    return "".join(lines)


def _listing(files):
    for name, data in files.items():
        yield f"{len(data):5} bytes  {name}\n"


def _wrapped(text):
    """At most so long, broken where JSON has a space or a comma; nothing else added."""
    words = re.findall(r".+?(?:, |,|$)", text.rstrip("\n"))
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > 100:
            lines.append(line.rstrip(" "))
            line = ""
        line += word
    return "\n".join([*lines, line]) + "\n"


def _hex(data):
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        yield f"{start:04x}  {row.hex(' '):47}  {text}\n"


def test_the_page_shows_what_is_written(tmp_path):
    """Byte for byte, as a save with a given clock writes it today."""
    if sys.byteorder != "little":
        pytest.skip("times and numbers are shown as little-endian machines have them")
    page = PAGE.read_text()
    example = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]

    assert example.strip() == shown(saved(tmp_path)).strip()


def test_the_example_says_what_it_should(tmp_path):
    """What the text beside it explains is there."""
    files = saved(tmp_path)
    data = files["state/d/data-0"]
    table = decode_part(files["state/stowax.chunks.0"])
    root = decode_root(files["state/stowax.manifest"])

    payload = STATE["w"].tobytes()
    assert data == payload + crc32c(payload).to_bytes(4, "little")
    assert (table.files, table.length_bytes.tolist()) == (("d/data-0",), [12])
    assert table.sums.tolist() == [crc32c(payload)]
    assert [leaf.name for leaf in root.leaves] == ["step", "w"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        new = shown(saved(scratch))
    text = PAGE.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:before]}\n{new}\n{text[after:]}")
