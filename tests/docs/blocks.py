"""The code blocks of a Markdown page, and how the tests run them.

A page shows the real thing. A comment right above a block, which no reader sees, makes it small enough for a test:

    <!-- run first
    python scripts/sample_folder.py photos
    -->
    <!-- when tested
    --epochs 300 => --epochs 1
    -->
    ```bash
    parhelion train halonet_tiny --data photos --out runs/first --epochs 300
    ```

`run first` is a script of bash that runs before the block. Each line of `when tested` says which text of the block
becomes which other; every such text must be there. No comment leaves a block out.
"""

import re
from dataclasses import dataclass
from pathlib import Path

RUN = ("bash", "python")
SHOWN = ("text",)
"""Languages of blocks that are read only: what a command prints, formulas, figures."""
BLOCK = re.compile(
    r"(?P<notes>(?:^<!-- (?:run first|when tested)\n(?:(?!-->).*\n)*-->\n+)*)"
    r"^```(?P<language>[^\s`]*)[^\n`]*\n(?P<code>(?:.*\n)*?)^```$",
    re.MULTILINE,
)
NOTE = re.compile(r"^<!-- (run first|when tested)\n((?:(?!-->).*\n)*)-->", re.MULTILINE)
ARROW = " => "


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code as a test runs it."""

    line: int
    """Where it begins on its page, from 1."""
    language: str
    first: str
    """A script of bash to run before it; may be empty."""
    code: str


def blocks(text: str) -> list[Block]:
    """The blocks of bash and Python on a page, in order.

    Raises:
        ValueError: a block of another language, one that is indented or not closed, a comment that belongs to no block,
            or a text to replace that its block does not hold.
    """
    found, notes = [], 0
    matches = list(BLOCK.finditer(text))
    for match in matches:
        notes += len(NOTE.findall(match["notes"]))
        line = text.count("\n", 0, match.start("code")) + 1
        if match["language"] in RUN:
            found.append(_block(match, line))
        elif match["language"] not in SHOWN and not match["language"].startswith("{"):
            raise ValueError(f"line {line}: a block of {match['language'] or 'no language'}; known are {RUN + SHOWN}")
    fences = len(re.findall(r"^[ \t]*```", text, re.MULTILINE))
    if fences != 2 * len(matches):
        raise ValueError(f"{fences} fences for {len(matches)} blocks: one is indented or not closed")
    if len(re.findall(r"^<!-- (?:run first|when tested)", text, re.MULTILINE)) != notes:
        raise ValueError("a comment for the tests stands above no block")
    return found


def _block(match: re.Match[str], line: int) -> Block:
    first, code = "", match["code"]
    for kind, content in NOTE.findall(match["notes"]):
        if kind == "run first":
            first += content
            continue
        for replacement in content.splitlines():
            before, arrow, after = replacement.partition(ARROW)
            if not arrow or before not in code:
                raise ValueError(f"line {line}: {replacement!r} replaces nothing in the block")
            code = code.replace(before, after)
    return Block(line=line, language=match["language"], first=first, code=code)


def pages(root: Path) -> list[Path]:
    """The README and every page of the site that holds blocks."""
    every = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [page for page in every if re.search(r"^```[^{\n]", page.read_text(encoding="utf-8"), re.MULTILINE)]
