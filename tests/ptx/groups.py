"""Products of a group of four warps: wgmma (PTX ISA, "Asynchronous warpgroup level matrix instructions")."""

import re
from typing import NamedTuple

import numpy as np

from ptx.program import WARP, Program
from ptx.registers import Array, Mask
from ptx.shared import GROUP
from ptx.source import Instruction, UnknownError
from ptx.warps import held_of, itemsize, numbers, rows_of

PRODUCT = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(?:16|8)\.f32\.(bf16|f16|tf32)\.\2")
ROWS, BYTES = 64, 32  # rows of the first factor; bytes of a row of either
THREADS = GROUP * WARP


class Factor(NamedTuple):
    """A matrix in shared memory: its descriptor, its rows (or columns, of B), and whether it lies the other way."""

    descriptor: Array
    rows: int
    transposed: bool


def multiply(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """wgmma.mma_async: D = A B, plus D where the scale is not zero; A of 64 rows in registers or in shared memory."""
    columns, dtype = PRODUCT.fullmatch(instruction.opcode).groups()  # type: ignore[union-attr]
    to, a, b, scale, *signs_and_ways = instruction.operands
    signs, ways = signs_and_ways[:2], [*signs_and_ways[2:]]
    if signs != [1, 1]:
        raise UnknownError(instruction.text)
    in_registers = isinstance(a, tuple)
    way_b, way_a = (ways.pop() if ways else 0), (ways.pop() if ways else 0)
    read = program.registers.read
    right = _of_each_group(program, Factor(read(b, "Q"), int(columns), bool(way_b)), dtype)
    if in_registers:
        left = rows_of(np.stack([read(item, "I") for item in a]), dtype).reshape(-1, ROWS, right.shape[-1])
    else:
        left = _of_each_group(program, Factor(read(a, "Q"), ROWS, bool(way_a)), dtype)
    product = left.astype("d") @ right.swapaxes(1, 2).astype("d")
    added = scale != 0 if isinstance(scale, int) else read(scale, bool)
    for item, sums in zip(to, held_of(product.reshape(-1, 16, int(columns))), strict=True):
        old = np.where(added, read(item, "f"), 0) if np.any(added) else 0
        program.registers.write(item, (old + sums).astype("f"), mask)


def _of_each_group(program: Program, factor: Factor, dtype: str) -> Array:
    """The factor in float32 (groups, rows, numbers), as each group's descriptor has it."""
    each = np.broadcast_to(factor.descriptor, program.registers.threads).reshape(-1, THREADS)
    program.problems.note(
        "the threads of a group have different descriptors", unless=bool(np.ptp(each, axis=1).max() == 0)
    )
    found = []
    for group, descriptor in enumerate(each[:, 0].tolist()):
        at = places(descriptor, factor.rows, itemsize(dtype), transposed=factor.transposed)
        found.append(program.shared.multiply(at, group).view("I"))
    return numbers(np.stack(found), dtype)


def places(descriptor: int, rows: int, size: int, *, transposed: bool) -> Array:
    """Where the bytes (rows, 32) of a factor lie ("Matrix-descriptor", "Shared Memory Matrix Layout").

    Units of 16 bytes in a span of `swizzle` bytes are exchanged, from row to row of 8. `transposed`: a span has numbers
    of one place in several rows, instead of one row's.
    """
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    mode, base = descriptor >> 62 & 3, descriptor >> 49 & 7
    if not mode or base:
        raise UnknownError(f"a matrix without swizzle, or with a base offset: descriptor {descriptor:#x}")
    swizzle = {1: 128, 2: 64, 3: 32}[mode]
    row, number = np.arange(rows)[:, None], np.arange(BYTES // size)
    if transposed:
        across = swizzle // size
        at = row % across * size + row // across * leading + number % 8 * swizzle + number // 8 * stride
    else:
        at = row // 8 * stride + row % 8 * swizzle + number * size
    at = start + at
    at = at ^ (at >> 7 & swizzle // 16 - 1) << 4
    return (at[:, :, None] + np.arange(size)).reshape(rows, BYTES)
