"""Every block of code of the README and of the site runs; every link between pages leads somewhere."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from docs.blocks import blocks, pages
from docs.shell import ROOT, Shell

from parhelion.models.catalog import list_models
from parhelion.recipes.table import RECIPES

# What `make test` runs; the other pages take minutes.
FIRST = ("README.md", "quickstart.md")


def marks(page):
    """Exports do not mix with run-time shape checks."""
    found = [pytest.mark.compile] if page.name == "export.md" else []
    return found if page.name in FIRST else [*found, pytest.mark.thorough]


PAGES = [pytest.param(page, marks=marks(page)) for page in pages(ROOT)]


@pytest.mark.usefixtures("one_thread", "shapes_unchecked")
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path)
    # The blocks of Python on a page go on from one another, as a reader would type them.
    names = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        place = f"{page.relative_to(ROOT)}, line {block.line}"
        print(place)
        shell.run(block.first)
        if block.language == "bash":
            shell.run(block.code)
        else:
            exec(compile(block.code, place, "exec"), names)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nls\n```\n\n```\nls\n```\n", "a block of no language"),
        ("```ruby\nputs\n```\n", "a block of ruby"),
        ("* a list\n\n  ```bash\n  ls\n  ```\n", "indented or not closed"),
        ("```bash\nls\n", "indented or not closed"),
        ("<!-- when tested\nls => cd\n-->\n\nwords\n\n```bash\nls\n```\n", "stands above no block"),
        ("<!-- when tested\ncat => cd\n-->\n```bash\nls\n```\n", "replaces nothing"),
        ("<!-- when tested\nls\n-->\n```bash\nls\n```\n", "replaces nothing"),
    ],
)
def test_a_page_whose_blocks_would_not_be_tested_as_they_stand_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        blocks(text)


def test_a_block_is_made_small_by_the_comments_above_it():
    notes = "<!-- run first\nmkdir a\n-->\n<!-- when tested\n9 => 1\nb => c\n-->\n\n"
    text = notes + "```bash\nsleep 9 # b\n```\n```text\n9\n```\n"
    (block,) = blocks(text)
    assert (block.line, block.first, block.code) == (10, "mkdir a\n", "sleep 1 # c\n")


@pytest.mark.parametrize(
    "script", ["false", "parhelion models nothing_like_it", "pip install '.[nonesuch]'", "make nonesuch", "nonesuch"]
)
def test_a_command_that_fails_fails_its_page(script, tmp_path):
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        Shell(tmp_path).run(script)


def test_links_between_pages_lead_to_files():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_is_short_and_shows_pictures_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 2
    assert all(Path(ROOT, picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_page_of_the_papers_names_what_exists_and_every_published_run_with_its_result():
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+)`", text))
    for path in (name for name in named if name.endswith(".py")):
        assert (ROOT / "src" / "parhelion" / path).is_file(), path
    like_ours = {name for name in named if re.fullmatch(r"(mask_rcnn|gsa|halo|resnet_?\d)\w+\d\w*", name)}
    assert like_ours <= {*RECIPES, *list_models()}
    for name, entry in RECIPES.items():
        if entry.tag in ("paper", "cited", "recalled"):
            (row,) = [line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line]
            assert all(number in row for number in re.findall(r"\d+\.\d", entry.expected)), row
