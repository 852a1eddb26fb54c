"""The registers of all threads of a program: an array with a number for every thread, for each name."""

import re
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ptx.source import Instruction, Item, UnknownError

Array = NDArray[Any]
Mask = NDArray[np.bool_]
NAMED_BY_LLVM = re.compile(r"%(p|rs|r|rd)\d+")


class Registers:
    """Holds bits, as unsigned integers or, of predicates, as booleans; who reads says which type they are of."""

    def __init__(self, threads: int, fixed: dict[str, Array]) -> None:
        """`fixed`: what stands in registers that no instruction writes."""
        self.threads = threads
        self.values = dict(fixed)

    def read(self, item: Item, dtype: DTypeLike) -> Array:
        """A number for every thread, or one for all where it is a constant."""
        dtype = np.dtype(dtype)
        if isinstance(item, int):
            if dtype.kind == "b":
                return np.array([item != 0])
            bits = item & (1 << 8 * dtype.itemsize) - 1
            return np.array([bits], np.dtype(f"u{dtype.itemsize}")).view(dtype)
        if item not in self.values:
            if not NAMED_BY_LLVM.fullmatch(item):
                raise UnknownError(f"the register {item}")
            # The compiler leaves registers unwritten where nothing depends on them; ones are no number, in any dtype.
            return self.read(-1, dtype)
        value = self.values[item]
        if value.dtype.itemsize < dtype.itemsize:
            raise UnknownError(f"{item}, of type {value.dtype}, is read as {dtype}")
        # A wider register is cut ("Operand Size Exceeding Instruction-Type Size").
        return (
            value.astype(f"u{dtype.itemsize}").view(dtype)
            if value.dtype.itemsize > dtype.itemsize
            else value.view(dtype)
        )

    def write(self, name: Item, value: Array, mask: Mask | None) -> None:
        """Write a number for every thread, or where `mask` is true; elsewhere a new register holds zero."""
        kind = np.dtype(bool if value.dtype == bool else f"u{value.dtype.itemsize}")
        bits = np.broadcast_to(value, self.threads).view(kind)
        if mask is not None:
            bits = np.where(mask, bits, self.values.get(str(name), np.zeros(1, kind)))
        self.values[str(name)] = np.ascontiguousarray(bits)

    def mask(self, instruction: Instruction) -> Mask | None:
        """The threads that an instruction is for; None for all."""
        if instruction.guard is None:
            return None
        guard = self.read(instruction.guard, bool)
        return ~guard if instruction.negated else guard
