"""Instructions that move numbers between registers, shared memory and tensors (PTX ISA, "Data Movement")."""

import re

import numpy as np

from ptx.program import Program
from ptx.registers import Array, Mask
from ptx.source import Address, Instruction, Item, Operand

MOVE = re.compile(r"(ld|st)\.(global|shared)(?:::cta)?(?:\.v([24]))?\.b(16|32)")
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global")


def move(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """ld, st: one to four numbers of every thread."""
    kind, space, _, bits = MOVE.fullmatch(instruction.opcode).groups()  # type: ignore[union-attr]
    to, origin = instruction.operands
    if kind == "ld":
        _load(program, space, _items(to), origin, int(bits) // 8, mask)
    else:
        _store(program, space, to, _items(origin), int(bits) // 8, mask)


def copy(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """cp.async: from a tensor to shared memory, or zeros for what the last operand leaves out."""
    to, origin, size, *wanted = instruction.operands
    active = program.active(mask)
    count = program.registers.read(wanted[0], "I") if wanted else np.array([size])
    real = active & (np.broadcast_to(count, active.shape) > 0)
    program.problems.note("a copy is of a part of its bytes", unless=bool((count[count > 0] == size).all()))
    data = program.tensors.read(program.address(origin, "Q"), size, real)
    data[~real] = 0
    at = program.address(to, "I")[active][:, None] + np.arange(size)
    program.shared.write(at, data[active], program.warps[active], arriving=True)


def pack(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """mov from or to registers in braces, of 16 bits each."""
    registers = program.registers
    to, origin = instruction.operands
    if isinstance(to, tuple):
        halves = np.broadcast_to(registers.read(origin, "I"), registers.threads).copy().view("H").reshape(-1, len(to))
        for item, half in zip(to, halves.T, strict=True):
            registers.write(item, np.ascontiguousarray(half), mask)
    else:
        low, high = (registers.read(item, "H").astype("I") for item in origin)
        registers.write(to, high << 16 | low, mask)


def _load(program: Program, space: str, to: tuple[Item, ...], origin: Address, size: int, mask: Mask | None) -> None:
    total, active = size * len(to), program.active(mask)
    if space == "global":
        data = program.tensors.read(program.address(origin, "Q"), total, active)
    else:
        data = np.zeros((len(active), total), np.uint8)
        at = program.address(origin, "I")[active][:, None] + np.arange(total)
        data[active] = program.shared.read(at, program.warps[active])
    for item, number in zip(to, data.view(f"u{size}").T, strict=True):
        program.registers.write(item, np.ascontiguousarray(number), mask)


def _store(program: Program, space: str, to: Address, items: tuple[Item, ...], size: int, mask: Mask | None) -> None:
    active = program.active(mask)
    data = _bytes([program.registers.read(item, f"u{size}") for item in items], len(active))
    if space == "global":
        program.tensors.write(program.address(to, "Q"), data, active)
    else:
        at = program.address(to, "I")[active][:, None] + np.arange(data.shape[1])
        program.shared.write(at, data[active], program.warps[active])


def _items(operand: Operand) -> tuple[Item, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _bytes(numbers: list[Array], threads: int) -> Array:
    return np.stack([np.broadcast_to(number, threads) for number in numbers], 1).view(np.uint8)
