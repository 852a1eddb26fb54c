"""Running a kernel: its programs one after the other, the threads of each in step."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ptx import groups, memory, scalar, warps
from ptx.problems import Problems
from ptx.program import Program
from ptx.registers import Array, Mask, Registers
from ptx.shared import Shared
from ptx.source import Instruction, Source, UnknownError
from ptx.tensors import Tensors

Step = Callable[[Instruction, Program, Mask | None], None]
MOST_STEPS = 200_000

STEPS: dict[re.Pattern[str], Step] = {
    memory.MOVE: memory.move,
    memory.COPY: memory.copy,
    re.compile(r"cp\.async\.commit_group"): lambda _, program, __: program.shared.copies.append([]),
    re.compile(r"cp\.async\.wait_group"): lambda i, program, _: program.shared.wait_for_copies(i.operands[0]),
    warps.SHUFFLE: warps.shuffle,
    warps.MATRICES: warps.matrices,
    warps.PRODUCT: warps.multiply,
    groups.PRODUCT: groups.multiply,
    re.compile(r"wgmma\.commit_group\.sync\.aligned"): lambda _, program, __: program.shared.products.append([]),
    re.compile(r"wgmma\.wait_group\.sync\.aligned"): lambda i, program, _: program.shared.wait_for_products(
        i.operands[0]
    ),
    # Orders registers, which products read and write at once here.
    re.compile(r"wgmma\.fence\.sync\.aligned"): lambda *_: None,
    re.compile(r"fence\.proxy\.async\.shared::cta"): lambda _, program, __: program.shared.fence(),
    re.compile(r"bar\.sync"): lambda _, program, __: program.shared.barrier(),
    # Threads of a warp go in step.
    re.compile(r"bar\.warp\.sync"): lambda *_: None,
}


class Kernel(NamedTuple):
    """A kernel, the numbers it is called with by the names of its parameters, and the memory of its programs."""

    source: Source
    parameters: dict[str, Array]
    tensors: Tensors
    shared_bytes: int
    problems: Problems

    def __call__(self, grid: Sequence[int]) -> None:
        """Run all programs of a grid."""
        steps = [step(instruction.opcode) for instruction in self.source.instructions]
        for place in np.ndindex(*grid):
            self._run(steps, self._program(place, grid))

    def _program(self, place: Sequence[int], grid: Sequence[int]) -> Program:
        """The program at a place of the grid."""
        threads = self.source.threads
        fixed = {"%tid.x": np.arange(threads, dtype="I"), "global_smem": np.zeros(threads, "I"), **self.parameters}
        for axis, number, count in zip("xyz", place, grid, strict=False):
            fixed |= {f"%ctaid.{axis}": np.full(threads, number, "I"), f"%nctaid.{axis}": np.full(threads, count, "I")}
        shared = Shared(self.shared_bytes, self.problems)
        return Program(Registers(threads, fixed), self.tensors, shared, self.problems)

    def _run(self, steps: Sequence[Step | None], program: Program) -> None:
        """Run a program to its end."""
        at, instructions, labels = 0, self.source.instructions, self.source.labels
        for _ in range(MOST_STEPS):
            instruction, do = instructions[at], steps[at]
            at += 1
            mask = program.registers.mask(instruction)
            if mask is not None and not mask.any():
                continue
            self.problems.place = f"{at}: {instruction.text}"
            if do is not None:
                do(instruction, program, None if mask is None or mask.all() else mask)
            elif mask is not None and not mask.all():
                raise UnknownError(f"threads take different ways: {instruction.text}")
            elif instruction.opcode == "ret":
                return
            else:
                at = labels[str(instruction.operands[0])]
        raise UnknownError(f"a program that takes more than {MOST_STEPS} steps")


@functools.cache
def step(opcode: str) -> Step | None:
    """What an instruction does; None for one that says where to go on."""
    if opcode in ("bra", "bra.uni", "ret"):
        return None
    if opcode.startswith("ld.param."):
        return _parameter
    if scalar.scalar(opcode) is not None:
        return _scalar
    for pattern, do in STEPS.items():
        if pattern.fullmatch(opcode):
            return do
    raise UnknownError(f"the instruction {opcode}")


def _parameter(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    to, address = instruction.operands
    program.registers.write(to, program.registers.values[address.base], mask)


def _scalar(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    if any(isinstance(operand, tuple) for operand in instruction.operands):
        memory.pack(instruction, program, mask)
    else:
        scalar.run(instruction, program.registers, mask)
