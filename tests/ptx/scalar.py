"""Instructions that every thread takes for itself, on its registers alone."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ptx.registers import Array, Mask, Registers
from ptx.source import Instruction, UnknownError


class Scalar(NamedTuple):
    """What an instruction computes, and NumPy's letters for the types of its operands and its result.

    ?: predicate, h and H: 16 bits with and without sign, i and I: 32, q and Q: 64, f: float32.
    """

    compute: Callable[..., Array]
    types: str


def same(number: Array) -> Array:
    """The number, to be converted to the type of the result; integers are cut to its bits ("cvt")."""
    return number


def to_bfloat16(number: Array) -> Array:
    """The bits of the nearest bfloat16, of two the even one ("cvt")."""
    bits = number.view("u4")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(number), 0x7FFF, rounded)


def from_bfloat16(bits: Array) -> Array:
    """The float32 that bfloat16 bits stand for."""
    return (bits.astype("u4") << 16).view("f")


def to_float16(number: Array) -> Array:
    """The bits of the nearest float16 ("cvt")."""
    return number.astype("e").view("H")


def from_float16(bits: Array) -> Array:
    """The float32 that float16 bits stand for."""
    return bits.view("e").astype("f")


def to_tf32(number: Array) -> Array:
    """The bits of the nearest tf32, halves away from zero ("cvt")."""
    return number.view("I") + 0x1000 & 0xFFFFE000


def packed(convert: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Two numbers converted to 16 bits each, the first one in the upper half ("cvt")."""
    return lambda upper, lower: convert(upper).astype("I") << 16 | convert(lower)


def fused(x: Array, y: Array, z: Array) -> Array:
    """x * y + z, rounded once but for rare halves ("fma")."""
    return x.astype("d") * y + z


def divided(x: Array, y: Array) -> Array:
    """The quotient of integers, cut towards zero ("div")."""
    return (x - np.fmod(x, y)) // y


def multiplied_wide(x: Array, y: Array) -> Array:
    """The product in twice as many bits ("mul")."""
    if x.dtype.itemsize == 8:
        raise UnknownError("a product of 128 bits")
    wide = f"{x.dtype.kind}8"
    return x.astype(wide) * y.astype(wide)


def upper_half_of_product(x: Array, y: Array) -> Array:
    """The upper half of the bits of a product ("mul")."""
    return multiplied_wide(x, y) >> 8 * x.dtype.itemsize


def shifted_left(x: Array, by: Array) -> Array:
    """The bits, shifted by up to their number ("shl")."""
    bits = 8 * x.dtype.itemsize
    return np.where(by < bits, x << np.minimum(by, bits - 1).astype(x.dtype), 0)


def shifted_right(x: Array, by: Array) -> Array:
    """The same to the right, where those of a negative integer are filled up with ones ("shr")."""
    bits = 8 * x.dtype.itemsize
    least = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return least if x.dtype.kind == "i" else np.where(by < bits, least, 0)


def joined_and_shifted_left(low: Array, high: Array, by: Array) -> Array:
    """The upper half of two registers as one, shifted by up to 31 ("shf")."""
    return (high.astype("Q") << 32 | low) << (by & 31).astype("Q") >> 32


def bit_field(x: Array, first: Array, count: Array) -> Array:
    """Some bits of a number, the last of them its sign where it has one ("bfe")."""
    field = x.astype("q") >> first & (1 << count.astype("q")) - 1
    return np.where(field >> (count - 1) & 1, field - (1 << count.astype("q")), field) if x.dtype.kind == "i" else field


