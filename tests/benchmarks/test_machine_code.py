"""The Triton kernels compiled for GPUs that are not there."""

import subprocess
import sys
from pathlib import Path

import machine_code
import pytest

SCRIPT = Path(machine_code.__file__)
# What the papers' networks spend their time on.
COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
from machine_code import figures
for row in figures(sys.argv[2].split(";"), int(sys.argv[3])):
    print(row.kernel, row.registers, row.spilled, row.shared, row.instructions)
"""


def compiled(names: list[str], capability: int) -> list[list[str]]:
    """Name, registers, spilled bytes, shared bytes and instructions of each kernel, from a process of its own."""
    command = [sys.executable, "-c", COMPILED, str(SCRIPT.parent), ";".join(names), str(capability)]
    return [line.split() for line in subprocess.check_output(command, text=True).splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("capability", machine_code.CAPABILITIES)
def test_the_papers_kernels_hardly_spill(capability: int):
    names = ["halo, 64 channels, 64x64, b 8 h 3", "content, 64 channels, 56x56", "axial, 64 channels, 56x56"]
    rows = compiled(names, capability)
    assert {"forward", "backward_queries", "backward_keys"} <= {row[0] for row in rows}
    assert len(rows) >= 8
    for kernel, registers, spilled, shared, instructions in rows:
        # The summary keeps two of its numbers a thread in memory on sm_90.
        assert int(spilled) <= (8 if kernel == "summarise" else 0), kernel
        assert 16 <= int(registers) <= 255
        assert 0 <= int(shared) <= 99 * 1024  # every GPU of these kinds has as much for one program
        assert int(instructions) > 50


def test_kernels_compile_where_every_size_is_one():
    assert len(compiled(["halo, one pixel", "content, one pixel", "axial, one pixel"], 90)) == 8


def test_an_unknown_case_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, SCRIPT, "--only", "hallo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("parhelion: no case is called 'hallo'; there are halo, 64 channels")
