"""The Triton kernels compiled for GPUs that are not there."""

import subprocess
import sys
from pathlib import Path

import machine_code
import pytest

from parhelion.errors import UserError

SCRIPT = Path(machine_code.__file__)
# What the papers' networks spend their time on.
COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
from machine_code import figures
for row in figures(sys.argv[2].split(";"), int(sys.argv[3])):
    print(row.kernel, row.registers, row.spilled, row.shared, row.instructions, min(row.loads))
"""
BARRIERS = """
import sys
sys.path.insert(0, sys.argv[1])
from machine_code import CASES, compiled_only
with compiled_only(90) as launched:
    for name in sys.argv[2].split(";"):
        CASES[name]()
    for launch, code in launched:
        print(launch.kernel.fn.__name__, code.asm["ttir"].count(".barrier"))
"""


def compiled(names: list[str], capability: int, code: str = COMPILED) -> list[list[str]]:
    """What `code` prints of each kernel, in a process of its own.

    By default: name, registers, spilled bytes, shared bytes, instructions, bytes of the narrowest load.
    """
    command = [sys.executable, "-c", code, str(SCRIPT.parent), ";".join(names), str(capability)]
    return [line.split() for line in subprocess.check_output(command, text=True).splitlines()]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("capability", machine_code.CAPABILITIES)
def test_the_papers_kernels_hardly_spill(capability: int):
    names = [
        "halo, 64 channels, b 8 h 3, tables bf16",
        "content, 64 channels, 56x56",
        "axial, 64 channels, 56x56",
    ]
    rows = compiled(names, capability)
    assert {"halo_forward", "halo_backward_queries", "halo_backward_keys"} <= {row[0] for row in rows}
    assert len(rows) >= 8
    for kernel, registers, spilled, shared, instructions, narrowest in rows:
        # The summary keeps two of its numbers a thread in memory on sm_90.
        assert int(spilled) <= (8 if kernel == "content_summarise" else 0), kernel
        assert 16 <= int(registers) <= 255
        assert 0 <= int(shared) <= 99 * 1024  # every GPU of these kinds has as much for one program
        assert int(instructions) > 50
        assert int(narrowest) >= 4  # statistics; maps and tables are read several channels at a time


@pytest.mark.slow
def test_kernels_compile_where_every_size_is_one_and_a_barrier_stands_between_tiles_that_add_to_sums_in_memory():
    # Triton puts its own barriers, for shared memory, into later stages of the code than the one that is looked at.
    one_pixel = ["content, one pixel", "halo, one pixel", "axial, one pixel"]
    rows = compiled([*one_pixel, "axial, 64 channels, 200x200"], 90, BARRIERS)
    assert len(rows) >= 8 + 3
    assert [kernel for kernel, barriers in rows if int(barriers)] == ["halo_backward_queries", "axial_backward_queries"]


def test_loads_are_as_wide_as_the_disassembler_says():
    widths = {"E": 4, "E.128": 16, "E.U16": 2, "E.S8": 1, "E.BYPASS.LTC128B.64": 8, "E.LTC128B": 4}
    assert {modifiers: machine_code.bytes_read(modifiers) for modifiers in widths} == widths


def test_an_unknown_case_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"^no case is called 'hallo'; there are halo, 64 channels"):
        machine_code.main(["--only", "hallo"])
