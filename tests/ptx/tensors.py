"""Global memory: the tensors that a kernel was given, and nothing else."""

import ctypes
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from ptx.problems import Problems
from ptx.registers import Array, Mask


class Tensors:
    """The bytes of tensors, found by address."""

    def __init__(self, tensors: Iterable[Tensor], problems: Problems) -> None:
        """The tensors must stay in memory meanwhile."""
        self.problems = problems
        extents: list[list[int]] = []
        for start, end in sorted(map(_extent, filter(Tensor.numel, tensors))):
            if extents and start < extents[-1][1]:  # the same memory by another name
                extents[-1][1] = max(end, extents[-1][1])
            else:
                extents.append([start, end])
        self.starts, self.ends = np.array(extents or [[0, 0]], np.int64).T
        self.bytes = [np.ctypeslib.as_array((ctypes.c_uint8 * (e - s)).from_address(s)) for s, e in extents]

    def read(self, at: Array, size: int, mask: Mask) -> Array:
        """So many bytes for every thread of a mask; ones elsewhere, and beside the tensors."""
        found = np.full((len(mask), size), 0xFF, np.uint8)
        for number, threads, places in self._found(at, size, mask, "read"):
            found[threads] = self.bytes[number][places]
        return found

    def write(self, at: Array, data: Array, mask: Mask) -> None:
        """Write the bytes of every thread of a mask."""
        for number, threads, places in self._found(at, data.shape[1], mask, "written"):
            self.bytes[number][places] = data[threads]

    def _found(self, at: Array, size: int, mask: Mask, done: str) -> Iterable[tuple[int, Array, Array]]:
        """For each tensor that is met: its number, the threads that meet it, and the places of the bytes in it."""
        threads = mask.nonzero()[0]
        at = at.astype(np.int64)[threads]
        self.problems.note("an address is no multiple of the bytes that are wanted", unless=not (at % size).any())
        numbers = np.searchsorted(self.starts, at, side="right") - 1
        inside = (numbers >= 0) & (at + size <= self.ends[numbers])
        self.problems.note(f"memory beside all tensors is {done}", unless=bool(inside.all()))
        for number in np.unique(numbers[inside]):
            these = inside & (numbers == number)
            yield number, threads[these], (at[these] - self.starts[number])[:, None] + np.arange(size)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of its first byte and after its last one."""
    numbers = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + numbers * tensor.element_size()