def bytes_chosen(low: Array, high: Array, choice: Array) -> Array:
    """Four of eight bytes, chosen by four bits each; the highest repeats the sign of the byte instead ("prmt")."""
    numbers = high.astype("Q") << 32 | low
    result = np.zeros(1, "Q")
    for place in range(4):
        chosen = (choice >> 4 * place).astype("Q")
        byte = numbers >> 8 * (chosen & 7) & 0xFF
        result = result | np.where(chosen & 8, byte // 128 * 0xFF, byte) << np.uint64(8 * place)
    return result


def unequal(x: Array, y: Array) -> Array:
    """Whether numbers differ; what is no number does not ("setp")."""
    return (x < y) | (x > y)


def chosen(x: Array, y: Array, first: Array) -> Array:
    """x where the predicate is true, else y ("selp")."""
    return np.where(first, x, y)


# fmt: off
TYPES = {  # NumPy's letters
    "pred": "?",
    "b16": "H", "u16": "H", "s16": "h",
    "b32": "I", "u32": "I", "s32": "i", "f32": "f",
    "b64": "Q", "u64": "Q", "s64": "q",
}
WIDER = {"H": "I", "h": "i", "I": "Q", "i": "q"}

# By name without its type; t stands for that, w for the type of twice as many bits.
OPERATIONS: dict[str, tuple[Callable[..., Array], str]] = {
    "abs":            (np.abs, "t>t"),
    "add":            (np.add, "tt>t"),
    "and":            (np.bitwise_and, "tt>t"),
    "bfe":            (bit_field, "tII>t"),
    "div":            (divided, "tt>t"),
    "div.full":       (np.divide, "tt>t"),
    "ex2.approx.ftz": (np.exp2, "t>t"),
    "fma.rn":         (fused, "ttt>t"),
    "fma.rn.ftz":     (fused, "ttt>t"),
    "mad.lo":         (lambda x, y, z: x * y + z, "ttt>t"),
    "mad.wide":       (lambda x, y, z: multiplied_wide(x, y) + z, "ttw>w"),
    "max":            (np.fmax, "tt>t"),
    "min":            (np.fmin, "tt>t"),
    "mov":            (same, "t>t"),
    "mul":            (np.multiply, "tt>t"),
    "mul.hi":         (upper_half_of_product, "tt>t"),
    "mul.lo":         (np.multiply, "tt>t"),
    "mul.wide":       (multiplied_wide, "tt>w"),
    "neg":            (np.negative, "t>t"),
    "not":            (np.bitwise_not, "t>t"),
    "or":             (np.bitwise_or, "tt>t"),
    "prmt":           (bytes_chosen, "ttt>t"),
    "rem":            (np.fmod, "tt>t"),
    "selp":           (chosen, "tt?>t"),
    "setp.eq":        (np.equal, "tt>?"),
    "setp.ge":        (np.greater_equal, "tt>?"),
    "setp.gt":        (np.greater, "tt>?"),
    "setp.le":        (np.less_equal, "tt>?"),
    "setp.lt":        (np.less, "tt>?"),
    "setp.ne":        (unequal, "tt>?"),
    "setp.num":       (lambda x, y: (x == x) & (y == y), "tt>?"),
    "shf.l.wrap":     (joined_and_shifted_left, "ttt>t"),
    "shl":            (shifted_left, "tI>t"),
    "shr":            (shifted_right, "tI>t"),
    "sub":            (np.subtract, "tt>t"),
    "xor":            (np.bitwise_xor, "tt>t"),
}

CONVERSIONS = {
    "cvt.f32.bf16":      Scalar(from_bfloat16, "H>f"),
    "cvt.f32.f16":       Scalar(from_float16, "H>f"),
    "cvt.rna.tf32.f32":  Scalar(to_tf32, "f>I"),
    "cvt.rn.bf16.f32":   Scalar(to_bfloat16, "f>H"),
    "cvt.rn.bf16x2.f32": Scalar(packed(to_bfloat16), "ff>I"),
    "cvt.rn.f16.f32":    Scalar(to_float16, "f>H"),
    "cvt.rn.f16x2.f32":  Scalar(packed(to_float16), "ff>I"),
    "cvt.rn.f32.s32":    Scalar(same, "i>f"),
    "cvt.s64.s32":       Scalar(same, "i>q"),
    "cvt.u16.u32":       Scalar(same, "I>H"),
    "cvt.u32.u16":       Scalar(same, "H>I"),
    "cvt.u32.u64":       Scalar(same, "Q>I"),
    "cvt.u64.u16":       Scalar(same, "H>Q"),
    "cvt.u64.u32":       Scalar(same, "I>Q"),
}
# fmt: on


@functools.cache
def scalar(opcode: str) -> Scalar | None:
    """What an instruction computes, if it is one of these and Triton makes it of our kernels.

    Numbers below the normal ones are not flushed to zero (ftz).
    """
    name, _, suffix = opcode.rpartition(".")
    if name not in OPERATIONS or suffix not in TYPES:
        return CONVERSIONS.get(opcode)
    compute, types = OPERATIONS[name]
    letter = TYPES[suffix]
    return Scalar(compute, types.replace("t", letter).replace("w", WIDER.get(letter, "w")))


def run(instruction: Instruction, registers: Registers, mask: Mask | None) -> None:
    """Compute the result for every thread."""
    found = scalar(instruction.opcode)
    if found is None:
        raise UnknownError(instruction.text)
    to, *operands = instruction.operands
    taken, given = found.types.split(">")
    with np.errstate(all="ignore"):
        numbers = (registers.read(operand, kind) for operand, kind in zip(operands, taken, strict=True))
        result = np.asarray(found.compute(*numbers)).astype(given)
    registers.write(to, result, mask)
