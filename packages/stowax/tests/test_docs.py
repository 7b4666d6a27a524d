"""The pages keep their word: code blocks run, links lead somewhere.

The blocks of one page run in order and share their names, in an empty directory.  A
block that cannot run says so, and why, for every reader of the source:

    <!-- no-run: needs four hosts -->
    ```python no-run
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("packages/*/README.md"),
    ]
)

FENCE = re.compile(r"^(?P<fence>```+|~~~+)(?P<info>[^`]*)$")
REASON = re.compile(r"^<!-- no-run: \S.* -->$")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    info: str
    """What follows the fence, ``python no-run``."""

    code: str

    line: int
    """Where the code begins, counted from one."""

    before: str
    """The line above the fence."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """A reader may paste the Python blocks of a page one after the other."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}

    for block in _blocks(page.read_text()):
        if block.info == "python":
            # Line numbers of a traceback are those of the page.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_that_do_not_run_say_why(page):
    """Python is either run or has its reason in the line above."""
    for block in _blocks(page.read_text()):
        where = f"{page}:{block.line}"
        assert block.info, f"{where}: which language is this?"
        assert not block.info.startswith(("py ", "python3", "Python")), where
        if block.info.startswith("python") and block.info != "python":
            assert block.info == "python no-run", where
            assert REASON.match(block.before), f"{where}: no reason given"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """A relative link names a file of the repository, and a heading that is there."""
    for target in _links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page}: {target}"
        assert found.is_relative_to(ROOT), f"{page}: {target} leaves the repository"
        if anchor:
            assert anchor in _anchors(found.read_text()), f"{page}: {target}"


def test_every_page_is_within_reach():
    """Each page of docs/ is linked from another page."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _links(page.read_text())
    }

    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - linked == set()


def test_blocks_and_links_are_found():
    """The reader of pages sees fences, infos, lines, links and headings."""
    page = """# A `B` c-d!
<!-- no-run: why -->
```python no-run
[no](link.md)
```
[yes](other.md#there) ![and](picture.png)
"""

    assert list(_blocks(page)) == [
        Block(
            info="python no-run",
            code="[no](link.md)",
            line=4,
            before="<!-- no-run: why -->",
        )
    ]
    assert list(_links(page)) == ["other.md#there", "picture.png"]
    assert _anchors(page) == {"a-b-c-d"}


def _blocks(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    opened = None
    for number, line in enumerate(lines):
        match = FENCE.match(line)
        if opened is None and match:
            opened = number, match["fence"], match["info"].strip()
        elif opened is not None and line.strip() == opened[1]:
            start, _, info = opened
            yield Block(
                info=info,
                code="\n".join(lines[start + 1 : number]),
                line=start + 2,
                before=lines[start - 1] if start else "",
            )
            opened = None
    assert opened is None, f"the block at line {opened[0] + 1} does not end"


def _prose(text: str) -> str:
    """The page without its blocks."""
    for block in _blocks(text):
        text = text.replace(block.code, "", 1) if block.code else text
    return text


def _links(text: str) -> Iterator[str]:
    for match in LINK.finditer(_prose(text)):
        yield match["target"]


def _anchors(text: str) -> set[str]:
    """The names that hosts of Markdown give to headings."""
    headings = re.findall(r"^#+ (.*)$", _prose(text), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
