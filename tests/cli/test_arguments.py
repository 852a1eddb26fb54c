import pytest

from parhelion.cli.arguments import sentence

MISSING = """
╭─ Required options ─────────────────────────╮
│ Missing from parhelion evaluate:           │
│     DIR_OR_CHECKPOINT                      │
│         Run folder or file (required)      │
│     --data-dir PATH                        │
│         THE folder (required)              │
│ ────────────────────────────────────────── │
│ For full helptext, run:                    │
│     parhelion evaluate --help              │
╰────────────────────────────────────────────╯
"""
CHOICE = """
╭─ Invalid choice ─────────────────────────────────────────────────────────────╮
│ invalid choice 'foo' for argument '--optimizer'. Expected one of ('sgd',     │
│ 'adamw').                                                                    │
│ ──────────────────────────────────────────────────────────────────────────── │
│ For full helptext, run parhelion train halonet_tiny --help                   │
╰──────────────────────────────────────────────────────────────────────────────╯
"""


def in_ascii(box):
    """The same box as tyro draws it where the terminal knows no Unicode."""
    lines = [" " + line.strip("╭╮╰╯│").strip("─ ").ljust(70) for line in box.strip().splitlines()]
    return "\n".join([lines[0], " " + "-" * 70, *(line if line.strip() else " " + "-" * 70 for line in lines[1:])])


@pytest.mark.parametrize("drawn", [str, in_ascii])
def test_a_box_becomes_one_sentence_however_it_is_drawn(drawn):
    assert sentence(drawn(MISSING), "parhelion evaluate") == (
        "parhelion evaluate needs DIR_OR_CHECKPOINT and --data-dir; parhelion evaluate --help says more"
    )
    assert sentence(drawn(CHOICE), "parhelion train x") == (
        "invalid choice 'foo' for argument '--optimizer'; expected one of ('sgd', 'adamw'); "
        "parhelion train x --help says more"
    )
