"""A program (CTA) of a kernel while it runs: its threads' registers and its memory."""

from typing import NamedTuple

import numpy as np

from ptx.problems import Problems
from ptx.registers import Array, Mask, Registers
from ptx.shared import Shared
from ptx.source import Address
from ptx.tensors import Tensors

WARP = 32


class Program(NamedTuple):
    """What an instruction works on."""

    registers: Registers
    tensors: Tensors
    shared: Shared
    problems: Problems

    @property
    def warps(self) -> Array:
        """The warp of every thread."""
        return np.arange(self.registers.threads) // WARP

    def address(self, address: Address, kind: str) -> Array:
        """Addresses for every thread, of `kind` Q in global and I in shared memory."""
        base = self.registers.read(address.base, kind).astype(np.int64)
        return np.broadcast_to(base + address.offset, self.registers.threads)

    def active(self, mask: Mask | None) -> Mask:
        """The mask, of all threads where there is none."""
        return np.ones(self.registers.threads, bool) if mask is None else mask
