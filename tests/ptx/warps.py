"""Instructions that the 32 threads of a warp take together: shuffles, and matrices in the registers of a warp."""

import re

import numpy as np

from ptx.program import WARP, Program
from ptx.registers import Array, Mask
from ptx.scalar import from_bfloat16, from_float16
from ptx.source import Instruction

SHUFFLE = re.compile(r"shfl\.sync\.(bfly|idx)\.b32")
MATRICES = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
PRODUCT = re.compile(r"mma\.sync\.aligned\.m16n8k(?:16|8)\.row\.col\.f32\.(bf16|f16|tf32)\.\1\.f32")

LANE = np.arange(WARP)
ROW, QUARTER = LANE // 4, LANE % 4  # of a matrix of 8 rows, a thread holds a quarter of one


def shuffle(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """shfl.sync: the number of another lane, `idx` by its number, `bfly` by the bits it differs in."""
    to, origin, lane, _, _ = instruction.operands
    registers = program.registers
    number = np.broadcast_to(registers.read(origin, "I"), registers.threads)
    lane = registers.read(lane, "I")
    own = np.arange(registers.threads)
    source = own ^ lane if ".bfly." in instruction.opcode else own - own % WARP + lane % WARP
    registers.write(to, number[source], mask)


def matrices(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """ldmatrix, stmatrix: matrices of 8 x 8 numbers of 16 bits; each of the first lanes has the address of a row."""
    kind, count, transposed = MATRICES.fullmatch(instruction.opcode).groups()  # type: ignore[union-attr]
    address, items = instruction.operands[::-1] if kind == "ld" else instruction.operands
    rows = program.address(address, "I").reshape(-1, WARP)[:, : 8 * int(count)]  # warps, rows
    program.problems.note("a row of a matrix is not aligned", unless=not (rows % 16).any())
    at = (rows[:, :, None] + np.arange(16)).reshape(-1, 16)
    warps = np.arange(len(rows)).repeat(rows.shape[1])
    shape = (len(rows), int(count), 8, 8)
    if kind == "ld":
        found = program.shared.read(at, warps).view(np.uint16).reshape(shape)
        found = np.ascontiguousarray(found.swapaxes(2, 3) if transposed else found).view(np.uint32)
        for number, item in enumerate(items):
            program.registers.write(item, found[:, number].reshape(-1), mask)
    else:
        numbers = np.stack([program.registers.read(item, "I") for item in items])
        held = numbers.reshape(int(count), -1, WARP).swapaxes(0, 1)
        held = np.ascontiguousarray(held).view(np.uint16).reshape(shape)
        held = np.ascontiguousarray(held.swapaxes(2, 3) if transposed else held)
        program.shared.write(at, held.view(np.uint8).reshape(-1, 16), warps)


def multiply(instruction: Instruction, program: Program, mask: Mask | None) -> None:
    """mma: D = A B + C, A of 16 rows and B of 8 columns, each 32 bytes long, sums in float32.

    Tensor cores cut sums where this rounds them once (in float32, each of the three products of tf32).
    """
    dtype = PRODUCT.fullmatch(instruction.opcode)[1]  # type: ignore[index]
    to, *factors, start = ([*operand] for operand in instruction.operands)
    read = program.registers.read
    a, b = (np.stack([read(item, "I") for item in items]) for items in factors)
    # B's registers hold its columns as A's hold the upper eight rows.
    left, right = rows_of(a, dtype), rows_of(b.repeat(2, 0), dtype)[:, :8]
    product = left.astype("d") @ right.swapaxes(1, 2).astype("d")
    for item, sums, old in zip(to, held_of(product), start, strict=True):
        program.registers.write(item, (read(old, "f") + sums).astype("f"), mask)


def rows_of(registers: Array, dtype: str) -> Array:
    """The 16 rows of each warp's matrix, in float32, from four registers of every thread.

    Registers 0 and 1 hold the first half of rows 0 to 7 and 8 to 15, 2 and 3 the second half ("Matrix Fragments").
    """
    parts = numbers(registers, dtype).reshape(2, 2, -1, 8, 4 * (4 // itemsize(dtype)))  # half, eight rows, warp, row
    return parts.transpose(2, 1, 3, 0, 4).reshape(parts.shape[2], 16, -1)


def held_of(product: Array) -> Array:
    """What the threads hold of each warp's product of 16 rows: for 8 columns four numbers, two of a row each."""
    warps, _, columns = product.shape
    parts = product.reshape(warps, 2, 8, columns // 8, 4, 2)  # warp, eight rows, row, eight columns, quarter, number
    return parts.transpose(3, 1, 5, 0, 2, 4).reshape(columns // 2, -1)


def itemsize(dtype: str) -> int:
    """Bytes of a factor."""
    return 4 if dtype == "tf32" else 2


def numbers(words: Array, dtype: str) -> Array:
    """The factors in words of 32 bits, in float32; of tf32, the last 13 bits are not looked at."""
    words = np.ascontiguousarray(words)
    if dtype == "tf32":
        return (words & 0xFFFFE000).view("f")
    return (from_bfloat16 if dtype == "bf16" else from_float16)(words.view("H"))
